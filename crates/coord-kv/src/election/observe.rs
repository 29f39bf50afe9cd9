//! Watch of who leads: the candidate whose entry was created first. A change of leader is told once, after all changes that
//! came with it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use coord_api::{Candidate, Error, Result, Watch, backend::Backoff};
use futures::stream;

use super::token;
use crate::{
    keyspace::Keys,
    request::{Kept, Read, backoff, timer},
    store::{Change, KeyValue, Observation, Range, Revision},
    watch::{Delivery, Hub, Subscription},
};

/// Candidates of one election. No I/O.
#[derive(Debug, Default)]
struct Candidates {
    /// Keys and values, by the revisions at which the entries were created.
    by_age: BTreeMap<Revision, (Arc<str>, Bytes)>,
    ages: BTreeMap<Arc<str>, Revision>,
}

impl Candidates {
    fn put(&mut self, key: &str, created: Revision, value: Bytes) {
        self.delete(key);
        let key: Arc<str> = key.into();
        self.ages.insert(key.clone(), created);
        self.by_age.insert(created, (key, value));
    }

    fn delete(&mut self, key: &str) {
        if let Some(created) = self.ages.remove(key) {
            self.by_age.remove(&created);
        }
    }

    fn read(&mut self, pairs: &[KeyValue]) {
        *self = Self::default();
        for kv in pairs {
            if let Ok(key) = kv.key_str() {
                self.put(key, kv.create_revision, kv.value.clone());
            }
        }
    }

    fn apply(&mut self, change: &Change) {
        match &change.value {
            Some(value) => self.put(&change.key, change.created, value.clone()),
            None => self.delete(&change.key),
        }
    }

    fn leader(&self) -> Option<Candidate> {
        let (created, (key, value)) = self.by_age.first_key_value()?;
        Some(Candidate::new(Keys::owner_of(key), &**key, token(*created), value.clone()))
    }
}

/// Watches who leads below `queue`. The first leader is read before this returns, so that mistakes are told here.
pub(super) async fn watch(hub: Kept<Hub>, queue: Arc<str>) -> Result<Watch<Option<Candidate>>> {
    hub.check_open()?;
    let connectivity = hub.connectivity.clone();
    let range = Range::Prefix(queue);
    let mut observer = Observer {
        hub,
        range,
        candidates: Candidates::default(),
        live: None,
        told: None,
        has_told: false,
        backoff: backoff(),
    };
    observer.begin().await?;
    let items = stream::unfold(observer, |mut observer| async move {
        let item = observer.next().await;
        Some((item, observer))
    });
    Ok(Watch::new(connectivity, items))
}

struct Observer {
    hub: Kept<Hub>,
    range: Range,
    candidates: Candidates,
    live: Option<Live>,
    /// Leader that was told last.
    told: Option<Candidate>,
    /// Whether any was told, or that there is none.
    has_told: bool,
    backoff: Backoff,
}

struct Live {
    changes: Subscription,
    /// Revision of the read: changes up to it are part of it.
    read_at: Revision,
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observer").field("range", &self.range).finish_non_exhaustive()
    }
}

impl Observer {
    async fn next(&mut self) -> Result<Option<Candidate>> {
        let hub = self.hub.area.clone();
        tokio::select! {
            biased;
            () = hub.closed() => Err(Error::Closed),
            item = self.next_while_open() => item,
        }
    }

    /// May be dropped and called again: the candidates change without an await.
    async fn next_while_open(&mut self) -> Result<Option<Candidate>> {
        loop {
            let Some(live) = &mut self.live else {
                timer::sleep(self.backoff.pause()).await;
                match Box::pin(self.begin()).await {
                    Ok(()) => self.backoff.reset(),
                    Err(error) if error.is_retryable() => {
                        tracing::debug!(%error, range = ?self.range, "the observer waits for the store");
                    }
                    Err(error) => return Err(error),
                }
                continue;
            };
            let leader = self.candidates.leader();
            if !self.has_told || self.told != leader {
                (self.told, self.has_told) = (leader.clone(), true);
                return Ok(leader);
            }
            match live.changes.next().await {
                // Whole revisions: a lease that ends takes several candidates along.
                Some(Delivery::Changes(changes)) => {
                    for change in changes.iter().filter(|change| change.revision > live.read_at) {
                        self.candidates.apply(change);
                    }
                }
                Some(Delivery::Started { .. }) => {}
                Some(Delivery::Refused(error)) => {
                    self.live = None;
                    return Err(*error);
                }
                None => {
                    self.hub.store.observe(Observation::WatchGap);
                    self.live = None;
                }
            }
        }
    }

    /// Subscribes from now on and then reads the candidates, so that nothing falls between.
    async fn begin(&mut self) -> Result<()> {
        let (hub, operation) = (&self.hub, "observe an election");
        let mut changes = hub.subscribe(self.range.clone());
        match timer::timeout(hub.request_timeout, changes.next()).await {
            Ok(Some(Delivery::Refused(error))) => return Err(*error),
            Ok(Some(_)) => {}
            Ok(None) => return Err(hub.store.unavailable(None)),
            Err(_elapsed) => return Err(Error::Timeout { operation, after: hub.request_timeout }),
        }
        let (read_at, pairs) = hub.read(operation, &self.range).await?;
        changes.has_read(Read::of(read_at, &pairs));
        self.candidates.read(&pairs);
        self.live = Some(Live { changes, read_at });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str, created: Revision, value: &'static str) -> Change {
        Change { key: key.into(), revision: created, created, value: Some(value.into()) }
    }

    fn deleted(key: &str) -> Change {
        Change { key: key.into(), revision: 99, created: 0, value: None }
    }

    fn leader(candidates: &Candidates) -> Option<(String, u64, String)> {
        let Candidate { key, token, value, .. } = candidates.leader()?;
        Some((key, token.get(), String::from_utf8(value.into()).expect("is text")))
    }

    #[test]
    fn candidate_that_was_created_first_leads() {
        let mut candidates = Candidates::default();
        assert_eq!(leader(&candidates), None);
        for change in [put("b", 5, "x"), put("a", 7, "y")] {
            candidates.apply(&change);
        }
        assert_eq!(leader(&candidates), Some(("b".into(), 5, "x".into())));
        candidates.apply(&Change { revision: 8, ..put("b", 5, "z") });
        assert_eq!(leader(&candidates), Some(("b".into(), 5, "z".into())), "proclaims another value");
        candidates.apply(&deleted("b"));
        assert_eq!(leader(&candidates), Some(("a".into(), 7, "y".into())));
        candidates.apply(&put("b", 9, "x"));
        assert_eq!(leader(&candidates), Some(("a".into(), 7, "y".into())), "is a later candidate");
        candidates.apply(&deleted("a"));
        candidates.apply(&deleted("a"));
        candidates.apply(&deleted("b"));
        assert!(candidates.by_age.is_empty() && candidates.ages.is_empty());
    }
}
