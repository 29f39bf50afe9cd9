//! An id from its claim to the end of its quarantine, in which it rests.
//!
//! The key of an id lives on the lease of its holder. Beside it is a mark without a lease. If the key
//! vanishes, nobody can tell whether its lease was over or was revoked by an operator. After a revocation the
//! holder believes in the id until its next renewal. So nobody takes a marked id.
//!
//! The holder ends the mark when it knows that it lost, and lets the id rest. If the holder is gone, the
//! clients that want the id end the mark, as `orphaned.rs` says.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coord_api::{
    Error, Hold, LossReason, ServiceName,
    backend::lock,
    backend::{ClaimedId, Delivered, Place},
};
use tokio::sync::Notify;

use super::{
    claim::Stamped,
    claimed::{HighWaterMark, IdRelease},
    record::Record,
};
use crate::{
    ids::Ids,
    keyspace::Keys,
    request::{Kept, Look, pairs, timer},
    session::{Epoch, Session},
    store::{Compare, CompareOp, Failure, LeaseDetail, LeaseId, Op, OpResult, PutOptions, Txn},
};

/// The ids that a client holds, or has not let rest yet.
#[derive(Debug, Default)]
pub(crate) struct HeldIds {
    own: Mutex<BTreeMap<ClaimMarker, Held>>,
    /// The marks of others that this client is about to end.
    ending: Mutex<HashSet<ClaimMarker>>,
    /// The leases of notes that are to be revoked if no note is on them.
    notes: Mutex<BTreeSet<LeaseId>>,
}

/// Marker of one hold: a later holder of the same id has another marker.
type ClaimMarker = (ServiceName, u32, i64);

impl HeldIds {
    fn add(&self, held: &Held) {
        lock(&self.own).insert(held.marked(), held.clone());
    }

    pub(super) fn remove(&self, held: &Held) {
        lock(&self.own).remove(&held.marked());
    }

    fn all(&self) -> Vec<Held> {
        lock(&self.own).values().cloned().collect()
    }

    /// Has those ids looked for that are meant.
    pub(super) fn look_at(&self, is_meant: impl Fn(&Held) -> bool) {
        let own = lock(&self.own);
        own.values().filter(|held| is_meant(held)).for_each(|held| held.look.notify_one());
    }

    pub(super) fn notes(&self) -> MutexGuard<'_, BTreeSet<LeaseId>> {
        lock(&self.notes)
    }

    /// Returns the marks that are not about to be ended already, out of some.
    pub(super) fn begin_ending(&self, service: &ServiceName, marks: Vec<(u32, i64)>) -> Vec<(u32, i64)> {
        let mut ending = lock(&self.ending);
        let is_new = |(id, revision): &(u32, i64)| ending.insert((service.clone(), *id, *revision));
        marks.into_iter().filter(is_new).collect()
    }

    pub(super) fn end_ending(&self, service: &ServiceName, marks: &[(u32, i64)]) {
        let mut ending = lock(&self.ending);
        for (id, revision) in marks {
            ending.remove(&(service.clone(), *id, *revision));
        }
    }
}

/// An id with its mark, as they were written.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) service: ServiceName,
    pub(super) id: u32,
    /// The revision at which its mark was written, and its key if that is there.
    pub(super) revision: i64,
    pub(super) record: Record,
    pub(super) rest: Duration,
    /// The lease that its key lives on, which is used until the id rests.
    pub(super) session: Arc<Session>,
    /// Signal to the task that guards it: it may be gone.
    pub(super) look: Arc<Notify>,
}

impl Held {
    /// Returns the conditions that a mark is the one of this hold. A store with another history may give its
    /// revision to the mark of another holder, whose value differs.
    pub(super) fn has_mark(&self, keys: &Keys) -> [Compare; 2] {
        let mark = keys.id_mark(&self.service, self.id);
        [
            Compare::mod_revision(mark.as_str(), CompareOp::Equal, self.revision),
            Compare::value(mark, CompareOp::Equal, self.record.to_bytes()),
        ]
    }

    fn marked(&self) -> ClaimMarker {
        (self.service.clone(), self.id, self.revision)
    }

