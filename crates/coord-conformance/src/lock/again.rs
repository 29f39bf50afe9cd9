//! Tries right after a place was given up by the same client: what it has left does not bar its own way.

use std::{sync::Arc, time::Duration};

use coord_api::{DistributedLock, LockGuard};

use crate::{
    suite::tests,
    tools::{LIMIT, LONG, keys_become, poll_at_most, spawn, within},
};

/// Tries a lock that nobody else wants. A busy store may fail to answer in time, but never answers that it is held.
async fn is_free(locks: &Arc<dyn DistributedLock>, what: &str) -> LockGuard {
    let tried = within(LIMIT, async {
        loop {
            match locks.try_acquire("job", LONG).await {
                Err(error) if error.is_retryable() => {}
                answered => return answered.expect("is answered"),
            }
        }
    });
    tried.await.unwrap_or_else(|| panic!("{what} bars the way of its own client"))
}

tests! { "lock";
    /// Contract 10: a lock whose guard was dropped is free for the next try of the same client.
    async fn a_try_right_after_a_drop_gets_the_lock(world: &dyn World) {
        let locks = world.client().await.lock();
        for _ in 0..40 {
            drop(is_free(&locks, "a guard that was dropped").await);
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: as after a drop, whatever became of the future that gave the lock back.
    async fn a_try_right_after_a_dropped_unlock_gets_the_lock(world: &dyn World) {
        let locks = world.client().await.lock();
        for polls in 0..16 {
            let guard = is_free(&locks, "an unlock that was given up").await;
            drop(poll_at_most(polls % 8, guard.unlock()).await);
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: an acquisition that was given up bars no try of its client, wherever it had come to.
    async fn a_try_right_after_a_dropped_acquisition_gets_the_lock(world: &dyn World) {
        let locks = world.client().await.lock();
        drop(is_free(&locks, "nothing").await);
        for polls in 0..24 {
            drop(poll_at_most(polls % 8, locks.acquire("job", LONG)).await);
            drop(is_free(&locks, "an acquisition that was given up").await);
        }
        for micros in [0, 50, 100, 200, 400, 800, 1_500, 3_000, 6_000] {
            drop(tokio::time::timeout(Duration::from_micros(micros), locks.acquire("job", LONG)).await);
            drop(is_free(&locks, "an acquisition that was given up").await);
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: a waiter that gave up bars no try of its client once the holder has unlocked.
    async fn a_try_right_after_a_dropped_waiter_gets_the_lock(world: &dyn World) {
        let (holder, locks) = (world.client().await.lock(), world.client().await.lock());
        for _ in 0..10 {
            let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("becomes free");
            let waiting = locks.clone();
            let waiter = spawn(async move { waiting.acquire("job", LONG).await });
            keys_become(world, 2).await;
            guard.unlock().await.expect("is held");
            waiter.cancel().await;
            drop(is_free(&locks, "a waiter that gave up").await);
        }
        keys_become(world, 0).await;
    }

    /// Contract 10: a guard that was dropped while the store was away bars no try of its client when it is back.
    async fn a_try_after_a_drop_while_cut_off_gets_the_lock(world: &dyn World) {
        let client = world.client().await;
        let locks = client.lock();
        let guard = is_free(&locks, "nothing").await;
        client.link.cut();
        drop(guard);
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.link.restore();
        within(LIMIT, async {
            // The connection may take a moment to come back.
            loop {
                match locks.try_acquire("job", LONG).await {
                    Ok(tried) => break drop(tried.expect("a guard that was dropped bars the way")),
                    Err(error) => assert!(error.is_retryable(), "{error:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        keys_become(world, 0).await;
    }
}
