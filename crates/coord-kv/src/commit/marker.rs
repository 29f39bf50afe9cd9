//! Commit markers: config writes whose outcome is always known.
//!
//! A write whose answer is lost can not be repeated, since someone else may have written since. Nor can it be
//! found by its value, since someone else may have written the same. So each commit also writes a *marker*: a
//! key of this client, with no one else's writes in it. The condition of the commit is that the marker was
//! not written since. Afterwards the marker tells what happened, and writing it makes sure that a commit that
//! is still in flight never takes effect. Markers are reused, as many as there are commits at the same time,
//! and go with the client's lease.

use std::{
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coord_api::{Error, Result, Ttl};
use tokio::time::Instant;

use super::{Commits, WRITE};
use crate::{
    request::{Rpc, timer},
    session::Session,
    store::{Compare, CompareOp, Effect, Failure, GetOptions, Op, OpResult, PutOptions, Txn, TxnAnswer},
};

/// Time that markers outlive a client that crashed.
const MARKER_TTL: Duration = Duration::from_secs(60);

/// Value that a commit writes into its marker.
const COMMITTED: &str = "committed";
/// Value that clears a marker of a commit that may still be in flight.
const CLEARED: &str = "cleared";

/// Markers that no commit uses now.
#[derive(Debug, Default)]
pub(crate) struct CommitMarkers(Mutex<Vec<CommitMarker>>);

impl CommitMarkers {
    fn lock(&self) -> MutexGuard<'_, Vec<CommitMarker>> {
        self.0.lock().expect("nothing panics while this is locked")
    }
}

#[derive(Debug)]
struct CommitMarker {
    key: String,
    session: Arc<Session>,
    /// Revision at which the marker was last written; 0 for never.
    written: i64,
}

/// Marker in use by one commit. If the commit is dropped half-way, the marker is cleared in the background.
#[derive(Debug)]
pub(crate) struct MarkerGuard {
    commits: Arc<Commits>,
    marker: Option<CommitMarker>,
}

/// Outcome of a commit.
#[derive(Debug)]
pub(crate) enum Settled {
    /// It took effect, with this answer.
    Written(TxnAnswer),
    /// It took effect at this revision; the answer was lost, or was that to several.
    WrittenUnseen(i64),
    /// A condition was not met.
    Refused(TxnAnswer),
    /// The marker's lease is gone. Nothing was written, and another marker will do.
    MarkerGone,
    /// It did not take effect and never will, because of this.
    NeverWritten(Error),
}

impl Commits {
    /// Returns a marker for one commit.
    pub(crate) async fn marker(self: &Arc<Self>) -> Result<MarkerGuard> {
        let free = {
            let mut markers = self.markers.lock();
            markers.retain(|marker| marker.session.lease.loss().is_none());
            markers.pop()
        };
        let marker = if let Some(marker) = free {
            self.rpc.history.leaves(&marker.key);
            marker
        } else {
            let ttl = Ttl::parse(MARKER_TTL).expect("is within the limits");
            let session = self.sessions.session(ttl).await?;
            let key = self.rpc.keys.commit_marker(session.id, self.rpc.next_attempt());
            CommitMarker { key, session, written: 0 }
        };
        Ok(MarkerGuard { commits: self.clone(), marker: Some(marker) })
    }

    /// Uses other markers from now on.
    pub(crate) fn forget_markers(&self) {
        self.markers.lock().clear();
    }
}

impl MarkerGuard {
    fn marker(&self) -> &CommitMarker {
        self.marker.as_ref().expect("is taken only by `settle` and `drop`, which end it")
    }

    /// Returns the condition that nothing was written into the marker since this client knows it.
    pub(crate) fn unwritten(&self) -> Compare {
        self.marker().unwritten()
    }

    /// Returns the write that shows that the commit took effect.
    pub(crate) fn mark(&self) -> Op {
        self.marker().write(COMMITTED)
    }

