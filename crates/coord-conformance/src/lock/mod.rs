//! The promises of [`DistributedLock`](coord_api::DistributedLock) and its guard.

pub(crate) mod cancel;
pub(crate) mod exclusion;
pub(crate) mod loss;
pub(crate) mod queue;
