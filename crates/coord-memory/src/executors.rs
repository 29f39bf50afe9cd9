//! Tests on other executors than a tokio runtime that is driven: every call works, and what is held stays held.

use std::{
    thread,
    time::{Duration, Instant},
};

use coord_api::{
    Batch, ConfigEvent, ConfigExt, Error, LossReason, Provider, ServiceEvent, ServiceInfo, Snowflake,
};
use futures::executor::block_on;
use tokio::runtime::{Builder, Runtime};

use crate::{Client, Options, Store};

const TTL: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);

fn client(store: &Store) -> Client {
    store.client_with(Options::default().instance_id_ttl(TTL)).unwrap()
}

fn undriven() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn info(id: &str) -> ServiceInfo {
    ServiceInfo::new("svc", id, "10.0.0.1", 80)
}

/// Waits on this thread until something is so.
fn eventually(mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < SOON, "it never came about");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn locks_work_without_tokio() {
    let store = Store::new();
    let (client, other) = (client(&store), client(&store));
    let held = block_on(client.lock().acquire("a", TTL)).unwrap();
    assert!(block_on(other.lock().try_acquire("a", TTL)).unwrap().is_none());
    let waiter = thread::spawn(move || block_on(other.lock().acquire("a", TTL)).map(drop));
    eventually(|| block_on(client.lock().holders("a")).unwrap().len() == 2);
    thread::sleep(TTL * 2);
    assert!(!held.is_lost(), "it is renewed");
    block_on(held.unlock()).unwrap();
    waiter.join().unwrap().unwrap();
    let lost = block_on(client.lock().acquire("b", TTL)).unwrap();
    client.disconnect();
    assert_eq!(block_on(lost.lost()), LossReason::Expired);
    client.reconnect();
    block_on(client.close()).unwrap();
}

#[test]
fn ids_work_without_tokio() {
    let store = Store::new();
    let (client, other) = (client(&store), client(&store));
    let (ids, waiting) = (client.instance_id_allocator("svc", 2), other.instance_id_allocator("svc", 2));
    let (ids, waiting) = (ids.unwrap(), waiting.unwrap());
    assert_eq!(block_on(ids.acquire_id()).unwrap().get(), 1);
    assert!(matches!(block_on(waiting.try_acquire_id()), Err(Error::Exhausted { .. })));
    let snowflake = block_on(Snowflake::start(&*ids)).unwrap();
    let first = block_on(snowflake.next_id()).unwrap();
    thread::sleep(TTL * 2);
    assert!(block_on(snowflake.next_id()).unwrap() > first);
    let waiter = thread::spawn(move || block_on(waiting.acquire_id()).map(|id| (id, waiting)));
    client.disconnect();
    assert_eq!(waiter.join().unwrap().unwrap().0.get(), 1);
    assert!(ids.id().is_none());
}

#[test]
fn registry_works_without_tokio() {
    let store = Store::new();
    let (client, registrar) = (client(&store), client(&store));
    let mut watch = block_on(client.registry().watch("svc")).unwrap();
    assert!(matches!(block_on(watch.next()), Some(Ok(ServiceEvent::Snapshot { .. }))));
    let registration = block_on(registrar.registry().register(info("1"), TTL)).unwrap();
    assert!(matches!(block_on(watch.next()), Some(Ok(ServiceEvent::Added(_)))));
    let view = block_on(client.registry().view("svc")).unwrap();
    assert_eq!(view.instances().len(), 1);
    registrar.revoke_leases();
    eventually(|| block_on(client.registry().discover("svc")).unwrap().len() == 1);
    block_on(registration.drain_for(Duration::from_millis(10))).unwrap();
    eventually(|| view.instances().is_empty());
}

#[test]
fn config_works_without_tokio() {
    let store = Store::new();
    let client = client(&store);
    let config = client.config();
    let mut watch = block_on(config.watch::<u32>("a")).unwrap();
    assert!(matches!(block_on(watch.next()), Some(Ok(ConfigEvent::Snapshot { .. }))));
    block_on(config.set("a", &1)).unwrap();
    block_on(config.update("a", |found: Option<u32>| found.unwrap_or_default() + 1)).unwrap();
    block_on(config.commit(Batch::new().set("b", &1).unwrap())).unwrap();
    assert_eq!(block_on(config.get::<u32>("a")).unwrap().unwrap().value, 2);
    client.stall(Duration::from_millis(50));
    block_on(config.set("a", &3)).unwrap();
    block_on(client.health()).unwrap();
}

#[test]
fn what_is_held_beside_a_runtime_that_nobody_drives_stays_held() {
    let store = Store::new();
    let client = client(&store);
    let runtime = undriven();
    let (guard, ids, registration) = runtime.block_on(async {
        let guard = client.lock().acquire("a", TTL).await.unwrap();
        let ids = client.instance_id_allocator("svc", 8).unwrap();
        ids.acquire_id().await.unwrap();
        (guard, ids, client.registry().register(info("1"), TTL).await.unwrap())
    });
    thread::sleep(TTL * 3);
    assert!(!guard.is_lost() && ids.id().is_some());
    assert_eq!(block_on(client.registry().discover("svc")).unwrap().len(), 1);
    client.revoke_leases();
    eventually(|| block_on(client.registry().discover("svc")).unwrap().len() == 1);
    drop(registration);
    drop(runtime);
}

#[test]
fn what_is_held_beside_a_runtime_that_ended_stays_held() {
    let store = Store::new();
    let client = client(&store);
    let guard = undriven().block_on(client.lock().acquire("a", TTL)).unwrap();
    thread::sleep(TTL * 3);
    assert!(!guard.is_lost());
}

#[tokio::test(start_paused = true)]
async fn a_test_that_pauses_its_clock_has_all_of_it_on_its_own_runtime() {
    let store = Store::new();
    let client = client(&store);
    let guard = client.lock().acquire("a", TTL).await.unwrap();
    tokio::time::sleep(TTL * 100).await;
    assert!(!guard.is_lost());
    tokio::time::advance(TTL * 2).await;
    assert!(guard.is_lost(), "nobody renews from elsewhere");
}
