//! An id from its claim to the end of its rest.
//!
//! The key of an id lives on the lease of its holder. Beside it is a mark without a lease: should the key vanish,
//! nobody can tell whether its lease was over or was revoked by an operator, and in the latter case the holder
//! believes in it until its next renewal. So nobody takes a marked id. Its holder ends the mark when it knows that it
//! lost, and lets the id rest. If the holder is gone, those who want the id end the mark, as `vanished.rs` says.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    Error, Hold, LossReason, Result, ServiceName,
    backend::{ClaimedId, Delivered, Place, Release, Stamps},
};
use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

use super::{
    claim::{Stamped, stamped},
    record::Record,
};
use crate::{
    core::{Core, Shared},
    error::{Effect, Failure},
    gate::Mark,
    keys::Keys,
    read::{self, Look, pairs},
    request::Repeat,
    session::Session,
};

/// How many ids one transaction lets rest, or looks at; each is at most four operations.
pub(super) const AT_ONCE: usize = 30;

/// The ids that a client holds, or has not let rest yet.
#[derive(Debug, Default)]
pub(crate) struct HeldIds {
    own: Mutex<HashMap<Marked, Held>>,
    /// The marks of others that this client is about to end.
    ending: Mutex<HashSet<Marked>>,
}

/// One mark: a later holder of the same id has another.
type Marked = (ServiceName, u32, i64);

impl HeldIds {
    fn add(&self, held: &Held) {
        self.own.lock().expect("nothing panics while this is locked").insert(held.marked(), held.clone());
    }

    fn remove(&self, held: &Held) {
        self.own.lock().expect("nothing panics while this is locked").remove(&held.marked());
    }

    fn all(&self) -> Vec<Held> {
        self.own.lock().expect("nothing panics while this is locked").values().cloned().collect()
    }

    /// Those of some marks that are not about to be ended already.
    pub(super) fn begin_ending(&self, service: &ServiceName, marks: Vec<(u32, i64)>) -> Vec<(u32, i64)> {
        let mut ending = self.ending.lock().expect("nothing panics while this is locked");
        let is_new = |(id, revision): &(u32, i64)| ending.insert((service.clone(), *id, *revision));
        marks.into_iter().filter(is_new).collect()
    }

    pub(super) fn end_ending(&self, service: &ServiceName, marks: &[(u32, i64)]) {
        let mut ending = self.ending.lock().expect("nothing panics while this is locked");
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
}

impl Held {
    /// The conditions that a mark is the one of this hold. A store with another history may give its revision to the mark of
    /// another holder, whose value differs.
    fn has_mark(&self, keys: &Keys) -> [Compare; 2] {
        let mark = keys.id_mark(&self.service, self.id);
        [
            Compare::mod_revision(mark.as_str(), CompareOp::Equal, self.revision),
            Compare::value(mark, CompareOp::Equal, self.record.to_bytes()),
        ]
    }

    fn marked(&self) -> Marked {
        (self.service.clone(), self.id, self.revision)
    }

