//! Config values: the JSON itself under its key.

use std::sync::Arc;

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, ConfigKey, Entry, EntryEvent, Error, Home, Owner, Result, Scope,
    UpdateLocks, Watch, Write,
};
use tokio::time::Instant;

use crate::{
    commit::{Settled, WRITE, Way, deleted, deletions, refusal, transaction},
    core::Shared,
    error::{Effect, Failure},
    keys::Keys,
    read::revision,
    watch::{entry, follow, version},
};

/// The config center of one client.
#[derive(Debug)]
pub(crate) struct EtcdConfigCenter {
    pub(crate) shared: Arc<Shared>,
}

#[async_trait]
impl ConfigCenter for EtcdConfigCenter {
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>> {
        let core = &self.shared.core;
        let range = core.keys.config_scope(scope)?;
        core.check_open()?;
        let (_, pairs) = core.read("read config values", &range).await?;
        let name = name(&core.keys, scope);
        Ok(pairs.iter().filter_map(|kv| Some(entry(kv, name(kv.key_str().ok()?)?))).collect())
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        let core = &self.shared.core;
        core.check_open()?;
        let begun = Instant::now();
        let batch = Arc::new(batch);
        loop {
            let settled = async {
                let _turn = match core.write_together(&batch).await? {
                    Way::Alone(turn) => turn,
                    Way::Settled(settled) => return Ok(settled),
                };
                let slot = core.slot().await?;
                let txn = transaction(core, &batch, Some(&slot));
                slot.settle(core.txn(WRITE, txn).await).await
            };
            let settled = match settled.await {
                // A slot is a write, of which a full store takes none.
                Err(Error::NoSpace { .. }) if only_deletes(&batch) => {
                    return self.delete_unmarked(&batch).await;
                }
                settled => settled?,
            };
            match settled {
                Settled::Written(answer) => {
                    return Ok(Committed::new(version(revision(answer.header())), deleted(&answer)));
                }
                Settled::WrittenUnseen(at) => {
                    // It is written. If nobody can tell what it has deleted, no error may say that it was refused.
                    let existed = core.existed_before(&deletions(core, &batch), at).await;
                    let existed = existed.map_err(|error| {
                        tracing::debug!(%error, "it is not known what a commit has deleted");
                        Error::Timeout { operation: WRITE, after: core.request_timeout * 2 }
                    });
                    return Ok(Committed::new(version(at), existed?));
                }
                Settled::Refused(answer) => match refusal(&batch, &answer) {
                    Some(refusal) => return Err(refusal),
                    // Someone wrote into our slot. Nothing else was written, and the slot is not used again.
                    None => core.forget_slots(),
                },
                Settled::SlotGone => core.check_open()?,
                Settled::NeverWritten(error) => core.begin_anew(begun, error).await?,
            }
        }
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        let keys = &self.shared.core.keys;
        follow(self.shared.clone(), keys.config_scope(scope)?, Box::new(name(keys, scope))).await
    }

    fn owner(&self) -> Owner {
        self.shared.core.owner.clone()
    }

    fn update_locks(&self) -> &UpdateLocks {
        &self.shared.core.update_locks
    }

    fn home(&self) -> Option<Home> {
        Some(self.shared.core.home())
    }
}

/// Names what is covered as users do. Below a prefix other programs may have keys that no call takes: they are left out.
fn name(keys: &Keys, scope: Scope<'_>) -> impl Fn(&str) -> Option<String> + Send + Sync + 'static {
    let (keys, is_listed) = (keys.clone(), matches!(scope, Scope::Prefix(_)));
    move |key| Some(keys.config_name(key)).filter(|name| !is_listed || ConfigKey::is_key(name))
}

impl EtcdConfigCenter {
    /// Deletes without a slot, so that the outcome is open if the answer is lost.
    async fn delete_unmarked(&self, batch: &Batch) -> Result<Committed> {
        let core = &self.shared.core;
        let answer = match core.txn(WRITE, transaction(core, batch, None)).await {
            Ok(answer) => answer,
            Err(Failure { effect: Effect::Unknown, .. }) => {
                return Err(Error::Timeout { operation: WRITE, after: core.request_timeout });
            }
            Err(failure) => return Err(failure.into()),
        };
        if answer.succeeded() {
            return Ok(Committed::new(version(revision(answer.header())), deleted(&answer)));
        }
        Err(refusal(batch, &answer).expect("there are no conditions but those of the batch"))
    }
}

fn only_deletes(batch: &Batch) -> bool {
    batch.writes().iter().all(|write| matches!(write, Write::Delete(_)))
}
