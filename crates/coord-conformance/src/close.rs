//! What [`Provider::close`](coord_api::Provider::close) gives back, whom it wakes, and what comes afterwards.

use std::{collections::BTreeMap, fmt::Debug};

use coord_api::{
    Batch, ConfigEvent, ConfigExt, Error, LeaseHealth, LossReason, Provider, Result, ServiceEvent,
    ServiceInfo, Watch,
};
use futures::{FutureExt, future::join_all};

use crate::{
    expect::{expect_closed, expect_invalid, expect_lost},
    suite::tests,
    tools::{LIMIT, LONG, SHORT, keys_become, spawn, within},
};

/// A watch ends with one error, then with nothing.
async fn expect_end<T: Debug>(mut watch: Watch<T>) {
    let mut last = within(LIMIT, watch.next()).await.expect("the end is told");
    while last.is_ok() {
        last = within(LIMIT, watch.next()).await.expect("the end is told");
    }
    expect_closed(last);
    assert!(within(LIMIT, watch.next()).await.is_none());
    assert!(within(LIMIT, watch.next()).await.is_none());
}

async fn every_call_is_closed(provider: &dyn Provider) {
    expect_closed(within(LIMIT, provider.lock().acquire("job", LONG)).await);
    expect_closed(within(LIMIT, provider.lock().try_acquire("job", LONG)).await);
    expect_closed(within(LIMIT, provider.lock().holders("job")).await);
    let info = ServiceInfo::new("svc", "1", "10.0.0.1", 80);
    expect_closed(within(LIMIT, provider.registry().register(info, LONG)).await);
    expect_closed(within(LIMIT, provider.registry().discover("svc")).await);
    expect_closed(within(LIMIT, provider.registry().watch("svc")).await);
    let config = provider.config();
    expect_closed(within(LIMIT, config.get::<u32>("key")).await);
    expect_closed(within(LIMIT, config.set("key", &1)).await);
    expect_closed(within(LIMIT, config.delete("key")).await);
    expect_closed(within(LIMIT, config.list("")).await);
    expect_closed(within(LIMIT, config.watch::<u32>("key")).await);
    expect_closed(within(LIMIT, config.watch_prefix::<u32>("")).await);
    expect_closed(within(LIMIT, config.commit(Batch::new())).await);
    expect_closed(provider.instance_id_allocator("svc", 10));
    // A bad argument is bad whatever else there is to say.
    expect_invalid("max_id", "1", provider.instance_id_allocator("svc", 1));
    assert_eq!(provider.lease_health(), LeaseHealth::Healthy, "there are no leases");
}

