//! Faults on demand, so that users can test what their code does about them.

use std::time::Duration;

use bytes::Bytes;
use coord_api::{LockName, LossReason};
use tokio::time::Instant;

use crate::{
    Client, Store,
    keys::{self, Location},
    session::News,
    store::State,
};

/// In place of a time that the clock can not count.
const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// What goes wrong between one client and its store.
impl Client {
    /// Cuts the client off: every call answers [`Unavailable`](coord_api::Error::Unavailable) at once, no
    /// renewal arrives, watches stand still, and what is held is lost at its local deadline.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let store = Store::new();
    /// let (cut_off, other) = (store.client(), store.client());
    /// let guard = cut_off.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// cut_off.disconnect();
    /// let next = other.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// assert_eq!(guard.lost().await, LossReason::Expired);
    /// assert!(next.token() > guard.token());
    /// # Ok(()) }
    /// ```
    pub fn disconnect(&self) {
        self.connection.store().lock().disconnect(self.connection.id());
    }

    /// Ends a [`disconnect`](Self::disconnect): the leases that are left are renewed and watches go on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let client = Store::new().client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// client.disconnect();
    /// tokio::time::sleep(Duration::from_secs(8)).await;
    /// client.reconnect();
    /// tokio::time::sleep(Duration::from_secs(8)).await;
    /// guard.unlock().await?;
    /// # Ok(()) }
    /// ```
    pub fn reconnect(&self) {
        self.connection.store().lock_now().reconnect(self.connection.id());
    }

    /// Lets the client stand still for `time`, as a process that is frozen or whose network is slow: what it
    /// sends, renewals and all, arrives afterwards, so its calls wait in place of failing, and watches stand
    /// still. What it holds is lost if its local deadline passes meanwhile.
    ///
    /// A stall that begins during another one ends with the later of the two; one of a client that is cut off
    /// changes nothing. [`reconnect`](Self::reconnect) ends it early. `close` does not wait for its end: it
    /// answers [`Unavailable`](coord_api::Error::Unavailable), as while cut off.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{ConfigExt, DistributedLock, Error, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let client = Store::new().client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// client.stall(Duration::from_secs(5));
    /// client.config().set("reports/last", &"2026-11-22").await?; // takes five seconds
    /// assert!(!guard.is_lost(), "there was time enough");
    ///
    /// client.stall(Duration::from_secs(60));
    /// assert_eq!(guard.lost().await, LossReason::Expired);
    /// assert!(matches!(guard.unlock().await, Err(Error::Lost { .. })));
    /// # Ok(()) }
    /// ```
    pub fn stall(&self, time: Duration) {
        let now = Instant::now();
        let until = now.checked_add(time).unwrap_or(now + FOREVER);
        self.connection.store().lock_now().stall(self.connection.id(), until);
    }

    /// Makes the next `calls` calls of the client answer [`Unavailable`](coord_api::Error::Unavailable).
    /// Renewals are no calls.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = Store::new().client();
    /// client.fail_next(1);
    /// assert!(client.config().set("limits/upload", &10).await.is_err());
    /// client.config().set("limits/upload", &10).await?;
    /// # Ok(()) }
    /// ```
    pub fn fail_next(&self, calls: usize) {
        self.connection.store().lock().session(self.connection.id()).failing = calls;
    }

    /// Lets the next `calls` writes to the config center take effect, if nothing is against them, and loses their
    /// answers: they answer [`Timeout`](coord_api::Error::Timeout) after 5 s.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Error, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let client = Store::new().client();
    /// client.lose_answers(1);
    /// let written = client.config().set("limits/upload", &10).await;
    /// assert!(matches!(written, Err(Error::Timeout { .. })));
    /// let found = client.config().get::<u32>("limits/upload").await?;
    /// assert_eq!(found.expect("took effect").value, 10);
    /// # Ok(()) }
    /// ```
    pub fn lose_answers(&self, calls: usize) {
        self.connection.store().lock().session(self.connection.id()).losing = calls;
    }

    /// Revokes every lease of the client, as an operator would. Locks and ids are lost, registrations come
    /// back. A client that is cut off learns of it when it is connected again.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = Store::new().client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// client.revoke_leases();
    /// assert_eq!(guard.lost().await, LossReason::Revoked);
    /// # Ok(()) }
    /// ```
    pub fn revoke_leases(&self) {
        let mut state = self.connection.store().lock_now();
        let own = state.leases_of(self.connection.id());
        state.end_leases(&own, LossReason::Revoked);
    }
}

