//! What is asked of a queue, as operations of a transaction, and what their answers mean. No I/O.

use std::sync::Arc;

use crate::{
    session::LeaseEpoch,
    store::{Compare, CompareOp, GetOptions, Op, OpResult, PutOptions, Txn},
};

/// The condition that nobody is in a queue.
pub(super) fn is_empty(queue: &str) -> Compare {
    Compare::create_revision(queue, CompareOp::Equal, 0).with_prefix()
}

/// What a request does to a queue.
///
/// The key of a place is used again only after the answer to the request that deleted it, never if one that deletes it
/// got no answer, and if one that writes it got none, only when the epoch was shut for that. So whoever deletes a key by
/// its name deletes its own place or nothing.
#[derive(Clone, Debug)]
pub(crate) enum QueueOp {
    /// Writes a place on the lease of the epoch and looks who else is there.
    Enter { key: String, value: Arc<[u8]>, epoch: Arc<LeaseEpoch>, read_along: ReadAlong },
    /// Writes a place only if the queue is empty.
    EnterIfEmpty { key: String, value: Arc<[u8]>, epoch: Arc<LeaseEpoch> },
    /// Deletes a place, if it is there.
    Leave { key: String, follow_ups: FollowUps },
}

/// How many tasks of this client are likely to send a follow-up when a place is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FollowUps {
    /// None: nobody of this client is told.
    None,
    /// One, of the task that leaves the queue.
    One,
    /// Two: another place of this client may be the next to hold as well.
    Two,
}

/// What [`QueueOp::Enter`] wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadAlong {
    /// Nothing: the client watches the queue and will hear.
    Nothing,
    /// Whether anyone else is in the queue: the same small effort however long it is.
    Occupied,
    /// Who is next before it, for which etcd has to sort the whole queue.
    Predecessor,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether the queue was empty, or the place was there.
    pub(crate) condition: bool,
    /// Another place that is before the one that was entered, if it was looked for any.
    pub(crate) other: Option<String>,
    /// Who is next before the place that was entered, if that was asked for.
    pub(crate) predecessor: Option<String>,
    /// The store's revision after it.
    pub(crate) revision: i64,
}

impl QueueOp {
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Enter { key, .. } | Self::EnterIfEmpty { key, .. } | Self::Leave { key, .. } => key,
        }
    }

    /// What it has to pass, which whoever leaves need not.
    pub(super) fn epoch(&self) -> Option<&Arc<LeaseEpoch>> {
        match self {
            Self::Enter { epoch, .. } | Self::EnterIfEmpty { epoch, .. } => Some(epoch),
            Self::Leave { .. } => None,
        }
    }

    /// Whether it is likely to find the queue empty: it is the first of this client there.
    pub(super) fn is_likely_first(&self) -> bool {
        matches!(self, Self::Enter { read_along: ReadAlong::Predecessor, .. })
    }

    /// How many operations it takes. `known_empty`: a condition of the transaction shows that queues of those that are
    /// likely first are empty.
    pub(super) fn size(&self, known_empty: bool) -> usize {
        match self {
            Self::Enter { read_along: ReadAlong::Predecessor, .. } if known_empty => 1,
            Self::Enter { read_along: ReadAlong::Occupied | ReadAlong::Predecessor, .. } => 2,
            _ => 1,
        }
    }

    /// The operations, [`size`](Self::size) of them. Not as a nested transaction where that can be: those cost the store far
    /// more.
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

    /// Whether whoever asked for it is likely to ask for more as soon as it is answered.
    pub(super) fn is_followed(&self) -> bool {
        matches!(self, Self::Leave { follow_ups: FollowUps::One | FollowUps::Two, .. })
    }

    /// Whether its answer is likely to let a place of this client be at the head, which is left soon.
    pub(super) fn has_next(&self, outcome: &Outcome) -> bool {
        match self {
            Self::Enter { .. } | Self::EnterIfEmpty { .. } => outcome.condition,
            Self::Leave { follow_ups, .. } => *follow_ups == FollowUps::Two,
        }
    }

    /// Reads the answers to [`operations`](Self::operations).
    pub(super) fn outcome(&self, answers: &[OpResult], revision: i64) -> Outcome {
        let outcome = |condition| Outcome { condition, other: None, predecessor: None, revision };
        match answers {
            [OpResult::Put, OpResult::Get(found)] => {
                let mut keys = found.kvs.iter().filter_map(|kv| kv.key_str().ok());
                let other = keys.find(|key| *key != self.key()).map(ToOwned::to_owned);
                // The one next to it, only if the store was asked to sort them.
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
