//! What operators do to a cluster, or let happen to it.

use std::time::Duration;

use coord_api::{ConfigEvent, ConfigExt, LossReason};
use coord_tests::{Cluster, NODES, Proxy};
use tokio::time::{Instant, sleep};

use crate::tools::{again, client, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_lease_is_told_within_a_renewal_interval() {
    const TTL: Duration = Duration::from_secs(6);
    let cluster = Cluster::start().await.expect("starts");
    let client = client(cluster.endpoints()).await;
    let guard = client.lock().acquire("job", TTL).await.expect("is free");
    let admin = etcd_client::Client::connect(cluster.endpoints(), None).await.expect("etcd answers");
    let key = admin.kv_client().get(guard.key(), None).await.expect("etcd answers");
    let lease = key.kvs().first().expect("exists").lease();
    admin.lease_client().revoke(lease).await.expect("is revoked");
    let start = Instant::now();
    assert_eq!(soon(guard.lost()).await, LossReason::Revoked);
    let took = start.elapsed();
    println!("told {took:?} after the revocation, with a TTL of {TTL:?}");
    assert!(took < TTL.mul_f64(0.4) + Duration::from_millis(500), "{took:?}");
    let next = again(async || client.lock().acquire("job", TTL).await).await;
    assert!(next.token() > guard.token());
}

/// The server ends such a watch with one message and keeps its stream open and silent.
#[tokio::test(flavor = "multi_thread")]
async fn compaction_and_defragmentation_under_a_watch_leave_no_gap() {
    let cluster = Cluster::start().await.expect("starts");
    let network = Proxy::start(cluster.endpoint(0)).await.expect("a port is free");
    let (watching, writing) =
        (client([network.address().to_owned()]).await, client(cluster.endpoints()).await);
    let config = writing.config();
    config.set("limits", &0).await.expect("is written");
    let mut limits = watching.config().watch::<u32>("limits").await.expect("is watched");
    let guard = writing.lock().acquire("job", Duration::from_secs(5)).await.expect("is free");

    let (mut seen, mut snapshots) = (0, 0);
    for round in 1..=3_u32 {
        network.cut();
        for n in 1..=40 {
            again(async || config.set("limits", &(round * 100 + n)).await).await;
        }
        let now = config.get_entry("limits").await.expect("etcd answers").expect("exists");
        let compact = format!(r#"{{"revision":"{}","physical":true}}"#, now.version().get());
        cluster.gateway(0, "/v3/kv/compaction", &compact).await.expect("compacts");
        for n in 0..NODES {
            cluster.gateway(n, "/v3/maintenance/defragment", "{}").await.expect("defragments");
        }
        // What was sent before the compaction is on the broken connections.
        network.reset();
        network.restore();
        let last = round * 100 + 40;
        while seen != last {
            let value = match soon(limits.next()).await.expect("never ends").expect("is readable") {
                ConfigEvent::Snapshot { settings, .. } => {
                    snapshots += 1;
                    settings.first().expect("exists").value
                }
                ConfigEvent::Set(setting) => setting.value,
                ConfigEvent::Deleted { .. } => panic!("nobody deleted it"),
                other => panic!("{other:?}"),
            };
            assert!(value >= seen, "{value} after {seen}");
            seen = value;
        }
    }
    assert!(snapshots > 1, "what was compacted came as a snapshot");
    assert!(!guard.is_lost());
}

/// A store that is full takes nothing new, and what is held can be kept and given back.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_refuses_by_name_and_lets_go() {
    const TTL: Duration = Duration::from_secs(3);
    let cluster = Cluster::start_with(&["--quota-backend-bytes", "3000000"]).await.expect("starts");
    let client = client(cluster.endpoints()).await;
    let (config, locks) = (client.config(), client.lock());
    config.set("old", &1).await.expect("is written");
    let (kept, released) = (locks.acquire("kept", TTL).await, locks.acquire("released", TTL).await);
    let (kept, released) = (kept.expect("is free"), released.expect("is free"));
    let ids = client.instance_id_allocator("im-logic", 10).expect("is valid");
    ids.acquire_id().await.expect("is free");

    let admin = etcd_client::Client::connect(cluster.endpoints(), None).await.expect("etcd answers");
    let mut filled = 0;
    while admin.kv_client().put(format!("ballast-{filled}"), vec![b'x'; 500_000], None).await.is_ok() {
        filled += 1;
        assert!(filled < 100, "the quota is not kept");
    }
    let refused = |error: coord_api::Error| {
        assert!(!error.is_retryable(), "waiting does not help: {error:?}");
        assert!(matches!(error, coord_api::Error::NoSpace { .. }), "{error:?}");
    };
    refused(locks.acquire("new", TTL).await.expect_err("is full"));
    refused(config.set("old", &2).await.expect_err("is full"));
    sleep(TTL + Duration::from_secs(1)).await;
    assert!(!kept.is_lost(), "renewals write nothing");
    released.unlock().await.expect("deletes");
    assert!(config.delete("old").await.expect("deletes"));
    assert!(locks.holders("released").await.expect("is read").is_empty());
    ids.release_id().await.expect("is given back");
    kept.unlock().await.expect("is held");

    // An operator makes room.
    for n in 0..filled {
        admin.kv_client().delete(format!("ballast-{n}"), None).await.expect("deletes");
    }
    let now = admin.kv_client().get("x", None).await.expect("etcd answers");
    let revision = now.header().expect("every answer has one").revision();
    admin.kv_client().compact(revision, None).await.expect("compacts");
    // More than once where a busy member had not compacted yet, and so had nothing to give back.
    until(async || {
        for n in 0..NODES {
            cluster.gateway(n, "/v3/maintenance/defragment", "{}").await.expect("defragments");
        }
        cluster.disarm().await.expect("answers");
        locks.acquire("new", TTL).await.is_ok()
    })
    .await;
}
