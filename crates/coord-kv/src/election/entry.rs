//! Entry of a leader: its value, and the candidate that is next.

use std::fmt;

use async_trait::async_trait;
use bytes::Bytes;
use coord_api::{
    Candidate, ElectionName, Error, Hold, LossReason, Result, Successor,
    backend::{LeaderEntry, Succession},
};
use tokio::{sync::Mutex, time::Instant};

use super::read;
use crate::{
    queue::{Queues, Ticket},
    request::{Kept, pairs},
    store::{
        Compare, CompareOp, Effect, Failure, GetOptions, LeaseId, Op, PutOptions, Revision, Txn, TxnAnswer,
    },
};

const PROCLAIM: &str = "proclaim";
const HAND_OVER: &str = "hand over";

/// Entry of a leader of this client.
///
/// Each write requires that the entry is the leader's own, by its create revision, and that it is as the leader wrote it last.
/// So a write that arrives late has no effect once the term is over, or once a later one of the leader had.
pub(super) struct Entry {
    queues: Kept<Queues>,
    election: ElectionName,
    key: String,
    created: Revision,
    lease: LeaseId,
    /// Hold of the leader, which ends if the entry is found to be gone.
    hold: Hold,
    /// Revision at which the entry was written last, as far as this client knows; locked while it is written. A wrong
    /// revision costs another request, which tells the right one.
    written: Mutex<Revision>,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("created", &self.created)
            .finish_non_exhaustive()
    }
}

impl Entry {
    /// Makes the entry of a candidate that leads now.
    pub(super) fn of(queues: &Kept<Queues>, election: &ElectionName, ticket: &Ticket) -> Self {
        let created = ticket.created();
        Self {
            queues: queues.clone(),
            election: election.clone(),
            key: ticket.key().to_owned(),
            created,
            lease: ticket.session().id,
            hold: ticket.hold().clone(),
            written: Mutex::new(created),
        }
    }

    /// Returns the condition that the entry is the leader's own.
    fn is_own(&self) -> Compare {
        created_at(&self.key, self.created)
    }

    /// Ends the term: the entry is gone, which is not the leader's doing.
    fn is_gone(&self) -> Error {
        let before = self.hold.end(LossReason::Deleted);
        Error::Lost { reason: before.unwrap_or(LossReason::Deleted) }
    }

    /// Writes a value if the entry was written last at `written`. Reads the entry otherwise.
    async fn write(&self, value: &Bytes, written: Revision) -> Result<TxnAnswer, Failure> {
        let unchanged = Compare::mod_revision(self.key.as_str(), CompareOp::Equal, written);
        let on_lease = PutOptions::new().with_lease(self.lease);
        let put = Op::put(self.key.as_str(), value.to_vec(), Some(on_lease));
        let get = Op::get(self.key.as_str(), Some(GetOptions::new()));
        let txn = Txn::new().when([self.is_own(), unchanged]).and_then([put]).or_else([get]);
        self.queues.history.leaves(&self.key);
        let answer = self.queues.txn(PROCLAIM, txn).await?;
        if answer.succeeded {
            self.queues.history.wrote(&self.key, answer.header.revision, self.lease);
            // A release that began meanwhile may have been noted before.
            if self.hold.loss().is_some() {
                self.queues.history.leaves(&self.key);
            }
        }
        Ok(answer)
    }

    /// Deletes the entries before a candidate that waits, if all are as they were read.
    async fn evict(&self, between: &[(Revision, Candidate)], next: &(Revision, Candidate)) -> Result<()> {
        let conditions =
            between.iter().chain([next]).map(|(created, other)| created_at(&other.key, *created));
        let conditions: Vec<_> = conditions.chain([self.is_own()]).collect();
        let deletions: Vec<_> = between.iter().map(|(_, other)| Op::delete(other.key.as_str())).collect();
        let own = Op::get(self.key.as_str(), Some(GetOptions::new().with_keys_only()));
        let txn = Txn::new().when(conditions).and_then(deletions).or_else([own]);
        match self.queues.txn(HAND_OVER, txn).await {
            Ok(answer) if !answer.succeeded => return Ok(()),
            // If the answer was lost, tasks of this client queue again although they perhaps need not.
            Ok(_) | Err(Failure { effect: Effect::Unknown, .. }) => {}
            Err(failure) => return Err(failure.into()),
        }
        let keys: Vec<_> = between.iter().map(|(created, other)| (other.key.clone(), *created)).collect();
        self.queues.evicted(&self.queues.keys.election(&self.election), &keys);
        Ok(())
    }
}

#[async_trait]
impl LeaderEntry for Entry {
    async fn proclaim(&self, value: Bytes) -> Result<()> {
        let begun = Instant::now();
        let mut written = self.written.lock().await;
        loop {
            self.hold.check()?;
            match self.write(&value, *written).await {
                Ok(answer) if answer.succeeded => {
                    *written = answer.header.revision;
                    return Ok(());
                }
                Ok(answer) => {
                    let found = pairs(answer.results.first()).first();
                    let found = found.filter(|found| found.create_revision == self.created);
                    let Some(found) = found else { return Err(self.is_gone()) };
                    *written = found.mod_revision;
                    // A write whose answer was lost.
                    if found.value == value {
                        return Ok(());
                    }
                }
                // The next attempt finds out whether this one had an effect.
                Err(Failure { error, effect: Effect::Unknown }) => {
                    if !self.queues.may_retry_from_start(begun, &error).await {
                        return Err(Error::Timeout { operation: PROCLAIM, after: begun.elapsed() });
                    }
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    async fn make_next(&self, successor: &Successor) -> Result<Succession> {
        let begun = Instant::now();
        // The conditions and the entry that is read count as well.
        let most = self.queues.limits().operations.saturating_sub(2).max(1);
        loop {
            self.hold.check()?;
            let candidates = read(&self.queues, &self.election).await?;
            let is_own =
                |(created, other): &(Revision, Candidate)| *created == self.created && other.key == self.key;
            let Some(own) = candidates.iter().position(is_own) else { return Err(self.is_gone()) };
            let waiting = &candidates[own + 1..];
            let Some(at) = waiting.iter().position(|(_, other)| successor.is(other)) else {
                return Ok(Succession::NotWaiting);
            };
            let (between, next) = (&waiting[..at], &waiting[at]);
            if between.is_empty() {
                return Ok(Succession::Next(next.1.clone()));
            }
            if between.iter().any(|(_, other)| other.owner.is_none()) {
                return Ok(Succession::Blocked);
            }
            // The next read tells the outcome.
            self.evict(&between[..between.len().min(most)], next).await?;
            if begun.elapsed() >= self.queues.request_timeout {
                return Err(Error::Timeout { operation: HAND_OVER, after: begun.elapsed() });
            }
        }
    }
}

/// Returns the condition that a key was created at a revision, and is there.
fn created_at(key: &str, created: Revision) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, created)
}
