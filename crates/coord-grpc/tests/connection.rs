//! Connections over the memory backend, with real servers on loopback.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    Error, Provider, Registration, Result, ServiceEvent, ServiceInfo, ServiceRegistry, ServiceView, Watch,
};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt};
use coord_memory::{Client, Store};
use futures::StreamExt;
use tokio::{net::TcpListener, sync::oneshot};
use tonic::{
    Code, Status,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::{
    ServingStatus,
    pb::{HealthCheckRequest, health_check_response, health_client::HealthClient},
};

const TTL: Duration = Duration::from_secs(30);
const SOON: Duration = Duration::from_secs(10);

/// Which server answered: each gives another status for the service `who`.
const ONE: ServingStatus = ServingStatus::Serving;
const OTHER: ServingStatus = ServingStatus::NotServing;

/// A server that runs until it is dropped.
struct Running {
    port: u16,
    _stop: oneshot::Sender<()>,
}

async fn serve(who: ServingStatus) -> Running {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("who", who).await;
    let (stop, stopped) = oneshot::channel::<()>();
    let server = Server::builder().add_service(health);
    tokio::spawn(server.serve_with_incoming_shutdown(TcpIncoming::from(listener), async {
        let _ = stopped.await;
    }));
    Running { port, _stop: stop }
}

async fn register(client: &Client, id: &str, port: u16) -> Registration {
    let info = ServiceInfo::new("im-logic", id, "127.0.0.1", port);
    client.registry().register(info, TTL).await.expect("the store is there")
}

async fn who(connection: &Connection) -> Result<i32, Status> {
    let request = HealthCheckRequest { service: "who".into() };
    let answer = HealthClient::new(connection.clone()).check(request).await?;
    Ok(answer.into_inner().status)
}

fn code(who: ServingStatus) -> i32 {
    match who {
        ONE => health_check_response::ServingStatus::Serving as i32,
        _ => health_check_response::ServingStatus::NotServing as i32,
    }
}

/// Calls until the server answers.
async fn until_answered_by(connection: &Connection, server: ServingStatus) {
    let calls = async { while who(connection).await.expect("every instance is alive") != code(server) {} };
    tokio::time::timeout(SOON, calls).await.expect("gets calls soon");
}

/// Calls until 30 calls in a row went to the server; with two of them that is no accident.
async fn until_answered_only_by(connection: &Connection, server: ServingStatus) {
    let calls = async {
        let mut in_a_row = 0;
        while in_a_row < 30 {
            let answer = who(connection).await.expect("every instance is alive");
            in_a_row = if answer == code(server) { in_a_row + 1 } else { 0 };
        }
    };
    tokio::time::timeout(SOON, calls).await.expect("the other one gets no calls soon");
}

#[tokio::test]
async fn calls_follow_instances_that_come_move_and_go() {
    let client = Store::new().client();
    let (one, other) = (serve(ONE).await, serve(OTHER).await);

    let _first = register(&client, "a", one.port).await;
    let connection = client.registry().connection("im-logic").await.expect("is registered");
    assert_eq!(connection.service(), "im-logic");
    until_answered_only_by(&connection, ONE).await;

    let second = register(&client, "b", other.port).await;
    until_answered_by(&connection, OTHER).await;
    until_answered_by(&connection, ONE).await;

    second.deregister().await.expect("is registered");
    until_answered_only_by(&connection, ONE).await;

    let _moved = register(&client, "a", other.port).await;
    until_answered_only_by(&connection, OTHER).await;
}

#[tokio::test]
async fn first_instance_is_waited_for() {
    let client = Store::new().client();
    let registry = client.registry();
    let server = serve(ONE).await;
    let (connection, _registered) = tokio::join!(registry.connection("im-logic"), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        register(&client, "a", server.port).await
    });
    let connection = connection.expect("an instance came in time");
    assert_eq!(who(&connection).await.expect("is served"), code(ONE));
}

#[tokio::test]
async fn service_without_instance_is_unavailable_in_time() {
    let client = Store::new().client();
    let short = ConnectOptions::new().connect_timeout(Duration::from_millis(200));
    let begin = std::time::Instant::now();
    let error = client.registry().connection_with("im-logic", short).await.expect_err("nobody is there");
    assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    assert_eq!(error.to_string(), "service im-logic is unavailable");
    assert!(error.is_retryable());
}

