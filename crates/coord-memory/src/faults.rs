//! Faults on demand, so that users can test what their code does about them.

use std::time::Duration;

use bytes::Bytes;
use coord_api::LossReason;
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
    /// there. Who held it, or waited with it, loses it.
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

    /// Every key in the store, in order: `config/<key>`, `ids/<service>/<n>`, `locks/<name>/<n>` of holders
    /// and waiters, and `services/<name>/<id>`.
    pub fn keys(&self) -> Vec<String> {
        self.lock_now().keys()
    }
}

impl State {
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
            Location::Lock(name, place) => self.contender(&name, place).cloned(),
            Location::Id(service, id) => self.id_holder(&service, id).cloned(),
        };
        let Some(grip) = grip else {
            return false;
        };
        self.tell(grip.client, News::Hold(grip.hold, LossReason::Deleted));
        self.free(grip.lease, grip.revision)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::{
        ConfigExt, Error, LeaseHealth, Provider, RegistrationStatus, Result, ServiceInfo, ServiceRegistry,
    };

    use super::*;

    const TTL: Duration = Duration::from_secs(3);

    fn info() -> ServiceInfo {
        ServiceInfo::new("svc", "1", "10.0.0.1", 80)
    }

    #[tokio::test(start_paused = true)]
    async fn a_short_cut_harms_nothing_and_a_long_one_is_told() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let guard = client.lock().acquire("a", TTL).await?;
        client.disconnect();
        tokio::time::sleep(TTL / 2).await;
        client.reconnect();
        assert_eq!(guard.remaining(), TTL);
        client.disconnect();
        tokio::time::sleep(TTL).await;
        client.reconnect();
        assert_eq!(guard.lost().await, LossReason::Expired, "though the store still has it");
        assert!(matches!(guard.unlock().await, Err(Error::Lost { .. })));
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_cut_off_learns_of_a_revocation_later() -> Result<()> {
        let store = Store::new();
        let (cut_off, other) = (store.client(), store.client());
        let guard = cut_off.lock().acquire("a", TTL).await?;
        let id = cut_off.instance_id_allocator("svc", 8)?;
        id.acquire_id().await?;
        cut_off.disconnect();
        cut_off.revoke_leases();
        let next = other.lock().try_acquire("a", TTL).await?.expect("is free");
        assert!(next.token() > guard.token(), "what the token is for");
        assert!(!guard.is_lost() && id.id().is_some());
        cut_off.reconnect();
        assert_eq!(guard.lost().await, LossReason::Revoked);
        assert_eq!(id.id(), None);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn registrations_come_back_after_every_fault() -> Result<()> {
        let store = Store::new();
        let (client, other) = (store.client(), store.client());
        let mut registration = client.registry().register(info(), TTL).await?;
        let recovers = async |registration: &mut coord_api::Registration| {
            // A recovery that succeeds at once is seen as one change.
            while registration.status_changed().await != RegistrationStatus::Registered {}
            assert_eq!(other.registry().discover("svc").await.unwrap(), [info()]);
        };
        store.delete_raw("services/svc/1");
        recovers(&mut registration).await;
        client.fail_next(3);
        store.revoke_leases();
        recovers(&mut registration).await;
        client.disconnect();
        tokio::time::sleep(TTL * 2).await;
        assert_eq!(other.registry().discover("svc").await?, []);
        client.reconnect();
        recovers(&mut registration).await;

        store.put_raw("services/svc/1", "{");
        let mend = async {
            tokio::time::sleep(TTL).await;
            store.delete_raw("services/svc/1");
        };
        tokio::join!(recovers(&mut registration), mend);
        registration.deregister().await?;
        assert_eq!(store.keys(), [""; 0]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn ids_of_others_are_refused_with_their_owner() -> Result<()> {
        let store = Store::new();
        let (one, other) = (store.client(), store.client());
        let owner = async |registry: std::sync::Arc<dyn ServiceRegistry>| match registry
            .register(info(), TTL)
            .await
        {
            Err(Error::AlreadyRegistered { owner, .. }) => owner,
            answer => panic!("{answer:?}"),
        };
        let registration = one.registry().register(info(), TTL).await?;
        assert_eq!(owner(other.registry()).await, one.owner().to_string());
        registration.deregister().await?;
        store.put_raw("services/svc/1", r#"{"id":"1","name":"svc","address":"h","port":1}"#);
        assert_eq!(owner(other.registry()).await, "another program");
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn an_operator_can_delete_any_key() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let (a, ids) = (client.lock(), client.instance_id_allocator("a/b", 8)?);
        let held = a.acquire("a/b", TTL).await?;
        ids.acquire_id().await?;
        store.put_raw("config/x", "1");
        let keys = store.keys();
        assert_eq!(keys, ["config/x", "ids/a%2Fb/1", held.key()]);
        for key in keys {
            assert!(store.delete_raw(&key) && !store.delete_raw(&key), "{key}");
        }
        assert_eq!(held.lost().await, LossReason::Deleted);
        assert_eq!(ids.id(), None);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_stalled_client_does_everything_later() -> Result<()> {
        let store = Store::new();
        let (client, other) = (store.client(), store.client());
        let (config, start) = (client.config(), Instant::now());
        let guard = client.lock().acquire("a", TTL).await?;
        let mut watch = client.config().watch::<u32>("x").await?;
        watch.next().await.expect("is not closed")?;
        client.stall(TTL / 3);
        client.stall(TTL / 2);
        client.stall(TTL / 4);
        other.config().set("x", &1).await?;
        let heard = async {
            watch.next().await.expect("is not closed")?;
            Ok::<_, Error>(start.elapsed())
        };
        let written = async { config.set("y", &1).await.map(|_| start.elapsed()) };
        let (heard, written, unlocked) = tokio::join!(heard, written, async {
            let unlocked = guard.unlock().await;
            unlocked.map(|()| start.elapsed())
        });
        for later in [heard?, written?, unlocked?] {
            assert!(later >= TTL / 2 && later < TTL, "{later:?}");
        }
        assert_eq!(store.keys(), ["config/x", "config/y"]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn who_wakes_up_after_its_deadline_has_lost() -> Result<()> {
        let store = Store::new();
        let (client, other) = (store.client(), store.client());
        let guard = client.lock().acquire("a", TTL).await?;
        client.stall(TTL * 2);
        let next = other.lock().acquire("a", TTL).await?;
        assert!(guard.is_lost());
        assert_eq!(client.lease_health(), LeaseHealth::Lost(LossReason::Expired));
        assert!(client.lock().try_acquire("a", TTL).await?.is_none(), "is asked when the client goes on");
        assert_eq!(client.lease_health(), LeaseHealth::Healthy);
        assert_eq!(guard.lost().await, LossReason::Expired);
        drop(guard);
        next.unlock().await
    }

    #[tokio::test(start_paused = true)]
    async fn a_stall_may_be_cut_short_in_every_way() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let config = client.config();
        client.stall(Duration::MAX);
        let (written, ()) = tokio::join!(config.set("x", &1), async { client.reconnect() });
        written?;
        client.stall(TTL);
        let (refused, ()) = tokio::join!(config.set("x", &2), async { client.disconnect() });
        assert!(matches!(refused, Err(Error::Unavailable { .. })));
        client.stall(TTL);
        assert!(config.set("x", &2).await.is_err(), "is still cut off");
        client.reconnect();
        client.stall(TTL);
        let (ended, closed) = tokio::join!(config.set("x", &3), client.close());
        assert!(matches!(ended, Err(Error::Closed)) && closed.is_ok(), "it held nothing");
        client.stall(TTL);
        drop((client, config));
        assert!(store.lock().stalls.is_empty());
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn the_health_is_that_of_the_worst_lease() -> Result<()> {
        let client = Store::new().client();
        assert_eq!(client.lease_health(), LeaseHealth::Healthy);
        let _long = client.lock().acquire("long", TTL * 10).await?;
        let _short = client.lock().acquire("short", TTL).await?;
        client.disconnect();
        tokio::time::sleep(TTL * 2 / 3).await;
        assert_eq!(client.lease_health(), LeaseHealth::Suspect);
        client.revoke_leases();
        assert_eq!(client.lease_health(), LeaseHealth::Suspect, "it has not heard of it");
        tokio::time::sleep(TTL).await;
        assert_eq!(client.lease_health(), LeaseHealth::Lost(LossReason::Expired));
        client.reconnect();
        assert_eq!(client.lease_health(), LeaseHealth::Healthy);
        Ok(())
    }

    #[test]
    #[should_panic(expected = "begins with neither")]
    fn nobody_else_writes_locks() {
        Store::new().put_raw("locks/a/1", "");
    }
}
