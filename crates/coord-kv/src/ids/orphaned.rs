//! Ids whose holders vanished: how long they have rested, no matter which clients looked at them meanwhile.
//!
//! Such an id rests from the moment at which somebody sees it first, since nobody knows when its key
//! vanished. The moment has to outlive the process that saw it, which may be gone a second later, and the
//! clocks of hosts differ. So it is kept by the clock of the store: a note beside the mark lives on a lease
//! that was granted then. The store tells how much of the lease is left.
//!
//! A lease that is gone proves nothing, since an operator may have revoked it. Then the note is gone as well,
//! and the rest begins anew. So the lease is far longer than the rest, and only the time that is left of it
//! counts. The time that is left is never less than it should be: a new leader of etcd grants the whole time
//! again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use coord_api::{Error, MAX_QUARANTINE, ServiceName};
use futures::future::join_all;
use tokio::time::Instant;

use super::record::Record;
use crate::{
    ids::Ids,
    request::{Look, Repeat, history::Sent, pairs, timer},
    store::{Compare, CompareOp, Failure, KeyValue, LeaseDetail, LeaseId, Op, OpResult, PutOptions, Txn},
};

const OPERATION: &str = "claim an id";

/// Time for which a note outlives the rest. A client that looks less often does not find the note again.
const KEPT: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// An id whose key is gone and whose mark is there.
#[derive(Clone, Debug)]
struct Orphaned {
    id: u32,
    /// The revision of its mark.
    revision: i64,
    rest: Duration,
    note: Option<Note>,
}

/// Note of when the id was first seen so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Note {
    revision: i64,
    lease: i64,
}

/// Marks that this process is about to end. No other task of it does meanwhile.
struct Ending {
    ids: Arc<Ids>,
    service: ServiceName,
    marks: Vec<(u32, i64)>,
    /// Moment at which they were seen. In another history of the store these revisions belong to others.
    seen: Sent,
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.ids.held.end_ending(&self.service, &self.marks);
    }
}

/// Returns for how long a lease has lived at least, in whole seconds; `None` if the lease is gone. The store
/// rounds down the time that is left, as etcd does.
fn age(granted: i64, left: i64) -> Option<Duration> {
    let lived = granted.saturating_sub(left).saturating_sub(1).max(0);
    (left > 0).then(|| Duration::from_secs(lived.unsigned_abs()))
}

impl Ids {
    /// Frees the ids of `marks` that have rested, and tells which. The others are freed when they have
    /// rested: by this client if it stays, or by a client that looks then.
    pub(super) async fn free_orphaned(
        self: &Arc<Self>,
        service: &ServiceName,
        marks: Vec<(u32, i64)>,
    ) -> Vec<u32> {
        let marks = self.held.begin_ending(service, marks);
        let mut freed = Vec::new();
        for some in marks.chunks(self.at_once()) {
            let seen = self.history.now();
            let ending = Ending { ids: self.clone(), service: service.clone(), marks: some.to_vec(), seen };
            let counted = async {
                let (over, resting) = ending.count().await?;
                ending.end(&over).await?;
                Ok::<_, Failure>((over, resting))
            };
            let (over, resting) = match counted.await {
                Ok((over, resting)) => (over, Some(resting)),
                Err(Failure { error, .. }) => {
                    tracing::debug!(%service, %error, "ids of vanished holders are counted later");
                    (Vec::new(), None)
                }
            };
            freed.extend(over.iter().map(|vanished| vanished.id));
            if resting.as_ref().is_none_or(|resting| !resting.is_empty()) {
                let ids = self.clone();
                self.background.spawn(async move {
                    tokio::select! {
                        () = ids.closed() => {}
                        () = ending.end_in_time(resting) => {}
                    }
                });
            }
        }
        freed
    }

    /// Asks for how long a lease has lived.
    async fn age_of(&self, lease: i64) -> Result<Option<Duration>, Failure> {
        let status = self.lease_status(OPERATION, lease, LeaseDetail::Times).await?;
        Ok(age(status.granted, status.left))
    }

    /// Gives back a lease, until it is done, if no note is on it any more. Closing does it as well.
    pub(super) fn revoke_note(self: &Arc<Self>, lease: LeaseId) {
        self.held.notes().insert(lease);
        let ids = self.clone();
        self.background.spawn(async move {
            let revoke = || ids.revoke_if_bare(lease);
            if ids.clean_up("the lease of a note", ids.closed(), revoke).await {
                ids.held.notes().remove(&lease);
            }
        });
    }