    /// Makes a claim of it that rests when it is released or lost.
    pub(super) fn into_claimed(self, kept: &Kept<Ids>, stamped: Stamped) -> ClaimedId {
        let ids = &kept.area;
        ids.held.add(&self);
        ids.history.wrote(&ids.keys.id(&self.service, self.id), self.revision, self.session.id);
        let hold = Hold::on(self.session.lease.clone());
        ids.background.spawn(guard(ids.clone(), self.session.id, hold.clone(), self.clone()));
        let id = NonZeroU32::new(self.id).expect("ids begin with 1");
        let stamps = Arc::new(HighWaterMark::new(ids, self.clone(), hold.clone(), stamped));
        let told = Delivered::default();
        let release = IdRelease::new(kept, self, told.clone());
        ClaimedId::new(id, Place::new(hold, release), stamps, stamped.until, told)
    }
}

/// Lets an id rest when it is lost. This task also finds out that someone deleted the id by hand. Others take
/// a deletion for the end of the lease, and get the id a TTL after they saw that at the earliest.
async fn guard(ids: Arc<Ids>, lease: i64, hold: Hold, id: Held) {
    let reason = loop {
        let pause = hold.lease().ttl().mul_f64(fastrand::f64().mul_add(0.05, 0.3));
        tokio::select! {
            reason = hold.lost() => break reason,
            () = id.look.notified() => {}
            () = timer::sleep(pause) => {}
        }
        match ids.look_for(&id, lease).await {
            Some(LossReason::Revoked) => hold.lease().lose(LossReason::Revoked),
            Some(reason) => {
                hold.end(reason);
            }
            None => {}
        }
    };
    match reason {
        // These do it themselves.
        LossReason::Released | LossReason::Closed => {}
        _ => ids.quarantine_later(id).await,
    }
}

impl Ids {
    /// Returns how many ids one transaction lets rest, or looks at; each is at most five operations.
    pub(super) fn at_once(&self) -> usize {
        (self.limits().operations * 12 / 64).max(1)
    }

    /// Ends the marks of ids that nobody holds any more, which rest from now on. Returns for each id whether
    /// its mark was still the known one. All of the ids rest equally long.
    pub(super) async fn rest(self: &Arc<Self>, ids: &[Held]) -> Result<Vec<bool>, Failure> {
        for held in ids {
            self.history.leaves(&self.keys.id(&held.service, held.id));
        }
        let Some(rest) = ids.iter().map(|held| held.rest).max() else { return Ok(Vec::new()) };
        let lease = if rest.is_zero() { None } else { Some(self.grant_rest(rest).await?) };
        let mut ended = Vec::with_capacity(ids.len());
        for some in ids.chunks(self.at_once()) {
            let operations: Vec<_> = some.iter().map(|held| self.resting(held, lease)).collect();
            let answer = self.txn("release an id", Txn::new().and_then(operations)).await?;
            for one in answer.results {
                let OpResult::Txn(nested) = one else { continue };
                ended.push(nested.succeeded);
                // Its writer may be gone by now.
                let note = pairs(nested.results.first()).first().filter(|_| nested.succeeded);
                if let Some(note) = note {
                    self.revoke_note(note.lease);
                }
            }
        }
        Ok(ended)
    }

    /// Gives up an id while the store is full, which takes no note of its rest. Its mark stays, as after a crash, and
    /// others wait as long as then. False if the id was not ours any more.
    pub(super) async fn vacate(&self, held: &Held) -> Result<bool, Failure> {
        let key = self.keys.id(&held.service, held.id);
        let same = [
            Compare::mod_revision(key.as_str(), CompareOp::Equal, held.revision),
            Compare::value(key.as_str(), CompareOp::Equal, held.record.to_bytes()),
        ];
        let delete = Txn::new().when(same).and_then([Op::delete(key)]);
        Ok(self.txn("release an id", delete).await?.succeeded)
    }

    /// Returns why an id is not there as it was written, if the store says so. Costs one request that writes
    /// nothing, two if so.
    async fn look_for(&self, held: &Held, lease: i64) -> Option<LossReason> {
        let key = self.keys.id(&held.service, held.id);
        let mut unchanged = vec![Compare::mod_revision(key, CompareOp::Equal, held.revision)];
        unchanged.extend(held.has_mark(&self.keys));
        if self.look("guard an id", Look::whether(unchanged)).await.ok()?.succeeded {
            return None;
        }
        let lives = self.lease_status("guard an id", lease, LeaseDetail::Times).await.ok()?;
        Some(if lives.left > 0 { LossReason::Deleted } else { LossReason::Revoked })
    }

