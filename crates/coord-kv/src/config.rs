//! Config values: the JSON itself under its key.

use std::sync::Arc;

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, ConfigKey, Entry, EntryEvent, Error, Home, Owner, Result, Scope,
    UpdateLocks, Watch, Write,
};
use tokio::time::Instant;

use crate::{
    commit::{Commits, SendMode, Settled, WRITE, deleted, deletions, refusal, transaction},
    keyspace::Keys,
    request::{Kept, entry, version},
    store::{Effect, Failure},
    watch::{Hub, follow},
};

/// The config center of one client.
#[derive(Debug)]
pub(crate) struct KvConfigCenter {
    pub(crate) commits: Kept<Commits>,
    pub(crate) hub: Arc<Hub>,
    pub(crate) update_locks: UpdateLocks,
}

#[async_trait]
impl ConfigCenter for KvConfigCenter {
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>> {
        let commits = &self.commits;
        let range = commits.keys.config_scope(scope)?;
        commits.check_open()?;
        let (_, pairs) = commits.read("read config values", &range).await?;
        let name = name(&commits.keys, scope);
        Ok(pairs.iter().filter_map(|kv| Some(entry(kv, name(kv.key_str().ok()?)?))).collect())
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        let commits = &self.commits;
        commits.check_open()?;
        let begun = Instant::now();
        let batch = Arc::new(batch);
        loop {
            let settled = async {
                let _turn = match commits.write_batched(&batch).await? {
                    SendMode::Alone(turn) => turn,
                    SendMode::Settled(settled) => return Ok(settled),
                };
                let marker = commits.marker().await?;
                let txn = transaction(&commits.keys, &batch, Some(&marker));
                marker.settle(commits.txn(WRITE, txn).await).await
            };
            let settled = match settled.await {
                // A marker is a write, of which a full store takes none.
                Err(Error::NoSpace { .. }) if only_deletes(&batch) => {
                    return self.delete_unmarked(&batch).await;
                }
                settled => settled?,
            };
            match settled {
                Settled::Written(answer) => {
                    return Ok(Committed::new(version(answer.header.revision), deleted(&answer)));
                }
                Settled::WrittenUnseen(at) => {
                    // It is written. If nobody can tell what it has deleted, no error may say that it was refused.
                    let existed = commits.existed_before(&deletions(&commits.keys, &batch), at).await;
                    let existed = existed.map_err(|error| {
                        tracing::debug!(%error, "it is not known what a commit has deleted");
                        Error::Timeout { operation: WRITE, after: commits.request_timeout * 2 }
                    });
                    return Ok(Committed::new(version(at), existed?));
                }
                Settled::Refused(answer) => match refusal(&batch, &answer) {
                    Some(refusal) => return Err(refusal),
                    // Someone wrote into our marker. Nothing else was written, and the marker is not used again.
                    None => commits.forget_markers(),
                },
                Settled::MarkerGone => commits.check_open()?,
                Settled::NeverWritten(error) => commits.retry_from_start(begun, error).await?,
            }
        }
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        let keys = &self.commits.keys;
        follow(self.commits.with(&self.hub), keys.config_scope(scope)?, Box::new(name(keys, scope))).await
    }

    fn owner(&self) -> Owner {
        self.commits.owner.clone()
    }

    fn update_locks(&self) -> &UpdateLocks {
        &self.update_locks
    }

    fn home(&self) -> Option<Home> {
        Some(self.commits.home())
    }
}

/// Names the covered keys as users do. Below a prefix other programs may have keys that no call takes: they
/// are left out.
fn name(keys: &Keys, scope: Scope<'_>) -> impl Fn(&str) -> Option<String> + Send + Sync + 'static {
    let (keys, is_listed) = (keys.clone(), matches!(scope, Scope::Prefix(_)));
    move |key| Some(keys.config_name(key)).filter(|name| !is_listed || ConfigKey::is_key(name))
}

impl KvConfigCenter {
    /// Deletes without a marker, so that the outcome is open if the answer is lost.
    async fn delete_unmarked(&self, batch: &Batch) -> Result<Committed> {
        let commits = &self.commits;
        let answer = match commits.txn(WRITE, transaction(&commits.keys, batch, None)).await {
            Ok(answer) => answer,
            Err(Failure { effect: Effect::Unknown, .. }) => {
                return Err(Error::Timeout { operation: WRITE, after: commits.request_timeout });
            }
            Err(failure) => return Err(failure.into()),
        };
        if answer.succeeded {
            return Ok(Committed::new(version(answer.header.revision), deleted(&answer)));
        }
        Err(refusal(batch, &answer).expect("there are no conditions but those of the batch"))
    }
}

fn only_deletes(batch: &Batch) -> bool {
    batch.writes().iter().all(|write| matches!(write, Write::Delete(_)))
}
