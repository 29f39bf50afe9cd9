//! The config center: entries without a lease, written in batches.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, ConfigKey, Entry, EntryEvent, Error, HeldLock, Home, LossReason, Owner,
    Result, Scope, UpdateLocks, Version, Watch, Write, backend::sleep,
};

use crate::{
    connection::Connection,
    keys,
    store::State,
    watch::{View, watch},
};

/// How long a write waits for an answer that is lost.
pub(crate) const NO_ANSWER: Duration = Duration::from_secs(5);

/// The config center of one client.
#[derive(Debug)]
pub(crate) struct Config(pub(crate) Arc<Connection>);

impl State {
    fn version(&self, key: &ConfigKey) -> Version {
        let stored = self.entries.get(&keys::config(key));
        stored.map_or(Version::ABSENT, |stored| Version::new(stored.revision))
    }

    /// Checks first and writes then, all under the one lock that the caller holds: a batch is atomic.
    fn commit(&mut self, batch: &Batch) -> Result<Committed> {
        let mut refused = batch.held().iter().filter(|held| !self.is_held(held)).peekable();
        if refused.peek().is_some() {
            refused.for_each(HeldLock::refused);
            return Err(Error::Lost { reason: LossReason::Revoked });
        }
        for (key, expected) in batch.requirements() {
            let (expected, actual) = (*expected, self.version(key));
            if actual != expected {
                let key = key.to_string();
                return Err(Error::Conflict { key, expected, actual });
            }
        }
        let changes = |write: &&Write| match write {
            Write::Set(..) => true,
            Write::Delete(key) => self.entries.contains_key(&keys::config(key)),
        };
        let changes: Vec<_> = batch.writes().iter().filter(changes).collect();
        if !changes.is_empty() {
            self.next_revision();
        }
        let mut deleted = 0;
        for change in changes {
            match change {
                Write::Set(key, json) => self.put(keys::config(key), json.clone(), None),
                Write::Delete(key) => {
                    self.delete(&keys::config(key));
                    deleted += 1;
                }
            }
        }
        Ok(Committed::new(Version::new(self.revision), deleted))
    }
}

#[async_trait]
impl ConfigCenter for Config {
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>> {
        let view = View::config(scope)?;
        Ok(self.0.call().await?.list(&view))
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        let (committed, is_lost) = {
            let mut state = self.0.call().await?;
            (state.commit(&batch), state.session(self.0.id()).loses_answer())
        };
        if !is_lost {
            return committed;
        }
        sleep(NO_ANSWER).await;
        Err(Error::Timeout { operation: "commit", after: NO_ANSWER })
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        watch(&self.0, View::config(scope)?).await
    }

    fn owner(&self) -> Owner {
        self.0.owner().clone()
    }

    fn update_locks(&self) -> &UpdateLocks {
        self.0.update_locks()
    }

    fn home(&self) -> Option<Home> {
        let name = self.0.store().lock().identity.to_string();
        Some(Home::new("", [name.clone()]).of_store(name))
    }
}

#[cfg(test)]
mod tests {
    use coord_api::{ConfigExt, Provider};
    use futures::FutureExt;

    use super::*;
    use crate::Store;

    const TTL: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn a_client_that_has_not_heard_of_its_loss_writes_nothing() -> Result<()> {
        let store = Store::new();
        let (client, other) = (store.client(), store.client());
        let guard = client.lock().acquire("a/b", TTL).await?;
        let waiting = client.lock();
        let mut next = waiting.acquire("a/b", TTL);
        assert!((&mut next).now_or_never().is_none());
        let batch = Batch::new().while_held(&guard)?.set("x", &1)?;
        other.config().commit(batch.clone()).await?;
        assert!(store.delete_raw(guard.key()));
        let _next = next.await?;
        let refused = other.config().commit(batch).await;
        assert!(matches!(refused, Err(Error::Lost { reason: LossReason::Revoked })), "{refused:?}");
        assert!(matches!(client.config().set_if_held(&guard, "x", &2).await, Err(Error::Lost { .. })));
        assert_eq!(client.config().get::<u32>("x").await?.map(|found| found.value), Some(1));
        Ok(())
    }
}
