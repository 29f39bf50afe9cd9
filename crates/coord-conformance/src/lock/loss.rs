//! What a holder learns when its lock is gone, and when.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coord_api::LossReason;
use tokio::time::Instant;

use crate::{
    expect::expect_lost,
    suite::tests,
    tools::{LIMIT, LONG, SHORT, eventually, keys_become, spawn, within},
};

/// Sets its flag when it is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

tests! { "lock";
    /// Contract 2: a holder whose lease was revoked is told, and its guard says so in every way.
    async fn revocation_is_told(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("job", SHORT)).await.expect("is free");
        let lost = guard.lost();
        assert_eq!(lost.reason(), None);
        world.revoke_leases().await;
        let reason = within(LIMIT, lost.clone()).await;
        assert_eq!(reason, LossReason::Revoked);
        assert_eq!(lost.reason(), Some(reason));
        assert!(guard.is_lost());
        assert_eq!(guard.remaining(), Duration::ZERO);
        assert_eq!(expect_lost(guard.run(async {}).await), reason);
        assert_eq!(within(LIMIT, guard.lost()).await, reason, "a later call resolves at once");
        assert_eq!(expect_lost(guard.unlock().await), reason);
    }

    /// Contract 2: a holder that is cut off learns of its loss at its local deadline, before the store lets
    /// anyone else in.
    async fn a_holder_that_is_cut_off_is_told_before_the_next_one_gets_in(world: &dyn World) {
        let (holder, waiting) = (world.client().await, world.client().await.lock());
        let guard = within(LIMIT, holder.lock().acquire("job", SHORT)).await.expect("is free");
        let waiter = spawn(async move {
            let next = waiting.acquire("job", LONG).await.expect("becomes free");
            (Instant::now(), next)
        });
        keys_become(world, 2).await;
        holder.link.cut();
        let cut = Instant::now();
        let lost = guard.lost();
        let told = spawn(async move { (lost.await, Instant::now()) });

        let (entered, next) = waiter.join_within(LIMIT * 2).await;
        assert!(guard.is_lost(), "the next one holds the lock and this one does not know");
        let (reason, told) = told.join().await;
        assert_eq!(reason, LossReason::Expired);
        let cause = guard.lost().cause().expect("renewals failed");
        assert!(!cause.is_empty() && next.lost().cause().is_none(), "{cause}");
        assert!(told <= entered, "told {:?} after the next one got in", told - entered);
        let allowed = guard.ttl() + Duration::from_secs(1);
        assert!(told - cut <= allowed, "told only {:?} after the cut", told - cut);
        assert!(next.token() > guard.token());
    }

    /// Contract 3: a lost lock stays lost when the network is back, and nobody renews it.
    async fn a_lost_lock_never_heals(world: &dyn World) {
        let (holder, other) = (world.client().await, world.client().await.lock());
        let guard = within(LIMIT, holder.lock().acquire("job", SHORT)).await.expect("is free");
        holder.link.cut();
        within(LIMIT, guard.lost()).await;
        holder.link.restore();
        let until = Instant::now() + guard.ttl() * 2;
        while Instant::now() < until {
            assert!(guard.is_lost());
            assert_eq!(guard.remaining(), Duration::ZERO);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        drop(within(LIMIT, other.acquire("job", LONG)).await.expect("is free"));
        expect_lost(guard.unlock().await);
    }

    /// Contract 6: unlocking a lost lock answers `Lost` and does not free the lock of whoever has it now.
    async fn unlocking_a_lost_lock_frees_nobody_elses(world: &dyn World) {
        let (holder, next, third) = (world.client().await, world.client().await, world.client().await.lock());
        let guard = within(LIMIT, holder.lock().acquire("job", SHORT)).await.expect("is free");
        holder.link.cut();
        let now_held = within(LIMIT, next.lock().acquire("job", LONG)).await.expect("becomes free");
        holder.link.restore();
        assert_eq!(expect_lost(within(LIMIT, guard.unlock()).await), LossReason::Expired);
        assert!(third.try_acquire("job", LONG).await.expect("is answered").is_none());
        assert!(world.keys().await.contains(&now_held.key().to_owned()));
        now_held.unlock().await.expect("is still held");
    }

    /// Contract 6: dropping the guard of a lost lock frees nobody else's lock either.
    async fn dropping_a_lost_guard_frees_nobody_elses(world: &dyn World) {
        let (holder, third) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, holder.acquire("job", SHORT)).await.expect("is free");
        world.revoke_leases().await;
        within(LIMIT, guard.lost()).await;
        let again = within(LIMIT, holder.acquire("job", SHORT)).await.expect("is free");
        drop(guard);
        tokio::time::sleep(SHORT).await;
        assert!(third.try_acquire("job", LONG).await.expect("is answered").is_none());
        again.unlock().await.expect("is still held");
    }

    /// Contract 2: `run` returns what the work returns while the lock is held.
    async fn run_returns_the_output(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
        let output = guard.run(async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            42
        });
        assert_eq!(output.await.expect("is held"), 42);
        guard.unlock().await.expect("running does not give it back");
    }

    /// Contract 2: `run` drops the work and answers `Lost` as soon as the lock is lost.
    async fn run_stops_at_the_loss(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("job", SHORT)).await.expect("is free");
        let dropped = Arc::new(AtomicBool::new(false));
        let flag = Flag(dropped.clone());
        let running = spawn(async move {
            let work = async move {
                let _flag = flag;
                pending::<()>().await;
            };
            guard.run(work).await
        });
        world.revoke_leases().await;
        expect_lost(running.join().await);
        assert!(dropped.load(Ordering::SeqCst), "the work goes on");
    }

    /// Contract 2: whoever waits for the loss also hears that the lock was given back.
    async fn giving_back_is_told(world: &dyn World) {
        let locks = world.client().await.lock();
        let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
        let lost = guard.lost();
        guard.unlock().await.expect("is held");
        assert_eq!(within(LIMIT, lost).await, LossReason::Released);

        let guard = within(LIMIT, locks.acquire("job", LONG)).await.expect("is free");
        let lost = guard.lost();
        drop(guard);
        assert_eq!(within(LIMIT, lost).await, LossReason::Released);
    }

    /// Contract 1: after the store revoked a lease, the client's next lock lives on a new one.
    async fn a_client_goes_on_after_a_revocation(world: &dyn World) {
        let locks = world.client().await.lock();
        for _ in 0..3 {
            let guard = within(LIMIT, locks.acquire("job", SHORT)).await.expect("is free");
            world.revoke_leases().await;
            within(LIMIT, guard.lost()).await;
        }
        let guard = within(LIMIT, locks.acquire("job", SHORT)).await.expect("is free");
        tokio::time::sleep(guard.ttl() + Duration::from_secs(1)).await;
        assert!(!guard.is_lost(), "the new lease is not renewed");
        guard.unlock().await.expect("is held");
    }

    /// Contract 1: after an unlock nothing is renewed and nothing comes back.
    async fn nothing_comes_back_after_an_unlock(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let guard = within(LIMIT, one.acquire("job", SHORT)).await.expect("is free");
        guard.unlock().await.expect("is held");
        let until = Instant::now() + SHORT * 2;
        while Instant::now() < until {
            assert_eq!(world.keys().await, [""; 0]);
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        eventually(LIMIT, || async { other.try_acquire("job", LONG).await.expect("is answered").is_some() })
            .await;
    }
}
