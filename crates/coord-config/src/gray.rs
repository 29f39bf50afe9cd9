//! Gray releases: a value for the instances of an audience, before all get it.

use std::{collections::BTreeMap, fmt, sync::Arc, time::SystemTime};

use coord_api::{Batch, ConfigCenter, ConfigKey, Entry, Error, InstanceId, Result, Scope, Version};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::HistoryExt;

/// An instance of a service, as gray releases choose them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    id: String,
    labels: BTreeMap<String, String>,
}

impl Instance {
    /// An instance of this id, which should stay the same when the process is started again.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), labels: BTreeMap::new() }
    }

    /// Adds a label.
    #[must_use]
    pub fn with(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(label.into(), value.into());
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        InstanceId::parse(&self.id).map(|_| ())
    }
}

/// Which instances get a gray value: those that have all the labels, and of these the percentage.
///
/// ```
/// use coord_config::{Audience, Instance};
/// let audience = Audience::percent(10).with("region", "eu");
/// let chosen = |n: u32| audience.has("limits", &Instance::new(format!("im-logic-{n}")).with("region", "eu"));
/// let count = (0..10_000).filter(|n| chosen(*n)).count();
/// assert!((900..1100).contains(&count));
/// assert!(!audience.has("limits", &Instance::new("im-logic-1").with("region", "us")));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Audience {
    percent: u8,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

impl Audience {
    /// Everyone who has the labels that are added.
    pub fn labelled(label: impl Into<String>, value: impl Into<String>) -> Self {
        Self::percent(100).with(label, value)
    }

    /// Share of the instances, by a hash of key and instance id. An instance that belongs to 10 percent
    /// belongs to 20 as well, and other instances come first for another key.
    pub fn percent(percent: u8) -> Self {
        Self { percent, labels: BTreeMap::new() }
    }

    /// Only who has this label with this value, as well.
    #[must_use]
    pub fn with(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(label.into(), value.into());
        self
    }

    /// Returns whether an instance belongs to it.
    pub fn has(&self, key: &str, instance: &Instance) -> bool {
        let labelled = self.labels.iter().all(|(label, value)| instance.labels.get(label) == Some(value));
        labelled && stable_hash(key, &instance.id) % 100 < u64::from(self.percent)
    }
}

/// FNV-1a over both with a byte between that neither has, mixed so that every bit counts. A part of the contract:
/// another hash would choose other instances.
fn stable_hash(key: &str, id: &str) -> u64 {
    let bytes = key.bytes().chain([0]).chain(id.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// As it is stored beside the value.
#[derive(Serialize, Deserialize)]
struct Stored {
    value: Box<RawValue>,
    audience: Audience,
    author: String,
    at_ms: u64,
}

/// A gray release under way. Its `Debug` shows no value.
#[derive(Clone)]
#[non_exhaustive]
pub struct GrayValue {
    /// The version at which it was released.
    pub version: Version,
    /// Value as it is stored: no number is read and rounded.
    pub value: Box<RawValue>,
    /// Audience of the release.
    pub audience: Audience,
    /// Author of the release.
    pub author: String,
    /// When, by the writer's clock.
    pub at: SystemTime,
}

impl fmt::Debug for GrayValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { version, audience, author, at, .. } = self;
        f.debug_struct("GrayValue")
            .field("version", version)
            .field("audience", audience)
            .field("author", author)
            .field("at", at)
            .finish_non_exhaustive()
    }
}

/// Gray releases of a config center.
pub trait GrayExt {
    /// The gray release of `key`, of which there is one at a time.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Provider};
    /// use coord_config::{Audience, GrayExt, Instance, LiveExt};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # let config = coord_memory::Store::new().client().config();
    /// config.set("limits", &10).await?;
    /// config.gray("limits").release(&50, Audience::labelled("region", "eu")).await?;
    /// let eu = config.live::<u32>("limits").instance(Instance::new("im-1").with("region", "eu")).start().await?;
    /// let us = config.live::<u32>("limits").instance(Instance::new("im-2").with("region", "us")).start().await?;
    /// assert_eq!((*eu.current(), *us.current()), (50, 10));
    /// config.gray("limits").promote().await?;
    /// assert_eq!(config.get::<u32>("limits").await?.expect("exists").value, 50);
    /// # Ok(()) }
    /// ```
    fn gray(&self, key: &str) -> GrayRelease;
}

impl GrayExt for Arc<dyn ConfigCenter> {
    fn gray(&self, key: &str) -> GrayRelease {
        GrayRelease { center: self.clone(), key: key.into() }
    }
}

/// The gray release of one key; from [`GrayExt::gray`].
///
/// A live value that [knows its instance](crate::LiveBuilder::instance) is the first of these that exists:
/// the gray value if its audience has the instance, the value of the key, the default. `get` and live values
/// without an instance know nothing of it.
#[derive(Clone, Debug)]
pub struct GrayRelease {
    center: Arc<dyn ConfigCenter>,
    key: String,
}

