//! Waiting for a limited time, and through outages.

use std::time::Duration;

use coord_api::DistributedLockExt;

use crate::{
    expect::{expect_closed, expect_unreachable},
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, keys_become, spawn, within},
};

/// Whoever has just come into a queue hears of that a moment later.
async fn answered() {
    tokio::time::sleep(Duration::from_millis(500)).await;
}

tests! { "lock";
    /// Contract 6: a wait that is far shorter than a request gets a lock that is free, and `None` for one that is held.
    async fn a_wait_of_nearly_nothing_is_answered_by_the_store(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        for wait in [Duration::ZERO, Duration::from_nanos(1), Duration::from_micros(1)] {
            let guard = within(LIMIT, one.acquire_within("job", LONG, wait)).await.expect("is answered");
            let guard = guard.unwrap_or_else(|| panic!("is free, also for a wait of {wait:?}"));
            let held = within(LIMIT, other.acquire_within("job", LONG, wait)).await.expect("is answered");
            assert!(held.is_none(), "{wait:?}");
            keys_become(world, 1).await;
            guard.unlock().await.expect("is held");
        }
        keys_become(world, 0).await;
    }

    /// Contract 7: a store that does not answer is no contention, however long it is waited for.
    async fn an_outage_is_never_taken_for_contention(world: &dyn World) {
        let (client, holder) = (world.client().await, world.client().await.lock());
        let warm = within(LIMIT, client.lock().acquire("warm", LONG)).await.expect("is free");
        let held = within(LIMIT, holder.acquire("held", LONG)).await.expect("is free");
        client.link.cut();
        for millis in [0, 1, 200, 1_000, 3_000] {
            for name in ["free", "held", "warm"] {
                let wait = Duration::from_millis(millis);
                expect_unreachable(within(LIMIT, client.lock().acquire_within(name, LONG, wait)).await);
            }
        }
        client.link.restore();
        drop((warm, held));
        keys_become(world, 0).await;
    }

    /// Contract 7: a wait that begins while the store is away gets the lock if the store is back in time.
    async fn a_wait_outlasts_an_outage_that_is_shorter(world: &dyn World) {
        let client = world.client().await;
        let warm = within(LIMIT, client.lock().acquire("warm", LONG)).await.expect("is free");
        client.link.cut();
        let locks = client.lock();
        let waiter = spawn(async move { locks.acquire_within("job", LONG, LIMIT * 3).await });
        // Longer than a request has.
        tokio::time::sleep(Duration::from_secs(4)).await;
        assert!(!waiter.is_finished(), "its time is not over");
        client.link.restore();
        let guard = waiter.join_within(LIMIT * 3).await.expect("is back in time").expect("is free");
        guard.unlock().await.expect("is held");
        drop(warm);
        keys_become(world, 0).await;
    }

    /// Contract 6: the longest wait there is waits until the lock is free.
    async fn a_wait_without_an_end_is_one(world: &dyn World) {
        let (holder, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        let waiter = spawn(async move { other.acquire_within("job", LONG, Duration::MAX).await });
        keys_become(world, 2).await;
        guard.unlock().await.expect("is held");
        let next = waiter.join().await.expect("is answered").expect("becomes free");
        next.unlock().await.expect("is held");
    }

    /// Contract 2: a waiter whose lease was revoked has lost its place and nothing else: it queues anew, and never
    /// holds by a place that is gone.
    async fn a_waiter_whose_lease_was_revoked_queues_anew(world: &dyn World) {
        let (holder, waiting) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, holder.acquire("job", SHORT)).await.expect("is free");
        let waiter = spawn(async move { waiting.acquire("job", SHORT).await });
        keys_become(world, 2).await;
        let old = holder.holders("job").await.expect("is answered")[1].token;
        world.revoke_leases().await;
        let next = waiter.join().await.expect("queues anew");
        assert!(next.token() > old, "the old place is gone");
        assert!(!next.is_lost());
        within(LIMIT, guard.lost()).await;
        next.unlock().await.expect("is held");
        keys_become(world, 0).await;
    }

    /// Contract 2: a waiter that was cut off past its TTL has lost its place. When it is back it queues anew, behind
    /// those who came meanwhile.
    async fn a_waiter_that_was_cut_off_queues_anew(world: &dyn World) {
        let (holder, waiting) = (world.client().await.lock(), world.client().await);
        let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        let waiter = spawn({
            let locks = waiting.lock();
            async move { locks.acquire("job", SHORT).await }
        });
        keys_become(world, 2).await;
        answered().await;
        waiting.link.cut();
        keys_become(world, 1).await;
        guard.unlock().await.expect("is held");
        let meanwhile = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        tokio::time::sleep(SHORT * 2).await;
        assert!(!waiter.is_finished(), "who waits holds nothing that could be lost");
        waiting.link.restore();
        keys_become(world, 2).await;
        assert!(!waiter.is_finished() && !meanwhile.is_lost());
        meanwhile.unlock().await.expect("is held");
        let next = waiter.join().await.expect("queues anew");
        next.unlock().await.expect("is held");
        keys_become(world, 0).await;
    }

    /// Contract 2: whoever waits outlasts a store that is away for several times the TTL, alone and with others of
    /// its client, and the lock is handed on as before.
    async fn all_waiters_outlast_an_outage(world: &dyn World) {
        let clients = [world.client().await, world.client().await];
        let guard = within(LIMIT, clients[0].lock().acquire("job", SHORT)).await.expect("is free");
        let mut waiters = Vec::new();
        for (number, client) in clients.iter().cycle().take(5).enumerate() {
            let locks = client.lock();
            waiters.push(spawn(async move {
                let guard = locks.acquire("job", SHORT).await.expect("outlasts it");
                assert!(!guard.is_lost());
                guard.unlock().await.expect("is held");
            }));
            keys_become(world, number + 2).await;
        }
        answered().await;
        for client in &clients {
            client.link.cut();
        }
        within(LIMIT, guard.lost()).await;
        tokio::time::sleep(SHORT * 3).await;
        assert!(waiters.iter().all(|waiter| !waiter.is_finished()));
        for client in &clients {
            client.link.restore();
        }
        for waiter in waiters {
            waiter.join_within(LONG_LIMIT).await;
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: a waiter that gives up, or whose client is closed, while it can not queue anew leaves nothing.
    async fn a_waiter_without_a_place_may_be_dropped_or_closed(world: &dyn World) {
        let (holder, dropped, closed) =
            (world.client().await.lock(), world.client().await, world.client().await);
        let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        let wait = |client: &crate::TestClient| {
            let locks = client.lock();
            spawn(async move { locks.acquire("job", SHORT).await })
        };
        let waiters = [wait(&dropped), wait(&closed)];
        keys_become(world, 3).await;
        answered().await;
        for client in [&dropped, &closed] {
            client.link.cut();
        }
        keys_become(world, 1).await;
        tokio::time::sleep(SHORT * 2).await;
        let [gives_up, is_closed] = waiters;
        gives_up.cancel().await;
        let (_, answer) = futures::future::join(closed.provider.close(), is_closed.join()).await;
        expect_closed(answer);
        dropped.link.restore();
        tokio::time::sleep(Duration::from_secs(1)).await;
        keys_become(world, 1).await;
        guard.unlock().await.expect("is held");
    }
}
