//! Helpers of the integration tests.
//!
//! `cargo xtask test` sets the environment that [`EtcdServer`] reads.

mod certs;
mod proxy;
mod server;
pub mod worlds;

pub use certs::{Cert, Certs};
pub use proxy::{Fault, Proxy};
pub use server::{Clients, EtcdServer};
