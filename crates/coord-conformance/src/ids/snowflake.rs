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
        assert!(matches!(refused, Err(Error::ClockWentBack { .. })), "{refused:?}");
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
}
