use std::{
    collections::HashSet,
    time::{SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::time::Instant;

use super::{options::EPOCH, *};
use crate::{
    Hold, Lease, LossReason,
    backend::{ClaimedId, Delivered, IdAllocator, IdSource, Place, Release, Stamps},
};

const TTL: Duration = Duration::from_secs(30);

/// Id whose holders come one after the other.
#[derive(Clone, Debug)]
struct OneId {
    id: u32,
    bound: u32,
    lease: Lease,
    stamped: Arc<Mutex<Option<u64>>>,
    /// How often it was stamped.
    stamps: Arc<AtomicU64>,
    /// Answer of the store to a stamp.
    refusal: Arc<Mutex<Option<Refusal>>>,
}

type Refusal = fn() -> Error;

fn away() -> Error {
    Error::Unavailable { what: "store".into(), source: None }
}

fn full() -> Error {
    Error::NoSpace { what: "store".into(), hint: "free some", source: "quota".into() }
}

fn denied() -> Error {
    Error::PermissionDenied { operation: "stamp", source: "role".into() }
}

fn unauthenticated() -> Error {
    Error::Unauthenticated { operation: "stamp", source: "token".into() }
}

fn strange() -> Error {
    Error::Backend { operation: "stamp", source: "raft: stopped".into() }
}

impl OneId {
    fn new(id: u32) -> Self {
        let lease = Lease::granted(Instant::now(), TTL);
        let (stamped, stamps) = (Arc::default(), Arc::default());
        Self { id, bound: id + 1, lease, stamped, stamps, refusal: Arc::default() }
    }

    /// Lets the store refuse stamps, or take them again.
    fn refuse(&self, refusal: Option<Refusal>) {
        *self.refusal.lock().expect("nothing panics while this is locked") = refusal;
    }

    fn stamps(&self) -> u64 {
        self.stamps.load(Ordering::SeqCst)
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
    fn bound(&self) -> u32 {
        self.bound
    }
    async fn try_claim(&self) -> Result<ClaimedId> {
        let id = NonZeroU32::new(self.id).expect("is not zero");
        let place = Place::new(Hold::on(self.lease.clone()), self.clone());
        Ok(ClaimedId::new(id, place, Arc::new(self.clone()), self.stamped(), Delivered::default()))
    }
    async fn wait_and_claim(&self) -> Result<ClaimedId> {
        panic!("it is free");
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
        self.stamps.fetch_add(1, Ordering::SeqCst);
        if let Some(refusal) = *self.refusal.lock().expect("nothing panics while this is locked") {
            return Err(refusal());
        }
        let mut stamped = self.stamped.lock().expect("nothing panics while this is locked");
        *stamped = stamped.max(Some(until));
        Ok(())
    }
    async fn settle(&self, until: u64) -> Result<()> {
        *self.stamped.lock().expect("nothing panics while this is locked") = Some(until);
        Ok(())
    }
    fn key(&self) -> String {
        format!("ids/svc/stamped/{}", self.id)
    }
}

/// A clock that a test sets, in milliseconds since the epoch of the default options.
#[derive(Clone)]
struct SetClock(Arc<AtomicU64>);

impl SetClock {
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
    let (allocator, clock) = (OneId::new(5).acquired().await, SetClock::at(1_000));
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    let parts = |number: u64| (number >> 22, number >> 12 & 0x3ff, number & 0xfff);
    assert_eq!(parts(snowflake.next_id().await.expect("is made")), (1_000, 5, 0));
    assert_eq!(parts(snowflake.next_id().await.expect("is made")), (1_000, 5, 1));
    clock.set(1_001);
    assert_eq!(parts(snowflake.next_id().await.expect("is made")), (1_001, 5, 0));

    drop(snowflake);
    // Its successor does not begin in a millisecond that it used.
    clock.set(1_002);
    let options = clock.options().bits(50, 4, 8);
    let snowflake = Snowflake::start_with(&allocator, options).await.expect("starts");
    assert_eq!(snowflake.next_id().await.expect("is made"), 1_002 << 12 | 5 << 8);
}

#[tokio::test]
async fn a_millisecond_has_as_many_numbers_as_its_bits_say() {
    let (allocator, clock) = (OneId::new(5).acquired().await, SetClock::at(1_000));
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
    let (allocator, clock) = (OneId::new(5).acquired().await, SetClock::at(10_000));
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    let before = snowflake.next_id().await.expect("is made");
    clock.set(9_000);
    assert_eq!(snowflake.try_next_id().expect("is a small step"), None);
    clock.set(8_990);
    let by = match snowflake.try_next_id() {
        Err(error @ Error::ClockWentBack { by, mark: None }) if error.is_retryable() => by,
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
    let (one_id, clock) = (OneId::new(5), SetClock::at(1_000));
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
    let (one_id, clock) = (OneId::new(5), SetClock::at(1_000));
    let ttl = TTL.as_millis() as u64;
    let allocator = one_id.acquired().await;
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    assert_eq!(one_id.stamped(), Some(EPOCH + 1_000 + ttl));
    // More is reserved in time, and nothing is made beyond while the store is away.
    clock.set(1_000 + ttl / 3);
    snowflake.next_id().await.expect("is made");
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(one_id.stamped(), Some(EPOCH + 1_000 + ttl / 3 + ttl));
    one_id.refuse(Some(away));
    clock.set(1_000 + ttl / 3 + ttl - 1);
    let last = snowflake.next_id().await.expect("is reserved");
    clock.set(1_000 + ttl / 3 + ttl);
    assert_eq!(snowflake.try_next_id().expect("is held"), None);
    one_id.refuse(None);

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
    let words = match refused {
        Err(error @ Error::ClockWentBack { mark: Some(_), .. }) => error.to_string(),
        other => panic!("the clock is wrong by far: {other:?}"),
    };
    assert!(words.contains("earlier holder") && words.contains("`ids/svc/stamped/5`"), "{words}");
}

#[tokio::test]
async fn bad_options_are_refused_by_name() {
    // An id that would fit, of an allocator that may get larger ones.
    let allocator = OneId { bound: 257, ..OneId::new(5) }.acquired().await;
    let good = SnowflakeOptions::default();
    let table = [
        (good.clone().bits(0, 10, 12), "bits"),
        (good.clone().bits(41, 10, 13), "bits"),
        (good.clone().bits(62, 1, 1), "bits"),
        (good.clone().bits(u32::MAX, u32::MAX, 2), "bits"),
        (good.clone().bits(41, 2, 12), "bits"),
        (good.clone().bits(41, 8, 12), "bits"),
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

#[tokio::test]
async fn allocator_whose_largest_id_fits_is_taken() {
    let allocator = OneId { bound: 1024, ..OneId::new(5) }.acquired().await;
    drop(Snowflake::start(&allocator).await.expect("1023 has 10 bits"));
    let allocator = OneId { bound: 1025, ..OneId::new(5) }.acquired().await;
    let refused = Snowflake::start(&allocator).await.map(drop).expect_err("1024 has 11").to_string();
    assert!(refused.starts_with("invalid bits: ") && refused.ends_with("up to 1024"), "{refused}");
}

/// Renews the lease of an id for as long as a test runs.
fn renewed(one_id: &OneId) -> AbortHandle {
    let lease = one_id.lease.clone();
    let renewing = async move {
        while lease.renewed(Instant::now(), TTL).is_ok() {
            tokio::time::sleep(TTL / 3).await;
        }
    };
    tokio::spawn(renewing).abort_handle()
}

#[tokio::test(start_paused = true)]
async fn numbers_go_on_when_what_the_store_refused_is_mended() {
    for refusal in [full as Refusal, denied, unauthenticated, strange, away] {
        let one_id = OneId::new(5);
        let renewing = renewed(&one_id);
        let allocator = one_id.acquired().await;
        let snowflake = Snowflake::start(&allocator).await.expect("starts");
        one_id.refuse(Some(refusal));
        let asked = Instant::now();
        let last = loop {
            match snowflake.try_next_id().expect("is held") {
                Some(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                None => break snowflake.maker.last.load(Ordering::SeqCst),
            }
        };
        assert!(asked.elapsed() <= TTL + Duration::from_secs(1), "what is reserved is over");
        // Nobody waits for ever, and hears why.
        let waited = Instant::now();
        let error = snowflake.next_id().await.expect_err("nothing is reserved");
        assert_eq!(error.to_string(), refusal().to_string());
        assert!(waited.elapsed() <= TTL + Duration::from_secs(1), "{:?}", waited.elapsed());
        // Also if it is mended while somebody waits.
        let mending = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            one_id.refuse(None);
        };
        let (next, ()) = tokio::join!(snowflake.next_id(), mending);
        assert!(next.expect("goes on") > last);
        renewing.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn refusal_that_passes_is_not_seen_by_anyone() {
    let one_id = OneId::new(5);
    let _renewing = renewed(&one_id);
    let allocator = one_id.acquired().await;
    let snowflake = Snowflake::start(&allocator).await.expect("starts");
    for refusal in [full as Refusal, denied, strange] {
        one_id.refuse(Some(refusal));
        for second in 0..60 {
            // Two thirds of a TTL are reserved at least, and it is tried again within 3 s.
            if second == 15 {
                one_id.refuse(None);
            }
            assert!(snowflake.try_next_id().expect("is held").is_some(), "second {second}");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}

#[test]
fn numbers_go_on_when_the_runtime_that_it_started_on_is_gone() {
    let runtime = |is_paused| {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(is_paused).build().expect("can be built")
    };
    for is_paused in [true, false] {
        // Until a minute after the start no task of the first runtime may be needed.
        let one_id = OneId::new(5);
        let clock = SetClock::at(1_000);
        let first = runtime(is_paused);
        let snowflake = first.block_on(async {
            let allocator = one_id.acquired().await;
            let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
            (snowflake, allocator)
        });
        drop(first);
        clock.set(60_000);
        let limit = Duration::from_secs(10);
        let number =
            runtime(false).block_on(async { tokio::time::timeout(limit, snowflake.0.next_id()).await });
        assert_eq!(number.expect("waits for nobody").expect("is held") >> 22, 60_000);
        // Ahead of need as well, by a task on another runtime.
        let stamps = one_id.stamps();
        clock.set(80_000);
        runtime(false).block_on(async {
            snowflake.0.try_next_id().expect("is held").expect("is reserved");
            while one_id.stamps() == stamps {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        });
    }
}

#[test]
fn numbers_go_on_beside_a_runtime_that_nobody_drives() {
    let one_id = OneId::new(5);
    let clock = SetClock::at(1_000);
    let first = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    let first = first.expect("can be built");
    let (snowflake, _allocator) = first.block_on(async {
        let allocator = one_id.acquired().await;
        (Snowflake::start_with(&allocator, clock.options()).await.expect("starts"), allocator)
    });
    clock.set(60_000);
    let number = futures::executor::block_on(snowflake.next_id());
    assert_eq!(number.expect("is held") >> 22, 60_000);
    drop(first);
}

#[test]
fn numbers_need_no_tokio() {
    use futures::executor::block_on;
    let one_id = OneId::new(5);
    let allocator = block_on(one_id.acquired());
    let snowflake = block_on(Snowflake::start(&allocator)).expect("starts");
    let mut last = 0;
    for _ in 0..10_000 {
        let number = block_on(snowflake.next_id()).expect("is held");
        assert!(number > last);
        last = number;
    }
    block_on(snowflake.finish()).expect("is held");
}

#[tokio::test(start_paused = true)]
async fn busy_generator_reserves_three_times_in_a_ttl() {
    let one_id = OneId::new(5);
    let _renewing = renewed(&one_id);
    let allocator = one_id.acquired().await;
    let snowflake = Snowflake::start(&allocator).await.expect("starts");
    let (begun, start) = (one_id.stamps(), Instant::now());
    while start.elapsed() < TTL * 4 {
        // Several for each millisecond, so that many see that time runs out.
        for _ in 0..4 {
            snowflake.next_id().await.expect("is held");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let stamps = one_id.stamps() - begun;
    assert!((10..=12).contains(&stamps), "{stamps} in four TTLs");
}

#[tokio::test(start_paused = true)]
async fn start_waits_by_the_clock_of_its_timers() {
    let one_id = OneId::new(5);
    let _renewing = renewed(&one_id);
    let (begun, start) = (std::time::Instant::now(), Instant::now());
    let mut last = 0;
    for _ in 0..3 {
        // As after a crash: what was reserved stays reserved.
        let allocator = one_id.acquired().await;
        let snowflake = Snowflake::start(&allocator).await.expect("starts");
        let number = snowflake.next_id().await.expect("is held");
        assert!(number > last);
        last = number;
    }
    assert!(start.elapsed() <= TTL * 3, "{:?} of the timers' time", start.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?} of real time", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn clock_that_stands_still_is_not_waited_for() {
    let (one_id, clock) = (OneId::new(5), SetClock::at(10_000));
    let allocator = one_id.acquired().await;
    let snowflake = Snowflake::start_with(&allocator, clock.options()).await.expect("starts");
    snowflake.next_id().await.expect("is made");
    clock.set(9_500);
    let start = Instant::now();
    let refused = snowflake.next_id().await;
    assert!(matches!(refused, Err(Error::ClockWentBack { mark: None, .. })), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    drop(snowflake);
    let (allocator, start) = (one_id.acquired().await, Instant::now());
    let refused = Snowflake::start_with(&allocator, clock.options()).await;
    assert!(matches!(refused, Err(Error::ClockWentBack { mark: Some(_), .. })), "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn largest_durations_and_times_are_taken_as_they_are() {
    let (one_id, clock) = (OneId::new(5), SetClock::at(10_000));
    let options = clock.options().clock_step(Duration::MAX);
    let allocator = one_id.acquired().await;
    let snowflake = Snowflake::start_with(&allocator, options.clone()).await.expect("starts");
    snowflake.next_id().await.expect("is made");
    clock.set(0);
    assert_eq!(snowflake.try_next_id().expect("any step is waited for"), None);
    drop(snowflake);
    // Mark of another program, or of a clock that was far ahead.
    for until in [u64::MAX, u64::MAX - 1, EPOCH + (1 << 41), EPOCH + (1 << 40)] {
        *one_id.stamped.lock().expect("nothing panics while this is locked") = Some(until);
        let allocator = one_id.acquired().await;
        for options in [clock.options(), options.clone()] {
            let refused = Snowflake::start_with(&allocator, options).await;
            assert!(matches!(refused, Err(Error::ClockWentBack { mark: Some(_), .. })), "{refused:?}");
        }
    }
    let far = || UNIX_EPOCH + Duration::from_secs(1 << 40);
    *one_id.stamped.lock().expect("nothing panics while this is locked") = None;
    let allocator = one_id.acquired().await;
    let refused = Snowflake::start_with(&allocator, SnowflakeOptions::default().clock(far)).await;
    assert!(matches!(refused, Err(Error::InvalidArgument { field: "epoch", .. })), "{refused:?}");
}
