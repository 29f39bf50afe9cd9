//! The config center of a client, whose answers are lost on demand.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, Entry, EntryEvent, Error, Home, Owner, Result, Scope, UpdateLocks, Watch,
    backend::sleep,
};

use crate::network::Peer;

/// Time that a write waits for an answer that is lost on demand.
const NO_ANSWER: Duration = Duration::from_secs(5);

/// The config center of one client.
#[derive(Debug)]
pub(crate) struct Config {
    pub(crate) inner: Arc<dyn ConfigCenter>,
    pub(crate) peer: Arc<Peer>,
}

#[async_trait]
impl ConfigCenter for Config {
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>> {
        self.inner.read(scope).await
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        let committed = self.inner.commit(batch).await;
        if matches!(committed, Err(Error::Unavailable { .. } | Error::Closed)) || !self.peer.loses_answer() {
            return committed;
        }
        sleep(NO_ANSWER).await;
        Err(Error::Timeout { operation: "commit", after: NO_ANSWER })
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        self.inner.watch_entries(scope).await
    }

    fn owner(&self) -> Owner {
        self.inner.owner()
    }

    fn update_locks(&self) -> &UpdateLocks {
        self.inner.update_locks()
    }

    fn home(&self) -> Option<Home> {
        self.inner.home()
    }
}
