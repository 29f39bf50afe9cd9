//! A claimed id as its user has it: how it is given back, and the time that is reserved beside it.

use std::{
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    Error, Hold, LossReason, Result,
    backend::{Delivered, Release, Stamps},
};

use super::{
    claim::{Stamped, stamped},
    held::Held,
};
use crate::{
    ids::Ids,
    request::{Kept, pairs},
    store::{Compare, CompareOp, Effect, Failure, KeyValue, Op, Txn},
};

/// Gives back one id.
pub(super) struct IdRelease {
    ids: Kept<Ids>,
    held: Held,
    told: Delivered,
}

impl IdRelease {
    pub(super) fn new(ids: &Kept<Ids>, held: Held, told: Delivered) -> Self {
        Self { ids: ids.clone(), held, told }
    }
}

#[async_trait]
impl Release for IdRelease {
    async fn release(&self) -> Result<()> {
        let all = &self.ids.area;
        all.check_open().map_err(|_| Error::Lost { reason: LossReason::Closed })?;
        let ids = std::slice::from_ref(&self.held);
        let ended = match all.rest(ids).await {
            Ok(ended) => ended[0],
            // The answer was lost. Which of the two requests lets it rest is the same.
            Err(Failure { effect: Effect::Unknown, .. }) => all.rest(ids).await.map(|_| true)?,
            Err(Failure { error: Error::NoSpace { .. }, .. }) => all.vacate(&self.held).await?,
            Err(failure) => return Err(failure.into()),
        };
        all.held.remove(&self.held);
        if ended { Ok(()) } else { Err(Error::Lost { reason: LossReason::Deleted }) }
    }

    fn release_in_background(&self) {
        let all = &self.ids.area;
        if all.check_open().is_ok() {
            let rest = if self.told.is_delivered() { self.held.rest } else { Duration::ZERO };
            all.background.spawn(all.clone().quarantine_later(Held { rest, ..self.held.clone() }));
        }
    }
}

/// The high-water mark of one held id: up to when data may have been stamped with it, kept beside its key.
pub(super) struct HighWaterMark {
    /// Weak, since nobody holds an id by stamping with it.
    ids: Weak<Ids>,
    held: Held,
    hold: Hold,
    /// The revision of the last stamp that is known of.
    written: AtomicI64,
    /// The latest time that this hold has stored.
    latest: AtomicU64,
    key: String,
}

impl fmt::Debug for HighWaterMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HighWaterMark({} {})", self.held.service, self.held.id)
    }
}

impl HighWaterMark {
    /// Takes the high-water mark that was stored at the claim.
    pub(super) fn new(ids: &Arc<Ids>, id: Held, hold: Hold, stamped: Stamped) -> Self {
        Self {
            ids: Arc::downgrade(ids),
            key: ids.keys.id_stamped(&id.service, id.id),
            held: id,
            hold,
            written: AtomicI64::new(stamped.revision),
            latest: AtomicU64::new(0),
        }
    }

    /// Writes a time, unless `is_enough` says of what this hold has written meanwhile that it will do.
    async fn write(&self, until: u64, is_enough: impl Fn(u64) -> bool) -> Result<()> {
        let ids = self.ids.upgrade().ok_or(Error::Closed)?;
        ids.check_open()?;
        let Held { service, id, revision, record, .. } = &self.held;
        let (mark, stamp) = (ids.keys.id_mark(service, *id), &self.key);
        loop {
            let written = self.written.load(Ordering::SeqCst);
            if is_enough(self.latest.load(Ordering::SeqCst)) {
                return Ok(());
            }
            // A stamp that was given up on its way must not arrive after this one, and take time back.
            let mut unchanged = vec![Compare::mod_revision(stamp.as_str(), CompareOp::Equal, written)];
            unchanged.extend(self.held.has_mark(&ids.keys));
            let txn = Txn::new()
                .when(unchanged)
                .and_then([Op::put(stamp.as_str(), until.to_string(), None)])
                .or_else([Op::get(mark.as_str(), None), Op::get(stamp.as_str(), None)]);
            let answer = ids.txn("stamp with an id", txn).await?;
            if answer.succeeded {
                // In this order: who sees the new revision sees the new time.
                self.latest.fetch_max(until, Ordering::SeqCst);
                self.written.fetch_max(answer.header.revision, Ordering::SeqCst);
                return Ok(());
            }
            let found = answer.results;
            let is_mark = |kv: &KeyValue| kv.mod_revision == *revision && kv.value == record.to_bytes();
            if !pairs(found.first()).first().is_some_and(is_mark) {
                self.hold.end(LossReason::Deleted);
                return self.hold.check();
            }
            let found = stamped(found.get(1));
            // A high-water mark written since the claim is of this hold: no other hold has its claim marker.
            if found.revision > *revision {
                self.latest.fetch_max(found.until.unwrap_or_default(), Ordering::SeqCst);
            }
            self.written.store(found.revision, Ordering::SeqCst);
        }
    }
}

#[async_trait]
impl Stamps for HighWaterMark {
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