    /// Revokes a lease if nothing is on it.
    pub(super) async fn revoke_if_bare(&self, lease: LeaseId) -> Result<(), Failure> {
        if !self.lease_status(OPERATION, lease, LeaseDetail::TimesAndKeys).await?.keys.is_empty() {
            return Ok(());
        }
        match self.call(OPERATION, Repeat::Freely, |store, call| store.revoke(call, lease)).await {
            Err(Failure { error: Error::Lost { .. }, .. }) => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

/// Ids with the moments at which they have rested.
type Resting = Vec<(Instant, Orphaned)>;

impl Ending {
    /// Ends what has rested already, and what rests still, with the moments at which it will have.
    async fn count(&self) -> Result<(Vec<Orphaned>, Resting), Failure> {
        let mut all = self.look().await?;
        let leases: BTreeSet<_> = all.iter().filter_map(|one| Some(one.note?.lease)).collect();
        let ages = leases.into_iter().map(async |lease| Ok((lease, self.ids.age_of(lease).await?)));
        let ages = join_all(ages).await.into_iter().collect::<Result<HashMap<_, _>, Failure>>()?;
        let now = Instant::now();
        let age = |vanished: &Orphaned| ages.get(&vanished.note?.lease).copied().flatten();
        let mut unnoted: Vec<_> = all.extract_if(.., |vanished| age(vanished).is_none()).collect();
        let (over, resting): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|vanished| age(vanished).is_some_and(|age| age >= vanished.rest));
        let left = |vanished: &Orphaned| vanished.rest.saturating_sub(age(vanished).unwrap_or_default());
        let mut resting: Vec<_> = resting.into_iter().map(|one| (now + left(&one), one)).collect();
        match self.note(&unnoted).await {
            // Whether it is there or not: the lease is given back with the marks.
            Ok(note) => unnoted.iter_mut().for_each(|vanished| vanished.note = note),
            Err(Failure { error, .. }) => {
                tracing::debug!(service = %self.service, %error, "others will count the rest of these ids anew");
            }
        }
        resting.extend(unnoted.into_iter().map(|one| (now + one.rest, one)));
        Ok((over, resting))
    }

    /// Returns the marks that are still there, with their notes.
    async fn look(&self) -> Result<Vec<Orphaned>, Failure> {
        let keys = &self.ids.keys;
        let gets = self
            .marks
            .iter()
            .flat_map(|(id, _)| [keys.id_mark(&self.service, *id), keys.id_vanished(&self.service, *id)]);
        let gets: Vec<_> = gets.map(|key| Op::get(key, None)).collect();
        let found = self.ids.look(OPERATION, Look::of(gets)).await?.results;
        let vanished = self.marks.iter().zip(found.chunks(2)).filter_map(|((id, revision), found)| {
            let mark = pairs(found.first()).first().filter(|mark| mark.mod_revision == *revision)?;
            let rest = Record::read(&mark.value).map_or(self.ids.ttl.as_duration(), |mark| mark.rest);
            // As long as any TTL. More than that only another program has written.
            let rest = rest.min(MAX_QUARANTINE);
            let note = |kv: &KeyValue| Note { revision: kv.mod_revision, lease: kv.lease };
            let note = pairs(found.get(1)).first().map(note);
            Some(Orphaned { id: *id, revision: *revision, rest, note })
        });
        // A note older than the mark is about an earlier holder.
        let of_this = |vanished: &Orphaned| vanished.note.filter(|note| note.revision > vanished.revision);
        Ok(vanished.map(|vanished| Orphaned { note: of_this(&vanished), ..vanished }).collect())
    }

    /// Writes down that these were seen to have vanished, and returns the note. The lease is granted after that, and the rest
    /// counted from its grant.
    async fn note(&self, unnoted: &[Orphaned]) -> Result<Option<Note>, Failure> {
        let Some(rest) = unnoted.iter().map(|vanished| vanished.rest).max() else { return Ok(None) };
        let (ids, service) = (&self.ids, &self.service);
        let seconds = i64::try_from(rest.saturating_add(KEPT).as_secs()).unwrap_or(i64::MAX);
        // Until the note is there: this task may end before, with its client.
        let asked = |lease| {
            ids.held.notes().insert(lease);
        };
        let lease = ids.grant_lease(OPERATION, seconds, asked, |lease| ids.revoke_note(lease)).await?.id;
        let notes = unnoted.iter().map(|Orphaned { id, revision, .. }| {
            let (key, mark) = (ids.keys.id(service, *id), ids.keys.id_mark(service, *id));
            let note = ids.keys.id_vanished(service, *id);
            let conditions = [
                Compare::mod_revision(mark, CompareOp::Equal, *revision),
                Compare::create_revision(key, CompareOp::Equal, 0),
                // There is none, or one about an earlier holder.
                Compare::mod_revision(note.as_str(), CompareOp::Less, *revision),
            ];
            let put = Op::put(note, &*ids.holder, Some(PutOptions::new().with_lease(lease)));
            Op::txn(Txn::new().when(conditions).and_then([put]))
        });
        let answer = ids.txn(OPERATION, Txn::new().and_then(notes.collect::<Vec<_>>())).await;
        let is_made = |one: &OpResult| matches!(one, OpResult::Txn(nested) if nested.succeeded);
        let is_used = answer.as_ref().is_ok_and(|answer| answer.results.iter().any(is_made));
        if is_used {
            ids.held.notes().remove(&lease);
        } else {
            ids.revoke_note(lease);
        }
        answer.map(|answer| Some(Note { revision: answer.header.revision, lease }))
    }

    /// Ends marks, with their notes. May be repeated: the conditions are about that very mark.
    async fn end(&self, over: &[Orphaned]) -> Result<(), Failure> {
        let is_over = self.ids.history.now().epoch() != self.seen.epoch();
        if over.is_empty() || is_over {
            return Ok(());
        }
        let (ids, service) = (&self.ids, &self.service);
        let ends = over.iter().map(|Orphaned { id, revision, .. }| {
            let (mark, note) = (ids.keys.id_mark(service, *id), ids.keys.id_vanished(service, *id));
            let same = Compare::mod_revision(mark.as_str(), CompareOp::Equal, *revision);
            let ends = [Op::get(note.as_str(), None), Op::delete(mark), Op::delete(note)];
            Op::txn(Txn::new().when([same]).and_then(ends))
        });
        let answer = ids.txn(OPERATION, Txn::new().and_then(ends.collect::<Vec<_>>())).await?;
        tracing::debug!(%service, count = over.len(), "ids have rested whose holders vanished");
        // Also of notes whose writer was not told that they are there.
        let found = answer.results.iter().filter_map(|one| match one {
            OpResult::Txn(ended) => pairs(ended.results.first()).first().map(|note| note.lease),
            _ => None,
        });
        let known = over.iter().filter_map(|vanished| Some(vanished.note?.lease));
        for lease in known.chain(found).collect::<BTreeSet<_>>() {
            ids.revoke_note(lease);
        }
        Ok(())
    }

    /// Ends marks as the ids have rested. `None`: they are not counted yet.
    async fn end_in_time(&self, resting: Option<Resting>) {
        let mut resting = if let Some(resting) = resting {
            resting
        } else {
            let count = || self.count();
            let (over, resting) = self.ids.until_done("looking at vanished holders", count).await;
            let now = Instant::now();
            over.into_iter().map(|vanished| (now, vanished)).chain(resting).collect()
        };
        while let Some(next) = resting.iter().map(|(at, _)| *at).min() {
            timer::sleep_until(next).await;
            let now = Instant::now();
            let over: Vec<_> = resting.extract_if(.., |(at, _)| *at <= now).map(|(_, over)| over).collect();
            self.ids.until_done("ids of vanished holders", || self.end(&over)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_has_lived_for_as_long_as_it_certainly_has() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let table = [
            ((100, 100), seconds(0)),
            ((100, 99), seconds(0)),
            ((100, 98), seconds(1)),
            ((100, 1), seconds(98)),
            // A new leader of etcd gives more than was granted.
            ((100, 130), seconds(0)),
            ((i64::MAX, i64::MAX), seconds(0)),
            ((i64::MIN, 7), seconds(0)),
            // It is over or revoked, which nobody can tell apart.
            ((100, 0), None),
            ((0, -1), None),
        ];
        for ((granted, left), expected) in table {
            assert_eq!(age(granted, left), expected, "{left} of {granted} are left");
        }
    }
}
