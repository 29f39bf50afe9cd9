//! Fair queues: one key per contender below a prefix, on the contender's lease; the lowest create revision is
//! at the head. The layout is that of etcd's own lock service, so contenders of both are in one queue.

mod arrivals;
mod entrant;
mod entry;
mod evict;
mod mirror;
mod numbers;
pub(crate) mod send;
mod state;
mod ticket;
mod wait_all;
mod wait_one;

pub(crate) use entrant::Entrant;
pub(crate) use entry::Queues;
pub(crate) use ticket::Ticket;
