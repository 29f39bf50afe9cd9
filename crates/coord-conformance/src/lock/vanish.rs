//! Many places that are gone at one moment: nobody holds by one of them, not for a moment.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use coord_api::{DistributedLock, LockGuard, LossReason, Lost};

use crate::{
    World,
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, Task, keys_become, spawn, within},
};

/// How many tasks of one client wait.
const WAITERS: usize = 24;

const ROUNDS: usize = 4;

/// Everybody who ever believed in the lock.
#[derive(Clone, Default)]
struct Believers(Arc<Mutex<Vec<(usize, Lost)>>>);

impl Believers {
    /// Takes note of one more, and fails if another one believes at this moment.
    fn add(&self, number: usize, guard: &LockGuard) {
        let mut all = self.0.lock().expect("nothing panics while this is locked");
        let believe: Vec<_> =
            all.iter().filter(|(_, lost)| lost.reason().is_none()).map(|(n, _)| *n).collect();
        all.push((number, guard.lost()));
        drop(all);
        assert!(believe.is_empty() || guard.is_lost(), "{number} believes while {believe:?} do");
    }
}

/// Waits for the lock, holds it for a moment and gives it back, once there are `places` in its queue.
async fn waits(
    world: &dyn World,
    locks: &Arc<dyn DistributedLock>,
    believers: &Believers,
    places: usize,
) -> Task<()> {
    let (locks, believers) = (locks.clone(), believers.clone());
    let waiter = spawn(async move {
        let guard = locks.acquire("job", LONG).await.expect("queues anew");
        believers.add(places, &guard);
        tokio::time::sleep(Duration::from_millis(5)).await;
        // An operator is no fault of anybody's: who is told may be so at any moment.
        drop(guard.unlock().await);
    });
    keys_become(world, places).await;
    waiter
}

/// How places vanish.
#[derive(Clone, Copy)]
enum How {
    Revoked,
    Deleted,
}

/// Lets all places vanish on which a client holds and waits, and looks who believes then.
async fn vanish(world: &dyn World, how: How) {
    for _ in 0..ROUNDS {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let believers = Believers::default();
        let held = within(LIMIT, one.acquire("job", LONG)).await.expect("is free");
        let mut waiters = Vec::new();
        for n in 0..WAITERS {
            waiters.push(waits(world, &one, &believers, n + 2).await);
        }
        waiters.push(waits(world, &other, &believers, WAITERS + 2).await);
        // What a client is told of the queue comes a moment later.
        tokio::time::sleep(Duration::from_millis(100)).await;
        match how {
            How::Revoked => world.revoke_leases().await,
            How::Deleted => world.delete_queue("job").await,
        }
        match (how, within(LIMIT / 2, held.lost()).await) {
            // Who hears of its place before it hears of its lease tells that.
            (How::Revoked, LossReason::Revoked) | (_, LossReason::Deleted) => {}
            (_, reason) => panic!("{reason:?}"),
        }
        for waiter in waiters {
            waiter.join_within(LONG_LIMIT).await;
        }
        keys_become(world, 0).await;
    }
}

tests! { "lock";
    /// Contract 1: of many who wait on leases that are revoked none holds by its old place; they queue anew.
    async fn nobody_holds_by_a_place_that_was_revoked(world: &dyn World) {
        vanish(world, How::Revoked).await;
    }

    /// Contract 1: of many whose places are deleted at one moment none holds by it, its holder is told, and they queue
    /// anew.
    async fn nobody_holds_by_a_place_that_was_deleted(world: &dyn World) {
        vanish(world, How::Deleted).await;
    }
}
