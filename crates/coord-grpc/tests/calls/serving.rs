//! Instances that do not want calls, are new, or are told of in two ways.

use std::time::Duration;

use coord_api::{Provider, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt, InstanceStatus, Policy};
use coord_memory::{Client, Store};
use futures::StreamExt;
use tokio::net::TcpListener;
use tonic::{
    Code,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_client::HealthClient},
    server::HealthReporter,
};

use crate::fleet::{Behaviour, LONG, calls, check, fleet, plain, until};

/// A server with a health service whose answers can be changed.
async fn server(client: &Client, id: &str) -> HealthReporter {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(Server::builder().add_service(health).serve_with_incoming(TcpIncoming::from(listener)));
    let info = ServiceInfo::new("im-logic", id, "127.0.0.1", port);
    std::mem::forget(client.registry().register(info, LONG).await.expect("the store is there"));
    reporter
}

fn calls_of(connection: &Connection) -> Vec<u64> {
    connection.state().instances.iter().map(|instance| instance.calls).collect()
}

#[tokio::test]
async fn instances_whose_health_service_says_no_get_no_calls() {
    let client = Store::new().client();
    let (one, other) = (server(&client, "0").await, server(&client, "1").await);
    let say = async |reporter: &HealthReporter, status| reporter.set_service_status("api", status).await;
    say(&one, ServingStatus::Serving).await;
    say(&other, ServingStatus::NotServing).await;
    let options = ConnectOptions::new().health_check("api").connect_timeout(Duration::from_secs(2));
    let connection = client.registry().connection_with("im-logic", options).await.expect("is registered");
    until(|| connection.state().ready() == 1).await;
    assert_eq!(connection.state().instances[1].status, InstanceStatus::NotServing);
    calls(&connection, 40).await;
    assert_eq!(calls_of(&connection), [40, 0]);

    // It follows every change.
    say(&other, ServingStatus::Serving).await;
    until(|| connection.state().ready() == 2).await;
    say(&one, ServingStatus::NotServing).await;
    until(|| connection.state().ready() == 1).await;
    let before = calls_of(&connection);
    calls(&connection, 40).await;
    assert_eq!(calls_of(&connection), [before[0], before[1] + 40]);

    say(&other, ServingStatus::NotServing).await;
    until(|| connection.state().ready() == 0).await;
    let status = check(&connection).await.expect_err("nobody serves");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("all 2 instances say that they are not serving"), "{status}");

    // Without the option nobody is asked.
    let connection = client.registry().connection("im-logic").await.expect("is registered");
    until(|| connection.state().ready() == 2).await;
}

#[tokio::test]
async fn instance_without_a_health_service_is_taken_as_serving() {
    let fleet = fleet(plain::<1>()).await;
    fleet.servers[0].code.store(Code::Unimplemented as i32, std::sync::atomic::Ordering::Relaxed);
    let connection = fleet.connect(ConnectOptions::new().health_check(""), 1).await;
    assert_eq!(connection.state().instances[0].calls, 0, "what coord asks is no call");
}

#[tokio::test]
async fn marked_instances_get_no_calls_and_stay_connected() {
    let fleet = fleet(plain::<2>()).await;
    let connection = fleet.connect(ConnectOptions::new(), 2).await;
    fleet.registered[0].serving(false).await.expect("is registered");
    until(|| connection.state().ready() == 1).await;
    assert_eq!(connection.state().instances[0].status, InstanceStatus::NotServing);
    calls(&connection, 40).await;
    assert_eq!(fleet.shares(), [0, 40]);
    fleet.registered[1].serving(false).await.expect("is registered");
    until(|| connection.state().ready() == 0).await;
    let short = ConnectOptions::new().connect_timeout(Duration::from_millis(200));
    let waiting = fleet.connect(short, 0).await;
    let status = check(&waiting).await.expect_err("nobody serves");
    assert!(status.message().contains("all 2 instances are marked as not serving"), "{status}");
    fleet.registered[0].serving(true).await.expect("is registered");
    check(&connection).await.expect("it waits for one that serves");
}

#[tokio::test]
async fn filter_without_match_is_named_in_the_error() {
    let fleet = fleet(plain::<3>()).await;
    let options = ConnectOptions::new().only("version", "2").connect_timeout(Duration::from_millis(200));
    let error = fleet.client.registry().connection_with("im-logic", options).await.expect_err("none matches");
    let source = std::error::Error::source(&error).expect("says why").to_string();
    assert_eq!(source, "of 3 instances none has the metadata version=2");
}

#[tokio::test]
async fn process_under_two_ids_gets_one_share() {
    let fleet = fleet(plain::<2>()).await;
    let info = fleet.registered[0].service();
    let successor = ServiceInfo::new("im-logic", "successor", &info.address, info.port);
    let registry = fleet.client.registry();
    let successor = registry.register(successor, LONG).await.expect("the store is there");
    for policy in [Policy::RoundRobin, Policy::PeakEwma] {
        let connection = fleet.connect(ConnectOptions::new().policy(policy), 2).await;
        let before = fleet.shares()[0];
        calls(&connection, 400).await;
        let share = fleet.shares()[0] - before;
        assert!((120..=280).contains(&share), "{policy:?}: {share} of 400");
        let ids: Vec<_> = connection.state().instances.into_iter().map(|instance| instance.id).collect();
        assert_eq!(ids, ["1", "successor"], "the newer record counts");
    }
    let connection = fleet.connect(ConnectOptions::new(), 2).await;
    successor.deregister().await.expect("is registered");
    until(|| connection.state().instances[0].id == "0").await;
    assert_eq!(connection.state().ready(), 2, "its connection stayed");
}

#[tokio::test]
async fn streams_are_spread_a_second_after_a_hiccup() {
    let gated = Behaviour { delay: Duration::from_millis(1), ..Behaviour::default() };
    let fleet = fleet([(gated, &[][..]), (Behaviour::default(), &[][..])]).await;
    let connection = fleet.connect(ConnectOptions::new(), 2).await;
    calls(&connection, 100).await;
    // A single answer of 100 ms.
    let before = fleet.shares()[0];
    while fleet.shares()[0] == before {
        fleet.servers[0].hiccup.store(100, std::sync::atomic::Ordering::Relaxed);
        check(&connection).await.expect("is served");
    }
    fleet.servers[0].hiccup.store(0, std::sync::atomic::Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = fleet.shares();
    let mut open = Vec::new();
    for _ in 0..100 {
        let mut client = HealthClient::new(connection.clone());
        let mut stream = client.watch(HealthCheckRequest::default()).await.expect("opens").into_inner();
        stream.next().await.expect("has a message").expect("is one");
        open.push(stream);
    }
    let share = fleet.shares()[0] - before[0];
    assert!((35..=65).contains(&share), "{share} of 100 streams");
}

#[tokio::test]
async fn new_instance_gets_its_share_gradually_if_so_asked() {
    let fleet = fleet(plain::<1>()).await;
    let options = ConnectOptions::new().policy(Policy::RoundRobin).slow_start(Duration::from_secs(2));
    let connection = fleet.connect(options, 1).await;
    // The first one is past its own start.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    let late = server(&fleet.client, "late").await;
    until(|| connection.state().ready() == 2).await;
    calls(&connection, 100).await;
    let early = calls_of(&connection)[1];
    assert!(early < 40, "{early} of 100 calls, right after it came");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    calls(&connection, 100).await;
    assert!(calls_of(&connection)[1] - early >= 48, "{:?}", calls_of(&connection));
    drop(late);
}
