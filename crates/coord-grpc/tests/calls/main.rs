//! Calls over connections, with real servers on loopback.

mod balance;
mod deadlines;
mod fleet;
mod goaway;
mod limits;
mod lists;
mod messages;
mod outlier;
mod packets;
mod pings;
mod raw;
mod retry;
mod serving;
mod streams;
#[cfg(feature = "tls")]
mod tls;
mod unprocessed;
