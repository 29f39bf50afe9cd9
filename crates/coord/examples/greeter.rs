//! The server and the client of docs/first-service.md.

use std::{error::Error, time::Duration};

use coord::prelude::*;
use tonic::transport::{Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const TTL: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // memory:// is within one process; several processes meet in an etcd.
    let url = std::env::var("COORD_URL").unwrap_or_else(|_| "etcd://127.0.0.1:2379/demo".into());
    let coordinator = Coordinator::connect(&url).await?;
    match std::env::args().nth(1).as_deref() {
        Some("server") => serve(&coordinator).await?,
        _ => call(&coordinator).await?,
    }
    coordinator.close().await?;
    Ok(())
}

async fn serve(coordinator: &Coordinator) -> Result<(), Box<dyn Error>> {
    // In production: the address at which the others reach this machine.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = listener.local_addr()?.port();
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = Server::builder().add_service(health).serve_with_incoming(TcpIncoming::from(listener));
    let server = tokio::spawn(server);

    // An id for each start: a process that crashed has its own until its time to live is over.
    let me = ServiceInfo::new("greeter", format!("greeter-{}", std::process::id()), "127.0.0.1", port);
    let registration = coordinator.registry().register(me, TTL).await?;
    println!("registered on port {port}; Ctrl-C ends it");
    tokio::signal::ctrl_c().await?;
    registration.drain().await?; // three seconds, in which clients see it and calls go on
    server.abort();
    Ok(())
}

async fn call(coordinator: &Coordinator) -> Result<(), Box<dyn Error>> {
    let connection = coordinator.registry().connection("greeter").await?;
    let mut client = HealthClient::new(connection.clone());
    for _ in 0..100 {
        client.check(HealthCheckRequest::default()).await?;
    }
    for instance in connection.state().instances {
        println!("{} at {} had {} of 100 calls", instance.id, instance.address, instance.calls);
    }
    Ok(())
}
