//! Config writes: as transactions, each with an outcome that is always known, and together where several wait.

mod batcher;
mod marker;
mod txn;

pub(crate) use batcher::{Together, Way};
pub(crate) use marker::{InUse, Settled, Slots};
pub(crate) use txn::{deleted, deletions, refusal, transaction};

/// What is tried when config values are written.
pub(crate) const WRITE: &str = "write config values";
