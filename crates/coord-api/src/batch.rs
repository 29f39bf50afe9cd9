//! Several config writes that happen together or not at all.

use std::fmt;

use bytes::Bytes;
use serde::Serialize;

use crate::{ConfigKey, Error, Fence, FencingToken, Hold, LossReason, Result, Version, json};

/// The largest value, and the largest sum of values of one batch, in bytes: 1 MiB.
pub const MAX_VALUE_BYTES: usize = 1 << 20;

/// The most keys that one batch writes, and the most conditions that it has: versions and locks together. Keys
/// [beside](ConfigKey::beside) the values, of which a checked or recorded write adds some, are counted apart.
pub const MAX_BATCH_KEYS: usize = 60;

/// Writes for [`ConfigCenter::commit`](crate::ConfigCenter::commit), checked as they are added.
///
/// ```
/// use coord_api::{Batch, Version};
/// let batch = Batch::new()
///     .require("limits/upload", Version::ABSENT)?
///     .set("limits/upload", &10)?
///     .delete("limits/old-upload")?;
/// assert_eq!(batch.writes().len(), 2);
/// # Ok::<(), coord_api::Error>(())
/// ```
#[derive(Clone, Default)]
#[must_use = "a batch does nothing until it is committed"]
pub struct Batch {
    requirements: Vec<(ConfigKey, Version)>,
    held: Vec<HeldLock>,
    writes: Vec<Write>,
}

/// A lock that must be held by one particular holder.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct HeldLock {
    /// The key of the holder in the store.
    pub key: String,
    /// The token of the holder.
    pub token: FencingToken,
    hold: Hold,
}

impl HeldLock {
    /// Takes note that the store knows nothing of this hold any more, so that its guard learns it now. For backends.
    pub fn refused(&self) {
        self.hold.end(LossReason::Revoked);
    }
}

impl PartialEq for HeldLock {
    fn eq(&self, other: &Self) -> bool {
        (&self.key, self.token) == (&other.key, other.token)
    }
}

impl Eq for HeldLock {}

/// Write of a [`Batch`].
#[derive(Clone, PartialEq, Eq)]
pub enum Write {
    /// Write this JSON.
    Set(ConfigKey, Bytes),
    /// Delete the key.
    Delete(ConfigKey),
}

impl Write {
    /// New value; `None` for a deletion.
    pub fn json(&self) -> Option<&Bytes> {
        match self {
            Self::Set(_, json) => Some(json),
            Self::Delete(_) => None,
        }
    }

    /// The key that is written or deleted.
    pub fn key(&self) -> &ConfigKey {
        match self {
            Self::Set(key, _) | Self::Delete(key) => key,
        }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(key, value) => write!(f, "Set({key:?}, {} bytes)", value.len()),
            Self::Delete(key) => write!(f, "Delete({key:?})"),
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("requirements", &self.requirements)
            .field("held", &self.held)
            .field("writes", &self.writes)
            .finish()
    }
}

/// Result of a committed batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Committed {
    /// The version of every key that the batch set.
    pub version: Version,
    /// How many keys it deleted that existed.
    pub deleted: usize,
}

impl Committed {
    /// The outcome of a batch, for backends.
    pub fn new(version: Version, deleted: usize) -> Self {
        Self { version, deleted }
    }
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes only if `key` is at `version`; [`Version::ABSENT`] means that it must not exist.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad key or too many keys.
    pub fn require(self, key: &str, version: Version) -> Result<Self> {
        self.require_at(ConfigKey::parse(key)?, version)
    }

    /// As [`require`](Self::require), for a parsed key.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for too many keys.
    pub fn require_at(mut self, key: ConfigKey, version: Version) -> Result<Self> {
        if self.requirements.iter().any(|(other, _)| *other == key) {
            return Err(Error::invalid("batch", format!("requires a version of `{key}` twice")));
        }
        self.requirements.push((key, version));
        self.within_limits()
    }

    /// Writes only while `guard` holds its lock, or its term lasts. The store checks it in the same transaction, so a holder
    /// that lost the lock without knowing it changes nothing. A write that arrives after the holder's own
    /// deadline, but before the store has freed the lock, is still written: nobody else holds it then.
    ///
    /// The lock and the config center must be of the same store and namespace.
    ///
    /// # Errors
    /// [`Error::Lost`] if the guard knows already; then [`commit`](crate::ConfigCenter::commit) answers
    /// [`Error::Lost`] if the store knows, and the guard has lost its lock from then on. [`Error::InvalidArgument`] for too many guards.
    pub fn while_held(mut self, guard: &(impl Fence + ?Sized)) -> Result<Self> {
        let fenced = guard.fenced();
        fenced.hold.check()?;
        fenced.hold.fences();
        let (key, token, hold) = (fenced.key.to_owned(), fenced.token, fenced.hold.clone());
        self.held.push(HeldLock { key, token, hold });
        self.within_limits()
    }

    /// Writes `value` as JSON.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad key, a key that is written twice or a value that JSON can not
    /// express; [`Error::TooLarge`] above [`MAX_VALUE_BYTES`].
    pub fn set<T: Serialize + ?Sized>(self, key: &str, value: &T) -> Result<Self> {
        self.set_at(ConfigKey::parse(key)?, value)
    }

