//! Keys that are written, deleted and listed as another program would.

use std::time::Duration;

use bytes::Bytes;
use coord_api::LockName;

use super::{Store, state::State};

/// Where instance ids are, after the name of a service.
const IDS: &str = "/ids/";

/// Returns the service and the rest of a key about instance ids.
fn of_service(key: &str) -> Option<(&str, &str)> {
    let key = key.strip_prefix("ids/")?;
    let end = key.find('/')?;
    Some((&key[..end], &key[end..]))
}

/// Returns a stored key as users know it; `None` for coord's own notes.
fn shown(key: &str) -> Option<String> {
    let areas = ["config/", "internal/config/", "elections/", "locks/", "services/"];
    if areas.iter().any(|area| key.starts_with(area)) {
        return Some(key.to_owned());
    }
    let (service, rest) = of_service(key)?;
    Some(format!("ids/{service}/{}", rest.strip_prefix(IDS)?))
}

/// Returns a key that users know as it is stored.
fn stored(key: &str) -> String {
    match of_service(key) {
        Some((service, rest)) if rest[1..].parse::<u32>().is_ok() => {
            format!("ids/{service}{IDS}{}", &rest[1..])
        }
        _ => key.to_owned(),
    }
}

/// Deeds of others.
impl Store {
    /// Writes `value` under a key of the services, the config or an election, as another program would: without a lease
    /// and without any check. A client that had registered something there loses it.
    ///
    /// Keys are `config/<key>`, `services/<name>/<id>` and `elections/<name>/<candidate>`, where a `/` within a name or an id is
    /// `%2F`.
    ///
    /// # Panics
    /// If the key is of none of these kinds.
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
        let areas = ["services/", "config/", "internal/config/", "elections/"];
        let is_entry = areas.iter().any(|area| key.starts_with(area));
        assert!(is_entry, "{key:?} begins with neither `services/` nor `config/` nor `elections/`");
        let mut state = self.lock_now();
        let at = state.revision + 1;
        state.put(at, key.as_bytes(), value.into(), 0);
        state.commit(at);
    }

    /// Reads a key as it is stored, of whatever kind: the value, and its version. `None` if it does not exist.
    ///
    /// ```
    /// use coord_memory::Store;
    ///
    /// let store = Store::new();
    /// store.put_raw("config/limits/upload", "ten");
    /// let (value, version) = store.get_raw("config/limits/upload").expect("was written");
    /// assert_eq!((&value[..], version > 0), (&b"ten"[..], true));
    /// ```
    pub fn get_raw(&self, key: &str) -> Option<(Bytes, u64)> {
        let state = self.lock_now();
        let pair = state.pair(stored(key).as_bytes())?;
        Some((pair.value.clone(), u64::try_from(pair.modified).ok()?))
    }

    /// Returns the times to live of all leases that are not over, for simulations.
    #[doc(hidden)]
    pub fn granted(&self) -> Vec<Duration> {
        let state = self.lock_now();
        let seconds = state.leases.values().map(|lease| u64::try_from(lease.ttl).unwrap_or_default());
        seconds.map(Duration::from_secs).collect()
    }

    /// Deletes any key that [`keys`](Self::keys) tells, as another program would, and tells whether it was
    /// there. Its holder, or the task that waits with it, loses it. Also `ids/<service>/stamped/<n>`, which is not among them: up to
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
        let mut state = self.lock_now();
        let at = state.revision + 1;
        let existed = state.delete(at, stored(key).as_bytes(), None);
        state.commit(at);
        existed
    }

    /// Deletes every place in the queue of a lock at one moment, as `etcdctl del --prefix` would. Holders and waiters
    /// are told, and nobody gets the lock by one of these places.
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
        let Ok(name) = LockName::parse(lock) else { return };
        let mut state = self.lock_now();
        let at = state.revision + 1;
        for key in state.keys_below(format!("locks/{}/", name.as_str().replace('/', "%2F")).as_bytes()) {
            state.delete(at, &key, None);
        }
        state.commit(at);
    }

    /// Every key in the store, in order:
    /// - `config/<key>`,
    /// - `elections/<name>/<lease>-<n>@<owner>` of candidates,
    /// - `ids/<service>/<n>` of ids that are held or rest,
    /// - `locks/<name>/<lease>-<n>` of holders and waiters,
    /// - `services/<name>/<id>`.
    pub fn keys(&self) -> Vec<String> {
        self.lock_now().shown()
    }
}

impl State {
    fn shown(&self) -> Vec<String> {
        let keys = self.pairs.keys().filter_map(|key| shown(std::str::from_utf8(key).ok()?));
        let mut keys: Vec<_> = keys.collect();
        keys.sort_unstable();
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_shown_without_their_room() {
        for (in_store, to_users) in [("ids/a%2Fb/ids/7", "ids/a%2Fb/7"), ("locks/a/1f-0", "locks/a/1f-0")] {
            assert_eq!(shown(in_store).as_deref(), Some(to_users));
            assert_eq!(stored(to_users), in_store);
        }
        for own in ["ids/a/held/7", "ids/a/stamped/7", "internal/gates/1f"] {
            assert_eq!(shown(own), None);
            assert_eq!(stored(own), own);
        }
    }

    #[test]
    #[should_panic(expected = "begins with neither")]
    fn nobody_else_writes_locks() {
        Store::new().put_raw("locks/a/1", "");
    }
}
