//! The one task behind a connection: it follows the registry and feeds the channel.

use coord_api::{Error, Result, ServiceEvent, Watch};
use tokio::sync::{mpsc, watch};
use tonic::transport::{Endpoint, channel};

use crate::{
    ConnectOptions,
    endpoints::{Change, Endpoints},
};

/// Follows the watch of one service.
pub(crate) struct Follower {
    service: String,
    options: ConnectOptions,
    events: Watch<ServiceEvent>,
    endpoints: Endpoints,
    /// Changes that the channel has not taken yet.
    pending: Vec<Change>,
}

impl Follower {
    pub(crate) fn new(service: String, options: ConnectOptions, events: Watch<ServiceEvent>) -> Self {
        Self { service, options, events, endpoints: Endpoints::default(), pending: Vec::new() }
    }

    /// Waits until an instance is known. Here the caller can still be told what is wrong.
    pub(crate) async fn first_instance(&mut self) -> Result<()> {
        while self.endpoints.len() == 0 {
            match self.events.next().await.unwrap_or(Err(Error::Closed)) {
                Ok(event) => self.pending.append(&mut self.endpoints.step(event)),
                Err(error @ Error::Decode { .. }) => self.skip(&error),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    pub(crate) fn instances(&self) -> usize {
        self.endpoints.len()
    }

    /// Follows until the last clone of the connection is dropped or the provider is closed.
    pub(crate) async fn run(
        mut self,
        channel: mpsc::Sender<channel::Change<String, Endpoint>>,
        instances: watch::Sender<usize>,
    ) {
        loop {
            for change in std::mem::take(&mut self.pending) {
                // The channel takes changes when it is called. While nobody calls, the watch waits here: it
                // is bounded, and catches up with a snapshot.
                if channel.send(self.endpoint(change)).await.is_err() {
                    return;
                }
            }
            let item = tokio::select! {
                () = channel.closed() => return,
                item = self.events.next() => item.unwrap_or(Err(Error::Closed)),
            };
            match item {
                Ok(event) => {
                    self.pending = self.endpoints.step(event);
                    // Before the channel learns that nobody is left: a call that is handed to an empty
                    // channel would wait without a deadline.
                    instances.send_replace(self.endpoints.len());
                }
                Err(Error::Closed) => {
                    tracing::debug!(
                        service = self.service,
                        "the provider is closed, the endpoints stay as they are"
                    );
                    // Keeps the number of instances readable for as long as there are calls.
                    return channel.closed().await;
                }
                Err(error) => self.skip(&error),
            }
        }
    }

    fn skip(&self, error: &Error) {
        let source = std::error::Error::source(error).map(ToString::to_string);
        tracing::warn!(service = self.service, %error, source, "going on with the instances known so far");
    }

    fn endpoint(&self, change: Change) -> channel::Change<String, Endpoint> {
        match change {
            Change::Insert(id, uri) => channel::Change::Insert(id, self.options.apply(Endpoint::from(uri))),
            Change::Remove(id) => channel::Change::Remove(id),
        }
    }
}
