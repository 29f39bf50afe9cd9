//! Versions of stored entries.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The revision of the store at which an entry was last written.
///
/// Versions of one key only grow. Absence is a version too: [`Version::ABSENT`], smaller than any other, so
/// that "create this key" is a compare-and-set like any other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(u64);

impl Version {
    /// The version of a key that does not exist.
    pub const ABSENT: Self = Self(0);

    /// A version from a store's revision number.
    pub const fn new(revision: u64) -> Self {
        Self(revision)
    }

    /// The store's revision number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ABSENT { f.write_str("absent") } else { self.0.fmt(f) }
    }
}
