//! Many acquisitions that are dropped wherever chance has it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use coord_api::{DistributedLock, LockGuard};
use fastrand::Rng;

use crate::{
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, keys_become, poll_at_most, spawn, within},
};

/// Give a run's seed in this variable to make the same choices again.
const SEED: &str = "COORD_CONFORMANCE_SEED";

/// Tells the seed when the test fails.
struct Seed(u64);

impl Seed {
    fn new() -> Self {
        let given = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
        Self(given.unwrap_or_else(|| fastrand::u64(..)))
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("the choices of this test were those of {SEED}={}", self.0);
        }
    }
}

/// Runs `future` for a random number of polls, or for a random time, and then drops it.
async fn dropped_at_random<F: Future>(random: &mut Rng, future: F) -> Option<F::Output> {
    let polls = if random.bool() { random.usize(1..6) } else { usize::MAX };
    // Short times are as frequent as long ones, since nobody knows how long a request takes on this store.
    let time = Duration::from_micros(1 << random.u32(5..16));
    tokio::time::timeout(time, poll_at_most(polls, future)).await.ok().flatten()
}

/// One acquisition in one of several ways; a guard if it came to that.
async fn acquire(random: &mut Rng, locks: &dyn DistributedLock) -> Option<LockGuard> {
    match random.u8(..8) {
        0..2 => dropped_at_random(random, locks.try_acquire("job", LONG)).await?.expect("is answered"),
        2..4 => {
            let whole = async { locks.acquire("job", LONG).await?.unlock().await };
            dropped_at_random(random, whole).await?.expect("is held until it is unlocked");
            None
        }
        4..7 => Some(dropped_at_random(random, locks.acquire("job", LONG)).await?.expect("is answered")),
        _ => Some(within(LIMIT, locks.acquire("job", LONG)).await.expect("becomes free")),
    }
}

/// Gives the lock back in one of several ways.
async fn give_back(random: &mut Rng, guard: LockGuard) {
    match random.u8(..3) {
        0 => drop(guard),
        1 => drop(dropped_at_random(random, guard.unlock()).await),
        _ => guard.unlock().await.expect("is held"),
    }
}

tests! { "lock";
    /// Contract 6: however many acquisitions, tries and unlocks of several clients and tasks are dropped at
    /// random points, at most one of them holds the lock at a time, and it is free afterwards.
    async fn a_thousand_acquisitions_dropped_at_random_leave_the_lock_free(world: &dyn World) {
        const TASKS: u64 = 20;
        let seed = Seed::new();
        let clients = [
            world.client().await.lock(),
            world.client().await.lock(),
            world.client().await.lock(),
            world.client().await.lock(),
        ];
        let inside = Arc::new(AtomicUsize::new(0));
        let mut tasks = Vec::new();
        for (task, locks) in (0..TASKS).zip(clients.iter().cycle()) {
            let (locks, inside) = (locks.clone(), inside.clone());
            let mut random = Rng::with_seed(seed.0.wrapping_add(task));
            tasks.push(spawn(async move {
                let mut held = 0;
                for _ in 0..1000 / TASKS {
                    if let Some(guard) = acquire(&mut random, &*locks).await {
                        held += 1;
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
                        tokio::task::yield_now().await;
                        assert!(!guard.is_lost());
                        inside.fetch_sub(1, Ordering::SeqCst);
                        give_back(&mut random, guard).await;
                    }
                }
                held
            }));
        }
        let mut held = 0;
        for task in tasks {
            held += task.join_within(LONG_LIMIT).await;
        }
        assert!(held > 0, "no acquisition came to its end, which shows nothing");
        keys_become(world, 0).await;
        for locks in &clients {
            let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
            guard.unlock().await.expect("is held");
        }
    }
}
