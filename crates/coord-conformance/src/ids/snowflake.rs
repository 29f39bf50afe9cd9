//! Numbers that are made with a held id.

use std::time::{Duration, SystemTime};

use coord_api::{Error, IdOptions, InstanceIdAllocator, LossReason, Snowflake, SnowflakeOptions};
use futures::{FutureExt, future::join};

use super::acquire;
use crate::{
    expect::expect_lost,
    suite::tests,
    tools::{LIMIT, within},
};

/// A clock that goes as the test's runtime does.
pub(super) fn options() -> SnowflakeOptions {
    use std::sync::LazyLock;
    static START: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);
    thread_local! {
        // Each test is on a runtime and a thread of its own.
        static SINCE: tokio::time::Instant = tokio::time::Instant::now();
    }
    let (start, since) = (*START, SINCE.with(|since| *since));
    SnowflakeOptions::default().clock(move || start + since.elapsed())
}

async fn start(allocator: &dyn InstanceIdAllocator) -> Snowflake {
    within(LIMIT, Snowflake::start_with(allocator, options())).await.expect("an id is held")
}

tests! { "ids";
    /// Contract 2: numbers grow, carry the id, and end with it.
    async fn numbers_end_with_the_id(world: &dyn World) {
        let allocator = world.client().await.ids("svc", 1024);
        let id = acquire(&*allocator).await;
        let snowflake = start(&*allocator).await;
        let mut last = 0;
        for _ in 0..1000 {
            let number = snowflake.next_id().await.expect("is held");
            assert!(number > last && number >> 12 & 0x3ff == u64::from(id));
            last = number;
        }
        world.revoke_leases().await;
        within(LIMIT, allocator.lost().expect("one was held")).await;
        assert_eq!(expect_lost(snowflake.next_id().await), LossReason::Revoked);
        acquire(&*allocator).await;
        assert_eq!(expect_lost(snowflake.try_next_id()), LossReason::Revoked, "it belongs to the earlier hold");
    }

    /// Contract 4: two would make the same numbers with one id, so there is one at a time, and the next one makes larger
    /// numbers.
    async fn one_at_a_time_makes_numbers_with_an_id(world: &dyn World) {
        let allocator = world.client().await.ids("svc", 1024);
        acquire(&*allocator).await;
        let try_start = || Snowflake::start_with(&*allocator, options());
        let mut last = 0;
        for _ in 0..20 {
            let (snowflake, refused) = match within(LIMIT, join(try_start(), try_start())).await {
                (Ok(snowflake), Err(refused)) | (Err(refused), Ok(snowflake)) => (snowflake, refused),
                both => panic!("{both:?}"),
            };
            assert!(matches!(refused, Error::InvalidArgument { field: "allocator", .. }), "{refused:?}");
            for _ in 0..100 {
                let number = snowflake.next_id().await.expect("is held");
                assert!(number > last);
                last = number;
            }
            drop(snowflake);
            // One that is given up half-way leaves no trace.
            drop(try_start().now_or_never());
        }
    }

    /// Contract 4: the next holder of an id starts after all numbers that were made with it, and at once if the
    /// one before finished.
    async fn the_next_holder_starts_after_the_last(world: &dyn World) {
        let range = || IdOptions::new("svc", 2).quarantine(Duration::ZERO);
        let mut last = 0;
        for _ in 0..3 {
            let allocator = world.client().await.ids_with(range());
            acquire(&*allocator).await;
            let snowflake = start(&*allocator).await;
            for _ in 0..10 {
                let number = snowflake.next_id().await.expect("is held");
                assert!(number > last);
                last = number;
            }
            snowflake.finish().await.expect("is held");
            allocator.release_id().await.expect("is held");
        }
        // One whose clock is far behind does not start.
        let allocator = world.client().await.ids_with(range());
        acquire(&*allocator).await;
        let slow = options().clock(|| SystemTime::now() - Duration::from_secs(3600));
        let refused = within(LIMIT, Snowflake::start_with(&*allocator, slow)).await;
        assert!(matches!(refused, Err(Error::ClockWentBack { mark: Some(_), .. })), "{refused:?}");
    }

    /// Contract 4: the same holds for one that is cut off: its last numbers are smaller than the first of the next.
    async fn the_next_holder_starts_after_one_that_vanished(world: &dyn World) {
        let (cut_off, other) = (world.client().await, world.client().await);
        let (old, new) = (cut_off.ids_at_once("svc", 2), other.ids_at_once("svc", 2));
        acquire(&*old).await;
        let snowflake = start(&*old).await;
        cut_off.link.cut();
        let mut last = 0;
        while let Ok(number) = snowflake.next_id().await {
            last = number;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(last > 0 && old.id().is_none());
        within(LIMIT * 2, new.acquire_id()).await.expect("becomes free");
        assert!(start(&*new).await.next_id().await.expect("is held") > last);
    }

    /// Contract 12: an allocator that may get ids which do not fit into the bits of the worker is refused, whichever id it
    /// got.
    async fn bits_have_to_fit_the_bound(world: &dyn World) {
        let client = world.client().await;
        for (max_id, fits) in [(1024, true), (1025, false), (4096, false)] {
            let allocator = client.ids("svc", max_id);
            acquire(&*allocator).await;
            match Snowflake::start_with(&*allocator, options()).await {
                Ok(_) => assert!(fits, "{max_id}"),
                Err(Error::InvalidArgument { field, reason }) => {
                    assert!(!fits && field == "bits" && reason.contains("10"), "{max_id}: {field} {reason}");
                }
                Err(error) => panic!("{error:?}"),
            }
        }
    }

    /// Contract 4: with the system's clock a restart waits for what was reserved, and no longer by any clock.
    async fn a_restart_waits_for_one_ttl_by_every_clock(world: &dyn World) {
        let range = || IdOptions::new("svc", 2).identity("web").quarantine(Duration::ZERO);
        let (begun, start) = (std::time::Instant::now(), tokio::time::Instant::now());
        let mut last = 0;
        for _ in 0..2 {
            let allocator = world.client().await.ids_with(range());
            acquire(&*allocator).await;
            let snowflake = within(LIMIT, Snowflake::start(&*allocator)).await.expect("an id is held");
            let number = snowflake.next_id().await.expect("is held");
            assert!(number > last);
            last = number;
            // Without `finish`, as by a crash, but at once.
            drop(snowflake);
            allocator.release_id().await.expect("is held");
        }
        assert!(start.elapsed() < LIMIT && begun.elapsed() < LIMIT, "{:?}", start.elapsed());
    }

    /// Contract 4: an id whose earlier holder had a clock that was years ahead is told as such, and is not handed out
    /// while there are others.
    async fn an_id_from_the_future_is_told_and_others_come_first(world: &dyn World) {
        const YEARS: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
        let range = |max_id| IdOptions::new("svc", max_id).quarantine(Duration::ZERO);
        let client = world.client().await;
        let ahead = client.ids_with(range(2));
        acquire(&*ahead).await;
        let fast = options().clock(|| SystemTime::now() + YEARS);
        drop(within(LIMIT, Snowflake::start_with(&*ahead, fast)).await.expect("an id is held"));
        ahead.release_id().await.expect("is held");

        // All the others are taken first, however often each was free.
        for _ in 0..20 {
            let others = [client.ids_with(range(4)), client.ids_with(range(4))];
            for other in &others {
                assert_ne!(acquire(&**other).await, 1, "it is from the future");
            }
            for other in others {
                other.release_id().await.expect("is held");
            }
        }
        let last = client.ids_with(range(2));
        assert_eq!(acquire(&*last).await, 1, "it is as good as any for those who make no numbers");
        let told = match within(LIMIT, Snowflake::start_with(&*last, options())).await {
            Err(error @ Error::ClockWentBack { mark: Some(_), .. }) => error,
            other => panic!("{other:?}"),
        };
        let Error::ClockWentBack { by, mark: Some(mark) } = &told else { unreachable!() };
        assert!(*by > YEARS.saturating_sub(LIMIT) && mark.ends_with("svc/stamped/1"), "{told}");
        assert!(told.to_string().contains("the clock of an earlier holder was ahead"), "{told}");
    }
}
