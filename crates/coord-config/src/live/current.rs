//! State of a live value.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use coord_api::{Freshness, Version, backend::ShownPath};

use super::held::Held;

/// The value in use. It is replaced as a whole, so that all of it always belongs together. A reader of a new
/// value does not see the rejection of an older one.
pub(super) struct Current<T> {
    /// Grows with every change of the value.
    pub(super) number: u64,
    pub(super) value: Held<T>,
    pub(super) origin: Origin,
    /// The latest update, if it was refused and this value stays.
    pub(super) rejection: Option<Arc<Rejection>>,
}

/// Where the value in use comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// The store, or its snapshot file: the version of the youngest of the entries that it is made of.
    Store(Version),
    /// The snapshot file, before the store was heard: the version that it had when it was saved.
    File(Version),
    /// The default.
    Default,
    /// The key is deleted, and the value is kept: the version that it had.
    Kept(Version),
}

impl Origin {
    /// The version; [`Version::ABSENT`] for the default.
    pub fn version(self) -> Version {
        match self {
            Self::Store(version) | Self::File(version) | Self::Kept(version) => version,
            Self::Default => Version::ABSENT,
        }
    }
}

/// How far the value in use can be trusted.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveState {
    /// Whether changes arrive as they happen, or for how long they have not.
    pub freshness: Freshness,
    /// The latest update, if it was refused: the value in use is the good one before it.
    pub rejection: Option<Arc<Rejection>>,
}

impl LiveState {
    /// Returns whether the value in use is the latest in the store.
    pub fn is_good(&self) -> bool {
        self.freshness.is_fresh() && self.rejection.is_none()
    }
}

/// An update that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejection {
    /// The key.
    pub key: String,
    /// The version that was refused.
    pub version: Version,
    /// Part that refused it.
    pub cause: RejectionCause,
    /// Why, never with the value itself unless the validator or the hook says it.
    pub reason: String,
}

/// Part that refused an update.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RejectionCause {
    /// It is not of the expected type.
    Decode {
        /// Where in the JSON the first difference is.
        path: String,
    },
    /// The validator.
    Validator,
    /// The on-change hook.
    Hook,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, version, cause, reason } = self;
        write!(f, "{key} at version {version} is not used: ")?;
        match cause {
            RejectionCause::Decode { path } => write!(f, "at {}: {reason}", ShownPath(path)),
            RejectionCause::Validator => write!(f, "the validator says: {reason}"),
            RejectionCause::Hook => write!(f, "the on-change hook says: {reason}"),
        }
    }
}

/// Counters of a live value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LiveCounters {
    /// Changes of the value.
    pub changes: u64,
    /// Updates that were refused, and values that panicked when they were dropped.
    pub rejections: u64,
    /// Deletions of the key.
    pub deletions: u64,
    /// Times that the state was read anew after a gap.
    pub snapshots: u64,
    /// Differences that only the periodic comparison with the store has found.
    pub reconciliations: u64,
    /// Snapshot files that could not be written.
    pub file_errors: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) changes: AtomicU64,
    pub(super) rejections: Arc<AtomicU64>,
    pub(super) deletions: AtomicU64,
    pub(super) snapshots: AtomicU64,
    pub(super) reconciliations: AtomicU64,
    pub(super) file_errors: Arc<AtomicU64>,
}

pub(super) fn count(counter: &AtomicU64) {
    // A reader that sees the count sees the counted change.
    counter.fetch_add(1, Ordering::Release);
}

impl Counters {
    pub(super) fn read(&self) -> LiveCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Acquire);
        LiveCounters {
            changes: read(&self.changes),
            rejections: read(&self.rejections),
            deletions: read(&self.deletions),
            snapshots: read(&self.snapshots),
            reconciliations: read(&self.reconciliations),
            file_errors: read(&self.file_errors),
        }
    }
}
