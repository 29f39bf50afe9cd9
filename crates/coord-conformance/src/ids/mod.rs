//! The promises of [`InstanceIdAllocator`](coord_api::InstanceIdAllocator).

use coord_api::InstanceIdAllocator;

use crate::tools::{LIMIT, within};

pub(crate) mod loss;
pub(crate) mod random;
pub(crate) mod range;
pub(crate) mod rest;
pub(crate) mod snowflake;
pub(crate) mod waiting;

/// Takes an id that must become free soon.
async fn acquire(allocator: &dyn InstanceIdAllocator) -> u32 {
    within(LIMIT, allocator.acquire_id()).await.expect("becomes free").get()
}
