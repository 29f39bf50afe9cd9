//! The config center: versioned JSON values under paths.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    Batch, Committed, ConfigKey, ConfigPrefix, Entry, EntryEvent, Error, Fence, Home, Owner, Result,
    UpdateLocks, Version, Watch, Write, backoff::Backoff, timer,
};

/// Versioned JSON values under keys such as `common/mq`.
///
/// This trait is the small core that a backend implements. The calls that services use are in [`ConfigExt`],
/// for every config center: `get`, `set`, `list`, `delete`, `compare_and_set`, `update`, `watch`,
/// `watch_prefix`.
///
/// # Contract
/// - There is one form of key everywhere: what [`list`](ConfigExt::list) returns can be given to every other
///   call.
/// - Reads are linearizable: they see every write that was answered before.
/// - Every write gets a [`Version`] larger than that of all writes that were answered before it. Writes of
///   different keys at the same moment may share one. [`commit`](Self::commit) is atomic.
/// - Values are plain JSON in the store, which other programs may read and write.
///
/// # Cancel safety
/// Reads may be dropped at any point. A dropped write may or may not take effect, as a whole.
///
/// # Example
/// ```
/// use coord_api::{ConfigExt, Provider, Version};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Serialize, Deserialize)]
/// struct Mq { brokers: Vec<String>, retries: u32 }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = coord_memory::Store::new();
/// let config = store.client().config();
/// let created = config.compare_and_set("common/mq", Version::ABSENT,
///     &Mq { brokers: vec!["kafka:9092".into()], retries: 3 }).await?;
/// let found = config.get::<Mq>("common/mq").await?.expect("was just written");
/// assert_eq!((found.value.retries, found.version), (3, created));
/// for entry in config.list("common").await? {
///     println!("{} at version {}", entry.key(), entry.version());
/// }
/// assert!(config.delete("common/mq").await?);
/// # Ok(()) }
/// ```
#[async_trait]
pub trait ConfigCenter: fmt::Debug + Send + Sync {
    /// Reads what is in `scope`, ordered by key, as it was at one moment.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] before anything is sent; [`Error::Closed`], [`Error::Unavailable`],
    /// [`Error::Timeout`].
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>>;

    /// Writes a batch, whole or not at all.
    ///
    /// # Errors
    /// [`Error::Lost`] if a lock that the batch requires is not held; [`Error::Conflict`] names the first key
    /// whose version is not the required one. Nothing is written then. [`Error::Timeout`] leaves open whether the
    /// batch was written. Others as [`read`](Self::read).
    async fn commit(&self, batch: Batch) -> Result<Committed>;

    /// Watches what is in `scope`; see [`Watch`] for what is promised.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>>;

    /// Returns how this client calls itself in what it stores.
    fn owner(&self) -> Owner;

    /// Returns the locks of this client's [updates](ConfigExt::update). All clones and handles of one client share them.
    fn update_locks(&self) -> &UpdateLocks;

    /// The store and the namespace, without a request; `None` where they can not be told. A snapshot file is used by config
    /// centers that tell the same.
    fn home(&self) -> Option<Home> {
        None
    }
}

/// Scope of a read or a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    /// The value of one key.
    Key(&'a str),
    /// The values of all keys below a prefix. The empty prefix covers every key; `common` covers `common/mq`,
    /// but neither `common` itself nor `common2/mq`.
    Prefix(&'a str),
    /// Sidecar: a key beside the values, for data about a value; see [`ConfigKey::beside`].
    Sidecar(&'a ConfigKey),
}

/// A [`Scope`] with its names parsed, for backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Covered {
    /// Single key.
    One(ConfigKey),
    /// Every key of a value below a prefix.
    Below(ConfigPrefix),
}

impl Scope<'_> {
    /// Parses the names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad key or prefix.
    pub fn parse(self) -> Result<Covered> {
        Ok(match self {
            Self::Key(key) => Covered::One(ConfigKey::parse(key)?),
            Self::Prefix(prefix) => Covered::Below(ConfigPrefix::parse(prefix)?),
            Self::Sidecar(key) => Covered::One(key.clone()),
        })
    }
}

/// A decoded value with its key and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting<T> {
    /// The key.
    pub key: String,
    /// The value.
    pub value: T,
    /// The version at which it was written; give it to [`ConfigExt::compare_and_set`].
    pub version: Version,
}

