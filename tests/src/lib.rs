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
mod ways;
pub mod worlds;

pub use certs::{Cert, Certs};
pub use cluster::{Cluster, NODES, SlowDisk};
pub use hasty::Hasty;
pub use late::Late;
pub use leaderless::Leaderless;
pub use proxy::{Conditions, Fault, Line, Proxy};
pub use server::{Clients, EtcdServer, GrpcProxy, Snapshot};
pub use ways::{Ways, other_runtime};

/// `kill -NAME PID`; a negative process id is a group.
///
/// # Panics
/// When there is no such process.
pub async fn signal(pid: impl std::fmt::Display, name: &str) {
    let mut kill = tokio::process::Command::new("kill");
    let sent = kill.args([&format!("-{name}"), "--", &pid.to_string()]).status().await;
    assert!(sent.expect("kill exists").success(), "kill -{name} {pid}");
}
