//! Waiting for locks, watches and ids, while links are cut and others come and go.

use std::{sync::Arc, time::Duration};

use coord_api::{
    Batch, ConfigExt, Entry, EntryEvent, Error, Holder, IdOptions, InstanceIdAllocator, LossReason, Provider,
    Result, Scope, Watch,
};
use futures::FutureExt;
use tokio::time::sleep;

use super::{TTL, settle};
use crate::{Client, Options, Store};

const MOMENT: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_just_when_it_was_granted_passes_the_lock_on() -> Result<()> {
    let store = Store::new();
    let locks = store.client().lock();
    let held = locks.acquire("a", TTL).await?;
    let mut cancelled = locks.acquire("a", TTL);
    let mut next = locks.acquire("a", TTL);
    for waiting in [&mut cancelled, &mut next] {
        tokio::select! {
            biased;
            _ = waiting => panic!("the lock is held"),
            () = settle() => {}
        }
    }
    held.unlock().await?;
    drop(cancelled);
    let guard = next.await?;
    settle().await;
    assert_eq!(store.keys(), [guard.key()]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_dropped_waiter_leaves_the_queue() -> Result<()> {
    let store = Store::new();
    let locks = store.client().lock();
    let held = locks.acquire("a", TTL).await?;
    let waiting = tokio::time::timeout(MOMENT, locks.acquire("a", TTL));
    let (waited, places) = tokio::join!(waiting, async {
        sleep(MOMENT / 2).await;
        store.keys().len()
    });
    assert!(waited.is_err() && places == 2);
    settle().await;
    assert_eq!(store.keys(), [held.key()]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_was_handed_the_lock_may_write_before_the_store_hears_of_that() -> Result<()> {
    let store = Store::new();
    let (client, other) = (store.client(), store.client());
    let held = client.lock().acquire("a", TTL).await?;
    let (locks, others) = (client.lock(), other.lock());
    let next = tokio::spawn(async move { locks.acquire("a", TTL).await });
    settle().await;
    let after = tokio::spawn(async move { others.acquire("a", TTL).await });
    sleep(Duration::from_millis(100)).await;
    client.stall(Duration::from_millis(500));
    let unlocked = tokio::spawn(held.unlock());
    settle().await;
    assert!(
        next.is_finished() && !unlocked.is_finished(),
        "is handed on at once, and the store can not be told yet"
    );
    let next = next.await.unwrap()?;
    client.config().set_if_held(&next, "k", &1).await?;
    assert!(!after.is_finished());
    unlocked.await.unwrap()?;
    next.unlock().await?;
    after.await.unwrap().map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_grant_is_heard_of_when_the_link_is_up_again() -> Result<()> {
    let store = Store::new();
    let (holder, waiter) = (store.client(), store.client());
    let held = holder.lock().acquire("a", TTL).await?;
    let locks = waiter.lock();
    let waiting = tokio::spawn(async move { locks.acquire("a", TTL).await });
    sleep(MOMENT / 2).await;
    waiter.disconnect();
    held.unlock().await?;
    settle().await;
    assert!(!waiting.is_finished());
    assert!(holder.lock().try_acquire("a", TTL).await?.is_none());
    waiter.reconnect();
    assert!(!waiting.await.unwrap()?.is_lost());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_waiter_whose_lease_is_lost_waits_in_another_place() -> Result<()> {
    let store = Store::new();
    let (holder, waiter) = (store.client(), store.client());
    let held = holder.lock().acquire("a", TTL).await?;
    let locks = waiter.lock();
    let waiting = tokio::spawn(async move { locks.acquire("a", TTL).await });
    sleep(MOMENT).await;
    let place = holder.lock().holders("a").await?[1].token;
    waiter.disconnect();
    sleep(TTL * 2).await;
    assert!(!waiting.is_finished() && !held.is_lost());
    waiter.reconnect();
    sleep(MOMENT).await;
    assert!(!waiting.is_finished());
    assert!(holder.lock().holders("a").await?[1].token > place, "it stands there anew");
    store.revoke_leases();
    let guard = waiting.await.unwrap()?;
    assert!(held.is_lost() && !guard.is_lost());
    assert_eq!(store.keys(), [guard.key()], "its old place was never at the head");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_tries_while_an_unlock_of_the_same_client_is_on_its_way_gets_the_lock() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let held = client.lock().acquire("a", TTL).await?;
    client.stall(MOMENT);
    let unlocked = tokio::spawn(held.unlock());
    settle().await;
    assert!(client.lock().try_acquire("a", TTL).await?.is_some());
    unlocked.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn close_wakes_waiters() -> Result<()> {
    let store = Store::new();
    let _held = store.client().lock().acquire("a", TTL).await?;
    let client = store.client();
    let locks = client.lock();
    let (waited, closed) = tokio::join!(locks.acquire("a", TTL), async {
        sleep(MOMENT).await;
        client.close().await
    });
    closed?;
    assert!(matches!(waited, Err(Error::Closed)));
    assert_eq!(store.keys().len(), 1);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_dropped_while_cut_off_still_tells_who_it_was() -> Result<()> {
    let store = Store::new();
    let client = store.client_with(Options::default().label("billing"))?;
    let owner = client.owner().clone();
    assert_eq!(owner.label.as_deref(), Some("billing"));
    let guard = client.lock().acquire("a", TTL).await?;
    let expected = Holder::new(Some(owner), guard.key(), guard.token());
    client.disconnect();
    drop((client, guard));
    assert_eq!(store.client().lock().holders("a").await?, [expected]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_unlock_that_could_not_be_sent_arrives_later() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    client.disconnect();
    assert!(matches!(guard.unlock().await, Err(Error::Unavailable { .. })));
    assert_eq!(store.keys().len(), 1);
    client.reconnect();
    sleep(MOMENT).await;
    assert_eq!(store.keys(), [""; 0]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_not_heard_of_its_loss_writes_nothing() -> Result<()> {
    let store = Store::new();
    let (client, other) = (store.client(), store.client());
    let guard = client.lock().acquire("a/b", TTL).await?;
    let batch = Batch::new().while_held(&guard)?.set("x", &1)?;
    other.config().commit(batch.clone()).await?;
    assert!(store.delete_raw(guard.key()));
    let refused = other.config().commit(batch).await;
    assert!(matches!(refused, Err(Error::Lost { reason: LossReason::Revoked })), "{refused:?}");
    assert!(matches!(client.config().set_if_held(&guard, "x", &2).await, Err(Error::Lost { .. })));
    assert_eq!(client.config().get::<u32>("x").await?.map(|found| found.value), Some(1));
    Ok(())
}

/// Returns the next item, if it comes at once.
async fn seen(events: &mut Watch<EntryEvent>) -> Option<String> {
    settle().await;
    let item = events.next().now_or_never()?.expect("is not closed");
    Some(match item.unwrap() {
        EntryEvent::Snapshot { entries, .. } => {
            let keys: Vec<_> = entries.iter().map(Entry::key).collect();
            format!("snapshot {}", keys.join(" "))
        }
        EntryEvent::Put(entry) => format!("put {}", entry.key()),
        EntryEvent::Deleted { key, .. } => format!("deleted {key}"),
    })
}

#[tokio::test(start_paused = true)]
async fn events_of_one_batch_come_in_its_order_and_once() -> Result<()> {
    let client = Store::new().client();
    let config = client.config();
    config.set("b", &1).await?;
    let mut events = config.watch_entries(Scope::Prefix("")).await?;
    config.commit(Batch::new().set("c", &1)?.delete("b")?.delete("missing")?.set("a", &1)?).await?;
    for expected in ["snapshot b", "put c", "deleted b", "put a"] {
        assert_eq!(seen(&mut events).await.as_deref(), Some(expected));
    }
    assert_eq!(seen(&mut events).await, None);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_cut_link_stops_a_watch_and_closing_ends_it() -> Result<()> {
    let store = Store::new();
    let (client, writer) = (store.client(), store.client());
    let mut events = client.config().watch_entries(Scope::Prefix("")).await?;
    assert_eq!(seen(&mut events).await.as_deref(), Some("snapshot "));
    client.disconnect();
    writer.config().set("a", &1).await?;
    assert_eq!(seen(&mut events).await, None);
    assert!(!events.connectivity().freshness().is_fresh());
    client.reconnect();
    sleep(MOMENT).await;
    assert_eq!(seen(&mut events).await.as_deref(), Some("put a"));
    client.close().await?;
    assert!(matches!(events.next().await, Some(Err(Error::Closed))));
    assert!(events.next().await.is_none());
    Ok(())
}

fn allocator(client: &Client, max_id: u32) -> Arc<dyn InstanceIdAllocator> {
    client.instance_ids().allocator(IdOptions::new("svc", max_id).quarantine(Duration::ZERO)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn the_lowest_free_ids_come_first_and_waiters_outlast_the_loss_of_their_lease() -> Result<()> {
    let store = Store::new();
    let options = || Options::default().instance_id_ttl(TTL);
    let (one, other) = (store.client_with(options())?, store.client_with(options())?);
    let (first, second) = (allocator(&one, 3), allocator(&one, 3));
    assert_eq!((first.acquire_id().await?.get(), second.acquire_id().await?.get()), (1, 2));
    let elsewhere = allocator(&other, 3);
    let waiting = tokio::spawn(async move { elsewhere.acquire_id().await.map(|id| (id, elsewhere)) });
    sleep(MOMENT).await;
    store.revoke_leases();
    sleep(MOMENT).await;
    assert_eq!((first.id(), second.id()), (None, None));
    let (got, _elsewhere) = waiting.await.unwrap()?;
    assert!(got.get() < 3);
    Ok(())
}
