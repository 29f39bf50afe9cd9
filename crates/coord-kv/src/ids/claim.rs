//! A transaction that takes the first free id of some candidates, or else tells which ids are not free.

use std::time::{Duration, UNIX_EPOCH};

use coord_api::backend::{IdRange, time_of_day};

use super::pick::Listed;
use crate::{
    keyspace::Keys,
    request::{Look, pairs},
    store::{Compare, CompareOp, GetOptions, KeyValue, LeaseId, Op, OpResult, PutOptions, Txn, TxnAnswer},
};

/// Whether a free id may be taken while others wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    BehindTheQueue,
    AtTheHead,
}

/// An id to try, and what must be true for it to be free.
pub(super) struct Candidate {
    pub(super) id: u32,
    pub(super) conditions: Vec<Compare>,
}

/// Outcome of a claim.
pub(super) enum Answer {
    /// The candidate was taken; with the high-water mark that its earlier holders left, and the lease of a note that one had
    /// vanished.
    Taken(u32, Stamped, Option<LeaseId>),
    /// No candidate was free.
    Listed(Listed),
}

/// The transaction, and how its answer is read.
pub(super) struct Claim<'a> {
    pub(super) keys: &'a Keys,
    pub(super) range: &'a IdRange,
    pub(super) order: Order,
    pub(super) value: &'a [u8],
    pub(super) lease: i64,
}

/// Place of the note among the answers to a claim.
const NOTE: usize = 3;

fn absent(key: String) -> Compare {
    Compare::create_revision(key, CompareOp::Equal, 0)
}

impl Claim<'_> {
    /// Returns an id as a candidate: it is free if nobody has it or may believe to have it, and nobody came
    /// earlier.
    pub(super) fn free(&self, id: u32) -> Candidate {
        let (keys, service) = (self.keys, &self.range.service);
        let mut conditions = vec![absent(keys.id(service, id)), absent(keys.id_mark(service, id))];
        if self.order == Order::BehindTheQueue {
            conditions.push(absent(self.queue()).with_prefix());
        }
        Candidate { id, conditions }
    }

    fn queue(&self) -> String {
        self.keys.id_queue(&self.range.service, self.range.max_id)
    }

    /// Builds the transaction: nested, so that at most one of the candidates is taken.
    pub(super) fn txn(&self, candidates: Vec<Candidate>) -> Txn {
        let keys_only = || GetOptions::new().with_prefix().with_keys_only();
        let lists = vec![
            Op::get(self.keys.ids(&self.range.service), Some(keys_only())),
            Op::get(self.keys.id_marks(&self.range.service), Some(keys_only())),
            Op::get(self.queue(), Some(keys_only().with_limit(1))),
        ];
        let or = |otherwise: Vec<Op>, candidate: Candidate| {
            Txn::new().when(candidate.conditions).and_then(self.take(candidate.id)).or_else(otherwise)
        };
        let mut candidates = candidates.into_iter();
        let Some(first) = candidates.next() else { return Txn::new().and_then(lists) };
        or(candidates.rev().fold(lists, |otherwise, next| vec![Op::txn(or(otherwise, next))]), first)
    }

    fn take(&self, id: u32) -> Vec<Op> {
        let (keys, service) = (self.keys, &self.range.service);
        let identity = keys.id_identity(service, id);
        vec![
            Op::put(keys.id(service, id), self.value, Some(PutOptions::new().with_lease(self.lease))),
            Op::put(keys.id_mark(service, id), self.value, None),
            match &self.range.identity {
                Some(name) => Op::put(identity, name.as_str(), None),
                None => Op::delete(identity),
            },
            Op::get(keys.id_vanished(service, id), None),
            Op::delete(keys.id_vanished(service, id)),
            Op::get(keys.id_stamped(service, id), None),
        ]
    }

    /// Reads the answer to [`txn`](Self::txn) of these ids.
    pub(super) fn read(answer: &TxnAnswer, ids: &[u32]) -> Answer {
        let (mut succeeded, mut answers) = (answer.succeeded, &answer.results);
        for id in ids {
            if succeeded {
                let note = pairs(answers.get(NOTE)).first().map(|note| note.lease);
                return Answer::Taken(*id, stamped(answers.last()), note);
            }
            if let Some(OpResult::Txn(next)) = answers.first() {
                (succeeded, answers) = (next.succeeded, &next.results);
            }
        }
        Answer::Listed(Listed {
            taken: numbers(answers.first()).map(|(id, _)| id).collect(),
            marked: numbers(answers.get(1)).collect(),
            queued: !pairs(answers.get(2)).is_empty(),
        })
    }

    /// Builds the look for ids with which a generator can be started. Other ids count as taken.
    pub(super) fn better(keys: &Keys, range: &IdRange) -> Look {
        let below = || GetOptions::new().with_prefix();
        Look::of([
            Op::get(keys.ids(&range.service), Some(below().with_keys_only())),
            Op::get(keys.id_marks(&range.service), Some(below().with_keys_only())),
            Op::get(keys.id_stamps(&range.service), Some(below())),
        ])
    }

    pub(super) fn read_better(answer: &TxnAnswer, ttl: Duration) -> Listed {
        let answers = &answer.results;
        let ahead =
            pairs(answers.get(2)).iter().filter(|kv| Stamped::of(kv).is_ahead(ttl)).filter_map(number);
        let taken = numbers(answers.first()).map(|(id, _)| id).chain(ahead).collect();
        Listed { taken, marked: numbers(answers.get(1)).collect(), queued: false }
    }
}

/// Returns the ids in an answer, with the revisions of their keys.
fn numbers(answer: Option<&OpResult>) -> impl Iterator<Item = (u32, i64)> {
    pairs(answer).iter().filter_map(|kv| Some((number(kv)?, kv.mod_revision)))
}

pub(super) fn number(kv: &KeyValue) -> Option<u32> {
    Keys::id_number(kv.key_str().ok()?)
}

/// Stored high-water mark of the stamps of an id.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamped {
    /// Time up to which data may have been stamped with the id.
    pub(super) until: Option<u64>,
    /// The revision at which that was written; 0 if it never was.
    pub(super) revision: i64,
}

impl Stamped {
    fn of(kv: &KeyValue) -> Self {
        let until = kv.value_str().ok().and_then(|until| until.parse().ok());
        Self { until, revision: kv.mod_revision }
    }

    /// Returns whether no holder with this machine's clock has stamped that far: each stamps one TTL ahead.
    pub(super) fn is_ahead(&self, ttl: Duration) -> bool {
        let since = time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default();
        let latest = since.saturating_add(ttl).saturating_add(Duration::from_secs(1)).as_millis();
        self.until.is_some_and(|until| u128::from(until) > latest)
    }
}

/// Returns the high-water mark that a get of it found.
pub(super) fn stamped(answer: Option<&OpResult>) -> Stamped {
    pairs(answer).first().map(Stamped::of).unwrap_or_default()
}
