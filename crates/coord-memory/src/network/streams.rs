//! Streams over the network: watches, renewals, and what the store tells by itself.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use coord_api::backend::sleep_until;
use coord_kv::store::{
    Failure, LeaseId, Notice, RenewalEnded, RenewalStream, Renewed, WatchAnswer, WatchRequest, WatchStream,
};
use futures::{StreamExt, future::BoxFuture, stream, stream::BoxStream};
use tokio::sync::{Notify, watch};

use super::{
    Network,
    faults::{broken, cut_off},
    peer::{Link, Peer, Reach},
};
use crate::store::{Look, Shared, StreamId};

/// A stream of watches.
pub(super) struct Watches {
    store: Shared,
    /// The connection that it goes over.
    connection: u64,
    link: watch::Receiver<Link>,
    id: StreamId,
    wake: Arc<Notify>,
}

impl Drop for Watches {
    fn drop(&mut self) {
        self.store.lock().close_stream(self.id);
    }
}

impl Watches {
    /// Opens a stream with some watches.
    pub(super) fn open(network: &Network, first: Vec<WatchRequest>) -> Self {
        let Network { store, peer, .. } = network;
        let (link, wake) = (peer.link(), Arc::new(Notify::new()));
        let connection = link.borrow().connection;
        let (mut state, _) = store.lock_now();
        let id = state.open_stream(wake.clone());
        for request in first {
            state.watch(id, request);
        }
        drop(state);
        Self { store: store.clone(), connection, link, id, wake }
    }

    /// Returns the link, if it is still that of the stream and up or standing still.
    fn link(&mut self) -> Result<Link, Failure> {
        let link = *self.link.borrow_and_update();
        match link.reach() {
            Reach::Down => Err(cut_off()),
            _ if link.connection != self.connection => Err(broken()),
            _ => Ok(link),
        }
    }

    /// Tells the store something, now or when it and the client do not stand still any more.
    fn send(
        &mut self,
        message: impl FnOnce(&mut crate::store::State) + Send + 'static,
    ) -> Result<(), Failure> {
        let reach = self.link()?.reach();
        let (mut state, now) = self.store.lock_now();
        match reach {
            Reach::Stalled(until) => state.send(until, Box::new(move |state, _| message(state))),
            _ if state.is_still(now) => state.send(now, Box::new(move |state, _| message(state))),
            _ => message(&mut state),
        }
        Ok(())
    }
}

#[async_trait]
impl WatchStream for Watches {
    async fn watch(&mut self, request: WatchRequest) -> Result<(), Failure> {
        let id = self.id;
        self.send(move |state| state.watch(id, request))
    }

    async fn cancel(&mut self, watch: i64) -> Result<(), Failure> {
        let id = self.id;
        self.send(move |state| state.cancel(id, watch))
    }

    async fn next(&mut self) -> Result<Option<WatchAnswer>, Failure> {
        loop {
            let reach = self.link()?.reach();
            let due = if let Reach::Stalled(until) = reach {
                Some(until)
            } else {
                let (mut state, now) = self.store.lock_now();
                if state.is_still(now) {
                    Some(state.happens(now))
                } else {
                    match state.look(self.id) {
                        Look::Answer(answer) => return Ok(Some(*answer)),
                        Look::End => return Ok(None),
                        Look::Nothing => state.next_due(),
                    }
                }
            };
            let happens = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                _ = self.link.changed() => {}
                () = happens => {}
            }
        }
    }
}

/// A stream of renewals.
pub(super) struct Renewals {
    network: Network,
    connection: u64,
}

impl fmt::Debug for Renewals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Renewals({})", self.connection)
    }
}

impl Renewals {
    pub(super) fn open(network: &Network) -> Self {
        Self { network: network.clone(), connection: network.peer.link_now().connection }
    }
}

impl RenewalStream for Renewals {
    fn renew(&self, lease: LeaseId) -> BoxFuture<'static, Renewed> {
        let (network, connection) = (self.network.clone(), self.connection);
        let fate = network.peer.draw_renewal();
        let what = network.traced(|| format!("renew {lease:x}"));
        Box::pin(async move {
            let renewed = async {
                network.peer.going().await?;
                if network.peer.link_now().connection != connection {
                    return Err(broken());
                }
                network.executed(fate, what, move |state, now| Ok(state.renew(lease, now))).await
            };
            renewed.await.map_err(RenewalEnded::Broken)
        })
    }
}

/// Waits until the link is up; `false` if the client is gone.
async fn is_up(link: &mut watch::Receiver<Link>) -> bool {
    loop {
        let now = *link.borrow_and_update();
        let changed = match now.reach() {
            Reach::Up => return true,
            Reach::Down => link.changed().await,
            Reach::Stalled(until) => tokio::select! {
                () = sleep_until(until) => Ok(()),
                changed = link.changed() => changed,
            },
        };
        if changed.is_err() {
            return false;
        }
    }
}

/// Returns what the store tells by itself, as soon as the client hears of it.
pub(super) fn notices(peer: &Peer) -> Option<BoxStream<'static, Notice>> {
    let heard = stream::unfold((peer.notices()?, peer.link()), async |(mut told, mut link)| {
        let notice = told.recv().await?;
        is_up(&mut link).await.then_some((notice, (told, link)))
    });
    Some(heard.boxed())
}

/// Returns a stream with an item whenever the connection was made anew.
pub(super) fn connections(peer: &Peer) -> BoxStream<'static, ()> {
    let link = peer.link();
    let known = link.borrow().connection;
    stream::unfold((link, known), async |(mut link, known)| {
        let made = link.wait_for(|link| link.connection != known).await.ok()?.connection;
        Some(((), (link, made)))
    })
    .boxed()
}
