//! Config writes: as transactions, each with an outcome that is always known, and together where several wait.

mod slot;
mod together;
mod txn;

pub(crate) use slot::{InUse, Settled, Slots};
pub(crate) use together::{Together, Way};
pub(crate) use txn::{deleted, deletions, refusal, transaction};

/// What is tried when config values are written.
pub(crate) const WRITE: &str = "write config values";
