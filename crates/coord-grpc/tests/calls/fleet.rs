//! Servers that answer late, not at all, or with `Unavailable`, registered on the memory backend.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use coord_api::{Provider, Registration, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt};
use coord_memory::{Client, Store};
use futures::{Stream, StreamExt, stream};
use tokio::{net::TcpListener, sync::Notify};
use tonic::{
    Code, Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

pub(crate) const LONG: Duration = Duration::from_secs(30);

/// Behaviour of one server, and the calls that it has seen.
#[derive(Default)]
pub(crate) struct Behaviour {
    pub(crate) delay: Duration,
    /// Answers so many calls with `Unavailable` first.
    pub(crate) unavailable: AtomicUsize,
    /// How many milliseconds an answer takes besides.
    pub(crate) hiccup: AtomicU64,
    /// The code of every answer; 0 is success.
    pub(crate) code: AtomicI32,
    /// Answers nothing before this, if it is there.
    pub(crate) gate: Option<Notify>,
    pub(crate) calls: AtomicUsize,
    /// The `grpc-timeout` of the last call.
    pub(crate) timeout: Mutex<Option<String>>,
}

impl Behaviour {
    fn status(&self) -> Result<(), Status> {
        match Code::from(self.code.load(Relaxed)) {
            Code::Ok => Ok(()),
            code => Err(Status::new(code, "so it was set")),
        }
    }
}

pub(crate) struct Service(pub(crate) Arc<Behaviour>);

#[tonic::async_trait]
impl Health for Service {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.0.calls.fetch_add(1, Relaxed);
        let timeout = request.metadata().get("grpc-timeout");
        let timeout = timeout.map(|timeout| timeout.to_str().expect("is text").to_owned());
        *self.0.timeout.lock().expect("no panic") = timeout;
        if let Some(gate) = &self.0.gate {
            gate.notified().await;
        }
        tokio::time::sleep(self.0.delay + Duration::from_millis(self.0.hiccup.load(Relaxed))).await;
        let less_one = |left: usize| left.checked_sub(1);
        match self.0.unavailable.fetch_update(Relaxed, Relaxed, less_one) {
            Ok(_) => Err(Status::unavailable("not now")),
            Err(_) => self.0.status().map(|()| Response::new(HealthCheckResponse::default())),
        }
    }

    /// A stream of one message, which ends with the code in its trailers, or stays open.
    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        if self.0.code.load(Relaxed) == Code::Unimplemented as i32 {
            return Err(Status::unimplemented("there is no such method"));
        }
        self.0.calls.fetch_add(1, Relaxed);
        let first = stream::iter([Ok(HealthCheckResponse::default())]);
        Ok(Response::new(match self.0.status() {
            Ok(()) => Box::pin(first.chain(stream::pending())),
            Err(status) => Box::pin(first.chain(stream::iter([Err(status)]))),
        }))
    }
}

/// Of an instance.
pub(crate) type Metadata = &'static [(&'static str, &'static str)];

pub(crate) struct Fleet {
    pub(crate) client: Client,
    pub(crate) servers: Vec<Arc<Behaviour>>,
    pub(crate) registered: Vec<Registration>,
}

/// Starts and registers a server for each behaviour; ids are `0`, `1`, …
pub(crate) async fn fleet(servers: impl IntoIterator<Item = (Behaviour, Metadata)>) -> Fleet {
    let mut fleet = Fleet { client: Store::new().client(), servers: Vec::new(), registered: Vec::new() };
    for (behaviour, metadata) in servers {
        let behaviour = Arc::new(behaviour);
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let port = listener.local_addr().expect("is bound").port();
        let service = HealthServer::new(Service(behaviour.clone()));
        tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
        let mut info = ServiceInfo::new("im-logic", fleet.servers.len().to_string(), "127.0.0.1", port);
        for (key, value) in metadata {
            info = info.with(*key, *value);
        }
        let registration = fleet.client.registry().register(info, LONG).await.expect("the store is there");
        fleet.registered.push(registration);
        fleet.servers.push(behaviour);
    }
    fleet
}

pub(crate) fn plain<const N: usize>() -> [(Behaviour, Metadata); N] {
    std::array::from_fn(|_| (Behaviour::default(), &[][..]))
}

impl Fleet {
    /// Connects, and waits until `ready` instances are.
    pub(crate) async fn connect(&self, options: ConnectOptions, ready: usize) -> Connection {
        let registry = self.client.registry();
        let connection = registry.connection_with("im-logic", options).await.expect("is registered");
        until(|| connection.state().ready() == ready).await;
        connection
    }

    pub(crate) fn shares(&self) -> Vec<usize> {
        self.servers.iter().map(|server| server.calls.load(Relaxed)).collect()
    }
}

pub(crate) async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("comes in time");
}

pub(crate) async fn check(connection: &Connection) -> Result<(), Status> {
    HealthClient::new(connection.clone()).check(HealthCheckRequest::default()).await.map(drop)
}

/// Makes `calls` calls, four at a time.
pub(crate) async fn calls(connection: &Connection, calls: usize) {
    let callers = (0..4).map(|_| async {
        for _ in 0..calls / 4 {
            check(connection).await.expect("every instance is alive");
        }
    });
    futures::future::join_all(callers).await;
}
