//! The tour: two services, each with a coordinator of its own, find each other, call each other, share
//! configuration, hold different ids and take turns under one lock.
//!
//! ```sh
//! cargo run --example quickstart                                                         # in memory
//! cargo run --example quickstart --features etcd,grpc -- etcd://127.0.0.1:2379/demo      # over etcd
//! ```
//!
//! With `COORD_QUICKSTART_PAUSE=30` each turn under the lock takes 30 s: time to look at what is held with
//! `etcdctl get --prefix /demo`. At the end nothing is left behind.

use std::{error::Error, time::Duration};

use coord::prelude::*;
use serde::{Deserialize, Serialize};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

/// How long a lock or a registration outlives a process that crashed.
const TTL: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("memory://quickstart");

    // Two services in one program. In production they are two processes with one URL.
    let gateway = Coordinator::connect(url).await?;
    let logic = Coordinator::connect(url).await?;
    println!("both services are connected to {url}");

    // Registrations and ids are held until they are given back, or until their process is gone.
    let gateway_registration = register("im-gateway", &gateway, 8080).await?;
    let logic_registration = register("im-logic", &logic, serve_health().await?).await?;
    discover("im-gateway", &gateway, "im-logic").await?;
    discover("im-logic", &logic, "im-gateway").await?;
    call_logic(&gateway).await?;

    change_config(&gateway, &logic).await?;

    // Ids are unique among the instances of one service: here, two gateways.
    let gateway_ids = gateway.instance_id_allocator("im-gateway", 1024)?;
    let second_gateway_ids = logic.instance_id_allocator("im-gateway", 1024)?;
    let (id, second_id) = (gateway_ids.acquire_id().await?, second_gateway_ids.acquire_id().await?);
    println!("[im-gateway] instance id: {id}");
    println!("[im-gateway, second instance] instance id: {second_id}");

    // Both want the same lock at the same time.
    tokio::try_join!(nightly_report("im-gateway", &gateway), nightly_report("im-logic", &logic))?;

    // Dropping would do the same in the background; this waits until the store has done it.
    gateway_ids.release_id().await?;
    second_gateway_ids.release_id().await?;
    gateway_registration.deregister().await?;
    logic_registration.deregister().await?;
    gateway.config().delete("quickstart/limits").await?;
    gateway.close().await?;
    logic.close().await?;
    println!("everything is released, both coordinators are closed");
    Ok(())
}

async fn register(service: &str, coordinator: &Coordinator, port: u16) -> Result<Registration> {
    let me = ServiceInfo::new(service, format!("{service}-1"), "127.0.0.1", port).with("region", "us-east-1");
    let registration = coordinator.registry().register(me, TTL).await?;
    println!("[{service}] registered at {}", registration.service().authority());
    Ok(registration)
}

async fn discover(service: &str, coordinator: &Coordinator, other: &str) -> Result {
    for instance in coordinator.registry().discover(other).await? {
        let (id, authority) = (&instance.id, instance.authority());
        println!("[{service}] discovered {id} at {authority}");
    }
    Ok(())
}

#[derive(Debug, Serialize, Deserialize)]
struct Limits {
    max_upload_mb: u32,
}

/// im-gateway writes a value, im-logic watches it.
async fn change_config(gateway: &Coordinator, logic: &Coordinator) -> Result {
    let config = gateway.config();
    config.set("quickstart/limits", &Limits { max_upload_mb: 10 }).await?;

    let mut changes = logic.config().watch::<Limits>("quickstart/limits").await?;
    if let Some(ConfigEvent::Snapshot { settings, .. }) = changes.next().await.transpose()? {
        for Setting { value, version, .. } in settings {
            println!("[im-logic] config quickstart/limits: {value:?} at version {version}");
        }
    }

    let version = config.set("quickstart/limits", &Limits { max_upload_mb: 50 }).await?;
    println!("[im-gateway] config quickstart/limits: changed, now at version {version}");
    if let Some(ConfigEvent::Set(Setting { value, version, .. })) = changes.next().await.transpose()? {
        println!("[im-logic] config quickstart/limits: {value:?} at version {version}");
    }
    Ok(())
}

/// Work that only one process may do at a time.
async fn nightly_report(service: &str, coordinator: &Coordinator) -> Result {
    let locks = coordinator.lock();
    let guard = if let Some(guard) = locks.try_acquire("nightly-report", TTL).await? {
        guard
    } else {
        println!("[{service}] lock nightly-report: held by another, waiting in the queue");
        locks.acquire("nightly-report", TTL).await?
    };
    let token = guard.token();
    println!("[{service}] lock nightly-report: held with token {token}");
    // `run` stops the work at once if the lock is lost.
    guard.run(tokio::time::sleep(work_time())).await?;
    guard.unlock().await?;
    println!("[{service}] lock nightly-report: released");
    Ok(())
}

fn work_time() -> Duration {
    match std::env::var("COORD_QUICKSTART_PAUSE") {
        Ok(seconds) => {
            Duration::from_secs(seconds.parse().expect("COORD_QUICKSTART_PAUSE is a number of seconds"))
        }
        Err(_) => Duration::from_millis(300),
    }
}

/// im-logic's gRPC server; returns its port. Any tonic service would do.
#[cfg(feature = "grpc")]
async fn serve_health() -> Result<u16> {
    use tonic::transport::{Server, server::TcpIncoming};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(Server::builder().add_service(health).serve_with_incoming(TcpIncoming::from(listener)));
    Ok(port)
}

/// im-gateway calls im-logic by its name; the connection follows the registry.
#[cfg(feature = "grpc")]
async fn call_logic(gateway: &Coordinator) -> Result {
    use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

    let connection = gateway.registry().connection("im-logic").await?;
    let mut client = HealthClient::new(connection);
    let answer = client.check(HealthCheckRequest::default()).await?;
    let status = answer.into_inner().status();
    println!("[im-gateway] gRPC call to im-logic: {status:?}");
    Ok(())
}

#[cfg(not(feature = "grpc"))]
fn serve_health() -> std::future::Ready<Result<u16>> {
    std::future::ready(Ok(50051))
}

#[cfg(not(feature = "grpc"))]
fn call_logic(_gateway: &Coordinator) -> std::future::Ready<Result> {
    println!("[im-gateway] no gRPC call: enable it with `--features grpc`");
    std::future::ready(Ok(()))
}
