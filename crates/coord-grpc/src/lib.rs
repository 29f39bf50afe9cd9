//! gRPC connections by service name, over any [`ServiceRegistry`].
//!
//! [`ConnectionExt`] adds [`connection`](ConnectionExt::connection) to every registry. It returns a [`Connection`], a channel
//! that every generated tonic client takes. Its endpoints follow the registry.
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
//! # How calls are balanced
//! - Connections are opened ahead of need. Calls go only to instances that are connected and have spoken. So a dead
//!   instance that is still registered costs at most the calls that were on their way to it.
//! - An instance whose calls fail is never taken for a fast one, whatever code it fails with.
//! - An instance is ejected if its calls fail while calls to others do not ([`OutlierDetection`]), or if it is silent. It gets
//!   no calls for a time that grows. Then it is connected anew, and has to prove itself with one call. A part of the
//!   instances is never ejected.
//! - An instance gets no calls if it is marked as not serving
//!   ([`Registration::serving`](coord_api::Registration::serving)), or if its health service says so
//!   ([`ConnectOptions::health_check`]).
//! - Connections are per address. If two ids have one address, such as a process that crashed and its successor, the record
//!   that was written last counts.
//! - A call that the server has certainly not processed is made again, on another instance or a new connection. No
//!   other call is ever repeated.
//! - [`Policy`] sets how an instance is chosen, and [`ConnectOptions`] everything else. [`Connection::state`] shows the
//!   status of each instance.
//!
//! # Observability
//! | metric | | labels |
//! |---|---|---|
//! | `coord_grpc_instances` | instances that are in use | `service` |
//! | `coord_grpc_ejections_total` | ejections | `service` |
//! | `coord_grpc_retries_total` | calls that were given to another instance | `service` |
//!
//! `tracing` tells of each ejection (warn), each return (info) and each instance that can not be reached (debug).

mod attempts;
mod call;
mod connection;
mod deadline;
mod discovery;
mod health;
#[cfg(test)]
mod layers;
mod options;
mod outcome;
mod pick;
mod pool;
mod probe;
mod state;
mod transport;

pub use attempts::{Attempts, is_unsent};
pub use connection::{Connection, Made, ResponseFuture};
pub use discovery::{Channels, Instances};
pub use options::ConnectOptions;
pub use pick::{HashKey, OutlierDetection, Policy};
pub use state::{ConnectionState, InstanceState, InstanceStatus};

use std::sync::Arc;

use coord_api::{Result, ServiceRegistry};

/// Extension of every [`ServiceRegistry`]: connections by service name.
///
/// # Contract
/// - There is one channel per service, options, registry and runtime: a second `connection` returns the same channel. It
///   ends with its last clone.
/// - Its endpoints follow the registry, also while no call is made. An instance that is removed gets no new calls; calls in
///   flight are not cut.
/// - While the store is away the last known instances are used; [`Connection::state`] shows it.
/// - A service without instances is waited for up to [`ConnectOptions::connect_timeout`], by `connection`
///   and by each later call; then the answer is `Unavailable`.
///
/// # Cancel safety
/// Every future here may be dropped at any point; no task is left behind.
pub trait ConnectionExt {
    /// Connects to `service` with the default [`ConnectOptions`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](coord_api::Error::InvalidArgument) for a bad name, before anything else;
    /// [`Error::Unavailable`](coord_api::Error::Unavailable) when no instance is registered in time; others
    /// as [`ServiceRegistry::watch`].
    fn connection(&self, service: &str) -> impl Future<Output = Result<Connection>> + Send;

    /// Connects to `service` with options.
    ///
    /// # Errors
    /// As [`connection`](Self::connection), and
    /// [`Error::InvalidArgument`](coord_api::Error::InvalidArgument) with the option that can not be used.
    fn connection_with(
        &self,
        service: &str,
        options: ConnectOptions,
    ) -> impl Future<Output = Result<Connection>> + Send;
}

impl<R: ServiceRegistry + ?Sized + 'static> ConnectionExt for Arc<R> {
    fn connection(&self, service: &str) -> impl Future<Output = Result<Connection>> + Send {
        self.connection_with(service, ConnectOptions::new())
    }

    fn connection_with(
        &self,
        service: &str,
        options: ConnectOptions,
    ) -> impl Future<Output = Result<Connection>> + Send {
        connection::connect(self, service, options)
    }
}
