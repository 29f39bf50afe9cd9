//! Instance ids: small numbers, unique among the living instances of a service.

use std::{fmt, num::NonZeroU32};

use async_trait::async_trait;

use crate::{Lost, Result};

/// Gives this process at most one id out of `1..max_id`.
///
/// # Contract
/// - No two holders have one id at the same time, by their own belief: [`lost`](Self::lost) fires before
///   the id is given to anyone else. A lost id never comes back; the next `acquire_id` may give another.
/// - The id lives on a lease that coord renews, so a crashed holder's id is free again after the TTL.
/// - An allocator holds at most one id. Several allocators, also of one process, hold different ids.
/// - **Fair.** Those who wait with `acquire_id` are served in the order in which they asked, also across
///   processes.
/// - Services never meet: the same id may be held once in each.
///
/// # Cancel safety
/// Every future here may be dropped at any point: no id stays taken by nobody.
///
/// # Example
/// ```
/// use coord_api::{InstanceIdAllocator, Provider};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = coord_memory::Store::new();
/// let allocator = store.client().instance_id_allocator("im-gateway", 1023)?;
/// let id = allocator.acquire_id().await?;
/// assert_eq!(allocator.id(), Some(id));
/// println!("gochat.messages.downstream.{id}");
/// allocator.release_id().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait InstanceIdAllocator: fmt::Debug + Send + Sync {
    /// Waits until an id is free and takes it. Returns the id that is held already, if one is.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Unavailable`](crate::Error::Unavailable),
    /// [`Error::Timeout`](crate::Error::Timeout); nothing stays taken.
    async fn acquire_id(&self) -> Result<NonZeroU32>;

    /// Takes an id if one is free now. Returns the id that is held already, if one is.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted) when every id is taken; others as
    /// [`acquire_id`](Self::acquire_id).
    async fn try_acquire_id(&self) -> Result<NonZeroU32>;

    /// The id that is held now; `None` before it is acquired, after it is released and once it is lost.
    fn id(&self) -> Option<NonZeroU32>;

    /// A future of the loss of the id that was acquired last; `None` if there is none.
    fn lost(&self) -> Option<Lost>;

    /// Gives the id back. Without an id this is `Ok`.
    ///
    /// # Errors
    /// [`Error::Lost`](crate::Error::Lost) if the id was no longer held: it is not touched, someone else may
    /// have it. On any other error the release goes on in the background.
    async fn release_id(&self) -> Result<()>;
}

/// Checks the bound of a range of ids.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) below 2 (the range would be empty) or above
/// [`MAX_MAX_ID`].
pub fn check_max_id(max_id: u32) -> Result<()> {
    if (2..=MAX_MAX_ID).contains(&max_id) {
        return Ok(());
    }
    let reason = format!("{max_id} is not within 2 and {MAX_MAX_ID}; ids are 1 to max_id - 1");
    Err(crate::Error::invalid("max_id", reason))
}

/// The largest `max_id`: 2^20, a generous bound for instances of one service.
pub const MAX_MAX_ID: u32 = 1 << 20;
