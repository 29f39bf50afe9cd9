//! History of a value: who changed it, when and why, and the rollback.
//!
//! Beside the value there are an index with what is known of the last versions, and a ring of places with the
//! values themselves. All are written in the transaction that writes the value, on the condition that nobody
//! wrote the value or the index since they were read. So the history has exactly the recorded writes, in
//! order, and its size is bounded. A value that was written without a record is found by the next recorded
//! write, which takes it in.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use coord_api::{
    Batch, ConfigCenter, ConfigKey, Entry, Error, MAX_VALUE_BYTES, Result, Scope, Version, backend::Backoff,
    backend::to_json,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::diff::{Difference, differences};

/// How many versions of a key are kept.
pub const MAX_HISTORY: usize = 20;

/// The longest comment, in bytes.
pub const MAX_COMMENT_BYTES: usize = 512;

/// The largest value that can be recorded, in bytes: it is written twice in one transaction.
pub const MAX_RECORDED_BYTES: usize = 384 << 10;

/// Recorded version of a key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// The version that was written; [`Version::ABSENT`] never.
    pub version: Version,
    /// Author: as its writer gave it, else the label of its client, else its host, process and client. `None`
    /// for a value that was written without a record, and found by the next recorded write.
    pub author: Option<String>,
    /// When, by the writer's clock; when it was found, if it was found.
    pub at: SystemTime,
    /// Why, if the writer said it.
    pub comment: Option<String>,
    /// Whether the key was deleted by it.
    pub deleted: bool,
}

/// As it is stored: the version of the latest is that of the index itself, which nobody knows beforehand.
#[derive(Clone, Serialize, Deserialize)]
struct Stored {
    number: u64,
    version: Version,
    /// `None` if it was found; the copy of its value then has the version of the record after it, which took it in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    author: Option<String>,
    at_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    comment: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

/// The highest number of a record; whatever writes each nanosecond does not get there.
const HIGHEST: u64 = u64::MAX >> 1;

/// The last versions, the oldest first.
struct Index {
    version: Version,
    records: Vec<Stored>,
}

/// History of a config center.
pub trait HistoryExt {
    /// Writes to `key` with a record of who, when and why.
    ///
    /// Recording is chosen write by write. It costs a read, and the value is stored twice; values that a
    /// program writes all the time should not pay for that. A value that was written without a record, by
    /// `set` or by another program, is not lost: the next recorded write takes it into the history. Its
    /// author is unknown, and a rollback brings it back. Of several in between, the last is taken.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Provider};
    /// use coord_config::HistoryExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # let config = coord_memory::Store::new().client().config();
    /// let first = config.record("limits").author("ann").comment("launch").set(&10).await?;
    /// let second = config.record("limits").author("bob").comment("more").set(&1000).await?;
    /// for record in config.history("limits").await? {
    ///     println!("{}: {:?} {:?}", record.version, record.author, record.comment);
    /// }
    /// for difference in config.diff("limits", first, second).await? {
    ///     println!("{difference}");
    /// }
    /// config.record("limits").author("ann").rollback(first).await?;
    /// assert_eq!(config.get::<u32>("limits").await?.expect("exists").value, 10);
    /// # Ok(()) }
    /// ```
    fn record(&self, key: &str) -> Recorder;

    /// The recorded versions of `key`, the latest first, at most [`MAX_HISTORY`].
    ///
    /// # Errors
    /// [`Error::Decode`] if another program has overwritten the history, which the next recorded write begins anew;
    /// others as [`ConfigCenter::read`].
    fn history(&self, key: &str) -> impl Future<Output = Result<Vec<Record>>> + Send;

    /// The value of a recorded version, as JSON; `None` for a deletion.
    ///
    /// # Errors
    /// [`Error::Missing`] if the version was not recorded, or is not kept any more. It is also missing if it
    /// was no JSON, or too large to keep with the value after it. Others as [`ConfigCenter::read`].
    fn recorded(&self, key: &str, version: Version) -> impl Future<Output = Result<Option<Entry>>> + Send;

    /// Removes the history of `key` with all copies of values, whether the key exists or not, and tells whether there was
    /// any. A deleted key keeps its history, for a rollback, until this is called.
    ///
    /// ```
    /// use coord_api::Provider;
    /// use coord_config::HistoryExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # let config = coord_memory::Store::new().client().config();
    /// config.record("limits").set(&10).await?;
    /// config.record("limits").delete().await?;
    /// assert!(config.forget_history("limits").await?);
    /// assert!(config.history("limits").await?.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad key; others as [`ConfigCenter::commit`].
    fn forget_history(&self, key: &str) -> impl Future<Output = Result<bool>> + Send;

