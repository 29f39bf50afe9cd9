//! The order in which waiters get a lock, and the ways in which it becomes free.

use std::{sync::Arc, time::Duration};

use coord_api::{DistributedLock, DistributedLockExt, LockGuard};
use futures::future::{OptionFuture, join_all};
use tokio::{join, sync::mpsc};

use crate::{
    World,
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, Task, eventually, keys_become, spawn, within},
};

/// A task that waits in the queue of `job`, and is known to be there.
async fn queue(world: &dyn World, locks: Arc<dyn DistributedLock>, before_it: usize) -> Task<LockGuard> {
    let waiter = spawn(async move { locks.acquire("job", LONG).await.expect("becomes free") });
    keys_become(world, before_it + 1).await;
    waiter
}

/// Lets one waiter after the other queue up behind a holder, and checks that they are served in that order.
async fn served_in_order(world: &dyn World, queue: Vec<Arc<dyn DistributedLock>>) {
    let count = queue.len();
    let holder = world.client().await.lock();
    let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
    let (served, mut order) = mpsc::unbounded_channel();
    let mut waiters = Vec::new();
    for (number, locks) in queue.into_iter().enumerate() {
        let served = served.clone();
        waiters.push(spawn(async move {
            let guard = locks.acquire("job", LONG).await.expect("becomes free");
            served.send(number).expect("the test still listens");
            guard.unlock().await.expect("is held");
        }));
        keys_become(world, number + 2).await;
    }
    guard.unlock().await.expect("is held");
    for expected in 0..count {
        assert_eq!(within(LIMIT, order.recv()).await, Some(expected));
    }
    for waiter in waiters {
        waiter.join().await;
    }
    keys_become(world, 0).await;
}

