//! Helpers of the integration tests.
//!
//! `cargo xtask test` sets the environment that [`EtcdServer`] and [`Cluster`] read.

mod certs;
mod cluster;
mod hasty;
mod late;
mod leaderless;
mod ports;
mod proxy;
mod server;
pub mod soak;
mod stand_in;
pub mod worlds;

pub use certs::{Cert, Certs};
pub use cluster::{Cluster, NODES, SlowDisk};
pub use hasty::Hasty;
pub use late::Late;
pub use leaderless::Leaderless;
pub use proxy::{Conditions, Fault, Line, Proxy};
pub use server::{Clients, EtcdServer};

/// Sends a signal to a process that a test has started, as `kill` names it: `-STOP`.
///
/// # Panics
/// When it has ended.
pub async fn signal(child: &tokio::process::Child, name: &str) {
    let pid = child.id().expect("runs").to_string();
    let sent = tokio::process::Command::new("kill").args([name, &pid]).status().await.expect("kill exists");
    assert!(sent.success(), "{name}: {sent}");
}
