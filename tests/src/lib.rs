//! Helpers of the integration tests.
//!
//! `cargo xtask test` sets the environment that [`EtcdServer`] reads.

mod proxy;
mod server;
pub mod worlds;

pub use proxy::{Fault, Proxy};
pub use server::EtcdServer;