    /// As [`set`](Self::set), for a parsed key, which may be [beside](ConfigKey::beside) the values.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub fn set_at<T: Serialize + ?Sized>(self, key: ConfigKey, value: &T) -> Result<Self> {
        let json = json::write(key.as_str(), value)?;
        self.set_json_at(key, json)
    }

    /// Writes JSON text as it is.
    ///
    /// # Errors
    /// As [`set`](Self::set). [`Error::InvalidArgument`], with the key and the JSON path, if the text is not
    /// JSON, or not read by everyone as it is written, such as a repeated field.
    pub fn set_json(self, key: &str, json: impl Into<Bytes>) -> Result<Self> {
        self.set_json_at(ConfigKey::parse(key)?, json)
    }

    /// Writes JSON text as it is, for a parsed key, which may be [beside](ConfigKey::beside) the values.
    ///
    /// # Errors
    /// As [`set_json`](Self::set_json).
    pub fn set_json_at(self, key: ConfigKey, json: impl Into<Bytes>) -> Result<Self> {
        let json = json.into();
        if json.len() > MAX_VALUE_BYTES {
            return Err(Error::TooLarge { field: "value", size: json.len(), limit: MAX_VALUE_BYTES });
        }
        // A sidecar may have a value within, of the greatest depth.
        json::check(&json, json::MAX_DEPTH + usize::from(key.is_beside()))
            .map_err(|flaw| flaw.of(key.as_str()))?;
        self.write(Write::Set(key, json))
    }

    /// Deletes `key`, if it exists.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad key or a key that is written twice.
    pub fn delete(self, key: &str) -> Result<Self> {
        self.delete_at(ConfigKey::parse(key)?)
    }

    /// As [`delete`](Self::delete), for a parsed key.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a key that is written twice.
    pub fn delete_at(self, key: ConfigKey) -> Result<Self> {
        self.write(Write::Delete(key))
    }

    /// The versions that keys must have.
    pub fn requirements(&self) -> &[(ConfigKey, Version)] {
        &self.requirements
    }

    /// The locks that must be held.
    pub fn held(&self) -> &[HeldLock] {
        &self.held
    }

    /// The writes, in the order in which they were added; no key twice.
    pub fn writes(&self) -> &[Write] {
        &self.writes
    }

    fn write(mut self, write: Write) -> Result<Self> {
        if self.writes.iter().any(|other| other.key() == write.key()) {
            return Err(Error::invalid("batch", format!("writes `{}` twice", write.key())));
        }
        self.writes.push(write);
        self.within_limits()
    }

    fn within_limits(self) -> Result<Self> {
        // Data about values is counted apart, so that it takes no room from the caller's own keys.
        let count = |beside: bool| {
            let conditions = self.requirements.iter().filter(|(key, _)| key.is_beside() == beside).count();
            let writes = self.writes.iter().filter(|write| write.key().is_beside() == beside).count();
            writes.max(conditions + if beside { 0 } else { self.held.len() })
        };
        if count(false) > MAX_BATCH_KEYS || count(true) > MAX_BATCH_KEYS {
            return Err(Error::invalid("batch", format!("has more than {MAX_BATCH_KEYS} keys")));
        }
        let size = self.writes.iter().map(|w| if let Write::Set(_, json) = w { json.len() } else { 0 }).sum();
        if size > MAX_VALUE_BYTES {
            return Err(Error::TooLarge { field: "batch", size, limit: MAX_VALUE_BYTES });
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Entry;

    #[test]
    fn every_limit_is_told_with_its_field() {
        let message = |outcome: Result<Batch>| outcome.expect_err("is refused").to_string();
        let filled = (0..MAX_BATCH_KEYS)
            .try_fold(Batch::new(), |batch, n| batch.delete(&format!("k{n}")))
            .expect("is within the limit");
        let half = "x".repeat(MAX_VALUE_BYTES / 2);
        let two_halves = Batch::new().set("a", &half).and_then(|batch| batch.set("b", &half));
        let table = [
            (message(filled.delete("one-more")), "invalid batch: has more than 60 keys"),
            (message(two_halves), "batch has 1048580 bytes, the limit is 1048576"),
            (
                message(Batch::new().set("a", &"x".repeat(MAX_VALUE_BYTES - 1))),
                "value has 1048577 bytes, the limit is 1048576",
            ),
            (message(Batch::new().set("", &1)), "invalid config key: is empty, it needs 1 to 255 bytes"),
            (
                message(Batch::new().set("a", &1).and_then(|batch| batch.delete("a"))),
                "invalid batch: writes `a` twice",
            ),
            (
                message(Batch::new().set_json("a", "{")),
                "invalid value: of `a` is not JSON: EOF while parsing an object at line 1 column 1",
            ),
        ];
        for (message, expected) in table {
            assert_eq!(message, expected);
        }
        let nested = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(message(Batch::new().set_json("a", nested(128))).contains("deeper than 127 levels"));
        let deepest = Entry::new("a", Version::new(1), nested(127));
        assert!(deepest.decode::<serde_json::Value>().is_ok(), "what can be written can be read");
        assert!(Batch::new().set_json("a", nested(127)).is_ok());
        assert!(message(Batch::new().set_json("a", "[1e999]")).contains("number out of range"));
        assert!(message(Batch::new().set_json("a", vec![b'"', 0xff, b'"'])).contains("is not UTF-8"));
        assert!(Batch::new().set("a", &"x".repeat(MAX_VALUE_BYTES - 2)).is_ok());
    }

    #[test]
    fn debug_hides_values() {
        let batch = Batch::new().set("a", "s3cret").expect("is valid");
        assert!(!format!("{batch:?}").contains("s3cret"));
    }
}
