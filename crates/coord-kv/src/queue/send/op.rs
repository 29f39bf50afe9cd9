//! Queue requests as operations of a transaction, and what their answers mean. No I/O.

use std::sync::Arc;

use crate::{
    session::LeaseEpoch,
    store::{Compare, CompareOp, GetOptions, Op, OpResult, PutOptions, Txn},
};

/// Returns the condition that nobody is in a queue.
pub(super) fn is_empty(queue: &str) -> Compare {
    Compare::create_revision(queue, CompareOp::Equal, 0).with_prefix()
}

/// Operation on a queue.
///
/// The key of an entry is used again only after the answer to the request that deleted it. It is never used
/// again if a request that deletes it got no answer. If a request that writes it got no answer, the epoch has
/// to be advanced first. So a request that deletes a key by its name deletes its own entry or nothing.
#[derive(Clone, Debug)]
pub(crate) enum QueueOp {
    /// Writes an entry on the lease of the epoch and reads who else is there.
    Enter { key: String, value: Arc<[u8]>, epoch: Arc<LeaseEpoch>, read_along: ReadAlong },
    /// Writes an entry only if the queue is empty.
    EnterIfEmpty { key: String, value: Arc<[u8]>, epoch: Arc<LeaseEpoch> },
    /// Deletes an entry, if it exists.
    Leave { key: String, follow_ups: FollowUps },
}

/// Number of tasks of this client that are likely to send a follow-up when an entry is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FollowUps {
    /// No follow-up: nobody of this client is told.
    None,
    /// Single follow-up, of the task that leaves the queue.
    One,
    /// Two follow-ups: another entry of this client may be the next to hold as well.
    Two,
}

/// Read that [`QueueOp::Enter`] makes along with its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadAlong {
    /// No read: the client watches the queue and will hear.
    Nothing,
    /// Read of whether anyone else is in the queue: the same small effort however long the queue is.
    Occupied,
    /// Read of the next entry before it, for which etcd has to sort the whole queue.
    Predecessor,
}

/// Outcome of a [`QueueOp`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether the queue was empty, or the entry existed.
    pub(crate) condition: bool,
    /// Key of another entry, which is before the one that was entered, if any was looked for.
    pub(crate) other: Option<String>,
    /// Key of the next entry before the one that was entered, if that was asked for.
    pub(crate) predecessor: Option<String>,
    /// Revision of the store after the operation.
    pub(crate) revision: i64,
}

impl QueueOp {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Enter { key, .. } | Self::EnterIfEmpty { key, .. } | Self::Leave { key, .. } => key,
        }
    }

    /// Returns the epoch that the operation requires; leaving requires none.
    pub(super) fn epoch(&self) -> Option<&Arc<LeaseEpoch>> {
        match self {
            Self::Enter { epoch, .. } | Self::EnterIfEmpty { epoch, .. } => Some(epoch),
            Self::Leave { .. } => None,
        }
    }

    /// Returns whether it is likely to find the queue empty: it is the first of this client there.
    pub(super) fn is_likely_first(&self) -> bool {
        matches!(self, Self::Enter { read_along: ReadAlong::Predecessor, .. })
    }

    /// Returns how many operations it takes. With `known_empty`, a condition of the transaction shows that
    /// the queues of requests that are likely first are empty.
    pub(super) fn size(&self, known_empty: bool) -> usize {
        match self {
            Self::Enter { read_along: ReadAlong::Predecessor, .. } if known_empty => 1,
            Self::Enter { read_along: ReadAlong::Occupied | ReadAlong::Predecessor, .. } => 2,
            _ => 1,
        }
    }

    /// Returns the operations, [`size`](Self::size) of them. Nested transactions are avoided where possible:
    /// they cost the store far more.
    pub(super) fn operations(&self, queue: &str, known_empty: bool) -> Vec<Op> {
        let put = |key: &str, value: &[u8], epoch: &LeaseEpoch| {
            Op::put(key, value, Some(PutOptions::new().with_lease(epoch.lease())))
        };
        match self {
            Self::Enter { key, value, epoch, read_along } => {
                let mut operations = vec![put(key, value, epoch)];
                if self.size(known_empty) == 2 {
                    let two = GetOptions::new().with_prefix().with_keys_only().with_limit(2);
                    let two = match read_along {
                        ReadAlong::Predecessor => two.latest_first(),
                        ReadAlong::Nothing | ReadAlong::Occupied => two,
                    };
                    operations.push(Op::get(queue, Some(two)));
                }
                operations
            }
            Self::EnterIfEmpty { key, value, epoch } => {
                let put = put(key, value, epoch);
                vec![Op::txn(Txn::new().when([is_empty(queue)]).and_then([put]))]
            }
            Self::Leave { key, .. } => vec![Op::delete(key.as_str())],
        }
    }

    /// Returns whether its caller is likely to ask for more as soon as it is answered.
    pub(super) fn is_followed(&self) -> bool {
        matches!(self, Self::Leave { follow_ups: FollowUps::One | FollowUps::Two, .. })
    }

    /// Returns whether its answer is likely to let an entry of this client be at the head, which is left
    /// soon.
    pub(super) fn has_next(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Enter { .. } | Self::EnterIfEmpty { .. } => outcome.condition,
            Self::Leave { follow_ups, .. } => *follow_ups == FollowUps::Two,
        }
    }

    /// Returns the outcome, from the answers to [`operations`](Self::operations).
    pub(super) fn outcome(&self, answers: &[OpResult], revision: i64) -> Outcome {
        let outcome = |condition| Outcome { condition, other: None, predecessor: None, revision };
        match answers {
            [OpResult::Put, OpResult::Get(found)] => {
                let mut keys = found.kvs.iter().filter_map(|kv| kv.key_str().ok());
                let other = keys.find(|key| *key != self.key()).map(ToOwned::to_owned);
                // The next one before it, only if the store was asked to sort them.
                let predecessor = other.clone().filter(|_| self.is_likely_first());
                Outcome { other, predecessor, ..outcome(found.kvs.len() <= 1) }
            }
            [OpResult::Put] => outcome(self.is_likely_first()),
            [OpResult::Txn(nested)] => outcome(nested.succeeded),
            [OpResult::Delete(deleted)] => outcome(*deleted > 0),
            _ => unreachable!("the store answers each operation in its order and kind"),
        }
    }
}
