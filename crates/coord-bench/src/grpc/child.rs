//! The load of one process: a server of its own on a thread of its own, and calls over one kind of channel.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use coord_api::{Provider, Registration, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt};
use coord_memory::Store;
use serde_json::json;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Server, server::TcpIncoming};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::args::Args;
use crate::child::Runner;
use crate::load::repeat;

/// Longer than any measurement.
const LONG: Duration = Duration::from_secs(600);

/// The instances that each client uses with the option for very many of them.
const SUBSET: usize = 10;

/// Runs one contender as `args` say.
pub(crate) async fn run(args: &Args, runner: &mut Runner) -> Result<()> {
    let (tasks, seconds): (usize, f64) = (args.need("tasks")?, args.need("seconds")?);
    let (instances, seconds) = (args.need("shape")?, Duration::from_secs_f64(seconds));
    let callers = Callers::connect(&args.need::<String>("contender")?, instances, serve()?).await?;
    let callers = Arc::new(callers);
    calls(&callers, tasks, seconds / 3).await?;
    runner.ready().await?;
    let start = Instant::now();
    let latencies = calls(&callers, tasks, seconds).await?;
    runner.report(&json!({ "seconds": start.elapsed().as_secs_f64(), "latencies_us": latencies })).await
}

/// Serves gRPC's health service on all addresses of loopback: each is an instance.
fn serve() -> Result<u16> {
    let (told, port) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async move {
            let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await?;
            told.send(listener.local_addr()?.port())?;
            let (_reporter, health) = tonic_health::server::health_reporter();
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            anyhow::Ok(Server::builder().add_service(health).serve_with_incoming(incoming).await?)
        })
    });
    Ok(port.recv()?)
}

/// 127.0.0.1, 127.0.0.2, …
fn address(instance: usize) -> String {
    format!("127.0.{}.{}", instance / 250, instance % 250 + 1)
}

/// One kind of channel.
enum Callers {
    Coord { connection: Connection, _registered: Vec<Registration> },
    Tonic(Channel),
    Turn { channels: Vec<Channel>, next: AtomicUsize },
}

impl Callers {
    async fn connect(contender: &str, instances: usize, port: u16) -> Result<Self> {
        let endpoint = |instance| Channel::from_shared(format!("http://{}:{port}", address(instance)));
        Ok(match contender {
            "coord" | "subset" => {
                let registry = Store::new().client().registry();
                let mut registered = Vec::new();
                for instance in 0..instances {
                    let info = ServiceInfo::new("bench", instance.to_string(), address(instance), port);
                    registered.push(registry.register(info, LONG).await?);
                }
                let (options, ready) = match contender {
                    "subset" => (ConnectOptions::new().subset(SUBSET), instances.min(SUBSET)),
                    _ => (ConnectOptions::new(), instances),
                };
                let connection = registry.connection_with("bench", options).await?;
                while connection.state().ready() < ready {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                Self::Coord { connection, _registered: registered }
            }
            "plain" => Self::Tonic(endpoint(0)?.connect().await?),
            "balance" => {
                let endpoints = (0..instances).map(endpoint).collect::<Result<Vec<_>, _>>()?;
                let (channel, changes) = Channel::balance_channel(instances);
                for (instance, endpoint) in endpoints.into_iter().enumerate() {
                    changes.send(tonic::transport::channel::Change::Insert(instance, endpoint)).await?;
                }
                // A closed list would do as well, but would be dropped with its sender.
                std::mem::forget(changes);
                Self::Tonic(channel)
            }
            "turn" => {
                let mut channels = Vec::new();
                for instance in 0..instances {
                    channels.push(endpoint(instance)?.connect().await?);
                }
                Self::Turn { channels, next: AtomicUsize::new(0) }
            }
            other => bail!("no contender `{other}`"),
        })
    }

    async fn call(&self) -> Result<()> {
        let request = HealthCheckRequest::default();
        match self {
            Self::Coord { connection, .. } => HealthClient::new(connection.clone()).check(request).await?,
            Self::Tonic(channel) => HealthClient::new(channel.clone()).check(request).await?,
            Self::Turn { channels, next } => {
                let channel = &channels[next.fetch_add(1, Relaxed) % channels.len()];
                HealthClient::new(channel.clone()).check(request).await?
            }
        };
        Ok(())
    }
}

/// How long each call took, in microseconds.
async fn calls(callers: &Arc<Callers>, tasks: usize, seconds: Duration) -> Result<Vec<u64>> {
    let calls = (0..tasks).map(|_| {
        let callers = callers.clone();
        move || {
            let callers = callers.clone();
            async move { callers.call().await }
        }
    });
    repeat(calls, seconds).await
}
