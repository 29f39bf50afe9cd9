//! Config values: the JSON itself under its key.

use std::sync::Arc;

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, Entry, EntryEvent, Error, HeldLock, LossReason, Owner, Result, Scope,
    Turns, Version, Watch, Write,
};
use etcd_client::{Compare, CompareOp, KeyValue, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::time::Instant;

use crate::{
    commit::{InUse, Settled},
    core::{Core, Shared},
    error::{Effect, Failure},
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
        Ok(pairs.iter().filter_map(|kv| Some(entry(kv, core.keys.config_name(kv.key_str().ok()?)))).collect())
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        let core = &self.shared.core;
        core.check_open()?;
        let begun = Instant::now();
        loop {
            let settled = async {
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
                    let existed = core.existed_before(&deletions(core, &batch), at).await?;
                    return Ok(Committed::new(version(at), existed));
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
        let keys = self.shared.core.keys.clone();
        let range = keys.config_scope(scope)?;
        follow(self.shared.clone(), range, Box::new(move |key| Some(keys.config_name(key)))).await
    }

    fn owner(&self) -> Owner {
        self.shared.core.owner.clone()
    }

    fn turns(&self) -> &Turns {
        &self.shared.core.turns
    }
}

/// What is tried when config values are written.
const WRITE: &str = "write config values";

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

fn transaction(core: &Core, batch: &Batch, slot: Option<&InUse>) -> Txn {
    let required = batch.requirements().iter();
    let mut conditions: Vec<_> = required
        .clone()
        .map(|(key, version)| {
            // Revisions fit: they came from etcd. What does not fit equals none.
            let revision = i64::try_from(version.get()).unwrap_or(i64::MAX);
            Compare::mod_revision(core.keys.config(key), CompareOp::Equal, revision)
        })
        .collect();
    conditions.extend(batch.held().iter().map(|held| {
        let token = i64::try_from(held.token.get()).unwrap_or(i64::MAX);
        Compare::create_revision(held.key.as_str(), CompareOp::Equal, token)
    }));
    conditions.extend(slot.map(InUse::unwritten));
    let mut writes: Vec<_> = batch
        .writes()
        .iter()
        .map(|write| match write {
            Write::Set(key, json) => TxnOp::put(core.keys.config(key), json.to_vec(), None),
            Write::Delete(key) => TxnOp::delete(core.keys.config(key), None),
        })
        .collect();
    writes.extend(slot.map(InUse::mark));
    let looks: Vec<_> = required
        .map(|(key, _)| TxnOp::get(core.keys.config(key), None))
        .chain(batch.held().iter().map(|held| TxnOp::get(held.key.as_str(), None)))
        .collect();
    Txn::new().when(conditions).and_then(writes).or_else(looks)
}

fn deletions(core: &Core, batch: &Batch) -> Vec<String> {
    let deletions = batch.writes().iter().filter(|write| matches!(write, Write::Delete(_)));
    deletions.map(|write| core.keys.config(write.key())).collect()
}

fn deleted(answer: &TxnResponse) -> usize {
    let counts = answer.op_responses().into_iter().map(|response| match response {
        TxnOpResponse::Delete(deleted) => usize::try_from(deleted.deleted()).unwrap_or_default(),
        _ => 0,
    });
    counts.sum()
}

/// The first condition that was not met, from the looks of a refused transaction.
fn refusal(batch: &Batch, answer: &TxnResponse) -> Option<Error> {
    let looks: Vec<_> = answer.op_responses().into_iter().map(found).collect();
    let (required, held) = looks.split_at_checked(batch.requirements().len())?;
    let is_lost = |(held, look): (&HeldLock, &Option<KeyValue>)| {
        look.as_ref().map_or(0, KeyValue::create_revision)
            != i64::try_from(held.token.get()).unwrap_or(i64::MAX)
    };
    if batch.held().iter().zip(held).any(is_lost) {
        return Some(Error::Lost { reason: LossReason::Revoked });
    }
    batch.requirements().iter().zip(required).find_map(|((key, expected), look)| {
        let actual = look.as_ref().map_or(Version::ABSENT, |kv| version(kv.mod_revision()));
        (actual != *expected).then(|| Error::Conflict { key: key.to_string(), expected: *expected, actual })
    })
}

fn found(look: TxnOpResponse) -> Option<KeyValue> {
    match look {
        TxnOpResponse::Get(mut found) => found.take_kvs().pop(),
        _ => None,
    }
}
