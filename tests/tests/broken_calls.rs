//! Calls through connections that break and servers that end them: no request is executed twice, and no call hangs.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use coord_api::{Provider, ServiceInfo};
use coord_grpc::{ConnectOptions, ConnectionExt};
use coord_memory::Store;
use coord_tests::Proxy;
use futures::{Stream, stream};
use tokio::{
    net::TcpListener,
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

const LIMIT: Duration = Duration::from_secs(30);

/// Counts how often each request was executed, by its name.
#[derive(Clone, Default)]
struct Ledger(Arc<Mutex<HashMap<String, u32>>>);

#[tonic::async_trait]
impl Health for Ledger {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        *self.0.lock().expect("no panic").entry(request.into_inner().service).or_default() += 1;
        if fastrand::bool() {
            sleep(Duration::from_millis(fastrand::u64(0..20))).await;
        }
        Ok(Response::new(HealthCheckResponse::default()))
    }

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(Box::pin(stream::pending())))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_executed_twice_in_a_storm() {
    let (ledger, mut ways, mut registered) = (Ledger::default(), Vec::new(), Vec::new());
    let registry = Store::new().client().registry();
    for id in 0..3 {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let target = listener.local_addr().expect("is bound").to_string();
        let server = Server::builder()
            .max_connection_age(Duration::from_millis(80))
            .max_concurrent_streams(4)
            .add_service(HealthServer::new(ledger.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let way = Proxy::start(target).await.expect("a port is free");
        let (host, port) = way.address().rsplit_once(':').expect("has a port");
        let info = ServiceInfo::new("ledger", id.to_string(), host, port.parse().expect("is a number"));
        registered.push(registry.register(info, LIMIT * 2).await.expect("the store is there"));
        ways.push(way);
    }
    let options = ConnectOptions::new().connect_timeout(Duration::from_secs(5));
    let connection = registry.connection_with("ledger", options).await.expect("is registered");
    let over = Arc::new(AtomicBool::new(false));
    let numbers = Arc::new([const { AtomicU64::new(0) }; 3]);
    let mut tasks = JoinSet::new();
    for caller in 0..12 {
        let (connection, over, numbers) = (connection.clone(), over.clone(), numbers.clone());
        tasks.spawn(async move {
            let mut number = 0;
            while !over.load(Ordering::SeqCst) {
                number += 1;
                let request = HealthCheckRequest { service: format!("{caller}-{number}") };
                let mut client = HealthClient::new(connection.clone());
                let call = client.check(request);
                let outcome = if fastrand::u8(..10) == 0 {
                    timeout(Duration::from_micros(1 << fastrand::u32(5..15)), call).await.ok()
                } else {
                    Some(timeout(LIMIT, call).await.expect("no call hangs"))
                };
                let kind = outcome.map_or(2, |outcome| usize::from(outcome.is_err()));
                numbers[kind].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let breaking = {
        let over = over.clone();
        tokio::spawn(async move {
            while !over.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(fastrand::u64(1..60))).await;
                let way = &ways[fastrand::usize(..ways.len())];
                match fastrand::u8(..4) {
                    0 => {
                        way.refuse();
                        sleep(Duration::from_millis(fastrand::u64(1..50))).await;
                        way.restore();
                    }
                    _ => way.reset(),
                }
            }
            // They stay until the last call has ended.
            ways.iter().for_each(Proxy::restore);
            ways
        })
    };
    sleep(Duration::from_secs(15)).await;
    over.store(true, Ordering::SeqCst);
    while let Some(ended) = tasks.join_next().await {
        ended.expect("no call hangs");
    }
    drop(breaking.await.expect("no panic"));
    let [good, bad, dropped] = [0, 1, 2].map(|kind| numbers[kind].load(Ordering::Relaxed));
    println!("{good} good, {bad} failed, {dropped} dropped");
    let ledger = ledger.0.lock().expect("no panic");
    let twice: Vec<_> = ledger.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "executed more than once: {twice:?}");
    assert!(good > 100, "most calls are good");
    let in_flight: Vec<_> = connection.state().instances.iter().map(|it| it.in_flight).collect();
    assert!(in_flight.iter().all(|count| *count == 0), "no call is in flight: {in_flight:?}");
}
