//! Sessions: one lease per time to live and client, shared by everything that is held on it, renewed here.
//!
//! [`pool`] (pure) counts the uses of each lease, and `grant` gets leases. `keep_alive` renews each of them
//! over one stream of the store, and `end` revokes what is of no more use. `epoch` keeps late requests from
//! taking anything on a lease.

mod end;
mod epoch;
mod grant;
mod keep_alive;
mod pool;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use coord_api::{Error, Lease, LeaseHealth, LossReason, Ttl};
use tokio::{sync::Notify, time::Instant};

use crate::{request::Rpc, store::LeaseId};
use end::Doomed;
use pool::Pool;

pub(crate) use epoch::{Epoch, LeaseEpoch};

/// Use of a lease. Everything that lives on the lease, or may, holds a use from before its request is sent
/// until it is known to be gone. A lease with a use is renewed.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: i64,
    pub(crate) lease: Lease,
    pub(crate) epoch: Arc<LeaseEpoch>,
    /// Signal to the task that renews the lease: renew it at once.
    renew: Arc<Notify>,
    pool: Weak<Mutex<Pool<Arc<Leased>>>>,
}

/// Granted lease with its local deadline.
#[derive(Debug)]
struct Leased {
    id: i64,
    lease: Lease,
    epoch: Arc<LeaseEpoch>,
    ttl: Ttl,
    /// Signal to the task that renews it: renew it at once.
    renew: Arc<Notify>,
    /// Signal to the task that renews it: it may be of no more use.
    look: Notify,
}

/// Sessions of one client.
#[derive(Debug)]
pub(crate) struct Sessions {
    rpc: Arc<Rpc>,
    pool: Arc<Mutex<Pool<Arc<Leased>>>>,
    /// Leases that are to be revoked.
    doomed: Mutex<Doomed>,
}

impl Leased {
    fn new(id: i64, lease: Lease, epoch: Arc<LeaseEpoch>, ttl: Ttl) -> Arc<Self> {
        Arc::new(Self { id, lease, epoch, ttl, renew: Arc::default(), look: Notify::new() })
    }
}

impl Session {
    fn new(leased: &Leased, pool: Weak<Mutex<Pool<Arc<Leased>>>>) -> Arc<Self> {
        let Leased { id, lease, epoch, renew, .. } = leased;
        let (lease, epoch, renew) = (lease.clone(), epoch.clone(), renew.clone());
        Arc::new(Self { id: *id, lease, epoch, renew, pool })
    }

    /// Returns a session that nobody renews, for tests.
    #[cfg(test)]
    pub(crate) fn unrenewed(id: i64, ttl: std::time::Duration) -> Arc<Self> {
        let epoch = Arc::new(LeaseEpoch::new(String::new(), id));
        let class = Ttl::parse(ttl).expect("is a time to live");
        Self::new(&Leased::new(id, Lease::granted(Instant::now(), ttl), epoch, class), Weak::new())
    }

    /// Ends the lease here if an error says that the store does not know it any more. All that is held on the
    /// lease learns that now, and not at the next renewal.
    pub(crate) fn learn(&self, error: &Error) {
        if let Error::Lost { reason } = error {
            self.lease.lose(*reason);
        }
    }

    /// Asks for a renewal at once, which tells whether the store still has the lease.
    pub(crate) fn renew_now(&self) {
        self.renew.notify_one();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut pool = lock(&pool);
        if pool.released(self.id, Instant::now()) {
            pool.superfluous().into_iter().for_each(|leased| leased.look.notify_one());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nothing panics while this is locked")
}

impl Sessions {
    pub(crate) fn new(rpc: Arc<Rpc>) -> Arc<Self> {
        Arc::new(Self { rpc, pool: Arc::default(), doomed: Mutex::default() })
    }

    /// Returns what requests need.
    pub(crate) fn rpc(&self) -> &Arc<Rpc> {
        &self.rpc
    }

    fn pool(&self) -> MutexGuard<'_, Pool<Arc<Leased>>> {
        lock(&self.pool)
    }

    fn doomed(&self) -> MutexGuard<'_, Doomed> {
        lock(&self.doomed)
    }

    /// Forgets every lease but some, of which a client that is closed has none: those that the next close revokes.
    pub(crate) fn forget_all_but(&self, unrevoked: impl IntoIterator<Item = LeaseId>) {
        *self.pool() = Pool::default();
        *self.doomed() = Doomed::of(unrevoked);
    }

    /// Returns the leases that this client believes in.
    pub(crate) fn held(&self) -> HashSet<i64> {
        let pool = self.pool();
        pool.iter().filter(|leased| leased.lease.loss().is_none()).map(|leased| leased.id).collect()
    }

    /// Ends every session: the store does not know them any more, or not as they were.
    pub(crate) fn lose_all(&self, reason: LossReason) {
        for leased in self.pool().iter() {
            leased.lease.lose(reason);
        }
    }

    /// Takes in that the store has ended a lease.
    pub(crate) fn ended(&self, lease: LeaseId) {
        let ended = self.pool().iter().find(|leased| leased.id == lease).map(|leased| leased.lease.clone());
        if let Some(ended) = ended {
            ended.lose(LossReason::Revoked);
        }
    }

    /// Returns the worst health of all sessions, including lost ones that are not revoked yet.
    pub(crate) fn health(&self) -> LeaseHealth {
        let lost = self.doomed().lost().map(LeaseHealth::Lost);
        let renewed: Vec<_> = self.pool().iter().map(|leased| leased.lease.health()).collect();
        let mut worst = LeaseHealth::Healthy;
        for health in renewed.into_iter().chain(lost) {
            match health {
                LeaseHealth::Healthy => {}
                LeaseHealth::Lost(_) => return health,
                _ => worst = LeaseHealth::Suspect,
            }
        }
        worst
    }
}
