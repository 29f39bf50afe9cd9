//! Calls over connections, with real servers on loopback.

mod balance;
mod fleet;
mod goaway;
mod lists;
mod outlier;
mod packets;
mod pings;
mod retry;
mod serving;
#[cfg(feature = "tls")]
mod tls;
