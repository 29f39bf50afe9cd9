//! How leases end: revoked when they are of no more use, all of them when the client is closed.
//!
//! A lease that was granted is revoked until the store says that it is gone. A lease whose grant was not
//! answered carries nothing and is renewed by nobody. Such a lease is revoked for courtesy, and forgotten one
//! time to live later, even if a frozen etcd member should grant it then.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coord_api::{Error, LossReason};
use futures::future;
use tokio::time::Instant;

use super::Sessions;
use crate::{
    request::Repeat,
    store::{Failure, LeaseId},
};

/// Number of leases that are revoked at once.
const AT_ONCE: usize = 16;

/// Leases of one client that are to be revoked, by one task.
#[derive(Debug, Default)]
pub(super) struct Doomed {
    leases: BTreeMap<i64, Doom>,
    has_task: bool,
}

#[derive(Clone, Copy, Debug)]
struct Doom {
    /// Reason of the loss, for the tasks that held something on it.
    lost: Option<LossReason>,
    /// Moment from which on it is forgotten.
    until: Option<Instant>,
}

impl Doomed {
    /// Returns leases that are revoked by the next close, and by no task.
    pub(super) fn of(leases: impl IntoIterator<Item = LeaseId>) -> Self {
        let doom = Doom { lost: None, until: None };
        Self { leases: leases.into_iter().map(|id| (id, doom)).collect(), has_task: false }
    }

    /// Returns why one of the leases was lost, if one was.
    pub(super) fn lost(&self) -> Option<LossReason> {
        self.leases.values().find_map(|doom| doom.lost)
    }

    /// Adds a lease. Returns whether the task has to be started.
    fn add(&mut self, id: i64, doom: Doom) -> bool {
        self.leases.insert(id, doom);
        !std::mem::replace(&mut self.has_task, true)
    }

    /// Returns the leases that are still to be revoked. If there are none, the task ends.
    fn left(&mut self, now: Instant) -> Vec<i64> {
        self.leases.retain(|_, doom| doom.until.is_none_or(|until| now < until));
        self.has_task = !self.leases.is_empty();
        self.leases.keys().copied().collect()
    }

    fn all(&self) -> Vec<i64> {
        self.leases.keys().copied().collect()
    }

    fn revoked(&mut self, id: i64) {
        self.leases.remove(&id);
    }
}

impl Sessions {
    /// Revokes one lease. To a store that does not know it, it is revoked already.
    async fn revoke(&self, id: i64) -> Result<(), Failure> {
        match self.rpc.call("revoke a lease", Repeat::Freely, |store, call| store.revoke(call, id)).await {
            Ok(_) | Err(Failure { error: Error::Lost { .. }, .. }) => {
                self.doomed().revoked(id);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Revokes a lease that nobody relies on any more, in the background and until it is gone. `lost` is the
    /// reason if the tasks that relied on it lost it.
    pub(crate) fn revoke_later(self: &Arc<Self>, id: i64, lost: Option<LossReason>) {
        self.doom(id, Doom { lost, until: None });
    }

    /// Revokes a lease of `ttl` that may have been granted just now, though nobody has heard of that.
    pub(super) fn revoke_stray(self: &Arc<Self>, id: i64, ttl: Duration) {
        self.doom(id, Doom { lost: None, until: Some(Instant::now() + self.rpc.request_timeout + ttl) });
    }

    fn doom(self: &Arc<Self>, id: i64, doom: Doom) {
        if self.doomed().add(id, doom) {
            let sessions = self.clone();
            // Closing revokes them as well.
            self.rpc.background.spawn(async move {
                let rpc = &sessions.rpc;
                rpc.clean_up("leases", rpc.closed(), || sessions.revoke_doomed()).await;
            });
        }
    }

    /// Revokes the leases that are to be revoked, also leases that are added meanwhile. If some can not be
    /// revoked, the others still are.
    async fn revoke_doomed(&self) -> Result<(), Failure> {
        let mut tried = Vec::new();
        let mut outcome = Ok(());
        loop {
            let mut left = self.doomed().left(Instant::now());
            if left.is_empty() {
                return Ok(());
            }
            left.retain(|id| !tried.contains(id));
            left.truncate(AT_ONCE);
            if left.is_empty() {
                return outcome;
            }
            let revoked = future::join_all(left.iter().map(|id| self.revoke(*id))).await;
            outcome = revoked.into_iter().fold(outcome, Result::and);
            if matches!(&outcome, Err(failure) if failure.error.is_retryable()) {
                // The others would wait in vain as well.
                return outcome;
            }
            tried.extend(left);
        }
    }

    /// Loses every lease, since the client is closed. Returns all leases that have to be revoked then.
    pub(crate) fn close(&self) -> Vec<LeaseId> {
        let mut leases = self.doomed().all();
        for leased in self.pool().iter() {
            leased.lease.lose(LossReason::Closed);
            leases.push(leased.id);
        }
        leases
    }

    /// Revokes leases at once, and returns what came of each.
    pub(crate) async fn revoke_all(&self, leases: &[LeaseId]) -> Vec<Result<(), Failure>> {
        future::join_all(leases.iter().map(|id| self.revoke(*id))).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_is_doomed_until_revoked_and_a_stray_for_its_time() {
        let now = Instant::now();
        let mut doomed = Doomed::default();
        assert!(doomed.add(1, Doom { lost: Some(LossReason::Expired), until: None }));
        assert!(!doomed.add(2, Doom { lost: None, until: Some(now + Duration::from_secs(5)) }));
        assert_eq!((doomed.left(now), doomed.lost()), (vec![1, 2], Some(LossReason::Expired)));
        assert_eq!(doomed.left(now + Duration::from_secs(86_400)), [1]);
        doomed.revoked(1);
        assert_eq!((doomed.left(now), doomed.lost()), (vec![], None));
        assert!(doomed.add(3, Doom { lost: None, until: None }), "the task has ended");
    }
}