/// What goes wrong in the store, and what others do to it.
impl Store {
    /// Revokes every lease of every client; see [`Client::revoke_leases`].
    pub fn revoke_leases(&self) {
        let mut state = self.lock_now();
        let all: Vec<_> = state.leases.keys().copied().collect();
        state.end_leases(&all, LossReason::Revoked);
    }

    /// Forgets the history of changes: a watch that has not delivered all of it yet gets a fresh snapshot.
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
    /// config.set("limits/upload", &10).await?;
    /// store.compact();
    /// assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
    /// # Ok(()) }
    /// ```
    pub fn compact(&self) {
        self.lock_now().log.forget();
    }

    /// Writes `value` under a key of the services or the config, as another program would: without a lease
    /// and without any check. What a client had registered there is lost to it.
    ///
    /// Keys are `config/<key>` and `services/<name>/<id>`, where a `/` within a name or an id is `%2F`.
    ///
    /// # Panics
    /// If the key is of neither kind.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Error, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let store = Store::new();
    /// store.put_raw("config/limits/upload", "ten");
    /// let read = store.client().config().get::<u32>("limits/upload").await;
    /// assert!(matches!(read, Err(Error::Decode { .. })));
    /// # }
    /// ```
    pub fn put_raw(&self, key: &str, value: impl Into<Bytes>) {
        let is_entry = matches!(keys::locate(key), Location::Entry);
        assert!(is_entry, "{key:?} begins with neither `services/` nor `config/`");
        let mut state = self.lock_now();
        state.next_revision();
        state.evict(key, LossReason::Deleted);
        state.put(key.to_owned(), value.into(), None);
    }

    /// Deletes any key that [`keys`](Self::keys) tells, as another program would, and tells whether it was
    /// there. Who held it, or waited with it, loses it. Also `ids/<service>/stamped/<n>`, which is not among them: up to
    /// when a [`Snowflake`](coord_api::Snowflake) may have made numbers with an id.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = Store::new();
    /// let guard = store.client().lock().acquire("a/b", Duration::from_secs(10)).await?;
    /// assert_eq!(store.keys(), [guard.key()]);
    /// assert!(store.delete_raw(guard.key()));
    /// assert_eq!(guard.lost().await, LossReason::Deleted);
    /// # Ok(()) }
    /// ```
    pub fn delete_raw(&self, key: &str) -> bool {
        self.lock_now().delete_raw(key)
    }

    /// Deletes every place in the queue of a lock at one moment, as `etcdctl del --prefix` would: those who held it or
    /// waited are told, and nobody gets it by one of these places.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = Store::new();
    /// let guard = store.client().lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// store.delete_queue("nightly-report");
    /// assert_eq!(guard.lost().await, LossReason::Deleted);
    /// # Ok(()) }
    /// ```
    pub fn delete_queue(&self, lock: &str) {
        if let Ok(name) = LockName::parse(lock) {
            self.lock_now().delete_queue(&name);
        }
    }

    /// Every key in the store, in order: `config/<key>`, `ids/<service>/<n>` of ids that are held or rest, `locks/<name>/<n>` of holders
    /// and waiters, and `services/<name>/<id>`.
    pub fn keys(&self) -> Vec<String> {
        self.lock_now().keys()
    }
}

impl State {
    fn delete_queue(&mut self, name: &LockName) {
        let places = self.places(name);
        for grip in &places {
            self.tell(grip.client, News::Hold(grip.hold.clone(), LossReason::Deleted));
        }
        // The youngest first: a waiter leaves before it could be given what it waits for.
        for grip in places.iter().rev() {
            self.take_away(grip);
        }
    }

    fn delete_raw(&mut self, key: &str) -> bool {
        let grip = match keys::locate(key) {
            Location::Nothing => return false,
            Location::Entry => {
                let exists = self.entries.contains_key(key);
                if exists {
                    self.next_revision();
                    self.evict(key, LossReason::Deleted);
                    self.delete(key);
                }
                return exists;
            }
            Location::Stamped(service, id) => return self.unstamp_id(&service, id),
            Location::Lock(name, place) => self.contender(&name, place).cloned(),
            Location::Id(service, id) => {
                if self.wake_id(&service, id) {
                    return true;
                }
                self.id_holder(&service, id).cloned()
            }
        };
        let Some(grip) = grip else {
            return false;
        };
        self.tell(grip.client, News::Hold(grip.hold.clone(), LossReason::Deleted));
        self.take_away(&grip)
    }
}

#[cfg(test)]
mod tests;