    /// Finds out how the commit ended, whatever its answer was.
    pub(crate) async fn settle(mut self, answer: Result<TxnAnswer, Failure>) -> Result<Settled> {
        match answer {
            Ok(answer) if answer.succeeded => {
                self.put_back(answer.header.revision);
                Ok(Settled::Written(answer))
            }
            Ok(answer) => {
                let written = self.marker().written;
                self.put_back(written);
                Ok(Settled::Refused(answer))
            }
            Err(Failure { error: Error::Lost { reason }, .. }) => {
                self.marker().session.lease.lose(reason);
                self.marker = None;
                Ok(Settled::MarkerGone)
            }
            Err(Failure { error, effect: Effect::None }) => {
                let written = self.marker().written;
                self.put_back(written);
                Err(error)
            }
            Err(Failure { error, effect: Effect::Unknown }) => {
                tracing::debug!(%error, "the answer to a commit was lost, reading its marker");
                let cleared = clear(&self.commits.rpc, self.marker()).await;
                match cleared {
                    Ok(Cleared { was_committed: Some(at), now }) => {
                        self.put_back(now);
                        Ok(Settled::WrittenUnseen(at))
                    }
                    Ok(Cleared { was_committed: None, now }) => {
                        self.put_back(now);
                        // The outcome is known now, so this is no time-out any more.
                        let source = Some(error.into());
                        Ok(Settled::NeverWritten(self.commits.rpc.store.unavailable(source)))
                    }
                    Err(_) => {
                        Err(Error::Timeout { operation: WRITE, after: self.commits.rpc.request_timeout * 2 })
                    }
                }
            }
        }
    }

    fn put_back(&mut self, written: i64) {
        if let Some(marker) = self.marker.take() {
            if written > 0 {
                self.commits.rpc.history.wrote(&marker.key, written, marker.session.id);
            }
            self.commits.markers.lock().push(CommitMarker { written, ..marker });
        }
    }
}

impl Drop for MarkerGuard {
    fn drop(&mut self) {
        let Some(marker) = self.marker.take() else { return };
        let commits = self.commits.clone();
        self.commits.rpc.background.spawn(async move {
            while marker.session.lease.loss().is_none() {
                match clear(&commits.rpc, &marker).await {
                    Ok(Cleared { now, .. }) => {
                        commits.markers.lock().push(CommitMarker { written: now, ..marker });
                        return;
                    }
                    Err(Unsettled::MarkerGone) => return,
                    Err(Unsettled::NoAnswer) => {
                        timer::sleep(Duration::from_millis(fastrand::u64(200..600))).await;
                    }
                }
            }
        });
    }
}

impl CommitMarker {
    fn unwritten(&self) -> Compare {
        Compare::mod_revision(self.key.as_str(), CompareOp::Equal, self.written)
    }

    fn write(&self, what: &str) -> Op {
        Op::put(self.key.as_str(), what, Some(PutOptions::new().with_lease(self.session.id)))
    }
}

struct Cleared {
    /// Revision of the commit, if it took effect.
    was_committed: Option<i64>,
    /// Revision at which the marker was written last.
    now: i64,
}

/// Reason why it is not known whether a commit took effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unsettled {
    /// The store did not answer within the request timeout.
    NoAnswer,
    /// The marker was deleted, with its lease or by hand: no commit that is in flight can take effect any more.
    MarkerGone,
}

/// Makes sure that a commit that may be in flight never takes effect, or learns that it did.
async fn clear(rpc: &Rpc, marker: &CommitMarker) -> Result<Cleared, Unsettled> {
    let started = Instant::now();
    loop {
        let txn = Txn::new()
            .when([marker.unwritten()])
            .and_then([marker.write(CLEARED)])
            .or_else([Op::get(marker.key.as_str(), None)]);
        match rpc.txn("settle a commit", txn).await {
            Ok(answer) if answer.succeeded => {
                return Ok(Cleared { was_committed: None, now: answer.header.revision });
            }
            Ok(answer) => {
                let Some(OpResult::Get(found)) = answer.results.into_iter().next() else {
                    return Err(Unsettled::NoAnswer);
                };
                let now = found.kvs.first().ok_or(Unsettled::MarkerGone)?;
                let was_committed = (now.value == COMMITTED.as_bytes()).then_some(now.mod_revision);
                return Ok(Cleared { was_committed, now: now.mod_revision });
            }
            Err(Failure { error: Error::Lost { reason }, .. }) => {
                marker.session.lease.lose(reason);
                return Err(Unsettled::MarkerGone);
            }
            Err(_) if started.elapsed() > rpc.request_timeout => return Err(Unsettled::NoAnswer),
            Err(_) => timer::sleep(Duration::from_millis(fastrand::u64(50..200))).await,
        }
    }
}

impl Rpc {
    /// Returns how many of `keys` existed just before `at`; asked only when the answer to a commit was lost.
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