tests! { "close";
    /// Contract 10: closing again, also at the same moment, is no error.
    async fn closing_is_idempotent(world: &dyn World) {
        let client = world.client().await;
        let _guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        let closing = join_all((0..4).map(|_| client.provider.close()));
        let outcomes: Vec<Result<()>> = within(LIMIT, closing).await;
        assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
        within(LIMIT, client.close()).await;
        keys_become(world, 0).await;
    }

    /// Contract 10: a client that never did anything closes as well.
    async fn an_idle_client_closes(world: &dyn World) {
        let client = world.client().await;
        within(LIMIT, client.close()).await;
        every_call_is_closed(&*client.provider).await;
    }

    /// Contract 10: after closing every call of all four areas answers `Closed` and stores nothing, also
    /// through handles that were made before.
    async fn every_call_afterwards_is_closed(world: &dyn World) {
        let client = world.client().await;
        let (locks, config, allocator) = (client.lock(), client.config(), client.ids_at_once("svc", 10));
        config.set("kept", &1).await.expect("is written");
        within(LIMIT, client.close()).await;
        every_call_is_closed(&*client.provider).await;
        expect_closed(within(LIMIT, locks.acquire("job", LONG)).await);
        expect_closed(within(LIMIT, config.set("key", &1)).await);
        expect_closed(within(LIMIT, allocator.acquire_id()).await);
        expect_closed(within(LIMIT, allocator.try_acquire_id()).await);
        assert_eq!(allocator.id(), None);
        assert_eq!(world.keys().await.len(), 1, "only the config value stays");
    }

    /// Contract 10: all that this client holds is given back, and nothing of anybody else's.
    async fn everything_is_given_back(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        let kept = within(LIMIT, other.lock().acquire("others", LONG)).await.expect("is free");
        let others = ServiceInfo::new("svc", "2", "10.0.0.2", 80);
        let _others = within(LIMIT, other.registry().register(others.clone(), LONG)).await.expect("is free");
        let before = world.keys().await;

        let mut guards = Vec::new();
        for name in ["a", "b", "a/b"] {
            guards.push(within(LIMIT, client.lock().acquire(name, LONG)).await.expect("is free"));
        }
        let short = within(LIMIT, client.lock().acquire("short", SHORT)).await.expect("is free");
        let info = ServiceInfo::new("svc", "1", "10.0.0.1", 80);
        let registration = within(LIMIT, client.registry().register(info, LONG)).await.expect("is free");
        let ids = client.ids_at_once("svc", 10);
        within(LIMIT, ids.acquire_id()).await.expect("is free");
        assert_eq!(world.keys().await.len(), before.len() + 6);

        within(LIMIT, client.close()).await;
        assert_eq!(world.keys().await, before, "close answers when it is done");
        for guard in guards.into_iter().chain([short]) {
            assert!(guard.is_lost());
            assert_eq!(within(LIMIT, guard.lost()).await, LossReason::Closed);
            assert_eq!(expect_lost(guard.unlock().await), LossReason::Closed);
        }
        assert_eq!(within(LIMIT, registration.lost()).await, LossReason::Closed);
        expect_lost(registration.update(BTreeMap::new()).await);
        expect_lost(registration.deregister().await);
        assert_eq!(ids.id(), None);
        assert_eq!(expect_lost(ids.release_id().await), LossReason::Closed);
        assert!(!kept.is_lost());
        assert_eq!(other.registry().discover("svc").await.expect("is answered"), [others]);
    }

    /// Contract 10: whoever waits for a lock or an id of this client is woken with `Closed`, and leaves no
    /// place in a queue behind.
    async fn waiters_are_woken(world: &dyn World) {
        let (holder, client) = (world.client().await, world.client().await);
        let _guard = within(LIMIT, holder.lock().acquire("job", LONG)).await.expect("is free");
        let ids = holder.ids("svc", 2);
        within(LIMIT, ids.acquire_id()).await.expect("is free");
        let before = world.keys().await;
        let (locks, waiting_ids) = (client.lock(), client.ids("svc", 2));
        let for_lock = spawn(async move { locks.acquire("job", LONG).await });
        let for_id = spawn(async move { waiting_ids.acquire_id().await });
        crate::tools::eventually(LIMIT, || async { world.keys().await.len() > before.len() }).await;
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        within(LIMIT, client.close()).await;
        expect_closed(for_lock.join().await);
        expect_closed(for_id.join().await);
        assert_eq!(world.keys().await, before);
    }

    /// Contract 10: work that runs under a lock is stopped.
    async fn work_under_a_lock_is_stopped(world: &dyn World) {
        let client = world.client().await;
        let guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        let running = spawn(async move { guard.run(std::future::pending::<()>()).await });
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        within(LIMIT, client.close()).await;
        assert_eq!(expect_lost(running.join().await), LossReason::Closed);
    }

    /// Contract 10: every watch ends with one `Closed`, then with nothing, whether it is looked at or not.
    async fn watches_end(world: &dyn World) {
        let client = world.client().await;
        client.config().set("key", &1).await.expect("is written");
        let mut seen: Watch<ConfigEvent<u32>> = client.config().watch("key").await.expect("is answered");
        within(LIMIT, seen.next()).await.expect("does not end").expect("is a snapshot");
        let unseen: Watch<ConfigEvent<u32>> = client.config().watch_prefix("").await.expect("is answered");
        let services: Watch<ServiceEvent> = client.registry().watch("svc").await.expect("is answered");
        let waiting = spawn(expect_end(seen));
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        within(LIMIT, client.close()).await;
        waiting.join().await;
        expect_end(unseen).await;
        expect_end(services).await;
    }

    /// Contract 10: what is dropped or given back after closing neither panics nor touches what others hold
    /// by then.
    async fn what_comes_late_touches_nobody_elses(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        let (first, second) = (
            within(LIMIT, client.lock().acquire("first", LONG)).await.expect("is free"),
            within(LIMIT, client.lock().acquire("second", LONG)).await.expect("is free"),
        );
        let info = ServiceInfo::new("svc", "1", "10.0.0.1", 80);
        let registration =
            within(LIMIT, client.registry().register(info.clone(), LONG)).await.expect("is free");
        let ids = client.ids("svc", 2);
        within(LIMIT, ids.acquire_id()).await.expect("is free");
        within(LIMIT, client.close()).await;

        let _first = within(LIMIT, other.lock().acquire("first", LONG)).await.expect("is free");
        let _second = within(LIMIT, other.lock().acquire("second", LONG)).await.expect("is free");
        let _registration = within(LIMIT, other.registry().register(info, LONG)).await.expect("is free");
        let others_ids = other.ids("svc", 2);
        within(LIMIT, others_ids.acquire_id()).await.expect("becomes free");
        // Whoever waited for an id leaves the queue when it has one.
        keys_become(world, 4).await;
        let held = world.keys().await;

        expect_lost(first.unlock().await);
        drop((second, registration, ids));
        drop(client);
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        assert_eq!(world.keys().await, held);
    }

    /// Contract 10: dropping a client without closing it gives everything back in the background.
    async fn dropping_everything_gives_everything_back(world: &dyn World) {
        let client = world.client().await;
        let guard = within(LIMIT, client.lock().acquire("job", SHORT)).await.expect("is free");
        let info = ServiceInfo::new("svc", "1", "10.0.0.1", 80);
        let registration = within(LIMIT, client.registry().register(info, SHORT)).await.expect("is free");
        let ids = client.ids_at_once("svc", 10);
        within(LIMIT, ids.acquire_id()).await.expect("is free");
        assert_eq!(world.keys().await.len(), 3);
        drop((client, ids, registration, guard));
        keys_become(world, 0).await;
    }

    /// Contract 10: dropping guards outside of any runtime neither panics nor blocks, and frees what they
    /// held.
    async fn guards_may_be_dropped_without_a_runtime(world: &dyn World) {
        let client = world.client().await;
        let guard = within(LIMIT, client.lock().acquire("job", SHORT)).await.expect("is free");
        let info = ServiceInfo::new("svc", "1", "10.0.0.1", 80);
        let registration = within(LIMIT, client.registry().register(info, SHORT)).await.expect("is free");
        let watch = client.registry().watch("svc").await.expect("is answered");
        let ids = client.ids_at_once("svc", 10);
        within(LIMIT, ids.acquire_id()).await.expect("is free");
        std::thread::spawn(move || drop((guard, registration, watch, ids, client)))
            .join()
            .expect("dropping does not panic");
        keys_become(world, 0).await;
    }

    /// Contract 10: closing a client that is cut off takes bounded time, and everything fires all the same.
    async fn closing_while_cut_off_is_bounded(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await.lock());
        let guard = within(LIMIT, client.lock().acquire("job", SHORT)).await.expect("is free");
        let watch = client.config().watch::<u32>("key").await.expect("is answered");
        client.link.cut();
        match within(LIMIT * 2, client.provider.close()).await {
            Ok(()) | Err(Error::Unavailable { .. } | Error::Timeout { .. }) => {}
            Err(error) => panic!("closing answered {error:?}"),
        }
        assert!(guard.is_lost());
        assert!(guard.lost().now_or_never().is_some());
        expect_end(watch).await;
        every_call_is_closed(&*client.provider).await;
        let free = within(LIMIT, other.acquire("job", LONG)).await;
        drop(free.expect("becomes free after its TTL"));
    }
}
