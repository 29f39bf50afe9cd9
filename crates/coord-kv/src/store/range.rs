//! Reads: of a key, or of all keys in a range.

use std::sync::Arc;

use bytes::Bytes;

use super::{Header, LeaseId, Revision};

/// A key or every key with a prefix. Shared, since each watch is known by it in several places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Range {
    /// A single key.
    Key(Arc<str>),
    /// All keys that begin so.
    Prefix(Arc<str>),
}

/// A key with its value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Vec<u8>,
    /// The value; empty if only keys were asked for.
    pub value: Bytes,
    /// The revision at which the key was created.
    pub create_revision: Revision,
    /// The revision at which it was written last.
    pub mod_revision: Revision,
    /// The lease that it lives on; zero for none.
    pub lease: LeaseId,
}

impl KeyValue {
    /// Returns the key as text.
    ///
    /// # Errors
    /// If it is not UTF-8, as none of coord's own keys.
    pub fn key_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.key)
    }

    /// Returns the value as text.
    ///
    /// # Errors
    /// If it is not UTF-8.
    pub fn value_str(&self) -> Result<&str, std::str::Utf8Error> {
        std::str::from_utf8(&self.value)
    }
}

/// The answer to a read: what it found, ordered by key unless asked otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetAnswer {
    /// The origin of the answer; empty within a transaction, which has its own.
    pub header: Header,
    /// The pairs that were found.
    pub kvs: Vec<KeyValue>,
    /// Whether there are more than the limit.
    pub more: bool,
    /// Number of keys in the range; a store may count no further than the limit.
    pub count: i64,
}

/// The order of the found keys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// Order by key.
    #[default]
    ByKey,
    /// The key that was created last comes first.
    LatestFirst,
}

/// The keys that a read is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// The key itself.
    #[default]
    Key,
    /// All keys that begin so.
    Prefix,
    /// All keys from it on up to this one, which is not read.
    Until(Vec<u8>),
}

/// Detail in which the found keys are told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// All of them, with their values.
    #[default]
    Pairs,
    /// All of them, without their values.
    Keys,
    /// Only how many there are.
    Count,
}

/// Options of a read of a key or range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GetOptions {
    /// Extent of the keys that are meant.
    pub extent: Extent,
    /// Detail in which each key is told.
    pub detail: Detail,
    /// The most pairs; zero for all.
    pub limit: i64,
    /// The revision to look at; zero for the present.
    pub revision: Revision,
    /// The order of the found keys.
    pub order: Order,
    /// The largest revision at which a key may be created to be found; zero for any.
    pub max_create_revision: Revision,
    /// Whether a member may answer by itself, from a state of any age.
    pub is_serializable: bool,
}

impl GetOptions {
    /// Reads one key as it is now.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads all keys that begin so.
    #[must_use]
    pub fn with_prefix(self) -> Self {
        Self { extent: Extent::Prefix, ..self }
    }

    /// Reads all keys up to another one, which is not read.
    #[must_use]
    pub fn with_range(self, end: impl Into<Vec<u8>>) -> Self {
        Self { extent: Extent::Until(end.into()), ..self }
    }

    /// Reads so many at most.
    #[must_use]
    pub fn with_limit(self, limit: i64) -> Self {
        Self { limit, ..self }
    }

    /// Reads the state at a revision; zero for now.
    #[must_use]
    pub fn with_revision(self, revision: Revision) -> Self {
        Self { revision, ..self }
    }

    /// Tells the key that was created last first.
    #[must_use]
    pub fn latest_first(self) -> Self {
        Self { order: Order::LatestFirst, ..self }
    }

    /// Leaves out keys that were created later.
    #[must_use]
    pub fn with_max_create_revision(self, revision: Revision) -> Self {
        Self { max_create_revision: revision, ..self }
    }

    /// Lets any member answer by itself.
    #[must_use]
    pub fn with_serializable(self) -> Self {
        Self { is_serializable: true, ..self }
    }

    /// Leaves out values.
    #[must_use]
    pub fn with_keys_only(self) -> Self {
        Self { detail: Detail::Keys, ..self }
    }

    /// Tells only how many there are.
    #[must_use]
    pub fn with_count_only(self) -> Self {
        Self { detail: Detail::Count, ..self }
    }
}
