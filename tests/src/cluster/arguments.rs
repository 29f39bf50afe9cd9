//! How a node is started.

use super::{NODES, links};
use crate::Certs;

/// What node `n` is started with, whose harness finds it at `address`.
pub(super) fn arguments(n: usize, address: &str, more: &[&str]) -> Vec<String> {
    let client = format!("http://{address}");
    let all = (0..NODES).map(|n| format!("n{n}={}", links::url(n))).collect::<Vec<_>>().join(",");
    let own = format!("n{n}");
    let fixed = [
        ["--name", &own],
        ["--listen-client-urls", &client],
        ["--advertise-client-urls", &client],
        ["--listen-peer-urls", links::LISTEN],
        ["--initial-advertise-peer-urls", &links::url(n)],
        ["--initial-cluster", &all],
    ];
    fixed.into_iter().flatten().chain(more.iter().copied()).map(str::to_owned).collect()
}

/// What makes a node listen for clients with TLS as well.
pub(super) fn listening_with(certs: &Certs, plain: &str, secured: &str) -> [String; 3] {
    let file = |name| certs.path(name).display().to_string();
    [
        format!("--listen-client-urls=http://{plain},https://{secured}"),
        format!("--cert-file={}", file("server.pem")),
        format!("--key-file={}", file("server.key")),
    ]
}
