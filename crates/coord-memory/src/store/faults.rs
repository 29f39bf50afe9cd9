//! Faults of the store itself: it stands still, starts again, has no space, or lets nobody in.

use std::time::Duration;

use coord_api::{Error, backend::after};
use coord_kv::store::{Effect, Failure};
use tokio::time::Instant;

use super::{
    Store,
    state::{State, new_cluster},
};

/// Data of a store that has started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Restart {
    /// All of its data.
    WithData,
    /// None of it: it is another store at the same place.
    Empty,
    /// The data of so many revisions before, as after a restore from a backup. Revisions that the store gave then are given
    /// again. It goes back no further than it remembers changes.
    Older(u64),
}

/// Space of a store for more data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Space {
    /// There is some.
    #[default]
    Left,
    /// There is none: writes and new leases answer [`NoSpace`](Error::NoSpace). Reads, deletions and renewals work.
    Full,
}

/// Permission of all clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Permission {
    /// Nothing: all about keys answers [`PermissionDenied`](Error::PermissionDenied). Leases need no permission.
    Nothing,
    /// Only reading and watching.
    Reading,
    /// All of it.
    #[default]
    Everything,
}

impl State {
    pub(super) fn check_permission(
        &self,
        operation: &'static str,
        needed: Permission,
    ) -> Result<(), Failure> {
        if needed <= self.permission {
            return Ok(());
        }
        let error = Error::PermissionDenied { operation, source: "permission denied".into() };
        Err(Failure { error, effect: Effect::None })
    }

    pub(super) fn check_space(&self) -> Result<(), Failure> {
        if self.space == Space::Left {
            return Ok(());
        }
        let (what, hint) = ("the memory store".into(), "let it have space again");
        let error = Error::NoSpace { what, hint, source: "database space exceeded".into() };
        Err(Failure { error, effect: Effect::None })
    }

    /// Forgets the changes up to now.
    pub(super) fn forget_changes(&mut self) {
        self.log.compact(self.revision);
    }

    /// Forgets the changes up to now. All watches end, whose users read anew.
    pub(crate) fn compact(&mut self) {
        self.forget_changes();
        let header = self.header();
        self.watchers.compact_all(header);
    }

    fn restart(&mut self, with: Restart, now: Instant) {
        match with {
            Restart::WithData => self.prolong_all(now),
            Restart::Empty => {
                self.cluster = new_cluster();
                self.revision = 1;
                self.pairs.clear();
                self.leases.clear();
                self.expiries.clear();
                self.ended.clear();
                self.log = super::changes::Log::new();
            }
            Restart::Older(revisions) => {
                let back = i64::try_from(revisions).unwrap_or(i64::MAX);
                let to = self.revision.saturating_sub(back).max(self.log.compacted()).max(1);
                while let Some(change) = self.log.take_back(to) {
                    match change.before {
                        Some(before) => drop(self.pairs.insert(change.key, before)),
                        None => drop(self.pairs.remove(&change.key)),
                    }
                }
                self.revision = to;
                self.leases_of(to, now);
            }
        }
        self.lose_requests();
        self.watchers.end_all();
        self.clients.values().for_each(|client| client.reconnect_anew());
    }
}

/// Faults of the store.
impl Store {
    /// Lets the store stand still for `time`. Requests that are sent to it meanwhile are executed afterwards, given up or
    /// not. No lease ends before.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{ConfigExt, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let store = Store::new();
    /// let config = store.client().config();
    /// config.set("limits/upload", &10).await?;
    /// store.freeze(Duration::from_secs(60));
    /// let given_up = tokio::time::timeout(Duration::from_secs(5), config.set("limits/upload", &20)).await;
    /// assert!(given_up.is_err());
    /// let found = config.get::<u32>("limits/upload").await?;
    /// assert_eq!(found.expect("was set").value, 20);
    /// # Ok(()) }
    /// ```
    pub fn freeze(&self, time: Duration) {
        self.lock_now().stand_still(after(time));
    }

    /// Starts the store again. Every connection is made anew and every watch resumes. Requests that have not arrived are lost.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, LossReason, Provider};
    /// use coord_memory::{Restart, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let store = Store::new();
    /// let client = store.client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// store.restart(Restart::WithData);
    /// tokio::time::sleep(Duration::from_secs(60)).await;
    /// assert!(!guard.is_lost());
    /// store.restart(Restart::Empty);
    /// assert_eq!(guard.lost().await, LossReason::Revoked);
    /// # Ok(()) }
    /// ```
    pub fn restart(&self, with: Restart) {
        self.lock_now().restart(with, Instant::now());
    }

    /// Gives every lease its whole time again, as a new leader of etcd does.
    pub fn prolong_leases(&self) {
        self.lock_now().prolong_all(Instant::now());
    }

    /// Sets whether the store has space for more.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Error, Provider};
    /// use coord_memory::{Space, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = Store::new();
    /// let config = store.client().config();
    /// store.space(Space::Full);
    /// assert!(matches!(config.set("limits/upload", &10).await, Err(Error::NoSpace { .. })));
    /// store.space(Space::Left);
    /// config.set("limits/upload", &10).await?;
    /// # Ok(()) }
    /// ```
    pub fn space(&self, space: Space) {
        self.lock_now().space = space;
    }

    /// Sets what clients may do.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Error, Provider};
    /// use coord_memory::{Permission, Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = Store::new();
    /// let config = store.client().config();
    /// store.permit(Permission::Reading);
    /// assert!(config.get::<u32>("limits/upload").await?.is_none());
    /// assert!(matches!(config.set("limits/upload", &10).await, Err(Error::PermissionDenied { .. })));
    /// # Ok(()) }
    /// ```
    pub fn permit(&self, permission: Permission) {
        self.lock_now().permission = permission;
    }

    /// Revokes every lease of every client; see [`Client::revoke_leases`](crate::Client::revoke_leases).
    pub fn revoke_leases(&self) {
        self.lock_now().revoke_leases(None);
    }

    /// Forgets the history of changes. Each watch tells what it has heard of before, and then a fresh snapshot.
    ///
    /// ```
    /// use coord_api::{ConfigEvent, ConfigExt, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = Store::new();
    /// let config = store.client().config();
    /// let mut watch = config.watch::<u32>("limits/upload").await?;
    /// assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
    /// store.compact();
    /// assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
    /// # Ok(()) }
    /// ```
    pub fn compact(&self) {
        self.lock_now().compact();
    }
}
