//! "At most one id", once for all backends.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::Notify;

use super::Place;
use crate::{
    Error, HeldId, IdOptions, InstanceIdAllocator, Lost, MAX_IDENTITY_BYTES, MAX_QUARANTINE, Result,
    ServiceName, Ttl, check_max_id, mutex::lock,
};

/// [`IdOptions`] once they are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdRange {
    /// Among whose instances the ids are unique.
    pub service: ServiceName,
    /// The exclusive upper bound.
    pub max_id: u32,
    /// Instance that asks.
    pub identity: Option<String>,
    /// How long a released id rests, in whole seconds.
    pub quarantine: Duration,
}

impl IdRange {
    /// Checks options; without a quarantine it is `ttl`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the field that can not be used.
    pub fn of(options: IdOptions, ttl: Ttl) -> Result<Self> {
        let service = ServiceName::parse(&options.service)?;
        check_max_id(options.max_id)?;
        if let Some(identity) = &options.identity
            && (identity.is_empty()
                || identity.len() > MAX_IDENTITY_BYTES
                || identity.chars().any(char::is_control))
        {
            let reason = format!("needs 1 to {MAX_IDENTITY_BYTES} bytes without control characters");
            return Err(Error::invalid("identity", reason));
        }
        let quarantine = options.quarantine.unwrap_or(ttl.as_duration());
        if quarantine > MAX_QUARANTINE {
            return Err(Error::invalid("quarantine", format!("{quarantine:?} is above {MAX_QUARANTINE:?}")));
        }
        let seconds = quarantine.as_secs() + u64::from(quarantine.subsec_nanos() > 0);
        let quarantine = Duration::from_secs(seconds);
        Ok(Self { service, max_id: options.max_id, identity: options.identity, quarantine })
    }
}

/// How a backend keeps, beside one held id, up to when data may have been stamped with it.
#[async_trait]
pub trait Stamps: fmt::Debug + Send + Sync + 'static {
    /// Stores the time in milliseconds since 1970, if the id is still held by that very hold. A later time that the same
    /// hold has stored stays.
    ///
    /// # Errors
    /// [`Error::Lost`] if it is not held; others as the store answers.
    async fn stamp(&self, until: u64) -> Result<()>;

    /// Stores the time, also if the same hold has stored a later one: nothing will be stamped any more.
    ///
    /// # Errors
    /// As [`stamp`](Self::stamp).
    async fn settle(&self, until: u64) -> Result<()>;

    /// The key in the store under which people find that time.
    fn key(&self) -> String;
}

/// How a backend claims ids of one service and range. If a future is dropped, nothing stays claimed.
#[async_trait]
pub trait IdSource: fmt::Debug + Send + Sync + 'static {
    /// The exclusive upper bound of the ids.
    fn bound(&self) -> u32;

    /// Claims an id that is free now.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted) when none is.
    async fn try_claim(&self) -> Result<ClaimedId>;

    /// Waits for a free id and claims it, when [`try_claim`](Self::try_claim) has just found none.
    ///
    /// # Errors
    /// As [`InstanceIdAllocator::acquire_id`].
    async fn wait_and_claim(&self) -> Result<ClaimedId>;
}

/// Whether a user was told of an id. An id that was claimed for a caller who had given up needs no quarantine
/// when it is freed: nobody ever believed in it.
#[derive(Clone, Debug, Default)]
pub struct Delivered(Arc<AtomicBool>);