#[tokio::test]
async fn call_after_the_last_instance_left_waits_for_another() {
    let client = Store::new().client();
    let server = serve(ONE).await;
    let only = register(&client, "a", server.port).await;
    let options = ConnectOptions::new().connect_timeout(Duration::from_millis(500));
    let connection = client.registry().connection_with("im-logic", options).await.expect("is registered");
    until_answered_by(&connection, ONE).await;

    only.deregister().await.expect("is registered");
    let status = tokio::time::timeout(SOON, async {
        loop {
            if let Err(status) = who(&connection).await {
                return status;
            }
        }
    });
    let status = status.await.expect("no call hangs");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("service im-logic is unavailable"), "{status:?}");

    let (answer, _registered) = tokio::join!(who(&connection), async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        register(&client, "b", server.port).await
    });
    assert_eq!(answer.expect("an instance came in time"), code(ONE));
}

#[tokio::test]
async fn invalid_names_and_closed_providers_are_errors() {
    let client = Store::new().client();
    let error = client.registry().connection("im//logic").await.expect_err("is no name");
    assert!(matches!(error, Error::InvalidArgument { field: "service name", .. }), "{error:?}");

    let registry = client.registry();
    let (waiting, closed) = tokio::join!(registry.connection("im-logic"), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.close().await
    });
    closed.expect("nothing is held");
    assert!(matches!(waiting, Err(Error::Closed)), "{waiting:?}");
}

#[tokio::test]
async fn last_instances_stay_while_the_store_is_away_and_after_close() {
    let store = Store::new();
    let (logic, gateway) = (store.client(), store.client());
    let server = serve(ONE).await;
    let _registered = register(&logic, "a", server.port).await;
    let connection = gateway.registry().connection("im-logic").await.expect("is registered");

    gateway.disconnect();
    assert_eq!(who(&connection).await.expect("is served"), code(ONE));
    gateway.reconnect();
    gateway.close().await.expect("nothing is held");
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(who(&connection).await.expect("is served"), code(ONE));
}

#[tokio::test]
async fn records_that_can_not_be_used_are_skipped() {
    let store = Store::new();
    let client = store.client();
    store.put_raw("services/im-logic/0", "no JSON");
    store.put_raw("services/im-logic/1", r#"{"id":"1","name":"im-logic","address":"a b","port":80}"#);
    let server = serve(ONE).await;
    let _registered = register(&client, "2", server.port).await;
    let connection = client.registry().connection("im-logic").await.expect("one is good");
    store.put_raw("services/im-logic/3", "no JSON either");
    until_answered_only_by(&connection, ONE).await;
}

/// A registry whose watches can be seen from outside.
#[derive(Debug)]
struct Watched {
    registry: Arc<dyn ServiceRegistry>,
    alive: Arc<()>,
}

#[async_trait]
impl ServiceRegistry for Watched {
    async fn register(&self, service: ServiceInfo, ttl: Duration) -> Result<Registration> {
        self.registry.register(service, ttl).await
    }

    async fn discover(&self, service: &str) -> Result<Vec<ServiceInfo>> {
        self.registry.discover(service).await
    }

    async fn services(&self) -> Result<BTreeMap<String, Vec<ServiceInfo>>> {
        self.registry.services().await
    }

    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>> {
        let alive = self.alive.clone();
        let events = self.registry.watch(service).await?;
        Ok(Watch::new(events.connectivity(), events.inspect(move |_| drop(alive.clone()))))
    }

    async fn view(&self, service: &str) -> Result<ServiceView> {
        self.registry.view(service).await
    }
}

async fn until_dropped(alive: &Weak<()>) {
    let dropped = async {
        // The last reference is the registry's own.
        while alive.strong_count() > 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, dropped).await.expect("the watch is dropped");
}

#[tokio::test]
async fn dropped_connection_leaves_nothing_behind() {
    let client = Store::new().client();
    let server = serve(ONE).await;
    let registry = Arc::new(Watched { registry: client.registry(), alive: Arc::default() });
    let alive = Arc::downgrade(&registry.alive);

    // Dropped while it waits for an instance.
    let waiting = tokio::time::timeout(Duration::from_millis(50), registry.connection("im-logic")).await;
    assert!(waiting.is_err(), "no instance is there");
    until_dropped(&alive).await;

    // Dropped before and after the first call, the last clone counts.
    let _registered = register(&client, "a", server.port).await;
    let connection = registry.connection("im-logic").await.expect("is registered");
    assert_eq!(alive.strong_count(), 2);
    drop(connection);
    until_dropped(&alive).await;

    let connection = registry.connection("im-logic").await.expect("is registered");
    let clone = connection.clone();
    drop(connection);
    assert_eq!(who(&clone).await.expect("is served"), code(ONE));
    assert_eq!(alive.strong_count(), 2);
    drop(clone);
    until_dropped(&alive).await;

    // Dropped when the provider was closed before.
    let connection = registry.connection("im-logic").await.expect("is registered");
    client.close().await.expect("the store is there");
    drop(connection);
    until_dropped(&alive).await;
}
