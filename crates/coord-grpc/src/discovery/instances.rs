//! Instances of a service as tower's `Discover`, for stacks of one's own.

use std::{
    collections::VecDeque,
    convert::Infallible,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use coord_api::{Connectivity, Error, Result, ServiceEvent, Watch};
use futures::{Stream, StreamExt};
use http::Uri;
use tonic::transport::{Channel, Endpoint};
use tower::discover::Change;

use super::endpoint_list::{EndpointList, InstanceChange};
use crate::options::ConnectOptions;

/// Instances of a service as they come and go, by id: a [`Discover`](tower::discover::Discover) of
/// [`ServiceInfo`](coord_api::ServiceInfo)s over [`ServiceRegistry::watch`](coord_api::ServiceRegistry::watch).
///
/// An id that is inserted again has a changed address or changed metadata. Records that can not be read or called are left
/// out, with a warning in the log. The stream ends when the provider is closed.
///
/// # Cancel safety
/// Taking the next change may be given up at any point. Dropping the stream ends the watch.
///
/// # Example
/// [`Connection`](crate::Connection) is built on it. With [`channels`](Self::channels) it feeds tower's balancers, here
/// with the number of calls in flight as load:
/// ```
/// use coord_api::{Provider, ServiceRegistry};
/// use coord_grpc::{ConnectOptions, Instances};
/// use tower::{balance::p2c::Balance, load::{CompleteOnResponse, PendingRequestsDiscover}};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let registry = coord_memory::Store::new().client().registry();
/// let instances = Instances::new(registry.watch("im-logic").await?);
/// let channels = instances.channels(ConnectOptions::new())?;
/// let loads = PendingRequestsDiscover::new(channels, CompleteOnResponse::default());
/// let balance = Balance::<_, http::Request<tonic::body::Body>>::new(loads);
/// # drop(balance);
/// # Ok(()) }
/// ```
#[must_use = "yields nothing unless it is polled"]
pub struct Instances {
    events: Watch<ServiceEvent>,
    endpoints: EndpointList,
    pending: VecDeque<InstanceChange>,
}

impl Instances {
    /// Returns the instances that a watch reports.
    pub fn new(events: Watch<ServiceEvent>) -> Self {
        Self { events, endpoints: EndpointList::new(false), pending: VecDeque::new() }
    }

    /// Sets whether the last instances stay, as [`ConnectOptions::keep_when_empty`].
    pub(crate) fn keep_when_empty(mut self, keep: bool) -> Self {
        self.endpoints = EndpointList::new(keep);
        self
    }

    /// Returns whether the instances are up to date.
    pub fn connectivity(&self) -> Connectivity {
        self.events.connectivity()
    }

    /// Returns a tonic channel for each instance, connected with its first call. Only the options for one connection count:
    /// timeouts, pings and TLS.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the option that can not be used.
    pub fn channels(self, options: ConnectOptions) -> Result<Channels> {
        options.check()?;
        options.check_fixed()?;
        Ok(Channels { instances: self, options })
    }
}

impl Stream for Instances {
    type Item = Result<InstanceChange, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(change) = self.pending.pop_front() {
                return Poll::Ready(Some(Ok(change)));
            }
            match ready!(self.events.poll_next_unpin(cx)) {
                Some(Ok(event)) => self.pending = self.endpoints.apply(event).into(),
                Some(Err(Error::Closed)) | None => return Poll::Ready(None),
                Some(Err(error)) => {
                    let source = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(%error, source, "going on with the instances known so far");
                }
            }
        }
    }
}

impl fmt::Debug for Instances {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instances").field("connectivity", &self.connectivity()).finish_non_exhaustive()
    }
}

/// Channels to the [`Instances`]: a [`Discover`](tower::discover::Discover) of [`Channel`]s. An id that is inserted again
/// has another channel.
#[derive(Debug)]
#[must_use = "yields nothing unless it is polled"]
pub struct Channels {
    instances: Instances,
    options: ConnectOptions,
}

impl Channels {
    fn channel(&self, authority: &str) -> Option<Channel> {
        let uri = Uri::builder().scheme(self.options.scheme()).authority(authority).path_and_query("/");
        let endpoint = self.options.apply(Endpoint::from(uri.build().ok()?)).ok()?;
        Some(endpoint.connect_lazy())
    }
}

impl Stream for Channels {
    type Item = Result<Change<String, Channel>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(Ok(change)) = ready!(self.instances.poll_next_unpin(cx)) else { return Poll::Ready(None) };
        let change = match change {
            Change::Insert(id, info) => {
                let channel = self.channel(&info.authority()).expect("address and options were checked");
                Change::Insert(id, channel)
            }
            Change::Remove(id) => Change::Remove(id),
        };
        Poll::Ready(Some(Ok(change)))
    }
}