    fn resting(&self, held: &Held, lease: Option<i64>) -> Op {
        let (key, mark) = (self.keys.id(&held.service, held.id), self.keys.id_mark(&held.service, held.id));
        // A process with the Go original, which knows no marks, may have taken the id meanwhile.
        let of_another = [
            Compare::create_revision(key.as_str(), CompareOp::Greater, 0),
            Compare::mod_revision(key.as_str(), CompareOp::NotEqual, held.revision),
        ];
        let rest = match lease {
            Some(lease) => {
                let options = PutOptions::new().with_lease(lease);
                Op::put(key, held.record.resting().to_bytes(), Some(options))
            }
            None => Op::delete(key),
        };
        let rest = Op::txn(Txn::new().when(of_another).or_else([rest]));
        // Another client may have taken this one for vanished.
        let note = self.keys.id_vanished(&held.service, held.id);
        let ends = [Op::get(note.as_str(), None), Op::delete(mark), Op::delete(note), rest];
        Op::txn(Txn::new().when(held.has_mark(&self.keys)).and_then(ends))
    }

    async fn grant_rest(&self, rest: Duration) -> Result<i64, Failure> {
        let seconds = i64::try_from(rest.as_secs()).unwrap_or(i64::MAX);
        // A lease whose grant was not answered is not renewed by anyone, so it ends by itself.
        let granted = self.grant_lease("release an id", seconds, |_asked| {}, |_unanswered| {}).await?;
        Ok(granted.id)
    }

    /// Lets an id rest, until it is done or the client is closed, which does it as well.
    pub(super) async fn quarantine_later(self: Arc<Self>, held: Held) {
        let what = format!("id {} of {}", held.id, held.service);
        let rest = || async {
            match self.rest(std::slice::from_ref(&held)).await {
                Err(Failure { error: Error::NoSpace { .. }, .. }) => self.vacate(&held).await.map(drop),
                outcome => outcome.map(drop),
            }
        };
        if self.clean_up(&what, self.closed(), rest).await {
            self.held.remove(&held);
        }
    }

    /// Lets every id of this client rest, before it is closed.
    pub(crate) async fn quarantine_all(self: &Arc<Self>) {
        let mut by_rest = BTreeMap::<_, Vec<_>>::new();
        for held in self.held.all() {
            by_rest.entry(held.rest).or_default().push(held);
        }
        let all = by_rest.into_values().map(|ids| async move { self.rest(&ids).await });
        for outcome in futures::future::join_all(all).await {
            if let Err(Failure { error, .. }) = outcome {
                tracing::debug!(%error, "ids will be released by those who want them");
            }
        }
        // The tasks that would do that have ended.
        let notes = std::mem::take(&mut *self.held.notes());
        let all = notes.into_iter().map(|lease| self.revoke_if_bare(lease));
        for outcome in futures::future::join_all(all).await {
            if let Err(Failure { error, .. }) = outcome {
                tracing::debug!(%error, "the lease of a note will expire");
            }
        }
    }

    /// Takes back what a claim of ours took, or may take, whose answer was known to be lost at `since`; `value` names
    /// that very claim.
    pub(super) fn roll_back_claim(
        self: &Arc<Self>,
        service: ServiceName,
        ids: Vec<u32>,
        value: Vec<u8>,
        session: Arc<Session>,
        since: Epoch,
    ) {
        let all = self.clone();
        self.background.spawn(async move {
            let keys =
                ids.iter().flat_map(|id| [all.keys.id(&service, *id), all.keys.id_mark(&service, *id)]);
            let deletes: Vec<_> = keys
                .map(|key| {
                    let ours = Compare::value(key.as_str(), CompareOp::Equal, value.clone());
                    Op::txn(Txn::new().when([ours]).and_then([Op::delete(key)]))
                })
                .collect();
            // May be repeated: what it compares is of that claim alone.
            let delete =
                || async { all.txn("claim an id", Txn::new().and_then(deletes.clone())).await.map(drop) };
            session.undo(&all, "an id", Some(since), delete).await;
            if session.lease.loss().is_some() {
                // A mark that was written before does not go with the lease.
                all.clean_up("the mark of an id", all.closed(), delete).await;
            }
        });
    }
}
