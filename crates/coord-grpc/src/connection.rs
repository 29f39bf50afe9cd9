//! The channel that clients take.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use coord_api::{Error, Result, ServiceName, ServiceRegistry};
use http::{Request, Response};
use tokio::sync::watch;
use tonic::{Status, body::Body, transport::Channel};
use tower_service::Service;

use crate::{ConnectOptions, follow::Follower};

/// Changes of endpoints that the channel may have yet to take; it takes them all with the next call.
const PENDING_CHANGES: usize = 1024;

/// A connection to all instances of a service, for every generated tonic client. Cheap to clone; clones
/// share everything. Made by [`ConnectionExt::connection`](crate::ConnectionExt::connection).
///
/// A call that finds no instance waits for one up to
/// [`ConnectOptions::connect_timeout`](crate::ConnectOptions::connect_timeout) and then fails with the code
/// `Unavailable`. When the provider is closed, the instances known then stay in use.
#[derive(Clone)]
pub struct Connection {
    service: Arc<str>,
    channel: Channel,
    /// How many instances are known, so that a call never waits for the first one without a deadline.
    instances: watch::Receiver<usize>,
    connect_timeout: Duration,
}

pub(crate) async fn connect<R: ServiceRegistry + ?Sized>(
    registry: &R,
    service: &str,
    options: ConnectOptions,
) -> Result<Connection> {
    let service = ServiceName::parse(service)?;
    let connect_timeout = options.connect_timeout;
    let first = async {
        let events = registry.watch(service.as_str()).await?;
        let mut follower = Follower::new(service.to_string(), options, events);
        follower.first_instance().await.map(|()| follower)
    };
    let follower = tokio::time::timeout(connect_timeout, first)
        .await
        .unwrap_or_else(|_| Err(no_instance(service.as_str(), connect_timeout)))?;
    let (channel, changes) = Channel::balance_channel(PENDING_CHANGES);
    let (count, instances) = watch::channel(follower.instances());
    tokio::spawn(follower.run(changes, count));
    Ok(Connection { service: service.as_str().into(), channel, instances, connect_timeout })
}

fn no_instance(service: &str, waited: Duration) -> Error {
    Error::Unavailable {
        what: format!("service {service}"),
        source: Some(format!("no instance was registered within {waited:?}").into()),
    }
}

impl Connection {
    /// The name of the service.
    pub fn service(&self) -> &str {
        &self.service
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("service", &self.service)
            .field("instances", &*self.instances.borrow())
            .finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.channel.poll_ready(cx).map_err(status)
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        if *self.instances.borrow() > 0 {
            let response = self.channel.call(request);
            return ResponseFuture::new(async move { response.await.map_err(status) });
        }
        // The handle that was polled ready has the right to call; a fresh one stays behind.
        let fresh = self.channel.clone();
        let mut ready = std::mem::replace(&mut self.channel, fresh);
        let mut instances = self.instances.clone();
        let (service, limit) = (self.service.clone(), self.connect_timeout);
        ResponseFuture::new(async move {
            let found = tokio::time::timeout(limit, instances.wait_for(|count| *count > 0))
                .await
                .is_ok_and(|count| count.is_ok());
            if !found {
                return Err(unavailable(&no_instance(&service, limit)));
            }
            ready.call(request).await.map_err(status)
        })
    }
}

fn status(error: tonic::transport::Error) -> Status {
    Status::from_error(error.into())
}

fn unavailable(error: &Error) -> Status {
    let source = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    Status::unavailable(format!("{error}{source}"))
}

/// The answer to one call on a [`Connection`].
pub struct ResponseFuture(Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>);

impl ResponseFuture {
    fn new(response: impl Future<Output = Result<Response<Body>, Status>> + Send + 'static) -> Self {
        Self(Box::pin(response))
    }
}

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
