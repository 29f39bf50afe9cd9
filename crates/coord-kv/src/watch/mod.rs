//! Watches for users: the state at one revision, then every change after it.

mod change;
mod hub;
mod inbox;
mod progress;
mod refusal;
mod stream;
mod watches;

use std::{collections::VecDeque, fmt};

use coord_api::{EntryEvent, Error, Result, Watch, backend::Backoff};

pub(crate) use hub::{Delivery, Hub, Subscription};

use crate::{
    request::{Kept, Read, backoff, entry, timer, version},
    store::{Observation, Range},
};

/// Turns a key of the store into the user's name of it; `None` for a key that is none of the user's.
pub(crate) type Rename = Box<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// Watches `range`. The first state is read before this returns, so that mistakes are told here.
pub(crate) async fn follow(hub: Kept<Hub>, range: Range, rename: Rename) -> Result<Watch<EntryEvent>> {
    hub.check_open()?;
    let mut follower = Follower { hub, range, rename, live: None, pending: VecDeque::new(), backoff: None };
    let snapshot = follower.begin().await?;
    follower.pending = VecDeque::from([snapshot]);
    let connectivity = follower.hub.connectivity.clone();
    let items = futures::stream::unfold(follower, |mut follower| async move {
        let item = follower.next().await;
        Some((item, follower))
    });
    Ok(Watch::new(connectivity, items))
}

struct Follower {
    hub: Kept<Hub>,
    range: Range,
    rename: Rename,
    live: Option<Live>,
    pending: VecDeque<EntryEvent>,
    /// Pauses between attempts to read the state anew; only while there are any attempts.
    backoff: Option<Box<Backoff>>,
}

struct Live {
    changes: Subscription,
    /// The revision of the snapshot: changes up to it are part of it.
    snapshot: i64,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Follower {
    async fn next(&mut self) -> Result<EntryEvent> {
        let hub = self.hub.area.clone();
        tokio::select! {
            biased;
            () = hub.closed() => Err(Error::Closed),
            item = self.next_while_open() => item,
        }
    }

    async fn next_while_open(&mut self) -> Result<EntryEvent> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                if self.pending.is_empty() {
                    // It may be long until the next one, and a process may have many watches.
                    self.pending = VecDeque::new();
                }
                return Ok(event);
            }
            let Some(live) = &mut self.live else {
                // Boxed: seldom needed, and large.
                match Box::pin(self.begin_again()).await {
                    Ok(snapshot) => {
                        self.backoff = None;
                        return Ok(snapshot);
                    }
                    Err(error) if error.is_retryable() => {
                        tracing::debug!(%error, range = ?self.range, "watch waits for the store");
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            };
            match live.changes.next().await {
                Some(Delivery::Changes(changes)) => {
                    let later = changes.iter().filter(|change| change.revision > live.snapshot);
                    let named =
                        later.filter_map(|change| Some(change::event(change, (self.rename)(&change.key)?)));
                    self.pending.extend(named);
                }
                Some(Delivery::Started { .. }) => {}
                Some(Delivery::Refused(error)) => {
                    self.live = None;
                    return Err(*error);
                }
                None => {
                    self.hub.store.observe(Observation::WatchGap);
                    tracing::debug!(range = ?self.range, "watch has a gap, reading the state anew");
                    self.live = None;
                }
            }
        }
    }

    /// Begins after a pause.
    async fn begin_again(&mut self) -> Result<EntryEvent> {
        let pause = self.backoff.get_or_insert_with(|| Box::new(backoff())).pause();
        timer::sleep(pause).await;
        self.begin().await
    }

    /// Subscribes from now on and then reads the state, so that nothing falls between. A subscription from a
    /// revision of the past would be served by etcd only every 100 ms.
    async fn begin(&mut self) -> Result<EntryEvent> {
        let hub = &self.hub;
        let mut changes = hub.subscribe(self.range.clone());
        let operation = "watch";
        let first = timer::timeout(hub.request_timeout, changes.next()).await;
        let from = match first {
            Ok(Some(Delivery::Refused(error))) => return Err(*error),
            Ok(Some(Delivery::Started { from })) => from,
            Ok(Some(Delivery::Changes(_))) => 0,
            Ok(None) => {
                return Err(hub.store.unavailable(None));
            }
            Err(_elapsed) => {
                return Err(Error::Timeout { operation, after: hub.request_timeout });
            }
        };
        let (revision, pairs) = hub.read(operation, &self.range).await?;
        if revision + 1 < from {
            return Err(hub.store.unavailable(Some("its history is not that of its changes".into())));
        }
        changes.has_read(Read::of(revision, &pairs));
        let entries =
            pairs.iter().filter_map(|kv| Some(entry(kv, (self.rename)(kv.key_str().ok()?)?))).collect();
        self.live = Some(Live { changes, snapshot: revision });
        Ok(EntryEvent::Snapshot { version: version(revision), entries })
    }
}
