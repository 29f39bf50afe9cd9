//! Leases: renewed whatever the user's runtime does, shared, and bounded in what they carry.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use coord_api::{LeaseHealth, LossReason, Provider};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Hasty, Proxy};
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

const LIMIT: Duration = Duration::from_secs(60);

async fn client(endpoint: &str) -> Arc<dyn Provider> {
    Arc::new(Client::connect(EtcdConfig::new([endpoint])).await.expect("etcd answers"))
}

/// The leases that the keys of locks live on, as the server knows them.
async fn leases(server: &EtcdServer) -> BTreeSet<i64> {
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let options = etcd_client::GetOptions::new().with_prefix().with_keys_only();
    let found = admin.kv_client().get("/coord/locks/", Some(options)).await.expect("etcd answers");
    found.kvs().iter().map(etcd_client::KeyValue::lease).collect()
}

/// On a runtime of one thread, so that nothing of the user's can run while it is blocked.
#[tokio::test]
async fn a_blocked_runtime_does_not_starve_renewals() {
    let server = EtcdServer::start().await.expect("starts");
    let client = client(server.endpoint()).await;
    let guard = client.lock().acquire("job", Duration::from_secs(2)).await.expect("is free");
    std::thread::sleep(Duration::from_secs(6));
    assert!(!guard.is_lost(), "renewals went on");
    guard.unlock().await.expect("is held");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_lease_for_each_time_to_live() {
    let server = EtcdServer::start().await.expect("starts");
    let client = client(server.endpoint()).await;
    let locks = client.lock();
    let mut guards = Vec::new();
    for n in 0..20 {
        guards.push(locks.acquire(&format!("short-{n}"), Duration::from_secs(10)).await.expect("is free"));
        guards
            .push(locks.acquire(&format!("long-{n}"), Duration::from_millis(29_500)).await.expect("is free"));
    }
    assert_eq!(leases(&server).await.len(), 2);
    client.close().await.expect("closes");
    assert!(guards.iter().all(coord_api::LockGuard::is_lost));
    assert!(leases(&server).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_carries_a_bounded_number_of_keys() {
    const LOCKS: usize = 17_000;
    let server = EtcdServer::start().await.expect("starts");
    let client = client(server.endpoint()).await;
    let locks = client.lock();
    let acquire = async |n: usize| locks.acquire(&format!("job-{n}"), Duration::from_secs(60)).await;
    let guards = timeout(LIMIT, join_all((0..LOCKS).map(acquire))).await.expect("in time");
    assert!(guards.iter().all(Result::is_ok));
    assert_eq!(leases(&server).await.len(), 2);
    timeout(LIMIT, client.close()).await.expect("in time").expect("closes");
    assert!(leases(&server).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_is_told_by_the_local_clock_and_healed_with_a_new_lease() {
    let server = EtcdServer::start().await.expect("starts");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let network = Proxy::start(target).await.expect("a port is free");
    let client = client(network.address()).await;
    let guard = client.lock().acquire("job", Duration::from_secs(3)).await.expect("is free");
    assert_eq!(client.lease_health(), LeaseHealth::Healthy);

    network.cut();
    let mut seen = Vec::new();
    while !guard.is_lost() {
        let health = client.lease_health();
        if seen.last() != Some(&health) {
            seen.push(health);
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(seen, [LeaseHealth::Healthy, LeaseHealth::Suspect]);
    assert_eq!(client.lease_health(), LeaseHealth::Lost(LossReason::Expired));

    network.restore();
    timeout(LIMIT, async {
        while client.lease_health() != LeaseHealth::Healthy {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("a new lease is there before anyone asks");
    assert!(guard.is_lost());
}

/// Requests that wait together share a transaction, and etcd refuses a transaction as a whole.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_refused_does_not_fail_those_beside_it() {
    let server = EtcdServer::start().await.expect("starts");
    let client = client(server.endpoint()).await;
    let locks = client.lock();
    let (gone, alive) = (Duration::from_secs(600), Duration::from_secs(700));
    let held = locks.acquire("warm-up", gone).await.expect("is free");
    let beside = locks.acquire("beside", alive).await.expect("is free");
    let lease =
        held.key().rsplit('/').next().and_then(|place| place.split('-').next()).expect("names its lease");
    let lease = i64::from_str_radix(lease, 16).expect("is hexadecimal");
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    admin.lease_client().revoke(lease).await.expect("is revoked");

    // The client has not heard of it: it renews every 200 s.
    assert!(!held.is_lost());
    let acquire = async |n: usize| {
        locks.acquire(&format!("job-{n}"), if n.is_multiple_of(2) { gone } else { alive }).await
    };
    let guards = timeout(LIMIT, join_all((0..40).map(acquire))).await.expect("in time");
    for guard in guards {
        guard.expect("is free, and a lease can be had").unlock().await.expect("is held");
    }
    assert!(held.is_lost(), "the refusal told that its lease is gone");
    beside.unlock().await.expect("is held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_whose_grant_nobody_waits_for_any_more_serves_the_next() {
    let server = EtcdServer::start().await.expect("starts");
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let mut guards = Vec::new();
    for micros in [0, 100, 200, 300, 400, 500, 700, 1_000, 1_500, 2_000] {
        let locks = client(server.endpoint()).await.lock();
        let job = format!("job-{micros}");
        drop(timeout(Duration::from_micros(micros), locks.acquire(&job, Duration::from_secs(600))).await);
        guards.push(locks.acquire(&job, Duration::from_secs(600)).await.expect("becomes free"));
        let leases = admin.lease_client().leases().await.expect("etcd answers").leases().len();
        assert_eq!(leases, guards.len(), "one for each client, dropped after {micros} µs or not");
    }
}

/// Found by the soak: a member that fails grants at once was asked thousands of times a second, and each left a task behind that
/// revokes what may have been granted.
#[tokio::test(flavor = "multi_thread")]
async fn grants_that_fail_at_once_are_repeated_with_pauses_and_each_is_given_back() {
    let server = EtcdServer::start().await.expect("starts");
    let hasty = Hasty::start(server.endpoint()).await.expect("a port can be opened");
    let config = EtcdConfig::new([hasty.address()]).request_timeout(Duration::from_secs(2));
    let client = Client::connect(config).await.expect("etcd answers");
    let error = timeout(LIMIT, client.lock().acquire("job", Duration::from_secs(5)))
        .await
        .expect("in time")
        .expect_err("no lease");
    assert!(error.is_retryable(), "{error:?}");
    let grants = hasty.grants();
    assert!((2..60).contains(&grants), "{grants} leases were asked for");
    // Of some the answer may have been lost: they are revoked, each once, since etcd does not know them.
    let end = Instant::now() + LIMIT;
    while hasty.revocations() < hasty.grants() {
        assert!(Instant::now() < end, "{} of {} are revoked", hasty.revocations(), hasty.grants());
        sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(hasty.revocations(), hasty.grants());
}

/// Uses of a lease are counted, and an id is one: it lives on the lease of its time to live as locks do.
#[tokio::test(flavor = "multi_thread")]
async fn id_outlives_many_locks_of_its_ttl_that_were_given_back() {
    const LOCKS: usize = 17_000;
    const TTL: Duration = Duration::from_secs(5);
    let server = EtcdServer::start().await.expect("starts");
    let config = EtcdConfig::new([server.endpoint()]).instance_id_ttl(TTL);
    let client = Client::connect(config).await.expect("etcd answers");
    let ids = client.instance_id_allocator("svc", 8).expect("is valid");
    ids.acquire_id().await.expect("is free");
    let locks = client.lock();
    let acquire = async |n: usize| locks.acquire(&format!("job-{n}"), TTL).await;
    let guards = timeout(LIMIT, join_all((0..LOCKS).map(acquire))).await.expect("in time");
    assert!(guards.iter().all(Result::is_ok));
    drop(guards);
    let lost = timeout(TTL * 3, ids.lost().expect("is held")).await;
    assert!(lost.is_err(), "{lost:?}");
    ids.release_id().await.expect("is held");
}

/// Whoever calls chooses times to live, and a proxy may allow a hundred streams.
#[tokio::test(flavor = "multi_thread")]
async fn leases_of_many_ttls_are_few_and_renewed_over_one_stream() {
    let server = EtcdServer::start().await.expect("starts");
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let client = client(server.endpoint()).await;
    let locks = client.lock();
    let mut held = Vec::new();
    for seconds in 2..10 {
        let ttl = Duration::from_secs(seconds);
        held.push(locks.acquire(&format!("held-{seconds}"), ttl).await.expect("is free"));
    }
    for seconds in 10..410 {
        let guard = locks.acquire("job", Duration::from_secs(seconds)).await.expect("is free");
        guard.unlock().await.expect("is held");
    }
    let leases = async || admin.lease_client().leases().await.expect("etcd answers").leases().len();
    timeout(LIMIT, async {
        while leases().await > held.len() + 8 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("those that nobody uses are given back");
    // Several renewals of each.
    sleep(Duration::from_secs(8)).await;
    assert!(held.iter().all(|guard| !guard.is_lost()));
    assert_eq!(server.requests().await.expect("etcd answers")["LeaseKeepAlive"], 1, "streams");
}
