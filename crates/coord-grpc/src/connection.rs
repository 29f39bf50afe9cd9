//! Channel that generated clients take: a connection to all instances of a service.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use coord_api::{
    BoxError, Connectivity, Error, Result, ServiceInfo, ServiceName, ServiceRegistry, backend::WeakCache,
};
use futures::Stream;
use http::{Request, Response};
use tokio::{sync::watch, task::AbortHandle, time::timeout};
use tonic::{Status, body::Body};
use tower::discover::Change;
use tower_service::Service;

use crate::{
    call::call,
    discovery::Instances,
    health,
    options::ConnectOptions,
    pool::{Balancer, Counts},
    probe,
    state::ConnectionState,
};

/// Cache of the channels in use, by service and options.
static SHARED: WeakCache<(String, ConnectOptions), Handle> = WeakCache::new();

/// Connection to all instances of a service, for every generated tonic client. Cheap to clone; clones
/// share everything. Made by [`ConnectionExt::connection`](crate::ConnectionExt::connection).
///
/// Calls go to instances that are connected and have spoken. A call that finds none waits for one up to
/// [`ConnectOptions::connect_timeout`] and then fails with the code `Unavailable` and the name of the service.
#[derive(Clone)]
pub struct Connection(Arc<Handle>);

/// Notice of connections to instances as they are made, also of reconnections. After a reconnection another process may
/// listen there, about which nothing is known. Made by [`Connection::made`].
#[derive(Clone)]
pub struct Made {
    counts: watch::Receiver<Counts>,
    seen: u64,
}

impl Made {
    /// Waits until connections were made since the last call. Returns `false` once the last clone of the [`Connection`] is
    /// gone.
    ///
    /// # Cancel safety
    /// May be dropped and called again; nothing is missed.
    pub async fn next(&mut self) -> bool {
        let seen = self.seen;
        match self.counts.wait_for(|counts| counts.made != seen).await.map(|counts| counts.made) {
            Ok(made) => {
                self.seen = made;
                true
            }
            Err(_) => false,
        }
    }
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made").field("seen", &self.seen).finish_non_exhaustive()
    }
}

/// Handle of the balancer's task, which ends when this is dropped. Calls in flight keep it.
pub(crate) struct Handle {
    pub(crate) balancer: Arc<Balancer>,
    task: AbortHandle,
}

impl Handle {
    fn start<E: Into<BoxError> + Send + 'static>(
        service: &str,
        options: ConnectOptions,
        connectivity: Option<Connectivity>,
        changes: impl Stream<Item = Result<Change<String, ServiceInfo>, E>> + Send + 'static,
    ) -> Arc<Self> {
        let balancer = Arc::new(Balancer::new(service.into(), options, connectivity));
        let running = balancer.clone();
        let run = async move {
            // None of them returns: they end with the task.
            tokio::join!(running.run(changes), probe::run(&running), health::run(&running));
        };
        let task = tokio::spawn(run).abort_handle();
        Arc::new(Self { balancer, task })
    }

    /// Returns whether it still follows its registry. After a close, or the end of the task's runtime, it does not.
    pub(crate) fn is_alive(&self) -> bool {
        !self.task.is_finished() && !self.balancer.counts().borrow().ended
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) async fn connect<R: ServiceRegistry + ?Sized + 'static>(
    registry: &Arc<R>,
    service: &str,
    options: ConnectOptions,
) -> Result<Connection> {
    let service = ServiceName::parse(service)?;
    options.check()?;
    let limit = options.connect_timeout;
    let mut waited_for = None;
    let connecting = async {
        let key = (service.to_string(), options.clone());
        let handle = if let Some(handle) = SHARED.find(registry, &key, Handle::is_alive) {
            handle
        } else {
            let events = registry.watch(service.as_str()).await?;
            let instances = Instances::new(events).keep_when_empty(options.keep_when_empty);
            let connectivity = Some(instances.connectivity());
            let handle = Handle::start(service.as_str(), options, connectivity, instances);
            SHARED.find_or_make(registry, key, Handle::is_alive, || handle)
        };
        let connection = Connection(handle);
        waited_for = Some(connection.0.balancer.clone());
        connection.first_instance().await?;
        Ok(connection)
    };
    if let Ok(connected) = timeout(limit, connecting).await {
        return connected;
    }
    Err(match waited_for {
        Some(balancer) => balancer.unavailable(limit),
        None => Error::Unavailable {
            what: format!("service {service}"),
            source: Some(format!("the registry did not answer within {limit:?}").into()),
        },
    })
}

