//! Writes that only the holder of a lock may do.

use coord_api::{Batch, ConfigCenter, ConfigExt, LockGuard, MAX_BATCH_KEYS, Result, Version};

use crate::{
    expect::{expect_conflict, expect_lost},
    suite::tests,
    tools::{LIMIT, LONG, SHORT, eventually, keys_become, spawn, within},
};

/// A batch that writes `value` to `key` while `guard` holds.
fn fenced(guard: &LockGuard, value: u32) -> Batch {
    let batch = Batch::new().while_held(guard).and_then(|batch| batch.set("key", &value));
    batch.expect("is held as far as the guard knows")
}

async fn value(config: &dyn ConfigCenter) -> Option<u32> {
    config.get("key").await.expect("is read").map(|found| found.value)
}

tests! { "config";
    /// Contract 4: a holder writes under its lock as anyone writes without one, whichever client sends it.
    async fn a_holder_writes(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        let config = client.config();
        let guard = within(LIMIT, client.lock().acquire("a/job", LONG)).await.expect("is free");
        let first = config.set_if_held(&guard, "key", &1).await.expect("is held");
        let found = config.get::<u32>("key").await.expect("is read").expect("exists");
        assert_eq!((found.value, found.version), (1, first));
        let second = config.set_if_held(&guard, "key", &2).await.expect("is still held");
        assert!(second > first);
        let committed = other.config().commit(fenced(&guard, 3)).await.expect("the lock is held by whoever");
        assert!(committed.version > second);
        assert_eq!(value(&*config).await, Some(3));
        guard.unlock().await.expect("writing does not give it back");
    }

    /// Contract 4: what was prepared under a lock is refused once the lock was given back, also when the same
    /// client holds it again.
    async fn refused_after_an_unlock(world: &dyn World) {
        let client = world.client().await;
        let config = client.config();
        let guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        config.set_if_held(&guard, "key", &1).await.expect("is held");
        let late = fenced(&guard, 2);
        guard.unlock().await.expect("is held");
        expect_lost(config.commit(late.clone()).await);
        let again = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        expect_lost(config.commit(late).await);
        assert_eq!(value(&*config).await, Some(1));
        config.set_if_held(&again, "key", &3).await.expect("is held");
    }

    /// Contract 4: after the lease was revoked nothing is written any more, whether the guard knows it or
    /// not.
    async fn refused_after_a_revocation(world: &dyn World) {
        let client = world.client().await;
        let config = client.config();
        for _ in 0..3 {
            let guard = within(LIMIT, client.lock().acquire("job", SHORT)).await.expect("is free");
            config.set_if_held(&guard, "key", &1).await.expect("is held");
            let prepared = fenced(&guard, 2);
            world.revoke_leases().await;
            expect_lost(config.set_if_held(&guard, "key", &3).await);
            assert!(guard.is_lost(), "who was refused knows it");
            expect_lost(config.commit(prepared.clone()).await);
            within(LIMIT, guard.lost()).await;
            expect_lost(config.set_if_held(&guard, "key", &4).await);
            expect_lost(Batch::new().while_held(&guard));
            expect_lost(config.commit(prepared).await);
            assert_eq!(value(&*config).await, Some(1));
        }
    }

    /// Contract 4: a write that a holder prepared before it was cut off is refused when it arrives after
    /// someone else got the lock, and the one who has it now writes.
    async fn a_zombie_is_refused(world: &dyn World) {
        let (zombie, next) = (world.client().await, world.client().await);
        let guard = within(LIMIT, zombie.lock().acquire("job", SHORT)).await.expect("is free");
        zombie.config().set_if_held(&guard, "key", &1).await.expect("is held");
        let late = fenced(&guard, 2);
        zombie.link.cut();
        let now_held = within(LIMIT, next.lock().acquire("job", LONG)).await.expect("becomes free");
        next.config().set_if_held(&now_held, "key", &3).await.expect("is held");
        zombie.link.restore();
        // The connection may take a moment to come back, which is no reason to let anything through.
        let answer = within(LIMIT, async {
            loop {
                match zombie.config().commit(late.clone()).await {
                    Err(error) if error.is_retryable() => {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    }
                    answer => break answer,
                }
            }
        });
        expect_lost(answer.await);
        expect_lost(zombie.config().set_if_held(&guard, "key", &4).await);
        assert_eq!(value(&*next.config()).await, Some(3));
        next.config().set_if_held(&now_held, "key", &5).await.expect("is still held");
    }

    /// Contract 4: of several holders in turn only the one of the moment writes, however late the others'
    /// writes come.
    async fn only_the_holder_of_the_moment_writes(world: &dyn World) {
        let client = world.client().await;
        let config = client.config();
        let mut late: Vec<Batch> = Vec::new();
        for turn in 0..5 {
            let locks = world.client().await.lock();
            let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
            let locks = world.client().await.lock();
            let waiter = spawn(async move { locks.acquire("job", LONG).await });
            keys_become(world, if turn == 0 { 2 } else { 3 }).await;
            config.set_if_held(&guard, "key", &turn).await.expect("is held");
            for batch in &late {
                expect_lost(config.commit(batch.clone()).await);
            }
            late.push(fenced(&guard, 100 + turn));
            guard.unlock().await.expect("is held");
            let next = waiter.join().await.expect("is free");
            for batch in &late {
                expect_lost(config.commit(batch.clone()).await);
            }
            assert_eq!(value(&*config).await, Some(turn));
            next.unlock().await.expect("is held");
        }
    }

    /// Contract 4: as soon as the next one holds the lock, be it a task of the same client, what was prepared under the
    /// hold before is refused.
    async fn refused_from_the_moment_on_when_the_next_one_holds(world: &dyn World) {
        let client = world.client().await;
        let (locks, config) = (client.lock(), client.config());
        for round in 0..20 {
            let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
            let next = locks.clone();
            let waiter = spawn(async move { next.acquire("job", LONG).await.expect("becomes free") });
            eventually(LIMIT, || async { locks.holders("job").await.is_ok_and(|all| all.len() == 2) }).await;
            let late = fenced(&guard, round);
            let given_back = spawn(guard.unlock());
            let next = waiter.join().await;
            expect_lost(config.commit(late).await);
            given_back.join().await.expect("was held");
            next.unlock().await.expect("is held");
        }
        assert_eq!(value(&*config).await, None);
    }

    /// Contract 4: a batch that requires two locks writes nothing if one of them is lost.
    async fn every_lock_must_be_held(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        let config = client.config();
        let both = |one: &LockGuard, two: &LockGuard| -> Result<Batch> {
            Batch::new().while_held(one)?.while_held(two)?.set("key", &1)?.set("more", &1)
        };
        for lost_first in [true, false] {
            let one = within(LIMIT, client.lock().acquire("one", LONG)).await.expect("is free");
            let two = within(LIMIT, other.lock().acquire("two", LONG)).await.expect("is free");
            let batch = both(&one, &two).expect("both are held");
            let (goes, stays) = if lost_first { (one, two) } else { (two, one) };
            goes.unlock().await.expect("is held");
            expect_lost(config.commit(batch).await);
            assert_eq!(config.list("").await.expect("is read"), []);
            stays.unlock().await.expect("is held");
        }
        let one = within(LIMIT, client.lock().acquire("one", LONG)).await.expect("is free");
        let two = within(LIMIT, other.lock().acquire("two", LONG)).await.expect("is free");
        config.commit(both(&one, &two).expect("both are held")).await.expect("both are held");
        assert_eq!(value(&*config).await, Some(1));
    }

    /// Contract 4 and 12: a holder's conflict is told as such; whoever lost the lock is told that first.
    async fn locks_and_versions_are_checked_together(world: &dyn World) {
        let client = world.client().await;
        let config = client.config();
        let guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        let create = |guard: &LockGuard, value: u32| {
            let batch = fenced(guard, value).require("key", Version::ABSENT);
            batch.expect("is valid")
        };
        let created = config.commit(create(&guard, 1)).await.expect("is held and new").version;
        expect_conflict("key", Version::ABSENT, created, config.commit(create(&guard, 2)).await);
        let replace = fenced(&guard, 3).require("key", created).expect("is valid");
        let late = [create(&guard, 4), fenced(&guard, 5), Batch::new().while_held(&guard).expect("is held")];
        let replaced = config.commit(replace).await.expect("is held and at that version").version;
        assert!(replaced > created);
        let empty = Batch::new().while_held(&guard).expect("is held");
        config.commit(empty).await.expect("is held");
        guard.unlock().await.expect("is held");
        for batch in late {
            expect_lost(config.commit(batch).await);
        }
        let found = config.get::<u32>("key").await.expect("is read").expect("exists");
        assert_eq!((found.value, found.version), (3, replaced));
    }

    /// Contract 4: a delete is fenced as a write is.
    async fn deletes_are_fenced(world: &dyn World) {
        let client = world.client().await;
        let config = client.config();
        config.set("key", &1).await.expect("is written");
        let guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        let delete = Batch::new().while_held(&guard).and_then(|batch| batch.delete("key")).expect("is held");
        guard.unlock().await.expect("is held");
        expect_lost(config.commit(delete).await);
        assert_eq!(value(&*config).await, Some(1));
        let guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        let delete = Batch::new().while_held(&guard).and_then(|batch| batch.delete("key")).expect("is held");
        assert_eq!(config.commit(delete).await.expect("is held").deleted, 1);
        assert_eq!(value(&*config).await, None);
    }

    /// Contract 4: the largest batch may be conditional on as many locks and versions as it has keys.
    async fn the_largest_batch_is_fenced(world: &dyn World) {
        let client = world.client().await;
        let config = client.config();
        let mut batch = Batch::new();
        let mut guards = Vec::new();
        for number in 0..MAX_BATCH_KEYS {
            let key = format!("key-{number:02}");
            batch = batch.set(&key, &number).expect("is within the limits");
            if number % 2 == 0 {
                let guard = within(LIMIT, client.lock().acquire(&key, LONG)).await.expect("is free");
                batch = batch.while_held(&guard).expect("is held");
                guards.push(guard);
            } else {
                batch = batch.require(&key, Version::ABSENT).expect("is within the limits");
            }
        }
        let again = batch.clone();
        let committed = config.commit(batch).await.expect("is held and new");
        let listed = config.list("").await.expect("is read");
        assert_eq!(listed.len(), MAX_BATCH_KEYS);
        assert!(listed.iter().all(|entry| entry.version() == committed.version));
        guards.pop().expect("are held").unlock().await.expect("is held");
        expect_lost(config.commit(again).await);
    }
}
