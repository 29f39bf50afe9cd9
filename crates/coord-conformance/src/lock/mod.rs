//! The promises of [`DistributedLock`](coord_api::DistributedLock) and its guard.

pub(crate) mod again;
pub(crate) mod cancel;
pub(crate) mod exclusion;
pub(crate) mod health;
pub(crate) mod holders;
pub(crate) mod loss;
pub(crate) mod queue;
pub(crate) mod random;
pub(crate) mod vanish;
pub(crate) mod waiting;
