//! Fair queues: one key per contender below a prefix, on the contender's lease; the lowest create revision is
//! at the head. The layout is that of etcd's own lock service, so both stand in one queue.

mod alone;
mod line;
mod local;
mod member;
mod mirror;
mod numbers;
mod shared;
mod spot;

pub(crate) use member::{Entering, Queues};
pub(crate) use spot::Spot;
