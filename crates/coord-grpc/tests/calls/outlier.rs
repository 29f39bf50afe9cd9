//! Instances that answer, but badly: they get few calls, and their share again once they are well.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use coord_api::{Provider, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection, HashKey, Policy};
use futures::{StreamExt, future::join_all};
use tokio::{net::TcpListener, time::timeout};
use tonic::{
    Code, Request,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::fleet::{Fleet, LONG, check, fleet, plain};

const SERVERS_FAILURES: [Code; 8] = [
    Code::Internal,
    Code::ResourceExhausted,
    Code::Unknown,
    Code::Unauthenticated,
    Code::Unavailable,
    Code::DataLoss,
    Code::Unimplemented,
    Code::DeadlineExceeded,
];

fn fails(fleet: &Fleet, server: usize, code: Code) {
    fleet.servers[server].code.store(code as i32, Relaxed);
}

/// Makes `calls` calls, four at a time, each with another key, whatever the answers are; counts the failures.
async fn calls(connection: &Connection, calls: usize) -> usize {
    let callers = (0..4).map(|caller| async move {
        let mut failed = 0;
        for call in 0..calls / 4 {
            let mut request = Request::new(HealthCheckRequest::default());
            request.extensions_mut().insert(HashKey::new(format!("{caller} {call}")));
            failed += usize::from(HealthClient::new(connection.clone()).check(request).await.is_err());
        }
        failed
    });
    join_all(callers).await.into_iter().sum()
}

#[tokio::test]
async fn instance_failing_at_once_gets_few_calls_by_any_code() {
    for (number, code) in SERVERS_FAILURES.into_iter().enumerate() {
        let fleet = fleet(plain::<2>()).await;
        fails(&fleet, 0, code);
        let connection = fleet.connect(ConnectOptions::new(), 2).await;
        let all = if number == 0 { 4000 } else { 400 };
        calls(&connection, all).await;
        assert!(fleet.shares()[0] <= all / 10, "{code:?}: {:?}", fleet.shares());
    }
}

#[tokio::test]
async fn instance_failing_among_five_gets_few_calls_by_any_policy() {
    for policy in
        [Policy::PeakEwma, Policy::LeastPending, Policy::RoundRobin, Policy::Weighted, Policy::ConsistentHash]
    {
        let fleet = fleet(plain::<5>()).await;
        fails(&fleet, 2, Code::Internal);
        let connection = fleet.connect(ConnectOptions::new().policy(policy), 5).await;
        calls(&connection, 2000).await;
        assert!(fleet.shares()[2] <= 60, "{policy:?}: {:?}", fleet.shares());
    }
}

#[tokio::test]
async fn instance_that_heals_has_its_share_within_ten_seconds() {
    let fleet = fleet(plain::<2>()).await;
    fails(&fleet, 0, Code::Internal);
    let connection = fleet.connect(ConnectOptions::new(), 2).await;
    // Long enough for several ejections, one after the other.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        calls(&connection, 40).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fails(&fleet, 0, Code::Ok);
    let healed = Instant::now();
    loop {
        let before = fleet.shares()[0];
        assert_eq!(calls(&connection, 400).await, 0);
        if fleet.shares()[0] - before > 120 {
            break;
        }
        assert!(healed.elapsed() < Duration::from_secs(10), "{:?}", connection.state());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn all_instances_failing_keep_a_part_in_use() {
    for code in [Code::Internal, Code::Unimplemented] {
        let fleet = fleet(plain::<5>()).await;
        (0..5).for_each(|server| fails(&fleet, server, code));
        let connection = fleet.connect(ConnectOptions::new(), 5).await;
        assert_eq!(calls(&connection, 400).await, 400);
        assert!(connection.state().ready() >= 2, "{:?}", connection.state());
        assert_eq!(fleet.shares().iter().sum::<usize>(), 400, "each call went somewhere");
        assert_eq!(check(&connection).await.expect_err("all fail").code(), code);
    }
}

#[tokio::test]
async fn instance_answering_for_callers_faults_stays_in_use() {
    for code in [Code::InvalidArgument, Code::NotFound, Code::AlreadyExists, Code::PermissionDenied] {
        let fleet = fleet(plain::<2>()).await;
        fails(&fleet, 0, code);
        let connection = fleet.connect(ConnectOptions::new(), 2).await;
        calls(&connection, 400).await;
        let state = &connection.state().instances[0];
        assert_eq!((state.ejections, state.failures), (0, 0), "{code:?}");
        let share = fleet.shares()[0];
        assert!((80..=320).contains(&share), "{code:?}: {:?}", fleet.shares());
    }
}

#[tokio::test]
async fn streams_failing_in_their_trailers_eject_the_instance() {
    let fleet = fleet(plain::<2>()).await;
    fails(&fleet, 0, Code::Internal);
    let connection = fleet.connect(ConnectOptions::new(), 2).await;
    let mut open = Vec::new();
    for _ in 0..200 {
        let mut client = HealthClient::new(connection.clone());
        let stream = client.watch(HealthCheckRequest::default()).await.expect("opens");
        let mut stream = stream.into_inner();
        stream.next().await.expect("has a message").expect("is one");
        // Either its end is under way, or it stays open.
        match tokio::time::timeout(Duration::from_millis(20), stream.next()).await {
            Ok(end) => assert_eq!(end.expect("a status").expect_err("the end").code(), Code::Internal),
            Err(_) => open.push(stream),
        }
    }
    assert!(fleet.shares()[0] <= 40, "{:?}", fleet.shares());
    assert!(connection.state().instances[0].ejections >= 1);
}

#[tokio::test]
async fn port_taken_by_another_program_gets_few_calls() {
    let fleet = fleet(plain::<1>()).await;
    // HTTP/2 without gRPC, as of a program that took the port of one that crashed.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    let pages = tonic::service::Routes::default().into_axum_router().fallback(async || "a page");
    let server = Server::builder().add_routes(pages.into());
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
    let registry = fleet.client.registry();
    let other = ServiceInfo::new("im-logic", "other", "127.0.0.1", port);
    let _other = registry.register(other, LONG).await.expect("the store is there");
    let connection = fleet.connect(ConnectOptions::new(), 2).await;
    let failed = calls(&connection, 1000).await;
    assert!(failed <= 50, "{failed} of 1000");
    // So few calls went there that it may not have failed often enough in a row to be ejected.
    let ejected = async {
        while connection.state().instances[1].ejections == 0 {
            calls(&connection, 40).await;
        }
    };
    timeout(LONG, ejected).await.expect("is ejected in time");
}
