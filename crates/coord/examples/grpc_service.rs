//! Two tonic services: a gateway that asks two instances of another service by its name, while one of them is replaced.
//! The health service stands for one of your own, whose generated client is used in the same way.
//!
//! ```sh
//! cargo run --example grpc_service --features grpc                                       # in memory
//! cargo run --example grpc_service --features etcd,grpc -- etcd://127.0.0.1:2379/demo    # over etcd
//! ```

use std::{error::Error, pin::Pin, time::Duration};

use coord::prelude::*;
use tokio::{net::TcpListener, sync::oneshot, task::JoinSet};
use tonic::{
    Request, Response, Status,
    codegen::tokio_stream::Stream,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};

const TTL: Duration = Duration::from_secs(10);

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[tokio::main]
async fn main() -> Result {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("memory://grpc-service");
    let (logic, gateway) = (Coordinator::connect(url).await?, Coordinator::connect(url).await?);

    let one = Instance::start(&logic, "im-logic", "im-logic-1", Logic).await?;
    let two = Instance::start(&logic, "im-logic", "im-logic-2", Logic).await?;

    // One connection for the process. It balances, follows the registry, and any generated client takes it.
    let connection = gateway.registry().connection("im-logic").await?;
    let relay = Gateway { logic: HealthClient::new(connection.clone()) };
    let relay = Instance::start(&gateway, "im-gateway", "im-gateway-1", relay).await?;

    let client = HealthClient::new(gateway.registry().connection("im-gateway").await?);
    ask(&client, 100).await?;
    for instance in connection.state().instances {
        println!("{} was called {} times", instance.id, instance.calls);
    }

    // A deployment: a new instance comes, an old one leaves, and no call fails.
    let three = Instance::start(&logic, "im-logic", "im-logic-3", Logic).await?;
    let (left, asked) = tokio::join!(one.stop(), ask(&client, 100));
    left.and(asked)?;
    let ids: Vec<_> = connection.state().instances.into_iter().map(|instance| instance.id).collect();
    println!("now there are {}", ids.join(" and "));

    for instance in [two, three, relay] {
        instance.stop().await?;
    }
    logic.close().await?;
    gateway.close().await?;
    Ok(())
}

async fn ask(client: &HealthClient<Connection>, times: u32) -> Result {
    let mut callers = JoinSet::new();
    for _ in 0..times {
        let mut client = client.clone();
        callers.spawn(async move { client.check(HealthCheckRequest::default()).await });
    }
    while let Some(answer) = callers.join_next().await {
        answer??;
    }
    println!("{times} calls were answered");
    Ok(())
}

/// A server with its registration.
struct Instance {
    registration: Registration,
    stop: oneshot::Sender<()>,
    server: tokio::task::JoinHandle<std::result::Result<(), tonic::transport::Error>>,
}

impl Instance {
    async fn start(coordinator: &Coordinator, service: &str, id: &str, health: impl Health) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let (stop, stopped) = oneshot::channel::<()>();
        let server = Server::builder().add_service(HealthServer::new(health));
        let stopped = async { drop(stopped.await) };
        let server = tokio::spawn(server.serve_with_incoming_shutdown(TcpIncoming::from(listener), stopped));
        // Registered when it listens, not before.
        let me = ServiceInfo::new(service, id, "127.0.0.1", port);
        let registration = coordinator.registry().register(me, TTL).await?;
        Ok(Self { registration, stop, server })
    }

    /// First out of the registry, then a moment in which clients see it, then the server.
    async fn stop(self) -> Result {
        self.registration.drain_for(Duration::from_millis(300)).await?;
        drop(self.stop);
        Ok(self.server.await??)
    }
}

type Answer = std::result::Result<Response<HealthCheckResponse>, Status>;
type Answers = Pin<Box<dyn Stream<Item = std::result::Result<HealthCheckResponse, Status>> + Send>>;

/// The service that is asked.
struct Logic;

#[tonic::async_trait]
impl Health for Logic {
    async fn check(&self, _request: Request<HealthCheckRequest>) -> Answer {
        Ok(Response::new(HealthCheckResponse { status: 1 }))
    }

    type WatchStream = Answers;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> std::result::Result<Response<Answers>, Status> {
        Err(Status::unimplemented("not in this example"))
    }
}

/// The service that asks it for each call of its own.
struct Gateway {
    logic: HealthClient<Connection>,
}

#[tonic::async_trait]
impl Health for Gateway {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Answer {
        // Clones share the connection.
        self.logic.clone().check(request.into_inner()).await
    }

    type WatchStream = Answers;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> std::result::Result<Response<Answers>, Status> {
        Err(Status::unimplemented("not in this example"))
    }
}
