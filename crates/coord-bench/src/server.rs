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

/// The last bound below a stall that etcd counts by, in seconds.
const SLOW: &str = "0.064";

/// Writes to disk, by how long they took.
const WRITES: [&str; 2] =
    ["etcd_disk_wal_fsync_duration_seconds", "etcd_disk_backend_commit_duration_seconds"];

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
            *numbers.entry("slow_writes".to_owned()).or_default() += slow_writes(base, name) * value;
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

/// What a line of a histogram adds to the number of writes that took long enough to be a stall, or most of one: it has
/// how many there were, and how many of them were quicker than a bound.
fn slow_writes(base: &str, name: &str) -> f64 {
    let of_writes = WRITES.iter().find_map(|histogram| base.strip_prefix(histogram));
    match (of_writes, label(name, "le")) {
        (Some("_count"), None) => 1.0,
        (Some("_bucket"), Some(SLOW)) => -1.0,
        _ => 0.0,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_writes_are_those_that_no_bucket_of_quick_ones_has() {
        let lines = [
            ("etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.032\"}", 4.0),
            ("etcd_disk_wal_fsync_duration_seconds_bucket{le=\"0.064\"}", 5.0),
            ("etcd_disk_wal_fsync_duration_seconds_bucket{le=\"+Inf\"}", 7.0),
            ("etcd_disk_wal_fsync_duration_seconds_sum", 0.3),
            ("etcd_disk_wal_fsync_duration_seconds_count", 7.0),
            ("etcd_disk_backend_commit_duration_seconds_bucket{le=\"0.064\"}", 2.0),
            ("etcd_disk_backend_commit_duration_seconds_count", 3.0),
            ("etcd_disk_backend_commit_write_duration_seconds_count", 3.0),
        ];
        let base = |name: &'static str| name.split('{').next().unwrap_or(name);
        let slow: f64 = lines.iter().map(|(name, value)| slow_writes(base(name), name) * value).sum();
        assert_eq!(slow.to_string(), "3");
    }
}