impl Delivered {
    /// Returns whether a user was told.
    pub fn is_delivered(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// An id with the place it takes in the store.
#[derive(Debug)]
pub struct ClaimedId {
    held: HeldId,
    place: Place,
    told: Delivered,
}

impl ClaimedId {
    /// An id that a backend has claimed. `stamped` is what was last stored through [`Stamps`] beside this id.
    pub fn new(
        id: NonZeroU32,
        place: Place,
        stamps: Arc<dyn Stamps>,
        stamped: Option<u64>,
        told: Delivered,
    ) -> Self {
        Self { held: HeldId::new(id, place.hold().clone(), stamps, stamped), place, told }
    }
}

/// An [`InstanceIdAllocator`] over a backend's [`IdSource`].
#[derive(Debug)]
pub struct IdAllocator<S> {
    source: S,
    claimed: Mutex<Option<ClaimedId>>,
    /// Tells those that wait that an id is held.
    acquired: Notify,
    /// Held while a free id is looked for, so that two tasks end up with the same one. Nobody waits for an id meanwhile.
    trying: tokio::sync::Mutex<()>,
    /// Held while an id is waited for, so that one allocator has one place among those that wait.
    waiting: tokio::sync::Mutex<()>,
}

impl<S: IdSource> IdAllocator<S> {
    /// An allocator that holds nothing yet.
    pub fn new(source: S) -> Self {
        let (trying, waiting) = (tokio::sync::Mutex::new(()), tokio::sync::Mutex::new(()));
        Self { source, claimed: Mutex::new(None), acquired: Notify::new(), trying, waiting }
    }

    fn claimed(&self) -> std::sync::MutexGuard<'_, Option<ClaimedId>> {
        lock(&self.claimed)
    }

    /// Keeps what was claimed, unless another task was faster: then that one's id counts, and this one is given back.
    fn keep(&self, mut new: ClaimedId) -> NonZeroU32 {
        let mut claimed = self.claimed();
        if let Some(held) = claimed.as_ref().map(|claimed| &claimed.held).filter(|held| !held.is_lost()) {
            let id = held.id();
            // Nobody is told of it, and it is given back when nothing is locked any more.
            drop(claimed);
            return id;
        }
        new.told.0.store(true, Ordering::SeqCst);
        new.held = new.held.below(self.source.bound());
        let id = new.held.id();
        let before = claimed.replace(new);
        drop(claimed);
        drop(before);
        self.acquired.notify_waiters();
        id
    }

    /// Waits until another task has an id.
    async fn acquired_by_another(&self) -> NonZeroU32 {
        loop {
            // Registered before it is looked at, so that none is missed.
            let acquired = self.acquired.notified();
            if let Some(id) = self.id() {
                return id;
            }
            acquired.await;
        }
    }
}

#[async_trait]
impl<S: IdSource> InstanceIdAllocator for IdAllocator<S> {
    async fn acquire_id(&self) -> Result<NonZeroU32> {
        match self.try_acquire_id().await {
            Err(Error::Exhausted { .. }) => {}
            outcome => return outcome,
        }
        let claiming = async {
            let _one_at_a_time = self.waiting.lock().await;
            self.source.wait_and_claim().await.map(|claimed| self.keep(claimed))
        };
        tokio::select! {
            biased;
            id = self.acquired_by_another() => Ok(id),
            id = claiming => id,
        }
    }

    async fn try_acquire_id(&self) -> Result<NonZeroU32> {
        let _one_at_a_time = self.trying.lock().await;
        if let Some(id) = self.id() {
            return Ok(id);
        }
        match self.source.try_claim().await {
            Ok(claimed) => Ok(self.keep(claimed)),
            // Perhaps because one that waits has just got it.
            Err(error @ Error::Exhausted { .. }) => self.id().ok_or(error),
            Err(error) => Err(error),
        }
    }

    fn id(&self) -> Option<NonZeroU32> {
        self.held().map(|held| held.id())
    }

    fn lost(&self) -> Option<Lost> {
        self.claimed().as_ref().map(|claimed| claimed.place.hold().lost())
    }

