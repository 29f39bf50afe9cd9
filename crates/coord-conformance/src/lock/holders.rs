//! What is told about those who hold a lock and those who wait for it.

use std::{collections::BTreeSet, process};

use coord_api::{DistributedLock, Holder};

use crate::{
    suite::tests,
    tools::{LIMIT, LONG, keys_become, spawn, within},
};

async fn holders(locks: &dyn DistributedLock, name: &str) -> Vec<Holder> {
    let holders = within(LIMIT, locks.holders(name)).await.expect("is answered");
    assert!(holders.is_sorted_by(|one, next| one.token < next.token), "{holders:?}");
    holders
}

tests! { "lock";
    /// Contract 5: a lock that nobody holds has no holders, whether it was ever held or not.
    async fn a_free_lock_has_no_holders(world: &dyn World) {
        let locks = world.client().await.lock();
        assert_eq!(holders(&*locks, "job").await, []);
        let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
        guard.unlock().await.expect("is held");
        assert_eq!(holders(&*locks, "job").await, []);
        assert_eq!(world.keys().await, [""; 0], "asking stores nothing");
    }

    /// Contract 5: the holder comes first, then those who wait in the order in which they asked; each says
    /// who it is, and has the key and the token that its guard has when its turn comes.
    async fn holders_tell_the_queue_in_its_order(world: &dyn World) {
        let (watching, client) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, client.acquire("job", LONG)).await.expect("is free");
        let mut waiters = Vec::new();
        for place in 1..4 {
            let locks = world.client().await.lock();
            waiters.push(spawn(async move { locks.acquire("job", LONG).await.expect("becomes free") }));
            keys_become(world, place + 1).await;
        }
        let queue = holders(&*watching, "job").await;
        assert_eq!(queue.len(), 4, "{queue:?}");
        assert_eq!(queue.iter().map(|holder| holder.key.clone()).collect::<BTreeSet<_>>(),
            world.keys().await.into_iter().collect());
        let mut names = BTreeSet::new();
        for holder in &queue {
            let owner = holder.owner.as_ref().expect("every client of coord says who it is");
            assert_eq!(owner.pid, process::id());
            assert!(!owner.host.is_empty());
            assert!(names.insert(owner.client.clone()), "{owner} is two clients");
        }
        assert_eq!(holders(&*client, "job").await, queue, "whoever asks");

        let mut guards = vec![guard];
        for (expected, waiter) in queue.iter().zip(waiters.into_iter().map(Some).chain([None])) {
            let guard = guards.pop().expect("one holds");
            assert_eq!((guard.key(), guard.token()), (expected.key.as_str(), expected.token));
            guard.unlock().await.expect("is held");
            if let Some(waiter) = waiter {
                guards.push(waiter.join().await);
            }
        }
        assert_eq!(holders(&*watching, "job").await, []);
    }

    /// Contract 5: after an unlock the next in the queue is told as the holder, and one that gave up is told
    /// no longer.
    async fn holders_move_on(world: &dyn World) {
        let (holder, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        let mut waiters = Vec::new();
        for place in 1..3 {
            let locks = other.clone();
            waiters.push(spawn(async move { locks.acquire("job", LONG).await.expect("becomes free") }));
            keys_become(world, place + 1).await;
        }
        let [first, gives_up, last] = holders(&*holder, "job").await.try_into().expect("three stand there");
        assert_eq!(first.key, guard.key());
        assert_eq!(gives_up.owner, last.owner, "two tasks of one client");
        let next = waiters.pop().expect("two wait");
        waiters.pop().expect("two wait").cancel().await;
        keys_become(world, 2).await;
        assert_eq!(holders(&*holder, "job").await, [first, last.clone()]);
        guard.unlock().await.expect("is held");
        let guard = next.join().await;
        assert_eq!(holders(&*holder, "job").await, [last]);
        guard.unlock().await.expect("is held");
        assert_eq!(holders(&*holder, "job").await, []);
    }

    /// Contract 11: the holders of a lock are not those of the locks below its path, nor of similar names.
    async fn holders_of_similar_names_do_not_meet(world: &dyn World) {
        let locks = world.client().await.lock();
        let mut guards = Vec::new();
        for name in ["a", "a/b", "a-2", "ab"] {
            guards.push(within(LIMIT, locks.acquire(name, LONG)).await.expect("is free"));
        }
        for guard in &guards {
            let keys: Vec<_> =
                holders(&*locks, guard.name()).await.into_iter().map(|holder| holder.key).collect();
            assert_eq!(keys, [guard.key()]);
        }
        assert_eq!(holders(&*locks, "a/b/c").await, []);
    }

    /// Contract 5: all locks that have a holder are told with their queues, by the names that every other call takes.
    async fn queues_tell_every_lock(world: &dyn World) {
        const NAMES: [&str; 5] = ["a", "a-2", "a/b", "ab", "日报"];
        let (watching, locks) = (world.client().await.lock(), world.client().await.lock());
        assert!(within(LIMIT, watching.queues()).await.expect("is answered").is_empty());
        let mut guards = Vec::new();
        for name in NAMES {
            guards.push(within(LIMIT, locks.acquire(name, LONG)).await.expect("is free"));
        }
        let locks_of_waiter = locks.clone();
        let waiter = spawn(async move { locks_of_waiter.acquire("a/b", LONG).await.expect("becomes free") });
        keys_become(world, 6).await;
        let queues = within(LIMIT, watching.queues()).await.expect("is answered");
        assert_eq!(queues.keys().collect::<Vec<_>>(), NAMES);
        assert_eq!(queues.values().map(Vec::len).collect::<Vec<_>>(), [1, 1, 2, 1, 1]);
        for (name, queue) in queues {
            assert_eq!(holders(&*watching, &name).await, queue);
        }
        waiter.cancel().await;
        for guard in guards {
            guard.unlock().await.expect("is held");
        }
        keys_become(world, 0).await;
        assert!(within(LIMIT, watching.queues()).await.expect("is answered").is_empty());
    }

    /// Contract 5: a holder whose lease was revoked is told no longer.
    async fn a_revoked_holder_is_gone(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
        world.revoke_leases().await;
        assert_eq!(holders(&*locks, "job").await, []);
        drop(guard);
    }
}