    /// Makes a claim of it that rests when it is released or lost.
    pub(super) fn into_claimed(self, shared: &Arc<Shared>, stamped: Stamped) -> ClaimedId {
        let core = &shared.core;
        core.held_ids.add(&self);
        core.history.wrote(&core.keys.id(&self.service, self.id), self.revision, self.session.id);
        let hold = Hold::on(self.session.lease.clone());
        core.runtime.spawn(guard(core.clone(), self.session.id, hold.clone(), self.clone()));
        let id = NonZeroU32::new(self.id).expect("ids begin with 1");
        let stamps = Arc::new(StampsOf {
            core: Arc::downgrade(core),
            held: self.clone(),
            hold: hold.clone(),
            written: AtomicI64::new(stamped.revision),
            latest: AtomicU64::new(0),
            key: core.keys.id_stamped(&self.service, self.id),
        });
        let told = Delivered::default();
        let release = IdRelease { shared: shared.clone(), held: self, told: told.clone() };
        ClaimedId::new(id, Place::new(hold, release), stamps, stamped.until, told)
    }
}

/// Lets an id rest when it is lost. That someone deletes it by hand is found out here: others take that for the end
/// of its lease, and get it a TTL after they saw that at the earliest.
async fn guard(core: Arc<Core>, lease: i64, hold: Hold, id: Held) {
    let reason = loop {
        let pause = hold.lease().ttl().mul_f64(fastrand::f64().mul_add(0.05, 0.3));
        tokio::select! {
            reason = hold.lost() => break reason,
            () = tokio::time::sleep(pause) => {}
        }
        match core.look_for(&id, lease).await {
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
        _ => core.rest_soon(id).await,
    }
}

impl Core {
    /// Ends the marks of ids that nobody holds any more, which rest from now on: for each, whether its mark was still
    /// the one that we know. All of them rest equally long.
    pub(super) async fn rest(&self, ids: &[Held]) -> Result<Vec<bool>, Failure> {
        for held in ids {
            self.history.leaves(&self.keys.id(&held.service, held.id));
        }
        let Some(rest) = ids.iter().map(|held| held.rest).max() else { return Ok(Vec::new()) };
        let lease = if rest.is_zero() { None } else { Some(self.grant_rest(rest).await?) };
        let mut ended = Vec::with_capacity(ids.len());
        for some in ids.chunks(AT_ONCE) {
            let operations: Vec<_> = some.iter().map(|held| self.resting(held, lease)).collect();
            let answer = self.txn("release an id", Txn::new().and_then(operations)).await?;
            ended.extend(
                answer
                    .op_responses()
                    .into_iter()
                    .map(|one| matches!(one, TxnOpResponse::Txn(nested) if nested.succeeded())),
            );
        }
        Ok(ended)
    }

    /// Gives up an id while the store is full, which takes no note of its rest. Its mark stays, as after a crash, and
    /// others wait as long as then. False if the id was not ours any more.
    async fn vacate(&self, held: &Held) -> Result<bool, Failure> {
        let key = self.keys.id(&held.service, held.id);
        let same = [
            Compare::mod_revision(key.as_str(), CompareOp::Equal, held.revision),
            Compare::value(key.as_str(), CompareOp::Equal, held.record.to_bytes()),
        ];
        let delete = Txn::new().when(same).and_then([TxnOp::delete(key, None)]);
        Ok(self.txn("release an id", delete).await?.succeeded())
    }

    /// Why an id is not there as it was written, if etcd says so. One request that writes nothing, two if so.
    async fn look_for(&self, held: &Held, lease: i64) -> Option<LossReason> {
        let key = self.keys.id(&held.service, held.id);
        let mut unchanged = vec![Compare::mod_revision(key, CompareOp::Equal, held.revision)];
        unchanged.extend(held.has_mark(&self.keys));
        if self.look("guard an id", Look::whether(unchanged)).await.ok()?.succeeded() {
            return None;
        }
        let ask = |_| async { self.lease().time_to_live(lease, None).await };
        let lives = self.call("guard an id", Repeat::Freely, ask).await.ok()?;
        Some(if lives.ttl() > 0 { LossReason::Deleted } else { LossReason::Revoked })
    }

    fn resting(&self, held: &Held, lease: Option<i64>) -> TxnOp {
        let (key, mark) = (self.keys.id(&held.service, held.id), self.keys.id_mark(&held.service, held.id));
        // A process with the Go original, which knows no marks, may have taken the id meanwhile.
        let of_another = [
            Compare::create_revision(key.as_str(), CompareOp::Greater, 0),
            Compare::mod_revision(key.as_str(), CompareOp::NotEqual, held.revision),
        ];
        let rest = match lease {
            Some(lease) => {
                let options = PutOptions::new().with_lease(lease);
                TxnOp::put(key, held.record.resting().to_bytes(), Some(options))
            }
            None => TxnOp::delete(key, None),
        };
        let rest = TxnOp::txn(Txn::new().when(of_another).or_else([rest]));
        // Another client may have taken this one for vanished.
        let note = TxnOp::delete(self.keys.id_vanished(&held.service, held.id), None);
        let ends = [TxnOp::delete(mark, None), note, rest];
        TxnOp::txn(Txn::new().when(held.has_mark(&self.keys)).and_then(ends))
    }

    async fn grant_rest(&self, rest: Duration) -> Result<i64, Failure> {
        let seconds = i64::try_from(rest.as_secs()).unwrap_or(i64::MAX);
        // One whose grant was not answered is not renewed by anyone, so it ends by itself.
        let granted = self.grant_lease("release an id", seconds, |_unanswered| {}).await?;
        Ok(granted.id)
    }

    /// Lets an id rest, until it is done or the client is closed, which does it as well.
    async fn rest_soon(self: Arc<Self>, held: Held) {
        let what = format!("id {} of {}", held.id, held.service);
        let rest = || async {
            match self.rest(std::slice::from_ref(&held)).await {
                Err(Failure { error: Error::NoSpace { .. }, .. }) => self.vacate(&held).await.map(drop),
                outcome => outcome.map(drop),
            }
        };
        if self.clean_up(&what, self.closed(), rest).await {
            self.held_ids.remove(&held);
        }
    }

    /// Lets every id of this client rest, before it is closed.
    pub(crate) async fn rest_all(&self) {
        let mut by_rest = HashMap::<_, Vec<_>>::new();
        for held in self.held_ids.all() {
            by_rest.entry(held.rest).or_default().push(held);
        }
        let all = by_rest.into_values().map(|ids| async move { self.rest(&ids).await });
        for outcome in futures::future::join_all(all).await {
            if let Err(Failure { error, .. }) = outcome {
                tracing::debug!(%error, "ids will be released by those who want them");
            }
        }
    }

    /// Takes back what a claim of ours took, or may take, whose answer was known to be lost at `since`; `value` names
    /// that very claim.
    pub(super) fn unclaim(
        self: &Arc<Self>,
        service: ServiceName,
        ids: Vec<u32>,
        value: Vec<u8>,
        session: Arc<Session>,
        since: Mark,
    ) {
        let core = self.clone();
        self.runtime.spawn(async move {
            let keys =
                ids.iter().flat_map(|id| [core.keys.id(&service, *id), core.keys.id_mark(&service, *id)]);
            let deletes: Vec<_> = keys
                .map(|key| {
                    let ours = Compare::value(key.as_str(), CompareOp::Equal, value.clone());
                    TxnOp::txn(Txn::new().when([ours]).and_then([TxnOp::delete(key, None)]))
                })
                .collect();
            // May be repeated: what it compares is of that claim alone.
            let delete =
                || async { core.txn("claim an id", Txn::new().and_then(deletes.clone())).await.map(drop) };
            core.undo("an id", &session, Some(since), delete).await;
            if session.lease.loss().is_some() {
                // A mark that was written before does not go with the lease.
                core.clean_up("the mark of an id", core.closed(), delete).await;
            }
        });
    }
}

/// Gives back one id.
struct IdRelease {
    shared: Arc<Shared>,
    held: Held,
    told: Delivered,
}

#[async_trait]
impl Release for IdRelease {
    async fn release(&self) -> Result<()> {
        let core = &self.shared.core;
        core.check_open().map_err(|_| Error::Lost { reason: LossReason::Closed })?;
        let ids = std::slice::from_ref(&self.held);
        let ended = match core.rest(ids).await {
            Ok(ended) => ended[0],
            // The answer was lost. Which of the two requests lets it rest is the same.
            Err(Failure { effect: Effect::Unknown, .. }) => core.rest(ids).await.map(|_| true)?,
            Err(Failure { error: Error::NoSpace { .. }, .. }) => core.vacate(&self.held).await?,
            Err(failure) => return Err(failure.into()),
        };
        core.held_ids.remove(&self.held);
        if ended { Ok(()) } else { Err(Error::Lost { reason: LossReason::Deleted }) }
    }

    fn release_in_background(&self) {
        let core = &self.shared.core;
        if core.check_open().is_ok() {
            let rest = if self.told.is_delivered() { self.held.rest } else { Duration::ZERO };
            core.runtime.spawn(core.clone().rest_soon(Held { rest, ..self.held.clone() }));
        }
    }
}

/// What is kept beside one held id.
struct StampsOf {
    /// Weak, since nobody holds an id by stamping with it.
    core: std::sync::Weak<Core>,
    held: Held,
    hold: Hold,
    /// The revision of the last stamp that is known of.
    written: AtomicI64,
    /// The latest time that this hold has stored.
    latest: AtomicU64,
    key: String,
}

impl fmt::Debug for StampsOf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StampsOf({} {})", self.held.service, self.held.id)
    }
}

