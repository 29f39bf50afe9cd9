//! How calls are spread.

use std::{sync::atomic::AtomicUsize, time::Duration};

use coord_api::{Provider, ServiceInfo, WEIGHT, ZONE};
use coord_grpc::{ConnectOptions, ConnectionExt, HashKey, InstanceStatus, Instances, Policy};
use coord_memory::Store;
use tokio::{net::TcpListener, sync::Notify};
use tonic::{Code, Request};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::{
    balance::p2c::Balance,
    buffer::Buffer,
    load::{CompleteOnResponse, PendingRequestsDiscover},
};

use crate::fleet::{Behaviour, LONG, Metadata, calls, check, fleet, plain, until};

#[tokio::test]
async fn slow_instance_gets_few_calls_and_round_robin_a_third() {
    // 2 ms against 100 ms: the same ratio as 1 to 50, with less noise.
    for (policy, all, enough, at_most) in [(Policy::PeakEwma, 800, 0, 40), (Policy::RoundRobin, 120, 38, 42)]
    {
        let slow = |millis| Behaviour { delay: Duration::from_millis(millis), ..Behaviour::default() };
        let fleet = fleet([2, 100, 2].map(|millis| (slow(millis), &[][..]))).await;
        let connection = fleet.connect(ConnectOptions::new().policy(policy), 3).await;
        calls(&connection, all).await;
        let shares = fleet.shares();
        println!("{policy:?}: {shares:?} of {all} calls");
        assert!((enough..=at_most).contains(&shares[1]), "{policy:?} {shares:?}");
    }
}

#[tokio::test]
async fn channel_is_shared_by_equal_options() {
    let fleet = fleet(plain::<1>()).await;
    let connection = fleet.connect(ConnectOptions::new(), 1).await;
    let same = fleet.client.registry().connection("im-logic").await.expect("is registered");
    let registry = fleet.client.registry();
    let weighted = || ConnectOptions::new().policy(Policy::Weighted);
    let (one, two) = tokio::join!(
        registry.connection_with("im-logic", weighted()),
        registry.connection_with("im-logic", weighted())
    );
    let (one, two) = (one.expect("is registered"), two.expect("is registered"));
    check(&two).await.expect("is served");
    assert_eq!(one.state().instances[0].calls, 1, "asked for at the same time");
    check(&same).await.expect("is served");
    assert_eq!(connection.state().instances[0].calls, 1, "counted by the same channel");
    let other = fleet.connect(ConnectOptions::new().policy(Policy::RoundRobin), 1).await;
    assert_eq!(other.state().instances[0].calls, 0);
    let elsewhere = Store::new().client();
    let short = ConnectOptions::new().connect_timeout(Duration::from_millis(50));
    assert!(elsewhere.registry().connection_with("im-logic", short).await.is_err(), "is another store");
}

#[tokio::test]
async fn instance_that_says_unavailable_is_ejected_and_comes_back() {
    let mut servers = plain::<3>();
    servers[1].0.unavailable = AtomicUsize::new(3);
    let fleet = fleet(servers).await;
    let options = ConnectOptions::new().policy(Policy::RoundRobin);
    let options = options.eject_after(2).cool_off(Duration::from_secs(1), LONG);
    let connection = fleet.connect(options, 3).await;
    let failures = async || {
        let mut failed = 0;
        for _ in 0..12 {
            failed += usize::from(check(&connection).await.is_err());
        }
        failed
    };
    assert_eq!(failures().await, 2, "none after the ejection");
    assert_eq!(connection.state().instances[1].status, InstanceStatus::Ejected);
    until(|| connection.state().ready() == 3).await;
    assert_eq!(failures().await, 1, "on trial the first is enough");
    until(|| connection.state().ready() == 3).await;
    assert_eq!(failures().await, 0, "is good again");
    assert_eq!(connection.state().instances[1].ejections, 2);
}

#[tokio::test]
async fn calls_in_flight_outlive_their_instance_and_the_connection() {
    let gated = Behaviour { gate: Some(Notify::new()), ..Behaviour::default() };
    let mut fleet = fleet([(gated, &[][..])]).await;
    let connection = fleet.connect(ConnectOptions::new(), 1).await;
    let calling = tokio::spawn({
        let connection = connection.clone();
        async move { check(&connection).await }
    });
    until(|| fleet.shares() == [1]).await;
    assert_eq!(connection.state().instances[0].in_flight, 1);
    fleet.registered.pop().expect("one is").deregister().await.expect("is registered");
    until(|| connection.state().instances.is_empty()).await;
    drop(connection);
    fleet.servers[0].gate.as_ref().expect("is there").notify_one();
    calling.await.expect("no panic").expect("is answered");
}

