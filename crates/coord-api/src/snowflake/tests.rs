use std::{
    collections::HashSet,
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{options::EPOCH, *};
use crate::{
    Hold, Lease, LossReason,
    backend::{ClaimedId, IdAllocator, IdSource, Place, Release, Stamps, Told},
};

const TTL: Duration = Duration::from_secs(30);

/// One id, whose holders come one after the other.
#[derive(Clone, Debug)]
struct OneId {
    id: u32,
    lease: Lease,
    stamped: Arc<Mutex<Option<u64>>>,
    is_away: Arc<std::sync::atomic::AtomicBool>,
}

impl OneId {
    fn new(id: u32) -> Self {
        let lease = Lease::granted(Instant::now(), TTL);
        Self { id, lease, stamped: Arc::default(), is_away: Arc::default() }
    }

    async fn acquired(&self) -> IdAllocator<Self> {
        let allocator = IdAllocator::new(self.clone());
        allocator.acquire_id().await.expect("is free");
        allocator
    }

    fn stamped(&self) -> Option<u64> {
        *self.stamped.lock().expect("nothing panics while this is locked")
    }
}

#[async_trait]
impl IdSource for OneId {
    async fn claim(&self) -> Result<ClaimedId> {
        let id = NonZeroU32::new(self.id).expect("is not zero");
        let place = Place::new(Hold::on(self.lease.clone()), self.clone());
        Ok(ClaimedId::new(id, place, Arc::new(self.clone()), self.stamped(), Told::default()))
    }
    async fn try_claim(&self) -> Result<ClaimedId> {
        self.claim().await
    }
}

#[async_trait]
impl Release for OneId {
    async fn release(&self) -> Result<()> {
        Ok(())
    }
    fn release_in_background(&self) {}
}

#[async_trait]
impl Stamps for OneId {
    async fn stamp(&self, until: u64) -> Result<()> {
        if self.is_away.load(Ordering::SeqCst) {
            return Err(Error::Unavailable { what: "store".into(), source: None });
        }
        *self.stamped.lock().expect("nothing panics while this is locked") = Some(until);
        Ok(())
    }
}

/// A clock that a test sets, in milliseconds since the epoch of the default options.
#[derive(Clone)]
struct Clock(Arc<AtomicU64>);

impl Clock {
    fn at(millis: u64) -> Self {
        Self(Arc::new(AtomicU64::new(millis)))
    }

    fn set(&self, millis: u64) {
        self.0.store(millis, Ordering::SeqCst);
    }

    fn options(&self) -> SnowflakeOptions {
        let millis = self.0.clone();
        let clock = move || UNIX_EPOCH + Duration::from_millis(EPOCH + millis.load(Ordering::SeqCst));
        SnowflakeOptions::default().clock(clock)
    }
}

#[tokio::test]
async fn time_worker_and_sequence_are_where_they_belong() {
    let (allocator, clock) = (OneId::new(5).acquired().await, Clock::at(1_000));
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    let parts = |number: u64| (number >> 22, number >> 12 & 0x3ff, number & 0xfff);
    assert_eq!(parts(snowflake.next_id().await.expect("is made")), (1_000, 5, 0));
    assert_eq!(parts(snowflake.next_id().await.expect("is made")), (1_000, 5, 1));
    clock.set(1_001);
    assert_eq!(parts(snowflake.next_id().await.expect("is made")), (1_001, 5, 0));

    drop(snowflake);
    // What comes after it does not begin in a millisecond that it used.
    clock.set(1_002);
    let options = clock.options().bits(50, 4, 8);
    let snowflake = Snowflake::start_with(&allocator, options).await.expect("starts");
    assert_eq!(snowflake.next_id().await.expect("is made"), 1_002 << 12 | 5 << 8);
}

#[tokio::test]
async fn a_millisecond_has_as_many_numbers_as_its_bits_say() {
    let (allocator, clock) = (OneId::new(5).acquired().await, Clock::at(1_000));
    let snowflake = Snowflake::start_with(&allocator, clock.options().bits(41, 10, 3)).await.expect("starts");
    for _ in 0..8 {
        assert!(snowflake.try_next_id().expect("is held").is_some());
    }
    assert_eq!(snowflake.try_next_id().expect("is held"), None);
    clock.set(1_001);
    assert!(snowflake.try_next_id().expect("is held").is_some());
}

#[tokio::test]
async fn small_steps_back_are_waited_for_and_large_ones_are_errors() {
    let (allocator, clock) = (OneId::new(5).acquired().await, Clock::at(10_000));
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    let before = snowflake.next_id().await.expect("is made");
    clock.set(9_000);
    assert_eq!(snowflake.try_next_id().expect("is a small step"), None);
    clock.set(8_990);
    let by = match snowflake.try_next_id() {
        Err(error @ Error::ClockWentBack { by }) if error.is_retryable() => by,
        other => panic!("expected ClockWentBack, got {other:?}"),
    };
    assert!(by > Duration::from_secs(1), "{by:?}");
    clock.set(9_990);
    let setting = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        clock.set(10_000);
    };
    let (after, ()) = tokio::join!(snowflake.next_id(), setting);
    assert!(after.expect("the clock caught up") > before);
}

