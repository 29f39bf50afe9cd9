//! Who holds a lock, and what the guard tells about it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coord_api::DistributedLockExt;
use futures::future::join_all;

use crate::{
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, eventually, keys_become, spawn, within},
};

tests! { "lock";
    /// Contract 5: while one client holds a lock, no other client gets it; once it is unlocked, one does.
    async fn clients_exclude_each_other(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, one.acquire("job", LONG)).await.expect("is free");
        assert_eq!(guard.name(), "job");
        assert!(!guard.is_lost());
        assert!(other.try_acquire("job", LONG).await.expect("is answered").is_none());
        guard.unlock().await.expect("is held");
        assert!(other.try_acquire("job", LONG).await.expect("is answered").is_some());
    }

    /// Contract 5: two tasks of one client exclude each other, although they share a lease.
    async fn tasks_of_one_client_exclude_each_other(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
        let task = spawn({
            let locks = locks.clone();
            async move { locks.try_acquire("job", LONG).await.expect("is answered").is_some() }
        });
        assert!(!task.join().await, "another task got a lock that is held");
        guard.unlock().await.expect("is held");
        assert!(locks.try_acquire("job", LONG).await.expect("is answered").is_some());
    }

    /// Contract 5: locks are not reentrant; who acquires twice waits for itself.
    async fn not_reentrant(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
        let again = locks.acquire_within("job", LONG, Duration::from_millis(300)).await;
        assert!(again.expect("waits in vain").is_none());
        assert!(!guard.is_lost(), "the second attempt must not disturb the first");
        assert!(locks.try_acquire("job", LONG).await.expect("is answered").is_none());
    }

    /// Contract 5 and 12: of several clients and tasks that try a free lock at one moment exactly one gets
    /// it, never none.
    async fn one_of_several_concurrent_tries_wins(world: &dyn World) {
        let clients = [world.client().await.lock(), world.client().await.lock(), world.client().await.lock()];
        for round in 0..10 {
            let name = format!("job-{round}");
            let tries = clients.iter().cycle().take(9).map(|locks| locks.try_acquire(&name, LONG));
            let outcomes = within(LIMIT, join_all(tries)).await;
            let winners = outcomes.iter().filter(|outcome| matches!(outcome, Ok(Some(_)))).count();
            assert_eq!(winners, 1, "{outcomes:?}");
            assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        }
    }

    /// Contract 5: a counter that is read and written in two steps loses no increment under the lock.
    async fn no_increment_is_lost_under_the_lock(world: &dyn World) {
        let counter = Arc::new(AtomicU64::new(0));
        let mut tasks = Vec::new();
        for _ in 0..3 {
            let locks = world.client().await.lock();
            for _ in 0..4 {
                let (locks, counter) = (locks.clone(), counter.clone());
                tasks.push(spawn(async move {
                    for _ in 0..5 {
                        let guard = locks.acquire("counter", LONG).await.expect("is answered");
                        let read = counter.load(Ordering::SeqCst);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        counter.store(read + 1, Ordering::SeqCst);
                        guard.unlock().await.expect("is held");
                    }
                }));
            }
        }
        for task in tasks {
            task.join_within(LONG_LIMIT).await;
        }
        assert_eq!(counter.load(Ordering::SeqCst), 60);
        keys_become(world, 0).await;
    }

    /// Contract 11: a lock, the locks below its path and locks of similar names know nothing of each other.
    async fn similar_names_are_different_locks(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let mut guards = Vec::new();
        for name in ["a/b", "a", "a/b/c", "ab", "a-2", "A", "a b", "b"] {
            let free = one.try_acquire(name, LONG).await.expect("is answered");
            guards.push(free.unwrap_or_else(|| panic!("{name} is blocked by another name")));
            assert!(other.try_acquire(name, LONG).await.expect("is answered").is_none(), "{name}");
        }
        for guard in guards {
            let name = guard.name().to_owned();
            guard.unlock().await.expect("no other name's unlock freed it");
            assert!(other.try_acquire(&name, LONG).await.expect("is answered").is_some(), "{name}");
        }
    }

    /// Contract 4: every holder's token is larger than all before it, however the lock went on.
    async fn tokens_grow_from_holder_to_holder(world: &dyn World) {
        let clients = [world.client().await, world.client().await];
        let mut last = None;
        for round in 0..12 {
            let locks = clients[round % 2].lock();
            let guard = within(LIMIT, locks.acquire("job", SHORT)).await.expect("becomes free");
            assert!(Some(guard.token()) > last, "{} after {last:?}", guard.token());
            last = Some(guard.token());
            match round % 3 {
                0 => guard.unlock().await.expect("is held"),
                1 => drop(guard),
                _ => {
                    world.revoke_leases().await;
                    within(LIMIT, guard.lost()).await;
                }
            }
        }
    }

    /// Contract 1: the granted TTL is told, is never less than asked for, and a fraction is rounded up.
    async fn ttl_is_what_was_granted(world: &dyn World) {
        let locks = world.client().await.lock();
        let asked = Duration::from_millis(1_900);
        let guard = within(LIMIT, locks.acquire("fraction", asked)).await.expect("is free");
        assert!(guard.ttl() >= Duration::from_secs(2), "{:?}", guard.ttl());
        assert_eq!(guard.ttl().subsec_nanos(), 0);
        assert!(guard.remaining() > Duration::ZERO && guard.remaining() <= guard.ttl());
        let long = within(LIMIT, locks.acquire("long", Duration::from_secs(3600))).await.expect("is free");
        assert!(long.ttl() >= Duration::from_secs(3600), "{:?}", long.ttl());
        assert!(long.remaining() > Duration::from_secs(3500) && long.remaining() <= long.ttl());
    }

    /// Contract 1: a lock is held far longer than its TTL, because it is renewed.
    async fn renewals_keep_the_lock(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, one.acquire("job", SHORT)).await.expect("is free");
        let until = tokio::time::Instant::now() + guard.ttl() * 2 + Duration::from_secs(1);
        while tokio::time::Instant::now() < until {
            assert!(!guard.is_lost());
            assert!(guard.remaining() > Duration::ZERO && guard.remaining() <= guard.ttl());
            assert!(other.try_acquire("job", SHORT).await.expect("is answered").is_none());
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        guard.unlock().await.expect("is held");
    }

    /// Contract 1: many locks of one client, on one lease or many, are held and given back one by one.
    async fn many_locks_of_one_client_are_independent(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let names: Vec<_> = (0..20).map(|n| format!("job-{n}")).collect();
        let mut guards = within(LIMIT, join_all(names.iter().map(|name| one.acquire(name, LONG)))).await;
        let mut kept = guards.split_off(10);
        for guard in guards {
            guard.expect("is free").unlock().await.expect("is held");
        }
        for (number, name) in names.iter().enumerate() {
            let free = other.try_acquire(name, LONG).await.expect("is answered").is_some();
            assert_eq!(free, number < 10, "{name}");
        }
        for guard in kept.drain(..) {
            guard.expect("is free").unlock().await.expect("is held");
        }
    }

    /// Contract 1: the key that the guard names is in the store while the lock is held, and gone afterwards.
    async fn the_key_of_the_holder_is_stored(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("jobs/nightly", LONG)).await.expect("is free");
        assert_eq!(world.keys().await, [guard.key()]);
        guard.unlock().await.expect("is held");
        assert_eq!(world.keys().await, [""; 0]);
    }

    /// Contract 10: dropping a guard gives the lock back without waiting for it.
    async fn dropping_the_guard_frees_the_lock(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, one.acquire("job", LONG)).await.expect("is free");
        drop(guard);
        eventually(LIMIT, || async { other.try_acquire("job", LONG).await.expect("is answered").is_some() })
            .await;
        keys_become(world, 0).await;
    }

    /// Contract 12: contention is no error and a failed try stores nothing.
    async fn a_failed_try_leaves_nothing_behind(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, one.acquire("job", LONG)).await.expect("is free");
        for _ in 0..5 {
            assert!(other.try_acquire("job", LONG).await.expect("is answered").is_none());
            assert_eq!(world.keys().await, [guard.key()]);
        }
    }
}