    /// Returns the difference between two recorded versions, by JSON pointer. A deletion counts as `null`.
    ///
    /// # Errors
    /// As [`recorded`](Self::recorded).
    fn diff(
        &self,
        key: &str,
        from: Version,
        to: Version,
    ) -> impl Future<Output = Result<Vec<Difference>>> + Send;
}

impl HistoryExt for Arc<dyn ConfigCenter> {
    async fn forget_history(&self, key: &str) -> Result<bool> {
        let key = ConfigKey::parse(key)?;
        let places = (0..MAX_HISTORY as u64).map(|number| place_of(&key, number));
        let all = places.chain([index_of(&key)]).try_fold(Batch::new(), Batch::delete_at)?;
        Ok(self.commit(all).await?.deleted > 0)
    }

    fn record(&self, key: &str) -> Recorder {
        let (center, key) = (self.clone(), key.to_owned());
        Recorder { center, key, author: None, comment: None, expected: None }
    }

    async fn history(&self, key: &str) -> Result<Vec<Record>> {
        let index = read_index(&**self, &ConfigKey::parse(key)?).await?;
        Ok(index.records.into_iter().rev().map(Stored::record).collect())
    }

    async fn recorded(&self, key: &str, version: Version) -> Result<Option<Entry>> {
        find(&**self, &ConfigKey::parse(key)?, version).await
    }

    async fn diff(&self, key: &str, from: Version, to: Version) -> Result<Vec<Difference>> {
        let key = ConfigKey::parse(key)?;
        let value = |entry: Option<Entry>| match entry {
            Some(entry) => entry.decode::<Box<RawValue>>(),
            None => Ok(RawValue::NULL.to_owned()),
        };
        let old = value(find(&**self, &key, from).await?)?;
        let new = value(find(&**self, &key, to).await?)?;
        Ok(differences(old.get(), new.get()))
    }
}

/// A write to be recorded; from [`HistoryExt::record`].
#[derive(Clone, Debug)]
#[must_use = "nothing is written until `set`, `delete` or `rollback`"]
pub struct Recorder {
    center: Arc<dyn ConfigCenter>,
    key: String,
    author: Option<String>,
    comment: Option<String>,
    expected: Option<Version>,
}

impl Recorder {
    /// Sets the author, if it is not the client itself: the person at a console, for example.
    pub fn author(mut self, author: impl Into<String>) -> Self {
        self.author = Some(author.into());
        self
    }

    /// Why.
    pub fn comment(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }

    /// Writes only if the key is at this version, as
    /// [`compare_and_set`](coord_api::ConfigExt::compare_and_set).
    pub fn expecting(mut self, version: Version) -> Self {
        self.expected = Some(version);
        self
    }

    /// Writes `value` and returns its version.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] for a bad key, value, author or comment, and [`Error::TooLarge`] above
    ///   [`MAX_RECORDED_BYTES`], before anything is sent;
    /// - [`Error::Conflict`] if the key is not at the expected version;
    /// - others as [`ConfigCenter::commit`].
    pub async fn set<T: Serialize + Sync + ?Sized>(self, value: &T) -> Result<Version> {
        let json = raw(&ConfigKey::parse(&self.key)?, value)?;
        self.write(Some(json), Ok).await
    }

    /// Deletes the key and returns the version of the deletion.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn delete(self) -> Result<Version> {
        self.write(None, Ok).await
    }

    /// Writes again what `version` was, as a new version. Without a comment the record says so.
    ///
    /// # Errors
    /// [`Error::Missing`] if the version was not recorded, or is not kept any more; others as [`set`](Self::set).
    pub async fn rollback(mut self, version: Version) -> Result<Version> {
        let found = find(&*self.center, &ConfigKey::parse(&self.key)?, version).await?;
        let json = match found {
            Some(entry) => Some(entry.decode::<Box<RawValue>>()?),
            None => None,
        };
        self.comment.get_or_insert_with(|| format!("rollback to version {version}"));
        self.write(json, Ok).await
    }

