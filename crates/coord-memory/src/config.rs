//! The config center: entries without a lease, written in batches.

use std::sync::Arc;

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, ConfigKey, ConfigPrefix, Entry, EntryEvent, Error, LossReason, Result,
    Scope, Version, Watch, Write,
};

use crate::{
    connection::Connection,
    keys,
    store::{State, Stored},
    watch::{View, watch},
};

/// The config center of one client.
#[derive(Debug)]
pub(crate) struct Config(pub(crate) Arc<Connection>);

fn store_key(key: &ConfigKey) -> String {
    format!("{}{key}", keys::CONFIG)
}

impl State {
    fn version(&self, key: &ConfigKey) -> Version {
        let stored = self.entries.get(&store_key(key));
        stored.map_or(Version::ABSENT, |stored| Version::new(stored.revision))
    }

    /// Checks first and writes then, all under the one lock that the caller holds: a batch is atomic.
    fn commit(&mut self, batch: &Batch) -> Result<Committed> {
        if !batch.held().iter().all(|held| self.is_held(held)) {
            let reason = LossReason::Revoked;
            return Err(Error::Lost { reason });
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
            Write::Delete(key) => self.entries.contains_key(&store_key(key)),
        };
        let changes: Vec<_> = batch.writes().iter().filter(changes).collect();
        if !changes.is_empty() {
            self.next_revision();
        }
        let mut deleted = 0;
        for change in changes {
            match change {
                Write::Set(key, json) => self.put(store_key(key), json.clone(), None),
                Write::Delete(key) => {
                    self.delete(&store_key(key));
                    deleted += 1;
                }
            }
        }
        Ok(Committed::new(Version::new(self.revision), deleted))
    }
}

#[async_trait]
impl ConfigCenter for Config {
    async fn get_entry(&self, key: &str) -> Result<Option<Entry>> {
        let key = ConfigKey::parse(key)?;
        let state = self.0.call().await?;
        let stored: Option<&Stored> = state.entries.get(&store_key(&key));
        Ok(stored.map(|stored| stored.entry(key.to_string())))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let view = View::below(&ConfigPrefix::parse(prefix)?);
        Ok(self.0.call().await?.list(&view))
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        self.0.call().await?.commit(&batch)
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        let view = match scope {
            Scope::Key(key) => View::key(&ConfigKey::parse(key)?),
            Scope::Prefix(prefix) => View::below(&ConfigPrefix::parse(prefix)?),
        };
        watch(&self.0, view).await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
