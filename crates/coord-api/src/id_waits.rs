//! Waiting for an id for a limited time.

use std::{num::NonZeroU32, time::Duration};

use tokio::time::{Instant, sleep};

use crate::{
    Error, InstanceIdAllocator, Result,
    backend::waiting::{FIRST_WORD, until},
};

/// Name of the operation in errors.
const OPERATION: &str = "acquire an id";

/// Sugar over every [`InstanceIdAllocator`].
pub trait InstanceIdAllocatorExt: InstanceIdAllocator {
    /// Waits at most `wait` for an id. A wait of zero is [`try_acquire_id`](InstanceIdAllocator::try_acquire_id). Within
    /// its time it outlasts outages.
    ///
    /// # Errors
    /// [`Error::Exhausted`] only if the store has said that every id is taken. A store that does not answer in the time is
    /// [`Error::Unavailable`] or [`Error::Timeout`]; it has half a second at least, however short `wait` is. Others as
    /// [`acquire_id`](InstanceIdAllocator::acquire_id).
    ///
    /// # Cancel safety
    /// As [`acquire_id`](InstanceIdAllocator::acquire_id).
    ///
    /// # Example
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{Error, InstanceIdAllocator, InstanceIdAllocatorExt, Provider};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = coord_memory::Store::new().client();
    /// let (one, other) =
    ///     (client.instance_id_allocator("im-gateway", 2)?, client.instance_id_allocator("im-gateway", 2)?);
    /// one.acquire_id_within(Duration::ZERO).await?;
    /// let answer = other.acquire_id_within(Duration::from_millis(100)).await;
    /// assert!(matches!(answer, Err(Error::Exhausted { .. })));
    /// client.disconnect();
    /// let answer = other.acquire_id_within(Duration::from_millis(100)).await;
    /// assert!(matches!(answer, Err(Error::Unavailable { .. })), "nobody knows");
    /// # Ok(()) }
    /// ```
    fn acquire_id_within(&self, wait: Duration) -> impl Future<Output = Result<NonZeroU32>> + Send {
        async move {
            if wait.is_zero() {
                return self.try_acquire_id().await;
            }
            let now = Instant::now();
            // A moment that the clock can not count does not come.
            let (end, word) = (now.checked_add(wait), now.checked_add(wait.max(FIRST_WORD)));
            let mut reason = Error::Timeout { operation: OPERATION, after: wait.max(FIRST_WORD) };
            loop {
                match until(word, self.try_acquire_id()).await {
                    Some(Err(exhausted @ Error::Exhausted { .. })) => {
                        match until(end, self.acquire_id()).await {
                            None => return Err(exhausted),
                            // The last answer of the store no longer counts.
                            Some(Err(error)) if error.is_retryable() => reason = error,
                            Some(answer) => return answer,
                        }
                    }
                    Some(Err(error)) if error.is_retryable() => reason = error,
                    Some(answer) => return answer,
                    None => return Err(reason),
                }
                let pause = Duration::from_millis(fastrand::u64(50..250));
                if until(end, sleep(pause)).await.is_none() {
                    return Err(reason);
                }
            }
        }
    }
}

impl<A: InstanceIdAllocator + ?Sized> InstanceIdAllocatorExt for A {}