tests! { "lock";
    /// Contract 5: clients that want a lock again and again, at once after giving it back, all come to their turns.
    async fn clients_take_turns_again_and_again(world: &dyn World) {
        let mut tasks = Vec::new();
        for _ in 0..6 {
            let locks = world.client().await.lock();
            tasks.push(spawn(async move {
                for _ in 0..40 {
                    let guard = locks.acquire("job", LONG).await.expect("is answered");
                    guard.unlock().await.expect("is held");
                }
            }));
        }
        for task in tasks {
            task.join_within(LONG_LIMIT).await;
        }
        keys_become(world, 0).await;
    }

    /// Contract 5: clients get the lock in the order in which they asked for it.
    async fn first_come_first_served(world: &dyn World) {
        let mut clients = Vec::new();
        for _ in 0..5 {
            clients.push(world.client().await.lock());
        }
        served_in_order(world, clients).await;
    }

    /// Contract 5: tasks of one client get the lock in the order in which they asked for it.
    async fn first_task_first_served(world: &dyn World) {
        let locks = world.client().await.lock();
        served_in_order(world, vec![locks; 6]).await;
    }

    /// Contract 5: tasks of one client that ask at the same moment, for one time to live or for another, get the lock in
    /// the order in which they asked for it, and with it ever larger tokens.
    async fn tasks_that_ask_at_once_are_served_in_their_order(world: &dyn World) {
        let locks = world.client().await.lock();
        let ttls = [LONG, LONG + SHORT];
        for ttl in ttls {
            let guard = within(LIMIT, locks.acquire("warm-up", ttl)).await.expect("is free");
            guard.unlock().await.expect("is held");
        }
        for round in 0..12 {
            // Of a lock that is free, the first one finds the queue empty.
            let mut guard = None;
            if round % 4 < 2 {
                guard = Some(within(LIMIT, locks.acquire("job", LONG)).await.expect("is free"));
            }
            let (served, mut order) = mpsc::unbounded_channel();
            // The first poll asks, and the first polls come in this order.
            let all = join_all((0..24).map(|number| {
                let (locks, served, ttl) = (&locks, &served, ttls[number / 5 % (1 + round % 2)]);
                async move {
                    let guard = locks.acquire("job", ttl).await.expect("becomes free");
                    served.send((number, guard.token())).expect("the test still listens");
                    guard.unlock().await.expect("is held");
                }
            }));
            let unlocked = OptionFuture::from(guard.map(LockGuard::unlock));
            let unlocked = within(LONG_LIMIT, async { join!(all, unlocked) }).await.1;
            assert!(unlocked.is_none_or(|unlocked| unlocked.is_ok()));
            let mut last = None;
            for expected in 0..24 {
                let (number, token) = order.recv().await.expect("all were served");
                assert_eq!(number, expected, "round {round}");
                assert!(last.replace(token) < Some(token), "round {round}");
            }
        }
        keys_become(world, 0).await;
    }

    /// Contract 5: the order of arrival holds across clients and their tasks alike.
    async fn clients_and_tasks_share_one_queue(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        served_in_order(world, vec![one.clone(), other.clone(), other.clone(), one.clone(), other, one])
            .await;
    }

    /// Contract 5: tasks of one client take turns also while it is cut off, and nobody else comes between.
    async fn tasks_take_turns_while_their_client_is_cut_off(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await.lock());
        let mut held = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        let mut waiters = Vec::new();
        for before in 1..4 {
            waiters.push(queue(world, client.lock(), before).await);
        }
        let others = queue(world, other, 4).await;
        let last = queue(world, client.lock(), 5).await;
        // What the client is told of the queue comes a moment later.
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.link.cut();
        let mut given_back = Vec::new();
        for (n, waiter) in waiters.into_iter().enumerate() {
            if n == 1 {
                drop(held);
            } else {
                given_back.push(spawn(held.unlock()));
            }
            held = within(LIMIT, waiter.join()).await;
            assert!(!held.is_lost());
        }
        drop(held);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!others.is_finished() && !last.is_finished(), "the store knows of none of this");
        client.link.restore();
        let others = within(LIMIT, others.join()).await;
        assert!(!last.is_finished());
        others.unlock().await.expect("is held");
        within(LIMIT, last.join()).await.unlock().await.expect("is held");
        for unlocked in given_back {
            // Some stores say at once that they can not be reached, and are told later.
            let unlocked = unlocked.join().await;
            assert!(unlocked.is_ok() || unlocked.is_err_and(|error| error.is_retryable()));
        }
        keys_become(world, 0).await;
    }

    /// Contract 4: a guard whose key was asked for, on which writes may depend, is handed on only when the store has freed
    /// it, also to a task of the same client.
    async fn a_guard_that_fences_is_handed_on_by_the_store_alone(world: &dyn World) {
        let client = world.client().await;
        let guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        let waiter = queue(world, client.lock(), 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(world.keys().await.iter().filter(|key| *key == guard.key()).count(), 1);
        client.link.cut();
        drop(guard);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiter.is_finished(), "the store does not know yet");
        client.link.restore();
        within(LIMIT, waiter.join()).await.unlock().await.expect("is held");
    }

    /// Contract 5: a try does not overtake those who wait.
    async fn a_try_does_not_jump_the_queue(world: &dyn World) {
        let (holder, waiting, trying) =
            (world.client().await, world.client().await, world.client().await.lock());
        let guard = within(LIMIT, holder.lock().acquire("job", LONG)).await.expect("is free");
        let waiter = queue(world, waiting.lock(), 1).await;
        guard.unlock().await.expect("is held");
        assert!(trying.try_acquire("job", LONG).await.expect("is answered").is_none());
        waiter.join().await.unlock().await.expect("is held");
    }

    /// Contract 5: the next in the queue gets the lock as soon as it is unlocked.
    async fn the_next_one_gets_it_on_unlock(world: &dyn World) {
        let (holder, waiting) = (world.client().await, world.client().await);
        let guard = within(LIMIT, holder.lock().acquire("job", LONG)).await.expect("is free");
        let waiter = queue(world, waiting.lock(), 1).await;
        assert!(!waiter.is_finished());
        guard.unlock().await.expect("is held");
        assert!(!waiter.join().await.is_lost());
    }

    /// Contract 10: the next in the queue gets the lock when the guard is dropped.
    async fn the_next_one_gets_it_when_the_guard_is_dropped(world: &dyn World) {
        let (holder, waiting) = (world.client().await, world.client().await);
        let guard = within(LIMIT, holder.lock().acquire("job", LONG)).await.expect("is free");
        let waiter = queue(world, waiting.lock(), 1).await;
        drop(guard);
        assert!(!waiter.join().await.is_lost());
    }

    /// Contract 10: the next in the queue gets the lock when the holder's client is closed.
    async fn the_next_one_gets_it_when_the_holder_closes(world: &dyn World) {
        let (holder, waiting) = (world.client().await, world.client().await);
        let guard = within(LIMIT, holder.lock().acquire("job", LONG)).await.expect("is free");
        let waiter = queue(world, waiting.lock(), 1).await;
        holder.close().await;
        assert!(guard.is_lost());
        assert!(!waiter.join().await.is_lost());
    }

    /// Contract 1: the next in the queue gets the lock when a holder that crashed stops renewing.
    async fn the_next_one_gets_it_when_the_holder_crashes(world: &dyn World) {
        let (holder, waiting) = (world.client().await, world.client().await);
        let guard = within(LIMIT, holder.lock().acquire("job", SHORT)).await.expect("is free");
        let waiter = queue(world, waiting.lock(), 1).await;
        holder.link.cut();
        assert!(!waiter.join().await.is_lost());
        assert!(guard.is_lost());
    }

    /// Contract 1: a lock whose lease was revoked is free at once, however long its TTL.
    async fn a_revoked_lock_is_free_at_once(world: &dyn World) {
        let (holder, newcomer) = (world.client().await.lock(), world.client().await.lock());
        let _guard = within(LIMIT, holder.acquire("job", Duration::from_secs(3600))).await.expect("is free");
        world.revoke_leases().await;
        let now_held = within(LIMIT, newcomer.acquire("job", LONG)).await.expect("is free");
        assert!(!now_held.is_lost());
    }

    /// Contract 6: waiting for a limited time answers `None` under contention, and nothing stays queued.
    async fn waiting_for_a_limited_time(world: &dyn World) {
        let (holder, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        let waited = other.acquire_within("job", LONG, Duration::from_millis(500));
        assert!(within(LIMIT, waited).await.expect("waits in vain").is_none());
        keys_become(world, 1).await;
        guard.unlock().await.expect("is held");
        let waited = other.acquire_within("job", LONG, LIMIT).await.expect("is free");
        assert!(!waited.expect("is free").is_lost());
    }

    /// Contract 5: whoever waits for several locks of different names waits for each on its own.
    async fn queues_of_different_names_do_not_block_each_other(world: &dyn World) {
        let (holder, other) = (world.client().await.lock(), world.client().await.lock());
        let _guard = within(LIMIT, holder.acquire("job", LONG)).await.expect("is free");
        let waiter = queue(world, other.clone(), 1).await;
        let free = within(LIMIT, other.acquire("job/sub", LONG)).await.expect("is free");
        free.unlock().await.expect("is held");
        assert!(!waiter.is_finished());
        waiter.cancel().await;
        eventually(LIMIT, || async { world.keys().await.len() == 1 }).await;
    }

    /// Contract 5: that some of many names that are asked for at once are held does not matter to the others.
    async fn a_few_that_are_held_do_not_keep_many_others_waiting(world: &dyn World) {
        let (holder, other) = (world.client().await.lock(), world.client().await.lock());
        let name = |n: usize| format!("job-{n}");
        for round in 0..3 {
            let mut held = Vec::new();
            for n in 0..round {
                held.push(within(LIMIT, holder.acquire(&name(n), LONG)).await.expect("is free"));
            }
            let acquire = |n| {
                let (other, name) = (other.clone(), name(n));
                spawn(async move { other.acquire(&name, LONG).await.expect("becomes free") })
            };
            let mut waiters: Vec<_> = (0..32).map(acquire).collect();
            let mut guards = Vec::new();
            for free in waiters.split_off(held.len()) {
                guards.push(within(LIMIT, free.join()).await);
            }
            keys_become(world, 32 + held.len()).await;
            assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "round {round}");
            for guard in held {
                guard.unlock().await.expect("is held");
            }
            for waiter in waiters {
                guards.push(within(LIMIT, waiter.join()).await);
            }
            for guard in guards {
                guard.unlock().await.expect("is held");
            }
        }
        keys_become(world, 0).await;
    }
}
