//! gRPC connections by service name, over any [`ServiceRegistry`].
//!
//! [`ConnectionExt`] adds [`connection`](ConnectionExt::connection) to every registry. The [`Connection`] it
//! gives is a channel that every generated tonic client takes; its endpoints follow the registry.
//!
//! ```
//! use std::time::Duration;
//! use coord_api::{Provider, ServiceInfo, ServiceRegistry};
//! use coord_grpc::ConnectionExt;
//! use tonic::transport::{Server, server::TcpIncoming};
//! use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = coord_memory::Store::new();
//!
//! // im-logic serves and registers itself.
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let port = listener.local_addr()?.port();
//! let (_reporter, health) = tonic_health::server::health_reporter();
//! tokio::spawn(Server::builder().add_service(health).serve_with_incoming(TcpIncoming::from(listener)));
//! let logic = store.client();
//! let me = ServiceInfo::new("im-logic", "im-logic-1", "127.0.0.1", port);
//! let registration = logic.registry().register(me, Duration::from_secs(30)).await?;
//!
//! // im-gateway calls it by name.
//! let gateway = store.client();
//! let connection = gateway.registry().connection("im-logic").await?;
//! HealthClient::new(connection).check(HealthCheckRequest::default()).await?;
//! # registration.deregister().await?;
//! # Ok(()) }
//! ```
//!
//! # Limits
//! Inside is tonic's balanced channel: each call goes to a random instance out of those that are registered.
//! An instance that is dead but still registered keeps getting its share of calls, which fail, until its
//! lease expires; calls are not retried. Connections are plain HTTP/2, without TLS.

mod connection;
mod endpoints;
mod follow;
mod options;

pub use connection::{Connection, ResponseFuture};
pub use options::ConnectOptions;

use coord_api::{Result, ServiceRegistry};

/// Connections by service name, for every [`ServiceRegistry`].
///
/// # Contract
/// - The endpoints of a connection follow the registry: an instance that is registered, moves or is
///   deregistered is used or left with the next call. Calls in flight are not cut.
/// - While the store is away the last known instances are used.
/// - A service without instances is waited for up to [`ConnectOptions::connect_timeout`], by `connection`
///   and by each later call; then the answer is `Unavailable`.
///
/// # Cancel safety
/// Every future here may be dropped at any point; no task is left behind.
pub trait ConnectionExt: ServiceRegistry {
    /// Connects to `service` with the default [`ConnectOptions`]. Connect once and clone: clones share their
    /// endpoints and the task that follows the registry.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](coord_api::Error::InvalidArgument) for a bad name, before anything else;
    /// [`Error::Unavailable`](coord_api::Error::Unavailable) when no instance is registered in time; others
    /// as [`ServiceRegistry::watch`].
    fn connection(&self, service: &str) -> impl Future<Output = Result<Connection>> + Send {
        self.connection_with(service, ConnectOptions::new())
    }

    /// Connects to `service` with options.
    ///
    /// # Errors
    /// As [`connection`](Self::connection).
    fn connection_with(
        &self,
        service: &str,
        options: ConnectOptions,
    ) -> impl Future<Output = Result<Connection>> + Send {
        connection::connect(self, service, options)
    }
}

impl<R: ServiceRegistry + ?Sized> ConnectionExt for R {}
