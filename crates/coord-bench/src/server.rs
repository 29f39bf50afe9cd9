//! What the server counts itself: free of noise, and the reason behind most figures.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::plan::Numbers;

/// Counters that only grow, and the name that each gets in the results.
const COUNTERS: [(&str, &str); 8] = [
    ("etcd_server_proposals_committed_total", "commits"),
    ("etcd_disk_wal_fsync_duration_seconds_count", "fsyncs"),
    ("etcd_disk_wal_fsync_duration_seconds_sum", "fsync_seconds"),
    ("etcd_debugging_mvcc_events_total", "events"),
    ("etcd_network_client_grpc_received_bytes_total", "bytes_in"),
    ("etcd_network_client_grpc_sent_bytes_total", "bytes_out"),
    ("process_cpu_seconds_total", "server_cpu_seconds"),
    ("etcd_debugging_mvcc_slow_watcher_total", "slow_watchers"),
];

/// One reading of the server's counters.
#[derive(Clone, Debug, Default)]
pub(crate) struct Counters(Numbers);

impl Counters {
    /// Reads them at `endpoint`, `host:port`.
    pub(crate) async fn read(endpoint: &str) -> Result<Self> {
        let text = get(endpoint, "/metrics").await?;
        let mut numbers = Numbers::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<f64>() else { continue };
            let base = name.split('{').next().unwrap_or(name);
            if let Some((_, short)) = COUNTERS.iter().find(|(counter, _)| *counter == base) {
                *numbers.entry((*short).to_owned()).or_default() += value;
            }
            // Messages rather than calls: a watch that is created on an open stream is a request as well.
            let direction = match base {
                "grpc_server_msg_received_total" => "requests",
                "grpc_server_msg_sent_total" => "answers",
                "grpc_server_started_total" => "streams",
                _ => continue,
            };
            if let Some(method) = label(name, "grpc_method") {
                *numbers.entry(format!("{direction}.{method}")).or_default() += value;
            }
        }
        Ok(Self(numbers))
    }

    /// What changed since, for each of `operations`.
    pub(crate) fn since(&self, before: &Self, operations: f64) -> Numbers {
        let change = |(name, now): (&String, &f64)| {
            let change = now - before.0.get(name).copied().unwrap_or_default();
            (change != 0.0).then(|| (name.clone(), change / operations.max(1.0)))
        };
        self.0.iter().filter_map(change).collect()
    }
}

/// The version of the server at `endpoint`.
pub(crate) async fn version(endpoint: &str) -> Result<String> {
    let body = get(endpoint, "/version").await?;
    let parsed: BTreeMap<String, String> = serde_json::from_str(&body)?;
    parsed.get("etcdserver").cloned().context("the server tells no version")
}

fn label<'a>(name: &'a str, label: &str) -> Option<&'a str> {
    let (_, rest) = name.split_once(&format!("{label}=\""))?;
    rest.split('"').next()
}

async fn get(endpoint: &str, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(endpoint).await.with_context(|| format!("no etcd at {endpoint}"))?;
    // With 1.0 the answer is neither chunked nor kept open.
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: etcd\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("not an answer of HTTP")?;
    anyhow::ensure!(head.contains(" 200 "), "{path} answers `{}`", head.lines().next().unwrap_or_default());
    Ok(body.to_owned())
}
