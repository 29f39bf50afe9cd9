//! "At most one id", once for all backends.

use std::{fmt, num::NonZeroU32, sync::Mutex};

use async_trait::async_trait;

use super::Place;
use crate::{InstanceIdAllocator, Lost, Result};

/// How a backend claims ids of one service and range.
#[async_trait]
pub trait IdSource: fmt::Debug + Send + Sync + 'static {
    /// Waits for a free id and claims it. If the future is dropped, nothing stays claimed.
    ///
    /// # Errors
    /// As [`InstanceIdAllocator::acquire_id`].
    async fn claim(&self) -> Result<ClaimedId>;

    /// Claims an id that is free now.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted) when none is.
    async fn try_claim(&self) -> Result<ClaimedId>;
}

/// An id with the place it takes in the store.
#[derive(Debug)]
pub struct ClaimedId {
    id: NonZeroU32,
    place: Place,
}

impl ClaimedId {
    /// An id that a backend has claimed.
    pub fn new(id: NonZeroU32, place: Place) -> Self {
        Self { id, place }
    }
}

/// An [`InstanceIdAllocator`] over a backend's [`IdSource`].
#[derive(Debug)]
pub struct IdAllocator<S> {
    source: S,
    claimed: Mutex<Option<ClaimedId>>,
    /// Held while an id is being acquired, so that two tasks end up with the same one.
    acquiring: tokio::sync::Mutex<()>,
}

impl<S: IdSource> IdAllocator<S> {
    /// An allocator that holds nothing yet.
    pub fn new(source: S) -> Self {
        Self { source, claimed: Mutex::new(None), acquiring: tokio::sync::Mutex::new(()) }
    }

    fn claimed(&self) -> std::sync::MutexGuard<'_, Option<ClaimedId>> {
        self.claimed.lock().expect("nothing panics while this is locked")
    }

    async fn acquire(&self, claim: impl Future<Output = Result<ClaimedId>>) -> Result<NonZeroU32> {
        let _one_at_a_time = self.acquiring.lock().await;
        if let Some(id) = self.id() {
            return Ok(id);
        }
        let claimed = claim.await?;
        let id = claimed.id;
        *self.claimed() = Some(claimed);
        Ok(id)
    }
}

#[async_trait]
impl<S: IdSource> InstanceIdAllocator for IdAllocator<S> {
    async fn acquire_id(&self) -> Result<NonZeroU32> {
        self.acquire(self.source.claim()).await
    }

    async fn try_acquire_id(&self) -> Result<NonZeroU32> {
        self.acquire(self.source.try_claim()).await
    }

    fn id(&self) -> Option<NonZeroU32> {
        self.claimed()
            .as_ref()
            .filter(|claimed| claimed.place.hold().loss().is_none())
            .map(|claimed| claimed.id)
    }

    fn lost(&self) -> Option<Lost> {
        self.claimed().as_ref().map(|claimed| claimed.place.hold().lost())
    }

    async fn release_id(&self) -> Result<()> {
        let claimed = self.claimed().take();
        match claimed {
            Some(claimed) => claimed.place.give_back().await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicU32, Ordering},
        time::Duration,
    };

    use tokio::time::Instant;

    use super::*;
    use crate::{Error, Hold, Lease, LossReason, backend::Release};

    #[derive(Debug, Default)]
    struct Counter(AtomicU32);

    struct Nothing;

    #[async_trait]
    impl Release for Nothing {
        async fn release(&self) -> Result<()> {
            Ok(())
        }
        fn release_in_background(&self) {}
    }

    #[async_trait]
    impl IdSource for Counter {
        async fn claim(&self) -> Result<ClaimedId> {
            tokio::task::yield_now().await;
            let id = NonZeroU32::new(self.0.fetch_add(1, Ordering::SeqCst) + 1).expect("counts from 1");
            let hold = Hold::on(Lease::granted(Instant::now(), Duration::from_secs(10)));
            Ok(ClaimedId::new(id, Place::new(hold, Nothing)))
        }
        async fn try_claim(&self) -> Result<ClaimedId> {
            Err(Error::Exhausted { max: 2 })
        }
    }

    #[tokio::test]
    async fn two_tasks_end_up_with_one_id() {
        let allocator = IdAllocator::new(Counter::default());
        let (one, other) = tokio::join!(allocator.acquire_id(), allocator.acquire_id());
        assert_eq!(one.expect("claims"), other.expect("claims"));
        assert_eq!(allocator.try_acquire_id().await.expect("is held").get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_id_is_none_and_the_next_one_is_another() {
        let allocator = IdAllocator::new(Counter::default());
        assert!(allocator.lost().is_none());
        allocator.acquire_id().await.expect("claims");
        let lost = allocator.lost().expect("was acquired");
        assert_eq!(lost.await, LossReason::Expired);
        assert_eq!(allocator.id(), None);
        assert!(matches!(allocator.release_id().await, Err(Error::Lost { reason: LossReason::Expired })));
        assert!(allocator.release_id().await.is_ok(), "nothing is left to release");
        assert_eq!(allocator.acquire_id().await.expect("claims").get(), 2);
    }
}
