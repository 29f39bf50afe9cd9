//! Clients of one store, with faults and without.
