//! Limits: streams that never pause, ejected instances that are needed, and times that no clock reaches.

use std::{
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use coord_api::ServiceInfo;
use coord_grpc::{ConnectOptions, Connection, OutlierDetection, Policy};
use futures::{Stream, StreamExt, stream};
use tokio::{net::TcpListener, time::timeout};
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::discover::Change;

use crate::fleet::{LONG, check, fleet, plain, until};

/// A server whose streams send as fast as they are read, for ever.
struct Endless;

#[tonic::async_trait]
impl Health for Endless {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(stream::repeat_with(|| Ok(HealthCheckResponse { status: 1 })))))
    }
}

async fn endless() -> Connection {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    let service = HealthServer::new(Endless);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
    let info = ServiceInfo::new("endless", "1", "127.0.0.1", port);
    let members = [Ok::<_, coord_api::Error>(Change::Insert("1".to_owned(), info))];
    let members = stream::iter(members).chain(stream::pending());
    Connection::balance("endless", members, ConnectOptions::new()).expect("is good")
}

/// The caller is slower than the server, so that something to read is there at any moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deadline_ends_stream_that_never_pauses() {
    let connection = endless().await;
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(Duration::from_secs(2));
    let begun = Instant::now();
    let mut answers = HealthClient::new(connection).watch(request).await.expect("is begun").into_inner();
    let status = loop {
        match timeout(LONG, answers.message()).await.expect("goes on") {
            Ok(Some(_)) => std::thread::sleep(Duration::from_micros(50)),
            Ok(None) => panic!("it never ends by itself"),
            Err(status) => break status,
        }
        assert!(begun.elapsed() < LONG, "the deadline was 2 s");
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

/// Makes calls until one of two instances is ejected.
async fn until_ejected(connection: &Connection) {
    let is_ejected = async {
        while connection.state().ready() == 2 {
            let _ = check(connection).await;
        }
    };
    timeout(LONG, is_ejected).await.expect("is ejected");
}

/// The first call to an instance that is back is a stream, which stays open.
#[tokio::test]
async fn instance_back_with_a_stream_gets_its_share() {
    for policy in [Policy::LeastPending, Policy::RoundRobin, Policy::Weighted, Policy::PeakEwma] {
        let fleet = fleet(plain::<2>()).await;
        let cool_off = Duration::from_millis(200);
        let options = ConnectOptions::new().policy(policy).eject_after(2).cool_off(cool_off, cool_off);
        let connection = fleet.connect(options, 2).await;
        fleet.servers[0].code.store(Code::Internal as i32, Relaxed);
        until_ejected(&connection).await;
        fleet.servers[0].code.store(0, Relaxed);
        until(|| connection.state().ready() == 2).await;
        let before = fleet.shares();
        // Streams, until one is open to each, so that as many calls are in flight to both.
        let mut streams = Vec::new();
        while fleet.shares().iter().zip(&before).any(|(now, before)| now == before) {
            let call = HealthClient::new(connection.clone()).watch(HealthCheckRequest::default()).await;
            let mut answers = call.expect("is begun").into_inner();
            answers.message().await.expect("is good").expect("is there");
            streams.push(answers);
        }
        // Its latency and its errors from before count for a while.
        let has_its_share = async {
            loop {
                let before = fleet.shares();
                for _ in 0..400 {
                    check(&connection).await.expect("both are well");
                }
                if fleet.shares()[0] - before[0] >= 40 {
                    return;
                }
            }
        };
        let streams = streams.len();
        timeout(LONG, has_its_share).await.unwrap_or_else(|_| panic!("{policy:?} with {streams} streams"));
    }
}

/// An instance is ejected for long, and the other one goes away.
#[tokio::test]
async fn ejected_instance_is_used_when_no_other_is_left() {
    let mut fleet = fleet(plain::<2>()).await;
    let detection = OutlierDetection::new()
        .consecutive_failures(2)
        .base_ejection_time(Duration::from_secs(60))
        .max_ejection_time(Duration::from_secs(60));
    let connection = fleet.connect(ConnectOptions::new().outlier_detection(detection), 2).await;
    fleet.servers[0].code.store(Code::Internal as i32, Relaxed);
    until_ejected(&connection).await;
    fleet.servers[0].code.store(0, Relaxed);
    fleet.registered.remove(1).deregister().await.expect("is registered");
    until(|| connection.state().instances.len() == 1).await;
    check(&connection).await.expect("the one that is left is well");
}

#[tokio::test]
async fn times_that_no_clock_reaches_are_good() {
    let fleet = fleet(plain::<1>()).await;
    let detection = OutlierDetection::new()
        .interval(Duration::MAX)
        .base_ejection_time(Duration::MAX)
        .max_ejection_time(Duration::MAX);
    let options = ConnectOptions::new()
        .connect_timeout(Duration::MAX)
        .wait_timeout(Duration::MAX)
        .try_timeout(Duration::MAX)
        .longest_pause(Duration::MAX)
        .keep_alive(Duration::MAX, Duration::MAX)
        .slow_start(Duration::MAX)
        .probe(ConnectOptions::ANY_METHOD, Duration::MAX, Duration::MAX)
        .outlier_detection(detection);
    let registry = coord_api::Provider::registry(&fleet.client);
    let connection = coord_grpc::ConnectionExt::connection_with(&registry, "im-logic", options).await;
    // The first tick of a timer is late on a machine that does much else.
    std::thread::sleep(Duration::from_millis(20));
    let connection = connection.expect("is registered");
    for _ in 0..3 {
        timeout(LONG, check(&connection)).await.expect("in time").expect("is well");
        std::thread::sleep(Duration::from_millis(20));
    }
    let metadata = [("a".to_owned(), "b".to_owned())].into();
    fleet.registered[0].update(metadata).await.expect("is registered");
    timeout(LONG, check(&connection)).await.expect("in time").expect("is well");
    assert!(connection.is_ready(), "its task goes on");
}
