//! Config writes whose outcome is always known.
//!
//! A write whose answer is lost can neither be repeated (someone else may have written since) nor be found by
//! its value (someone else may have written the same). So each commit also writes a *slot*: a key of this
//! client, with no one else's writes in it, on the condition that the slot was not written since. Afterwards
//! the slot tells what happened, and writing it makes sure that a commit that is still under way never takes
//! effect. Slots are reused, as many as there are commits at the same time, and go with the client's lease.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coord_api::{Error, Result, Ttl};
use tokio::time::Instant;

use super::WRITE;
use crate::{
    core::Core,
    session::Session,
    store::{Compare, CompareOp, Effect, Failure, GetOptions, Op, OpResult, PutOptions, Txn, TxnAnswer},
};

/// How long slots outlive a client that crashed.
const SLOT_TTL: Duration = Duration::from_secs(60);

/// What a commit writes into its slot, and what clears a slot of a commit that may still be under way.
const COMMITTED: &str = "committed";
const CLEARED: &str = "cleared";

/// The slots that no commit uses now.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<Vec<Slot>>);

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Vec<Slot>> {
        self.0.lock().expect("nothing panics while this is locked")
    }
}

#[derive(Debug)]
struct Slot {
    key: String,
    session: Arc<Session>,
    /// The revision at which the slot was last written; 0 for never.
    written: i64,
}

/// A slot in use by one commit. If the commit is dropped half-way, the slot is cleared in the background.
#[derive(Debug)]
pub(crate) struct InUse {
    core: Arc<Core>,
    slot: Option<Slot>,
}

/// How a commit ended.
#[derive(Debug)]
pub(crate) enum Settled {
    /// It took effect, with this answer.
    Written(TxnAnswer),
    /// It took effect at this revision; the answer was lost, or was that to several.
    WrittenUnseen(i64),
    /// A condition was not met.
    Refused(TxnAnswer),
    /// The slot's lease is gone. Nothing was written, another slot will do.
    SlotGone,
    /// It did not take effect and never will, because of this.
    NeverWritten(Error),
}

impl Core {
    /// A slot for one commit.
    pub(crate) async fn slot(self: &Arc<Self>) -> Result<InUse> {
        let free = {
            let mut slots = self.slots.lock();
            slots.retain(|slot| slot.session.lease.loss().is_none());
            slots.pop()
        };
        let slot = if let Some(slot) = free {
            self.history.leaves(&slot.key);
            slot
        } else {
            let ttl = Ttl::parse(SLOT_TTL).expect("is within the limits");
            let session = self.session(ttl).await?;
            let key = self.keys.commit_slot(session.id, self.next_attempt());
            Slot { key, session, written: 0 }
        };
        Ok(InUse { core: self.clone(), slot: Some(slot) })
    }

    /// Uses other slots from now on.
    pub(crate) fn forget_slots(&self) {
        self.slots.lock().clear();
    }
}

impl InUse {
    fn slot(&self) -> &Slot {
        self.slot.as_ref().expect("is taken only by `settle` and `drop`, which end it")
    }

    /// The condition that nothing was written into the slot since we know it.
    pub(crate) fn unwritten(&self) -> Compare {
        self.slot().unwritten()
    }

    /// The write that shows that the commit took effect.
    pub(crate) fn mark(&self) -> Op {
        self.slot().write(COMMITTED)
    }

    /// Finds out how the commit ended, whatever its answer was.
    pub(crate) async fn settle(mut self, answer: Result<TxnAnswer, Failure>) -> Result<Settled> {
        match answer {
            Ok(answer) if answer.succeeded => {
                self.put_back(answer.header.revision);
                Ok(Settled::Written(answer))
            }
            Ok(answer) => {
                let written = self.slot().written;
                self.put_back(written);
                Ok(Settled::Refused(answer))
            }
            Err(Failure { error: Error::Lost { reason }, .. }) => {
                self.slot().session.lease.lose(reason);
                self.slot = None;
                Ok(Settled::SlotGone)
            }
            Err(Failure { error, effect: Effect::None }) => {
                let written = self.slot().written;
                self.put_back(written);
                Err(error)
            }
            Err(Failure { error, effect: Effect::Unknown }) => {
                tracing::debug!(%error, "the answer to a commit was lost, reading its slot");
                let cleared = clear(&self.core, self.slot()).await;
                match cleared {
                    Ok(Cleared { was_committed: Some(at), now }) => {
                        self.put_back(now);
                        Ok(Settled::WrittenUnseen(at))
                    }
                    Ok(Cleared { was_committed: None, now }) => {
                        self.put_back(now);
                        // So this is not the time-out that it was.
                        let source = Some(error.into());
                        Ok(Settled::NeverWritten(self.core.store.unavailable(source)))
                    }
                    Err(_) => Err(Error::Timeout { operation: WRITE, after: self.core.request_timeout * 2 }),
                }
            }
        }
    }