impl StampsOf {
    /// Writes a time, unless `is_enough` says of what this hold has written meanwhile that it will do.
    async fn write(&self, until: u64, is_enough: impl Fn(u64) -> bool) -> Result<()> {
        let core = self.core.upgrade().ok_or(Error::Closed)?;
        core.check_open()?;
        let Held { service, id, revision, record, .. } = &self.held;
        let (mark, stamp) = (core.keys.id_mark(service, *id), &self.key);
        loop {
            let written = self.written.load(Ordering::SeqCst);
            if is_enough(self.latest.load(Ordering::SeqCst)) {
                return Ok(());
            }
            // A stamp that was given up on its way must not arrive after this one, and take time back.
            let mut unchanged = vec![Compare::mod_revision(stamp.as_str(), CompareOp::Equal, written)];
            unchanged.extend(self.held.has_mark(&core.keys));
            let txn = Txn::new()
                .when(unchanged)
                .and_then([TxnOp::put(stamp.as_str(), until.to_string(), None)])
                .or_else([TxnOp::get(mark.as_str(), None), TxnOp::get(stamp.as_str(), None)]);
            let answer = core.txn("stamp with an id", txn).await?;
            if answer.succeeded() {
                // In this order: who sees the new revision sees the new time.
                self.latest.fetch_max(until, Ordering::SeqCst);
                self.written.fetch_max(read::revision(answer.header()), Ordering::SeqCst);
                return Ok(());
            }
            let found = answer.op_responses();
            let is_mark = |kv: &KeyValue| kv.mod_revision() == *revision && kv.value() == record.to_bytes();
            if !pairs(found.first()).first().is_some_and(is_mark) {
                self.hold.end(LossReason::Deleted);
                return self.hold.check();
            }
            let found = stamped(found.get(1));
            // What was written since the claim is of this hold: no other one has its mark.
            if found.revision > *revision {
                self.latest.fetch_max(found.until.unwrap_or_default(), Ordering::SeqCst);
            }
            self.written.store(found.revision, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Stamps for StampsOf {
    async fn stamp(&self, until: u64) -> Result<()> {
        self.write(until, |latest| latest >= until).await
    }

    async fn settle(&self, until: u64) -> Result<()> {
        self.write(until, |_| false).await
    }

    fn key(&self) -> String {
        self.key.clone()
    }
}
