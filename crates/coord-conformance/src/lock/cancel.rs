//! Futures that are dropped half-way, and calls that are never answered.

use std::time::Duration;

use crate::{
    expect::expect_unreachable,
    suite::tests,
    tools::{LIMIT, LONG, SHORT, keys_become, poll_at_most, spawn, within},
};

tests! { "lock";
    /// Contract 6: an acquisition of a free lock that is dropped at any await point leaves it free.
    async fn an_acquisition_may_be_dropped_at_any_point(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        for polls in 0..12 {
            drop(poll_at_most(polls, one.acquire("job", LONG)).await);
            // The dropped request may still be under way, so the next one may have to wait for its end.
            let guard = within(LIMIT, other.acquire("job", LONG)).await.expect("becomes free");
            guard.unlock().await.expect("is held");
        }
    }

    /// Contract 6: an acquisition that is dropped between its request and the answer leaves the lock free.
    async fn an_acquisition_may_be_dropped_at_any_time(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        for micros in [0, 50, 100, 200, 400, 800, 1_500, 3_000, 6_000] {
            drop(tokio::time::timeout(Duration::from_micros(micros), one.acquire("job", LONG)).await);
            drop(tokio::time::timeout(Duration::from_micros(micros), one.try_acquire("job", LONG)).await);
            // The dropped requests may still be under way, so the next one may have to wait for their end.
            let guard = within(LIMIT, other.acquire("job", LONG)).await.expect("becomes free");
            guard.unlock().await.expect("is held");
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: a try that is dropped at any await point leaves the lock free.
    async fn a_try_may_be_dropped_at_any_point(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        for polls in 0..12 {
            drop(poll_at_most(polls, one.try_acquire("job", LONG)).await);
            // The dropped request may still be under way, so the next one may have to wait for its end.
            let guard = within(LIMIT, other.acquire("job", LONG)).await.expect("becomes free");
            guard.unlock().await.expect("is held");
        }
    }

    /// Contract 6: a waiter that gives up at any await point leaves the queue.
    async fn a_queued_acquisition_may_be_dropped_at_any_point(world: &dyn World) {
        let (holder, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        for polls in 0..10 {
            assert!(poll_at_most(polls, other.acquire("job", LONG)).await.is_none());
            keys_become(world, 1).await;
        }
        guard.unlock().await.expect("is held");
        drop(within(LIMIT, other.acquire("job", LONG)).await.expect("is free"));
    }

    /// Contract 6: when a waiter in the middle of the queue gives up, the others keep their places.
    async fn a_waiter_that_gives_up_does_not_hold_up_the_next(world: &dyn World) {
        let holder = world.client().await.lock();
        let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        let mut waiters = Vec::new();
        for place in 0..3 {
            let locks = world.client().await.lock();
            waiters.push(spawn(async move { locks.acquire("job", LONG).await }));
            keys_become(world, place + 2).await;
        }
        let last = waiters.pop().expect("three wait");
        for gives_up in waiters {
            gives_up.cancel().await;
        }
        keys_become(world, 2).await;
        assert!(!last.is_finished(), "the lock is still held");
        guard.unlock().await.expect("is held");
        last.join().await.expect("is next").unlock().await.expect("is held");
        keys_become(world, 0).await;
    }

    /// Contract 6: a waiter that gives up at the very moment at which it gets the lock does not keep it.
    async fn giving_up_while_being_served_frees_the_lock(world: &dyn World) {
        let (holder, other, third) =
            (world.client().await.lock(), world.client().await.lock(), world.client().await.lock());
        for micros in [0, 100, 300, 1_000, 3_000] {
            let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
            let waiter = spawn({
                let other = other.clone();
                async move { other.acquire("job", LONG).await }
            });
            keys_become(world, 2).await;
            guard.unlock().await.expect("is held");
            tokio::time::sleep(Duration::from_micros(micros)).await;
            waiter.cancel().await;
            within(LIMIT, third.acquire("job", LONG))
                .await
                .expect("is free")
                .unlock()
                .await
                .expect("is held");
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: an unlock takes effect although its future is dropped.
    async fn an_unlock_may_be_dropped_at_any_point(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        for polls in 0..8 {
            let guard = within(LIMIT, one.acquire("job", LONG)).await.expect("is free");
            drop(poll_at_most(polls, guard.unlock()).await);
            within(LIMIT, other.acquire("job", LONG))
                .await
                .expect("is free")
                .unlock()
                .await
                .expect("is held");
        }
        keys_become(world, 0).await;
    }

    /// Contract 7: an acquisition that gets no answer fails in bounded time and leaves nothing behind, also
    /// if the store heard of it.
    async fn an_unanswered_acquisition_leaves_nothing(world: &dyn World) {
        let (cut_off, other) = (world.client().await, world.client().await.lock());
        let warm = within(LIMIT, cut_off.lock().acquire("warm", SHORT)).await.expect("is free");
        warm.unlock().await.expect("is held");
        cut_off.link.cut();
        expect_unreachable(within(LIMIT, cut_off.lock().acquire("job", SHORT)).await);
        expect_unreachable(within(LIMIT, cut_off.lock().try_acquire("job", SHORT)).await);
        within(LIMIT, other.acquire("job", LONG)).await.expect("is free").unlock().await.expect("is held");
        cut_off.link.restore();
        keys_become(world, 0).await;
        within(LIMIT, async {
            // The connection may take a moment to come back.
            while cut_off.lock().try_acquire("job", SHORT).await.is_err() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}