    fn put_back(&mut self, written: i64) {
        if let Some(slot) = self.slot.take() {
            if written > 0 {
                self.core.history.wrote(&slot.key, written, slot.session.id);
            }
            self.core.slots.lock().push(Slot { written, ..slot });
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let Some(slot) = self.slot.take() else { return };
        let core = self.core.clone();
        self.core.runtime.spawn(async move {
            while slot.session.lease.loss().is_none() {
                match clear(&core, &slot).await {
                    Ok(Cleared { now, .. }) => {
                        core.slots.lock().push(Slot { written: now, ..slot });
                        return;
                    }
                    Err(Unsettled::SlotGone) => return,
                    Err(Unsettled::NoAnswer) => {
                        tokio::time::sleep(Duration::from_millis(fastrand::u64(200..600))).await;
                    }
                }
            }
        });
    }
}

impl Slot {
    fn unwritten(&self) -> Compare {
        Compare::mod_revision(self.key.as_str(), CompareOp::Equal, self.written)
    }

    fn write(&self, what: &str) -> Op {
        Op::put(self.key.as_str(), what, Some(PutOptions::new().with_lease(self.session.id)))
    }
}

struct Cleared {
    /// The revision of the commit, if it took effect.
    was_committed: Option<i64>,
    /// The revision at which the slot was written last.
    now: i64,
}

/// Why it is not known whether a commit took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsettled {
    /// etcd did not answer within the request timeout.
    NoAnswer,
    /// The slot was deleted, with its lease or by hand: no commit that is under way can take effect any more.
    SlotGone,
}

/// Makes sure that a commit that may be under way never takes effect, or learns that it did.
async fn clear(core: &Core, slot: &Slot) -> Result<Cleared, Unsettled> {
    let started = Instant::now();
    loop {
        let txn = Txn::new()
            .when([slot.unwritten()])
            .and_then([slot.write(CLEARED)])
            .or_else([Op::get(slot.key.as_str(), None)]);
        match core.txn("settle a commit", txn).await {
            Ok(answer) if answer.succeeded => {
                return Ok(Cleared { was_committed: None, now: answer.header.revision });
            }
            Ok(answer) => {
                let Some(OpResult::Get(found)) = answer.results.into_iter().next() else {
                    return Err(Unsettled::NoAnswer);
                };
                let now = found.kvs.first().ok_or(Unsettled::SlotGone)?;
                let was_committed = (now.value == COMMITTED.as_bytes()).then(|| now.mod_revision);
                return Ok(Cleared { was_committed, now: now.mod_revision });
            }
            Err(Failure { error: Error::Lost { reason }, .. }) => {
                slot.session.lease.lose(reason);
                return Err(Unsettled::SlotGone);
            }
            Err(_) if started.elapsed() > core.request_timeout => return Err(Unsettled::NoAnswer),
            Err(_) => tokio::time::sleep(Duration::from_millis(fastrand::u64(50..200))).await,
        }
    }
}

impl Core {
    /// How many of `keys` existed just before `at`; asked only when the answer to a commit was lost.
    pub(crate) async fn existed_before(&self, keys: &[String], at: i64) -> Result<usize> {
        let mut existed = 0;
        for key in keys {
            let before = GetOptions::new().with_revision(at - 1).with_count_only();
            let found = self.get(WRITE, key, Some(before)).await?;
            existed += usize::from(found.count > 0);
        }
        Ok(existed)
    }
}