/// Change of the watched settings.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConfigEvent<T> {
    /// Everything in scope at one moment, ordered by key; replaces all that was known. Values that can not
    /// be decoded are left out here and follow as errors.
    Snapshot {
        /// The store's revision of the snapshot.
        version: Version,
        /// The settings.
        settings: Vec<Setting<T>>,
    },
    /// A value was written.
    Set(Setting<T>),
    /// A key was deleted.
    Deleted {
        /// The key.
        key: String,
        /// The store's revision of the deletion.
        version: Version,
    },
}

/// Typed calls over every [`ConfigCenter`].
pub trait ConfigExt: ConfigCenter {
    /// Reads one entry; `None` if the key does not exist.
    ///
    /// # Errors
    /// As [`ConfigCenter::read`].
    fn get_entry(&self, key: &str) -> impl Future<Output = Result<Option<Entry>>> + Send {
        async move { Ok(self.read(Scope::Key(key)).await?.pop()) }
    }

    /// Reads every entry below `prefix`, ordered by key, as it was at one moment; see [`Scope::Prefix`].
    ///
    /// # Errors
    /// As [`ConfigCenter::read`].
    fn list(&self, prefix: &str) -> impl Future<Output = Result<Vec<Entry>>> + Send {
        async move { self.read(Scope::Prefix(prefix)).await }
    }

    /// Reads and decodes a value; `None` if the key does not exist.
    ///
    /// # Errors
    /// [`Error::Decode`] with key, version and JSON path; others as [`ConfigCenter::read`].
    fn get<T: DeserializeOwned>(&self, key: &str) -> impl Future<Output = Result<Option<Setting<T>>>> + Send {
        async move { self.get_entry(key).await?.as_ref().map(decode).transpose() }
    }

    /// Writes a value, whatever was there before, and returns its version.
    ///
    /// # Errors
    /// [`Error::TooLarge`] and [`Error::InvalidArgument`] before anything is sent; others as
    /// [`ConfigCenter::commit`].
    fn set<T: Serialize + Sync + ?Sized>(
        &self,
        key: &str,
        value: &T,
    ) -> impl Future<Output = Result<Version>> + Send {
        async move { Ok(self.commit(Batch::new().set(key, value)?).await?.version) }
    }

    /// Writes a value if the key is at version `expected` ([`Version::ABSENT`]: does not exist), and returns
    /// the new version.
    ///
    /// # Errors
    /// [`Error::Conflict`] with the version that is there; others as [`set`](Self::set).
    fn compare_and_set<T: Serialize + Sync + ?Sized>(
        &self,
        key: &str,
        expected: Version,
        value: &T,
    ) -> impl Future<Output = Result<Version>> + Send {
        async move { Ok(self.commit(Batch::new().require(key, expected)?.set(key, value)?).await?.version) }
    }

    /// Writes a value only while `guard` holds its lock, or its term lasts, checked by the store in the same transaction.
    ///
    /// # Errors
    /// [`Error::Lost`] if the lock is no longer held by this guard, whether the guard knows it or not; nothing
    /// is written then. Others as [`set`](Self::set).
    ///
    /// # Example
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{ConfigExt, Error, Provider};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = coord_memory::Store::new();
    /// let client = store.client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(30)).await?;
    /// client.config().set_if_held(&guard, "reports/last", &"2026-11-22").await?;
    /// store.revoke_leases();
    /// let late = client.config().set_if_held(&guard, "reports/last", &"late").await;
    /// assert!(matches!(late, Err(Error::Lost { .. })));
    /// # Ok(()) }
    /// ```
    fn set_if_held<T: Serialize + Sync + ?Sized>(
        &self,
        guard: &(impl Fence + ?Sized),
        key: &str,
        value: &T,
    ) -> impl Future<Output = Result<Version>> + Send {
        async move { Ok(self.commit(Batch::new().while_held(guard)?.set(key, value)?).await?.version) }
    }

    /// Deletes a key and tells whether it existed.
    ///
    /// # Errors
    /// As [`ConfigCenter::commit`].
    fn delete(&self, key: &str) -> impl Future<Output = Result<bool>> + Send {
        async move { Ok(self.commit(Batch::new().delete(key)?).await?.deleted > 0) }
    }