#[tokio::test]
async fn dead_registered_instance_gets_no_call_and_alone_is_an_error() {
    let fleet = fleet(plain::<1>()).await;
    let dead = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = dead.local_addr().expect("is bound").port();
    // Its system accepts, but it never says a word: as a process that is stopped.
    let registry = fleet.client.registry();
    let frozen = ServiceInfo::new("im-logic", "frozen", "127.0.0.1", port);
    let _frozen = registry.register(frozen, LONG).await.expect("the store is there");
    let connection = fleet.connect(ConnectOptions::new(), 1).await;
    until(|| connection.state().instances.len() == 2).await;
    calls(&connection, 100).await;
    assert_eq!(fleet.shares(), [100]);

    let alone = ServiceInfo::new("alone", "1", "127.0.0.1", 1);
    let _alone = registry.register(alone, LONG).await.expect("the store is there");
    let short = ConnectOptions::new().connect_timeout(Duration::from_millis(300));
    let connection = registry.connection_with("alone", short).await.expect("is registered");
    let status = check(&connection).await.expect_err("is refused");
    assert_eq!(status.code(), Code::Unavailable);
    let message = status.message();
    assert!(message.contains("service alone") && message.contains("none of 1 instances"), "{message}");
    drop(dead);
}

#[tokio::test]
async fn zones_filters_weights_subsets_and_keys_choose() {
    let with = |metadata: Metadata| (Behaviour::default(), metadata);
    let near = with(&[(ZONE, "a"), ("version", "1")]);
    let far = with(&[(ZONE, "b"), ("version", "2"), (WEIGHT, "3")]);
    let other = with(&[(ZONE, "b"), ("version", "2"), (WEIGHT, "1")]);
    let fleet = fleet([near, far, other]).await;
    let mut before = fleet.shares();
    let mut spread = async |options: ConnectOptions, ready| {
        let connection = fleet.connect(options, ready).await;
        calls(&connection, 200).await;
        let now = fleet.shares();
        let shares: Vec<_> = now.iter().zip(&before).map(|(now, before)| now - before).collect();
        before = now;
        shares
    };
    assert_eq!(spread(ConnectOptions::new().zone("a"), 3).await, [200, 0, 0]);
    let filtered = spread(ConnectOptions::new().only("version", "2"), 2).await;
    assert_eq!((filtered[0], filtered[1] + filtered[2]), (0, 200));
    let weighted = ConnectOptions::new().only("version", "2").policy(Policy::Weighted);
    let weighted = spread(weighted, 2).await;
    assert!((120..=180).contains(&weighted[1]), "{weighted:?}");
    let subset = spread(ConnectOptions::new().subset(1), 1).await;
    assert_eq!(subset.iter().filter(|share| **share > 0).count(), 1, "{subset:?}");

    let hashed = fleet.connect(ConnectOptions::new().policy(Policy::ConsistentHash), 3).await;
    let start = fleet.shares();
    for _ in 0..20 {
        let mut request = Request::new(HealthCheckRequest::default());
        request.extensions_mut().insert(HashKey::new("user-7"));
        HealthClient::new(hashed.clone()).check(request).await.expect("is served");
    }
    let moved = fleet.shares().iter().zip(&start).filter(|(now, before)| now > before).count();
    assert_eq!(moved, 1);
    let error = fleet.client.registry().connection_with("im-logic", ConnectOptions::new().subset(0)).await;
    assert_eq!(
        error.expect_err("is refused").to_string(),
        "invalid subset: is 0, it needs 1 or more instances"
    );
}

#[tokio::test]
async fn instances_feed_towers_own_balancer() {
    let fleet = fleet(plain::<2>()).await;
    let watch = fleet.client.registry().watch("im-logic").await.expect("the store is there");
    let channels = Instances::new(watch).channels(ConnectOptions::new()).expect("is good");
    let loads = PendingRequestsDiscover::new(channels, CompleteOnResponse::default());
    let mut client = HealthClient::new(Buffer::new(Balance::new(loads), 16));
    for _ in 0..50 {
        client.check(HealthCheckRequest::default()).await.expect("is served");
    }
    assert!(fleet.shares().iter().all(|share| *share > 5), "{:?}", fleet.shares());
}