    fn held(&self) -> Option<HeldId> {
        let held = self.claimed().as_ref().map(|claimed| claimed.held.clone());
        held.filter(|held| !held.is_lost())
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
    use std::{sync::atomic::AtomicU32, time::Duration};

    use tokio::time::Instant;

    use super::*;
    use crate::{Hold, Lease, LossReason, backend::Release};

    #[derive(Debug, Default)]
    struct Counter(AtomicU32);

    #[derive(Debug)]
    struct Nothing;

    #[async_trait]
    impl Stamps for Nothing {
        async fn stamp(&self, _until: u64) -> Result<()> {
            Ok(())
        }
        async fn settle(&self, _until: u64) -> Result<()> {
            Ok(())
        }
        fn key(&self) -> String {
            String::new()
        }
    }

    #[async_trait]
    impl Release for Nothing {
        async fn release(&self) -> Result<()> {
            Ok(())
        }
        fn release_in_background(&self) {}
    }

    impl Counter {
        fn claimed(&self) -> ClaimedId {
            let id = NonZeroU32::new(self.0.fetch_add(1, Ordering::SeqCst) + 1).expect("counts from 1");
            let hold = Hold::on(Lease::granted(Instant::now(), Duration::from_secs(10)));
            ClaimedId::new(id, Place::new(hold, Nothing), Arc::new(Nothing), None, Delivered::default())
        }
    }

    #[async_trait]
    impl IdSource for Counter {
        fn bound(&self) -> u32 {
            1024
        }
        async fn try_claim(&self) -> Result<ClaimedId> {
            tokio::task::yield_now().await;
            Ok(self.claimed())
        }
        async fn wait_and_claim(&self) -> Result<ClaimedId> {
            panic!("one is free");
        }
    }

    /// None is free, until somebody frees one.
    #[derive(Debug, Default)]
    struct Full(Counter, Notify);

    #[async_trait]
    impl IdSource for Full {
        fn bound(&self) -> u32 {
            2
        }
        async fn try_claim(&self) -> Result<ClaimedId> {
            Err(Error::Exhausted { max: 2 })
        }
        async fn wait_and_claim(&self) -> Result<ClaimedId> {
            self.1.notified().await;
            Ok(self.0.claimed())
        }
    }

    #[tokio::test]
    async fn a_try_does_not_wait_for_a_task_that_waits() {
        use futures::{FutureExt, poll};
        let allocator = IdAllocator::new(Full::default());
        let mut waiting = [allocator.acquire_id(), allocator.acquire_id()];
        for waiting in &mut waiting {
            assert!(poll!(waiting).is_pending());
        }
        let tried = allocator.try_acquire_id().now_or_never().expect("waits for nobody");
        assert!(matches!(tried, Err(Error::Exhausted { max: 2 })), "{tried:?}");
        allocator.source.1.notify_one();
        for waiting in waiting {
            assert_eq!(waiting.await.expect("one is free").get(), 1, "all have the same");
        }
        assert_eq!(allocator.try_acquire_id().await.expect("is held").get(), 1);
    }

    #[tokio::test]
    async fn two_tasks_end_up_with_one_id() {
        let allocator = IdAllocator::new(Counter::default());
        let (one, other) = tokio::join!(allocator.acquire_id(), allocator.acquire_id());
        assert_eq!(one.expect("claims"), other.expect("claims"));
        assert_eq!(allocator.try_acquire_id().await.expect("is held").get(), 1);
        assert_eq!(allocator.source.0.load(Ordering::SeqCst), 1, "nothing was claimed twice");
    }

    #[test]
    fn options_are_checked_by_field() {
        let ttl = Ttl::parse(Duration::from_secs(30)).expect("is valid");
        let good = IdOptions::new("svc", 1023);
        let range = IdRange::of(good.clone(), ttl).expect("is valid");
        assert_eq!(range.quarantine, Duration::from_secs(30), "one TTL");
        let rounded =
            IdRange::of(good.clone().quarantine(Duration::from_millis(1_100)), ttl).expect("is valid");
        assert_eq!(rounded.quarantine, Duration::from_secs(2));
        let none = IdRange::of(good.clone().quarantine(Duration::ZERO), ttl).expect("is valid");
        assert_eq!(none.quarantine, Duration::ZERO);
        let table = [
            (IdOptions::new("", 8), "service name"),
            (IdOptions::new("svc", 0), "max_id"),
            (IdOptions::new("svc", 1), "max_id"),
            (good.clone().identity(""), "identity"),
            (good.clone().identity("a\nb"), "identity"),
            (good.clone().identity("x".repeat(256)), "identity"),
            (good.quarantine(Duration::MAX), "quarantine"),
        ];
        for (options, expected) in table {
            match IdRange::of(options, ttl) {
                Err(Error::InvalidArgument { field, .. }) => assert_eq!(field, expected),
                other => panic!("expected {expected} to be refused, got {other:?}"),
            }
        }
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
