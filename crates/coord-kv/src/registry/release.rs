//! A key of ours in the store, and how it is given back: only while it is still as we wrote it.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use coord_api::{Error, LossReason, Result, backend::Release};

use crate::{
    registry::Records,
    request::Kept,
    session::{Epoch, Session},
    store::{Compare, CompareOp, Effect, Failure, GetOptions, Op, OpResult, Txn},
};

/// A key that we wrote.
#[derive(Clone, Debug)]
pub(crate) struct OwnedKey {
    pub(crate) key: String,
    /// The revision of our last write: it shows that the key is still as we wrote it.
    pub(crate) written: i64,
    pub(crate) session: Arc<Session>,
}

impl OwnedKey {
    /// Returns the conditions that the key is still as we wrote it. A store with another history gives its
    /// revision to something else, but no lease of ours to anybody else.
    pub(crate) fn is_there(&self) -> [Compare; 2] {
        let key = self.key.as_str();
        [
            Compare::mod_revision(key, CompareOp::Equal, self.written),
            Compare::lease(key, CompareOp::Equal, self.session.id),
        ]
    }
}

/// Outcome of deleting a key of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DeleteOutcome {
    /// We deleted it now.
    Deleted,
    /// The key was deleted before; somebody may have created another one since.
    Gone,
    /// The key was never deleted, but written after we wrote it.
    Overwritten,
}

impl Records {
    /// Deletes the key if it is still as we wrote it.
    async fn delete_own(&self, own: &OwnedKey) -> Result<DeleteOutcome, Failure> {
        let delete = Txn::new()
            .when(own.is_there())
            .and_then([Op::delete(own.key.as_str())])
            .or_else([Op::get(own.key.as_str(), Some(GetOptions::new().with_keys_only()))]);
        self.history.leaves(&own.key);
        let answer = self.txn("release", delete).await?;
        if answer.succeeded {
            self.history.gave_back(&own.key, answer.header.revision);
            return Ok(DeleteOutcome::Deleted);
        }
        let found = answer.results.into_iter().next();
        let is_older = matches!(found, Some(OpResult::Get(found))
            if found.kvs.first().is_some_and(|kv| kv.create_revision <= own.written));
        Ok(if is_older { DeleteOutcome::Overwritten } else { DeleteOutcome::Gone })
    }

    /// Deletes the key in the background, until it is done or the lease is over, since the key is gone with it.
    pub(crate) fn delete_later(self: &Arc<Self>, own: OwnedKey) {
        let records = self.clone();
        self.background.spawn(async move {
            let delete = || async { records.delete_own(&own).await.map(drop) };
            own.session.undo(&records, &own.key, None, delete).await;
        });
    }

    /// Deletes a key with a value that only we can have written. The request that wrote it went through the
    /// epoch of `session`, and its answer was known to be lost at `since`. A key that a later attempt writes,
    /// or has written, is left alone: only the state from before that attempt began is deleted.
    pub(crate) fn delete_stray(
        self: &Arc<Self>,
        key: String,
        value: Vec<u8>,
        session: Arc<Session>,
        since: Epoch,
    ) {
        let records = self.clone();
        self.background.spawn(async move {
            let delete = || records.delete_if_stray(&key, &value);
            session.undo(&records, &key, Some(since), delete).await;
        });
    }

    async fn delete_if_stray(&self, key: &str, value: &[u8]) -> Result<(), Failure> {
        let found = self.get("clean up", key, None).await?;
        let Some(stray) = found.kvs.first().filter(|kv| kv.value == value) else { return Ok(()) };
        // Asked after reading: an attempt that begins later replaces the found value, and then this deletes
        // nothing.
        if self.is_wanted(key) {
            return Ok(());
        }
        let unchanged = Compare::mod_revision(key, CompareOp::Equal, stray.mod_revision);
        self.txn("clean up", Txn::new().when([unchanged]).and_then([Op::delete(key)])).await?;
        Ok(())
    }
}

/// Gives back one key.
pub(crate) struct KeyRelease {
    records: Kept<Records>,
    own: OwnedKey,
}

impl KeyRelease {
    pub(crate) fn new(records: &Kept<Records>, own: OwnedKey) -> Self {
        Self { records: records.clone(), own }
    }
}

impl fmt::Debug for KeyRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("KeyRelease").field(&self.own.key).finish()
    }
}

#[async_trait]
impl Release for KeyRelease {
    async fn release(&self) -> Result<()> {
        let records = &self.records;
        records.check_open().map_err(|_| Error::Lost { reason: LossReason::Closed })?;
        let lost = Error::Lost { reason: LossReason::Deleted };
        match records.delete_own(&self.own).await {
            Ok(DeleteOutcome::Deleted) => Ok(()),
            Ok(DeleteOutcome::Gone | DeleteOutcome::Overwritten) => Err(lost),
            // The answer was lost. Whether the first request or this one deleted the key is the same, and a
            // delete of our own key can be repeated.
            Err(Failure { effect: Effect::Unknown, .. }) => match records.delete_own(&self.own).await? {
                DeleteOutcome::Deleted | DeleteOutcome::Gone => Ok(()),
                // Also by a write of our own that was given up.
                DeleteOutcome::Overwritten => Err(lost),
            },
            Err(failure) => Err(failure.into()),
        }
    }

    fn release_in_background(&self) {
        if self.own.session.lease.loss().is_none() {
            self.records.delete_later(self.own.clone());
        }
    }
}