    /// Reads, changes and writes a value, again from the start whenever another writer came first. `change`
    /// gets `None` for a key that does not exist, may be called several times, and must not rely on being
    /// called once. Updates of one value by tasks of one client take turns, and need one request each as long as no
    /// one else writes it.
    ///
    /// # Errors
    /// [`Error::Timeout`] leaves open whether the last write took effect; others as [`get`](Self::get) and
    /// [`set`](Self::set).
    fn update<T, F>(&self, key: &str, mut change: F) -> impl Future<Output = Result<Setting<T>>> + Send
    where
        T: Serialize + DeserializeOwned + Send + Sync,
        F: FnMut(Option<T>) -> T + Send,
    {
        async move {
            // Clients race each other. A try is a read and a commit, one or two milliseconds. Longer pauses than these leave
            // the store idle and starve who has waited longest.
            let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(32));
            let mut guard = self.update_locks().lock(key).await;
            let mut last = guard.take_last().and_then(|entry| decode::<T>(&entry).ok());
            loop {
                // The entry of the previous update is optimistic: another client may have written since.
                let is_optimistic = last.is_some();
                let found = if is_optimistic { last.take() } else { self.get::<T>(key).await? };
                let (old, expected) = match found {
                    Some(found) => (Some(found.value), found.version),
                    None => (None, Version::ABSENT),
                };
                let value = change(old);
                let batch = Batch::new().require(key, expected)?.set(key, &value)?;
                let json = batch.writes().iter().find_map(Write::json).cloned();
                match self.commit(batch).await {
                    Ok(Committed { version, .. }) => {
                        guard.wrote(json.map(|json| Entry::new(key, version, json)));
                        return Ok(Setting { key: key.into(), value, version });
                    }
                    Err(Error::Conflict { .. }) if is_optimistic => {}
                    Err(Error::Conflict { .. }) => {
                        timer::sleep(backoff.pause()).await;
                    }
                    Err(error) => return Err(error),
                }
            }
        }
    }

    /// Watches one key; see [`Watch`] for what is promised.
    ///
    /// # Errors
    /// As [`ConfigCenter::watch_entries`].
    fn watch<T: DeserializeOwned + Send + 'static>(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Watch<ConfigEvent<T>>>> + Send {
        async move { Ok(typed(self.watch_entries(Scope::Key(key)).await?)) }
    }

    /// Watches every key below `prefix`; see [`Watch`] for what is promised.
    ///
    /// # Errors
    /// As [`ConfigCenter::watch_entries`].
    fn watch_prefix<T: DeserializeOwned + Send + 'static>(
        &self,
        prefix: &str,
    ) -> impl Future<Output = Result<Watch<ConfigEvent<T>>>> + Send {
        async move { Ok(typed(self.watch_entries(Scope::Prefix(prefix)).await?)) }
    }
}

impl<C: ConfigCenter + ?Sized> ConfigExt for C {}

fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<Setting<T>> {
    Ok(Setting { key: entry.key().into(), value: entry.decode()?, version: entry.version() })
}

fn typed<T: DeserializeOwned + Send + 'static>(entries: Watch<EntryEvent>) -> Watch<ConfigEvent<T>> {
    entries.told_as(decode_event)
}

fn decode_event<T: DeserializeOwned>(item: Result<EntryEvent>) -> Vec<Result<ConfigEvent<T>>> {
    match item {
        Err(error) => vec![Err(error)],
        Ok(EntryEvent::Put(entry)) => vec![decode(&entry).map(ConfigEvent::Set)],
        Ok(EntryEvent::Deleted { key, version }) => vec![Ok(ConfigEvent::Deleted { key, version })],
        Ok(EntryEvent::Snapshot { version, entries }) => {
            let mut settings = Vec::with_capacity(entries.len());
            let mut errors = Vec::new();
            for entry in &entries {
                match decode(entry) {
                    Ok(setting) => settings.push(setting),
                    Err(error) => errors.push(Err(error)),
                }
            }
            std::iter::once(Ok(ConfigEvent::Snapshot { version, settings })).chain(errors).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_entries_of_a_snapshot_follow_as_errors() {
        let entries =
            vec![Entry::new("a", Version::new(1), "1"), Entry::new("b", Version::new(2), r#""text""#)];
        let mut items =
            decode_event::<u32>(Ok(EntryEvent::Snapshot { version: Version::new(2), entries })).into_iter();
        let Some(Ok(ConfigEvent::Snapshot { settings, .. })) = items.next() else {
            panic!("the snapshot comes first");
        };
        assert_eq!(settings, [Setting { key: "a".into(), value: 1, version: Version::new(1) }]);
        assert!(matches!(items.next(), Some(Err(Error::Decode { key, .. })) if key == "b"));
        assert!(items.next().is_none());
    }
}
