//! Batches of config writes as transactions of the store, and what the answers to them say.

use coord_api::{Batch, ConfigKey, Error, HeldLock, LossReason, Version, Write};

use super::MarkerGuard;
use crate::{
    keyspace::Keys,
    request::{pairs, version},
    store::{Compare, CompareOp, KeyValue, Op, OpResult, Txn, TxnAnswer},
};

/// Returns the transaction that writes a batch. Without a marker, the outcome is open if the answer is lost.
pub(crate) fn transaction(keys: &Keys, batch: &Batch, marker: Option<&MarkerGuard>) -> Txn {
    let required = batch.requirements().iter();
    let mut conditions: Vec<_> = required.clone().map(|required| is_at(keys, required)).collect();
    conditions.extend(batch.held().iter().map(|held| {
        let token = i64::try_from(held.token.get()).unwrap_or(i64::MAX);
        Compare::create_revision(held.key.as_str(), CompareOp::Equal, token)
    }));
    conditions.extend(marker.map(MarkerGuard::unwritten));
    let mut writes: Vec<_> = batch.writes().iter().map(|write| operation(keys, write)).collect();
    writes.extend(marker.map(MarkerGuard::mark));
    let looks: Vec<_> = required
        .map(|(key, _)| Op::get(keys.config(key), None))
        .chain(batch.held().iter().map(|held| Op::get(held.key.as_str(), None)))
        .collect();
    Txn::new().when(conditions).and_then(writes).or_else(looks)
}

/// Returns the transaction that writes several batches, none of which writes a key of another or requires a
/// lock.
pub(super) fn together(keys: &Keys, batches: &[&Batch], marker: &MarkerGuard) -> Txn {
    let mut required: Vec<_> = batches.iter().flat_map(|batch| batch.requirements()).collect();
    required.sort_unstable();
    required.dedup();
    let conditions = required.into_iter().map(|required| is_at(keys, required)).chain([marker.unwritten()]);
    let writes = batches.iter().flat_map(|batch| batch.writes()).map(|write| operation(keys, write));
    Txn::new()
        .when(conditions.collect::<Vec<_>>())
        .and_then(writes.chain([marker.mark()]).collect::<Vec<_>>())
}

fn is_at(keys: &Keys, (key, version): &(ConfigKey, Version)) -> Compare {
    // Revisions fit: they came from the store. A number that does not fit equals none.
    let revision = i64::try_from(version.get()).unwrap_or(i64::MAX);
    Compare::mod_revision(keys.config(key), CompareOp::Equal, revision)
}

fn operation(keys: &Keys, write: &Write) -> Op {
    match write {
        Write::Set(key, json) => Op::put(keys.config(key), json.to_vec(), None),
        Write::Delete(key) => Op::delete(keys.config(key)),
    }
}

/// Returns the keys that a batch deletes.
pub(crate) fn deletions(keys: &Keys, batch: &Batch) -> Vec<String> {
    let deletions = batch.writes().iter().filter(|write| matches!(write, Write::Delete(_)));
    deletions.map(|write| keys.config(write.key())).collect()
}

/// Returns how many of the deleted keys existed.
pub(crate) fn deleted(answer: &TxnAnswer) -> usize {
    let counts = answer.results.iter().map(|result| match result {
        OpResult::Delete(deleted) => usize::try_from(*deleted).unwrap_or_default(),
        _ => 0,
    });
    counts.sum()
}

/// Returns the first condition that was not met, from the reads of a refused transaction.
pub(crate) fn refusal(batch: &Batch, answer: &TxnAnswer) -> Option<Error> {
    let looks: Vec<_> = answer.results.iter().map(|look| pairs(Some(look))).collect();
    let (required, held) = looks.split_at_checked(batch.requirements().len())?;
    let is_lost = |(held, look): &(&HeldLock, &&[KeyValue])| {
        look.first().map_or(0, |kv| kv.create_revision) != i64::try_from(held.token.get()).unwrap_or(i64::MAX)
    };
    let mut lost = batch.held().iter().zip(held).filter(is_lost).peekable();
    if lost.peek().is_some() {
        lost.for_each(|(held, _)| held.refused());
        return Some(Error::Lost { reason: LossReason::Revoked });
    }
    batch.requirements().iter().zip(required).find_map(|((key, expected), look)| {
        let actual = look.first().map_or(Version::ABSENT, |kv| version(kv.mod_revision));
        (actual != *expected).then(|| Error::Conflict { key: key.to_string(), expected: *expected, actual })
    })
}
