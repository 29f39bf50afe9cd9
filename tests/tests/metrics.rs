//! What a client counts and times, and that dashboards, alerts and documentation name what there is.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use coord_api::{ConfigExt, Provider, RegistrationStatus, ServiceInfo};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Proxy};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::time::{Instant, sleep};

const TTL: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until something was counted or timed, with this label if one is given.
async fn until_told(metrics: &Snapshotter, seen: &mut BTreeSet<String>, name: &str, label: &str) {
    let end = Instant::now() + LIMIT;
    loop {
        // Each look takes what was told since the one before.
        for (key, _, _, value) in metrics.snapshot().into_vec() {
            let is_something = match value {
                DebugValue::Counter(count) => count > 0,
                DebugValue::Histogram(times) => !times.is_empty(),
                DebugValue::Gauge(_) => true,
            };
            if is_something {
                let key = key.key();
                seen.insert(format!("{} ", key.name()));
                seen.extend(key.labels().map(|label| format!("{} {}", key.name(), label.value())));
            }
        }
        if seen.contains(&format!("{name} {label}")) {
            return;
        }
        assert!(Instant::now() < end, "no {name} with `{label}` among {seen:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happens_is_counted() {
    let recorder = DebuggingRecorder::new();
    let metrics = recorder.snapshotter();
    // The client's own thread uses the same.
    recorder.install().expect("this program has no other");
    let mut seen = BTreeSet::new();

    let server = EtcdServer::start().await.expect("starts");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let network = Proxy::start(target).await.expect("a port is free");
    let client: Arc<dyn Provider> =
        Arc::new(Client::connect(EtcdConfig::new([network.address()])).await.expect("etcd answers"));
    let config = client.config();
    config.set("limits", &1).await.expect("is written");
    until_told(&metrics, &mut seen, "coord_etcd_request_seconds", "write config values").await;
    until_told(&metrics, &mut seen, "coord_etcd_request_seconds", "ok").await;
    let guard = client.lock().acquire("job", TTL).await.expect("is free");
    until_told(&metrics, &mut seen, "coord_etcd_lock_wait_seconds", "").await;

    let info = ServiceInfo::new("im-logic", "1", "10.0.0.1", 80);
    let mut registration = client.registry().register(info, TTL).await.expect("is registered");
    let mut watch = config.watch::<u32>("limits").await.expect("is watched");
    watch.next().await.expect("goes on").expect("begins with a snapshot");
    network.reset();
    until_told(&metrics, &mut seen, "coord_etcd_watch_streams_broken_total", "").await;

    network.cut();
    until_told(&metrics, &mut seen, "coord_etcd_renewals_failed_total", "").await;
    until_told(&metrics, &mut seen, "coord_etcd_leases_lost_total", "expired").await;
    assert!(guard.is_lost());
    until_told(&metrics, &mut seen, "coord_registrations_lost_total", "im-logic").await;
    network.restore();
    while registration.status() != RegistrationStatus::Registered {
        registration.status_changed().await;
    }
    until_told(&metrics, &mut seen, "coord_registrations_recovered_total", "im-logic").await;
}

/// The names in quotes that begin with `coord_` and stand where metrics are made.
fn made(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in folder.read_dir().expect("is a folder") {
        let path = entry.expect("can be read").path();
        if path.is_dir() {
            made(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let code = std::fs::read_to_string(&path).expect("is text");
            let macros = ["counter!(", "gauge!(", "histogram!("];
            let found = macros.iter().flat_map(|made| code.split(made).skip(1));
            let quoted = found.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
            names.extend(quoted.filter(|name| name.starts_with("coord_")).map(str::to_owned));
        }
    }
}

/// Names of metrics in a text; what exporters add to a histogram's name is left out.
fn named(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let names = words.filter(|word| word.starts_with("coord_"));
    names
        .map(|name| {
            let histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            histogram.unwrap_or(name).to_owned()
        })
        .collect()
}

#[test]
fn documentation_dashboard_and_alerts_name_what_there_is() {
    let mut there = BTreeSet::new();
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    for name in ["coord-api", "coord-config", "coord-etcd", "coord-grpc", "coord-memory"] {
        made(&root.join("crates").join(name).join("src"), &mut there);
    }
    let read = |name: &str| std::fs::read_to_string(root.join("docs").join(name)).expect("is there");
    let documented = read("production.md");
    let table = documented.split("\n## Metrics\n").nth(1).expect("has a section on metrics");
    let table = named(table.split("\n## ").next().expect("a split has a first part"));
    assert_eq!(table, there, "docs/production.md lists them all");
    let dashboard = read("grafana.json");
    serde_json::from_str::<serde_json::Value>(&dashboard).expect("is JSON");
    let shown = named(&dashboard);
    assert_eq!(shown, there, "docs/grafana.json shows them all");
    let alerts = named(&read("alerts.yaml"));
    assert!(!alerts.is_empty() && alerts.is_subset(&there), "{alerts:?}");
}