    /// Adds the write of `value` and its record to a batch instead of committing it. Several keys can so be
    /// written at once, each with its record.
    ///
    /// The commit answers [`Error::Conflict`] if the key or its history was written since. Then begin the batch anew.
    ///
    /// ```
    /// use coord_api::{Batch, ConfigCenter, Provider};
    /// use coord_config::HistoryExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # let config = coord_memory::Store::new().client().config();
    /// let mut batch = Batch::new();
    /// for (key, value) in [("rooms", 10), ("members", 500)] {
    ///     batch = config.record(key).comment("launch").add_to(batch, &value).await?;
    /// }
    /// config.commit(batch).await?;
    /// assert_eq!(config.history("rooms").await?[0].comment.as_deref(), Some("launch"));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`set`](Self::set) without `Conflict`, and [`Error::TooLarge`] or [`Error::InvalidArgument`] if the batch can
    /// not take it any more.
    pub async fn add_to<T: Serialize + Sync + ?Sized>(self, batch: Batch, value: &T) -> Result<Batch> {
        let key = ConfigKey::parse(&self.key)?;
        let write = Write { json: Some(raw(&key, value)?), author: self.author_checked()?, key };
        write.check()?;
        self.plan(batch, &write).await
    }

    /// Writes the value and its record, with what `also` adds to the transaction.
    pub(crate) async fn write(
        self,
        json: Option<Box<RawValue>>,
        also: impl Fn(Batch) -> Result<Batch>,
    ) -> Result<Version> {
        let write = Write { key: ConfigKey::parse(&self.key)?, json, author: self.author_checked()? };
        write.check()?;
        let index_key = index_of(&write.key);
        let mut backoff = Backoff::new(Duration::from_millis(2), Duration::from_millis(500));
        loop {
            let batch = self.plan(Batch::new(), &write).await?;
            match self.center.commit(also(batch)?).await {
                Ok(committed) => return Ok(committed.version),
                Err(Error::Conflict { key: changed, .. })
                    if changed == index_key.as_str()
                        || changed == write.key.as_str() && self.expected.is_none() =>
                {
                    tokio::time::sleep(backoff.pause()).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Adds the write and its record to a batch, on the condition that neither key nor history is written meanwhile.
    async fn plan(&self, batch: Batch, write: &Write) -> Result<Batch> {
        let Write { key, json, author } = write;
        let index_key = index_of(key);
        let (index, found) = futures::try_join!(
            index_to_write(&*self.center, key),
            self.center.read(Scope::Key(key.as_str()))
        )?;
        let Index { version, mut records } = index;
        let at = found.first().map_or(Version::ABSENT, Entry::version);
        // A recorded value has the version of its index.
        let found = found.into_iter().next().filter(|found| found.version() != version);
        let mut number = records.last().map_or(0, |last| last.number + 1);
        let found = found.map(|found| {
            let (place, at_ms) = (place_of(key, number), now_ms());
            let version = found.version();
            records.push(Stored { number, version, author: None, at_ms, comment: None, deleted: false });
            number += 1;
            (place, found)
        });
        records.push(Stored {
            number,
            version: Version::ABSENT,
            author: Some(author.clone()),
            at_ms: now_ms(),
            comment: self.comment.clone(),
            deleted: json.is_none(),
        });
        let surplus = records.len().saturating_sub(MAX_HISTORY);
        records.drain(..surplus);
        // The value first, so that its conflict is told before one of the index.
        let mut batch = batch.require_at(key.clone(), self.expected.unwrap_or(at))?;
        batch = batch.require_at(index_key.clone(), version)?.set_at(index_key, &records)?;
        let place = place_of(key, number);
        batch = match json {
            Some(json) => {
                let json = Bytes::from(json.get().to_owned());
                batch.set_json_at(key.clone(), json.clone())?.set_json_at(place, json)?
            }
            None => batch.delete_at(key.clone())?.delete_at(place)?,
        };
        let Some((place, found)) = found else { return Ok(batch) };
        // Of a value that is no JSON it is told that there was one.
        let with_copy = batch.clone().set_json_at(place.clone(), found.as_bytes().clone());
        with_copy.or_else(|_| batch.delete_at(place))
    }

    fn author_checked(&self) -> Result<String> {
        if let Some(comment) = &self.comment
            && (comment.len() > MAX_COMMENT_BYTES || comment.chars().any(|c| c.is_control() && c != '\n'))
        {
            let reason = format!("needs at most {MAX_COMMENT_BYTES} bytes without control characters");
            return Err(Error::invalid("comment", reason));
        }
        let Some(author) = &self.author else {
            let owner = self.center.owner();
            return Ok(owner.label.clone().unwrap_or_else(|| owner.to_string()));
        };
        coord_api::Owner::check_label(author).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => Error::invalid("author", reason),
            other => other,
        })?;
        Ok(author.clone())
    }
}

/// Recorded write: a value, or with no JSON a deletion.
struct Write {
    key: ConfigKey,
    json: Option<Box<RawValue>>,
    author: String,
}

impl Write {
    fn check(&self) -> Result<()> {
        let size = self.json.as_ref().map_or(0, |json| json.get().len());
        if size > MAX_RECORDED_BYTES {
            return Err(Error::TooLarge { field: "recorded value", size, limit: MAX_RECORDED_BYTES });
        }
        Ok(())
    }
}

impl Stored {
    fn record(self) -> Record {
        let Self { version, author, at_ms, comment, deleted, .. } = self;
        Record { version, author, at: moment(at_ms), comment, deleted }
    }
}

/// A value as JSON, of which nothing is lost.
pub(crate) fn raw<T: Serialize + ?Sized>(key: &ConfigKey, value: &T) -> Result<Box<RawValue>> {
    let json = RawValue::from_string(to_json(key.as_str(), value)?);
    json.map_err(|error| Error::invalid("value", format!("of `{key}` can not be written as JSON: {error}")))
}

/// A time of another program, which may be one that this system can not express.
pub(crate) fn moment(at_ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(at_ms)).unwrap_or(UNIX_EPOCH)
}

fn index_of(key: &ConfigKey) -> ConfigKey {
    key.beside("history", "index")
}

fn place_of(key: &ConfigKey, number: u64) -> ConfigKey {
    key.beside("history", &(number % MAX_HISTORY as u64).to_string())
}

async fn read_index(center: &dyn ConfigCenter, key: &ConfigKey) -> Result<Index> {
    let index = index_of(key);
    let Some(entry) = center.read(Scope::Sidecar(&index)).await?.pop() else {
        return Ok(Index { version: Version::ABSENT, records: Vec::new() });
    };
    let mut records: Vec<Stored> = entry.decode()?;
    if !records.is_sorted_by(|one, next| one.number < next.number)
        || records.last().is_some_and(|last| last.number > HIGHEST)
    {
        let (key, version) = (entry.key().to_owned(), entry.version());
        return Err(Error::Decode {
            key,
            version,
            path: ".".into(),
            source: "not the index of a history".into(),
        });
    }
    if let Some(latest) = records.last_mut() {
        latest.version = entry.version();
    }
    Ok(Index { version: entry.version(), records })
}

/// The index to write on. An entry of another program must not stop all writes: a new index replaces it.
async fn index_to_write(center: &dyn ConfigCenter, key: &ConfigKey) -> Result<Index> {
    match read_index(center, key).await {
        Err(Error::Decode { version, path, source, .. }) => {
            tracing::warn!(%key, path, %source, "the history can not be read and begins anew");
            Ok(Index { version, records: Vec::new() })
        }
        read => read,
    }
}

/// Knowledge about one version of a key.
pub(crate) async fn record_of(
    center: &dyn ConfigCenter,
    key: &ConfigKey,
    version: Version,
) -> Result<Option<Record>> {
    let found = read_index(center, key).await?.records.into_iter().find(|stored| stored.version == version);
    Ok(found.map(Stored::record))
}

async fn find(center: &dyn ConfigCenter, key: &ConfigKey, version: Version) -> Result<Option<Entry>> {
    let missing = || Error::Missing { what: format!("version {version} in the history of {key}") };
    let index = read_index(center, key).await?;
    let mut records = index.records.into_iter().skip_while(|stored| stored.version != version);
    let stored = records.next().ok_or_else(missing)?;
    let copied = match stored.author {
        Some(_) => Some(version),
        None => records.next().map(|later| later.version),
    };
    if stored.deleted {
        return Ok(None);
    }
    let place = place_of(key, stored.number);
    let entry = center.read(Scope::Sidecar(&place)).await?.pop();
    // The place may have been used again since the index was read.
    let entry = entry.filter(|entry| Some(entry.version()) == copied).ok_or_else(missing)?;
    Ok(Some(Entry::new(key.as_str(), version, entry.as_bytes().clone())))
}

pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

const _: () =
    assert!(2 * MAX_RECORDED_BYTES + MAX_HISTORY * (6 * MAX_COMMENT_BYTES + 1024) <= MAX_VALUE_BYTES);