impl GrayRelease {
    /// Begins, or replaces value and audience of the one that is under way.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] and [`Error::TooLarge`] before anything is sent; others as
    /// [`ConfigCenter::commit`].
    pub async fn release<T: Serialize + Sync + ?Sized>(
        &self,
        value: &T,
        audience: Audience,
    ) -> Result<Version> {
        let key = ConfigKey::parse(&self.key)?;
        if audience.percent == 0 || audience.percent > 100 {
            return Err(Error::invalid(
                "audience",
                format!("{} percent are not within 1 and 100", audience.percent),
            ));
        }
        let value = crate::history::raw(&key, value)?;
        if value.get().len() > crate::MAX_RECORDED_BYTES {
            let (size, limit) = (value.get().len(), crate::MAX_RECORDED_BYTES);
            return Err(Error::TooLarge { field: "gray value", size, limit });
        }
        let owner = self.center.owner();
        let author = owner.label.clone().unwrap_or_else(|| owner.to_string());
        let stored = Stored { value, audience, author, at_ms: crate::history::now_ms() };
        Ok(self.center.commit(Batch::new().set_at(place_of(&key), &stored)?).await?.version)
    }

    /// The release that is under way, if there is one.
    ///
    /// # Errors
    /// As [`ConfigCenter::read`].
    pub async fn current(&self) -> Result<Option<GrayValue>> {
        let key = ConfigKey::parse(&self.key)?;
        let Some((version, stored)) = self.read(&key).await? else { return Ok(None) };
        let Stored { value, audience, author, at_ms } = stored;
        let at = crate::history::moment(at_ms);
        Ok(Some(GrayValue { version, value, audience, author, at }))
    }

    /// Ends it with its value for everyone: value and end are one transaction, with a record in the
    /// [history](HistoryExt::history). No instance that has the value sees another in between.
    ///
    /// # Errors
    /// [`Error::Missing`] if none is under way; [`Error::Conflict`] if it was changed meanwhile; others as
    /// [`ConfigCenter::commit`].
    pub async fn promote(&self) -> Result<Version> {
        let key = ConfigKey::parse(&self.key)?;
        let found = self.read(&key).await?;
        let missing = || Error::Missing { what: format!("a gray release of {key}") };
        let (version, stored) = found.ok_or_else(missing)?;
        let place = place_of(&key);
        let recorder = self.center.record(&self.key).comment("gray release promoted");
        let end = move |batch: Batch| batch.require_at(place.clone(), version)?.delete_at(place.clone());
        recorder.write(Some(stored.value), end).await
    }

    /// Ends it without a trace, and tells whether one was under way.
    ///
    /// # Errors
    /// As [`ConfigCenter::commit`].
    pub async fn discard(&self) -> Result<bool> {
        let key = ConfigKey::parse(&self.key)?;
        Ok(self.center.commit(Batch::new().delete_at(place_of(&key))?).await?.deleted > 0)
    }

    async fn read(&self, key: &ConfigKey) -> Result<Option<(Version, Stored)>> {
        let found = self.center.read(Scope::Sidecar(&place_of(key))).await?.pop();
        found.map(|entry| Ok((entry.version(), entry.decode()?))).transpose()
    }
}

/// Returns where the gray release of a key is.
pub(crate) fn place_of(key: &ConfigKey) -> ConfigKey {
    key.beside("gray", "")
}

/// The value of the key for `instance`, if what is stored in the place of its gray release has one.
pub(crate) fn value_for(key: &str, instance: &Instance, entry: &Entry) -> Option<Entry> {
    match entry.decode::<Stored>() {
        Ok(stored) => {
            let chosen = stored.audience.has(key, instance);
            chosen.then(|| Entry::new(key, entry.version(), stored.value.get().to_owned()))
        }
        Err(error) => {
            tracing::warn!(%error, "a gray release can not be read");
            None
        }
    }
}

/// The key and the value, if this is what is stored in the place of a gray release.
#[cfg(feature = "schema")]
pub(crate) fn released(entry: &Entry, place: &ConfigKey) -> Option<(String, serde_json::Value)> {
    let key = place.as_str().strip_prefix("gray/").filter(|_| place.is_beside())?.replace("%2F", "/");
    let stored: Stored = entry.decode().ok()?;
    Some((key, serde_json::from_str(stored.value.get()).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_stable_grow_and_differ_by_key() {
        let chosen = |key, percent: u8| -> Vec<u32> {
            let has = |n: &u32| Audience::percent(percent).has(key, &Instance::new(format!("im-{n}")));
            (0..10_000).filter(has).collect()
        };
        let (ten, thirty) = (chosen("limits", 10), chosen("limits", 30));
        assert!((900..1100).contains(&ten.len()) && (2800..3200).contains(&thirty.len()));
        assert!(ten.iter().all(|n| thirty.contains(n)));
        assert_ne!(ten, chosen("other", 10));
        assert_eq!(chosen("limits", 100).len(), 10_000);
        // Not to be changed: instances in the field would change sides.
        let pinned = [("limits", "im-1", 6_878_820_706_836_854_640), ("", "im", 16_343_099_596_175_453_696)];
        assert!(pinned.iter().all(|(key, id, hash)| stable_hash(key, id) == *hash));
    }
}