#[tokio::test]
async fn nothing_is_made_after_the_loss() {
    let (one_id, clock) = (OneId::new(5), Clock::at(1_000));
    let allocator = one_id.acquired().await;
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    snowflake.next_id().await.expect("is held");
    let lost = |result: Result<u64>, expected| match result {
        Err(Error::Lost { reason }) => assert_eq!(reason, expected),
        other => panic!("expected Lost, got {other:?}"),
    };
    one_id.lease.lose(LossReason::Revoked);
    lost(snowflake.next_id().await, LossReason::Revoked);
    lost(snowflake.finish().await.map(|()| 0), LossReason::Revoked);

    let allocator = OneId::new(5).acquired().await;
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    allocator.release_id().await.expect("is held");
    lost(snowflake.next_id().await, LossReason::Released);
    allocator.acquire_id().await.expect("is free");
    lost(snowflake.next_id().await, LossReason::Released);
}

#[tokio::test]
async fn time_is_reserved_before_it_is_used_and_a_later_holder_starts_after_it() {
    let (one_id, clock) = (OneId::new(5), Clock::at(1_000));
    let ttl = TTL.as_millis() as u64;
    let allocator = one_id.acquired().await;
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    assert_eq!(one_id.stamped(), Some(EPOCH + 1_000 + ttl));
    // More is reserved in time, and nothing is made beyond while the store is away.
    clock.set(1_000 + ttl / 3);
    snowflake.next_id().await.expect("is made");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(one_id.stamped(), Some(EPOCH + 1_000 + ttl / 3 + ttl));
    one_id.is_away.store(true, Ordering::SeqCst);
    clock.set(1_000 + ttl / 3 + ttl - 1);
    let last = snowflake.next_id().await.expect("is reserved");
    clock.set(1_000 + ttl / 3 + ttl);
    assert_eq!(snowflake.try_next_id().expect("is held"), None);
    one_id.is_away.store(false, Ordering::SeqCst);

    // A crash: the next holder's clock is a little behind, so that it has to wait.
    drop(snowflake);
    let allocator = one_id.acquired().await;
    let reserved = one_id.stamped().expect("was stamped") - EPOCH;
    clock.set(reserved - 20);
    let setting = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        clock.set(reserved);
    };
    let (next, ()) = tokio::join!(Snowflake::start_with(&allocator, clock.options()), setting);
    let next = next.expect("starts when the time has come");
    assert!(next.next_id().await.expect("is made") > last);
    assert!((next.next_id().await.expect("is made") >> 22) >= reserved);
    next.finish().await.expect("is held");
    assert_eq!(one_id.stamped(), Some(EPOCH + reserved + 1), "just what was used");
    clock.set(1_000);
    let allocator = one_id.acquired().await;
    let refused = Snowflake::start_with(&allocator, clock.options()).await;
    assert!(matches!(refused, Err(Error::ClockWentBack { .. })), "the clock is wrong by far");
}

#[tokio::test]
async fn bad_options_are_refused_by_name() {
    let allocator = OneId::new(5).acquired().await;
    let good = SnowflakeOptions::default();
    let table = [
        (good.clone().bits(0, 10, 12), "bits"),
        (good.clone().bits(41, 10, 13), "bits"),
        (good.clone().bits(62, 1, 1), "bits"),
        (good.clone().bits(u32::MAX, u32::MAX, 2), "bits"),
        (good.clone().bits(41, 2, 12), "bits"),
        (good.clone().epoch(UNIX_EPOCH - Duration::from_millis(1)), "epoch"),
        (good.clone().epoch(SystemTime::now() + Duration::from_secs(60)), "epoch"),
        (good.clone().bits(20, 10, 12), "epoch"),
    ];
    for (options, expected) in table {
        match Snowflake::start_with(&allocator, options.clone()).await {
            Err(Error::InvalidArgument { field, .. }) => assert_eq!(field, expected, "{options:?}"),
            other => panic!("expected {options:?} to be refused, got {other:?}"),
        }
    }
    let empty = IdAllocator::new(OneId::new(5));
    let refused = Snowflake::start(&empty).await;
    assert!(matches!(refused, Err(Error::InvalidArgument { field: "allocator", .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn numbers_of_many_tasks_are_different_and_grow() {
    let allocator = OneId::new(5).acquired().await;
    let snowflake = Arc::new(Snowflake::start(&allocator).await.expect("starts"));
    let mut tasks = Vec::new();
    for _ in 0..4 {
        let snowflake = snowflake.clone();
        tasks.push(tokio::spawn(async move {
            let mut made = Vec::with_capacity(20_000);
            for _ in 0..20_000 {
                made.push(snowflake.next_id().await.expect("is held"));
            }
            made
        }));
    }
    let mut all = HashSet::new();
    for task in tasks {
        let made = task.await.expect("no panic");
        assert!(made.is_sorted());
        all.extend(made);
    }
    assert_eq!(all.len(), 80_000);
}
