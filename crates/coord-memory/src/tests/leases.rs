//! Leases: few, renewed, given back, and over a little later at the store than for their holders.

use std::time::Duration;

use coord_api::{Error, IdOptions, LossReason, Provider, Result};
use tokio::{
    runtime,
    time::{Instant, sleep},
};

use super::{TTL, settle, shows};
use crate::Store;

const GRACE: Duration = Duration::from_millis(500);

fn runtime() -> runtime::Runtime {
    runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn all_that_is_held_for_one_ttl_is_on_one_lease_that_is_renewed() -> Result<()> {
    let store = Store::new();
    let locks = store.client().lock();
    let mut held = Vec::new();
    for n in 0..1000 {
        held.push(locks.acquire(&format!("job-{n}"), TTL).await?);
    }
    let _other = locks.acquire("other", TTL * 2).await?;
    assert!(shows(&store, "leases: 2"), "{store:?}");
    sleep(TTL * 10).await;
    assert!(held.iter().all(|guard| !guard.is_lost()));
    drop(held);
    settle().await;
    assert_eq!(store.keys().len(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn leases_without_places_are_few_and_given_back() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let held = client.lock().acquire("held", TTL).await?;
    for seconds in 10..410 {
        client.lock().acquire("job", Duration::from_secs(seconds)).await?.unlock().await?;
    }
    settle().await;
    let leases = (0..=11).any(|leases| shows(&store, &format!("leases: {leases},")));
    assert!(leases, "{store:?}");
    let at_last = client.lock().acquire("job", Duration::from_secs(409)).await?;
    sleep(Duration::from_secs(61)).await;
    assert!(shows(&store, "leases: 2"), "{store:?}");
    assert!(!held.is_lost() && !at_last.is_lost());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn after_a_loss_the_next_place_is_on_another_lease() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let lost = client.lock().acquire("a", TTL).await?;
    tokio::time::advance(TTL).await;
    assert!(lost.is_lost(), "a process that was frozen knows at once");
    let held = client.lock().acquire("b", TTL).await?;
    sleep(TTL).await;
    assert!(lost.is_lost() && !held.is_lost());
    assert_eq!(store.keys(), [held.key()]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_store_believes_a_little_longer_than_the_holder() -> Result<()> {
    let store = Store::new();
    let (frozen, other) = (store.client(), store.client());
    let guard = frozen.lock().acquire("a", TTL).await?;
    frozen.disconnect();
    let start = Instant::now();
    let lost = tokio::spawn(guard.lost());
    let next = other.lock().acquire("a", TTL).await?;
    assert!(start.elapsed() >= TTL + GRACE && start.elapsed() < TTL + GRACE * 2, "{:?}", start.elapsed());
    assert_eq!(lost.await.unwrap(), LossReason::Expired);
    assert!(next.token() > guard.token());
    Ok(())
}

#[test]
fn what_a_dead_runtime_held_expires_for_everyone_else() {
    let store = Store::new();
    let dying = runtime();
    let guard = dying.block_on(store.client().lock().acquire("a", TTL)).unwrap();
    drop(dying);
    runtime().block_on(async {
        let waiting = Instant::now();
        let next = store.client().lock().acquire("a", TTL).await.unwrap();
        assert!(guard.is_lost() && waiting.elapsed() <= TTL + GRACE);
        drop(guard);
        assert_eq!(store.keys(), [next.key()], "a late drop frees nobody else's place");
    });
}

#[test]
fn a_client_of_a_paused_runtime_is_over_with_it_and_says_so() {
    let store = Store::new();
    let locks = store.client().lock();
    drop(runtime().block_on(locks.acquire("a", TTL)).unwrap());
    let used_later = runtime().block_on(locks.acquire("a", TTL));
    assert!(matches!(used_later, Err(Error::Closed)), "{used_later:?}");
}

#[test]
fn dropping_the_last_of_a_client_needs_no_runtime_and_gives_all_back() {
    let store = Store::new();
    let client = store.client();
    let (held, kept) = runtime().block_on(async {
        let held = client.lock().acquire("a", TTL).await.unwrap();
        let options = IdOptions::new("svc", 8).quarantine(Duration::ZERO);
        let kept = client.instance_ids().allocator(options).unwrap();
        kept.acquire_id().await.unwrap();
        (held, kept)
    });
    assert_eq!(store.keys(), ["ids/svc/1", held.key()]);
    drop((held, kept));
    drop(client);
    assert_eq!(store.keys(), [""; 0]);
    assert!(shows(&store, "clients: 0") && shows(&store, "leases: 0"), "{store:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_held_keeps_a_client_whose_handles_are_gone() -> Result<()> {
    let store = Store::new();
    let guard = store.client().lock().acquire("a", TTL).await?;
    sleep(TTL * 3).await;
    assert!(shows(&store, "clients: 1"));
    guard.unlock().await?;
    assert!(shows(&store, "clients: 0") && shows(&store, "leases: 0"), "{store:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_dropped_while_cut_off_is_freed_by_expiry() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    client.disconnect();
    drop((guard, client));
    assert_eq!(store.keys().len(), 1);
    let start = Instant::now();
    let _next = store.client().lock().acquire("a", TTL).await?;
    assert_eq!(start.elapsed(), TTL + GRACE);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn close_frees_all_or_says_that_it_could_not() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    client.disconnect();
    for _ in 0..2 {
        assert!(matches!(client.close().await, Err(Error::Unavailable { .. })));
    }
    assert_eq!(guard.lost().await, LossReason::Closed);
    assert_eq!(store.keys().len(), 1);
    client.reconnect();
    client.close().await?;
    assert_eq!(store.keys(), [""; 0]);
    assert!(matches!(client.lock().acquire("a", TTL).await, Err(Error::Closed)));
    assert!(matches!(client.lock().acquire("", TTL).await, Err(Error::InvalidArgument { .. })));
    Ok(())
}