impl Connection {
    /// Balances over any list of instances: `changes` is a `Discover` of tower, by id.
    ///
    /// Of a [`ServiceInfo`] the address, the port and the metadata count. An item that is an error is logged and left out.
    /// After the end the list stays as it is. The call returns without waiting.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad name or option.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    ///
    /// ```
    /// use coord_api::ServiceInfo;
    /// use coord_grpc::{ConnectOptions, Connection};
    /// use tower::discover::Change;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let members = ["10.0.0.1", "10.0.0.2"].map(|address| {
    ///     Ok::<_, coord_api::Error>(Change::Insert(address.to_owned(), ServiceInfo::new("etcd", address, address, 2379)))
    /// });
    /// let connection = Connection::balance("etcd", futures::stream::iter(members), ConnectOptions::new())?;
    /// # drop(connection);
    /// # Ok(()) }
    /// ```
    pub fn balance<E: Into<BoxError> + Send + 'static>(
        service: &str,
        changes: impl Stream<Item = Result<Change<String, ServiceInfo>, E>> + Send + 'static,
        options: ConnectOptions,
    ) -> Result<Self> {
        let service = ServiceName::parse(service)?;
        options.check()?;
        Ok(Self(Handle::start(service.as_str(), options, None, changes)))
    }

    /// Returns the name of the service.
    pub fn service(&self) -> &str {
        &self.0.balancer.service
    }

    /// Returns a snapshot for metrics and readiness probes, without I/O.
    pub fn state(&self) -> ConnectionState {
        ConnectionState::of(&self.0.balancer)
    }

    /// Returns whether a call would find an instance at once. It takes some nanoseconds.
    ///
    /// No call finds one after the runtime is gone on which the connection was made.
    pub fn is_ready(&self) -> bool {
        self.0.balancer.has_ready() && !self.0.task.is_finished()
    }

    /// Returns a notice of connections that are made from now on.
    pub fn made(&self) -> Made {
        let mut counts = self.0.balancer.counts();
        let seen = counts.borrow_and_update().made;
        Made { counts, seen }
    }

    /// Waits until an instance is connected, so that the first call need not.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none is within the connect timeout.
    pub async fn ready(&self) -> Result<()> {
        let balancer = &self.0.balancer;
        let mut counts = balancer.counts();
        let ready = counts.wait_for(|counts| counts.ready > 0);
        timeout(balancer.options.connect_timeout, ready)
            .await
            .map_or_else(|_| Err(balancer.unavailable(balancer.options.connect_timeout)), |_| Ok(()))
    }

    /// Waits until an instance is registered, while the caller can still be told an error.
    async fn first_instance(&self) -> Result<()> {
        let mut counts = self.0.balancer.counts();
        match counts.wait_for(|counts| counts.known > 0 || counts.ended).await {
            Ok(counts) if counts.known > 0 => Ok(()),
            _ => Err(Error::Closed),
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = *self.0.balancer.counts().borrow();
        f.debug_struct("Connection")
            .field("service", &self.service())
            .field("instances", &counts.known)
            .field("ready", &counts.ready)
            .finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = ResponseFuture;

    /// Returns ready always: the call itself waits for an instance.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        let handle = self.0.clone();
        ResponseFuture(Box::pin(async move { call(&handle.balancer, request).await }))
    }
}

/// Future of the answer to one call on a [`Connection`].
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>);

impl Future for ResponseFuture {
    type Output = Result<Response<Body>, Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}
