//! The contract of the coord toolkit as tests that every backend runs
