//! A store that stands still, starts again, is full, or lets nobody in.

use std::time::Duration;

use coord_api::{ConfigExt, Error, LossReason, Provider, RegistrationStatus, Result};
use tokio::time::{Instant, sleep};

use super::{TTL, info, settle};
use crate::{Options, Permission, Restart, Space, Store};

#[tokio::test(start_paused = true)]
async fn restarted_store_with_its_data_harms_nothing() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    let mut watch = client.config().watch::<u32>("x").await?;
    watch.next().await.expect("is not closed")?;
    store.restart(Restart::WithData);
    client.config().set("x", &1).await?;
    watch.next().await.expect("is not closed")?;
    sleep(TTL * 3).await;
    guard.unlock().await
}

#[tokio::test(start_paused = true)]
async fn store_that_lost_its_data_is_noticed_and_registrations_come_back() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    let mut registration = client.registry().register(info(), TTL).await?;
    client.config().set("x", &1).await?;
    store.restart(Restart::Empty);
    assert_eq!(guard.lost().await, LossReason::Revoked);
    while registration.status_changed().await != RegistrationStatus::Registered {}
    assert_eq!(client.registry().discover("svc").await?, [info()]);
    assert!(client.config().get::<u32>("x").await?.is_none());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn store_that_goes_back_takes_what_came_since() -> Result<()> {
    let store = Store::new();
    let (client, other) = (store.client(), store.client());
    client.config().set("x", &1).await?;
    let released = client.lock().acquire("a", TTL).await?;
    let key = released.key().to_owned();
    released.unlock().await?;
    let later = client.lock().acquire("b", TTL).await?;
    store.restart(Restart::Older(2));
    assert_eq!(store.keys(), ["config/x".to_owned(), key], "the lock is held again, and not the other");
    assert_eq!(later.lost().await, LossReason::Revoked);
    // Its lease is not renewed any more.
    let begun = Instant::now();
    let _next = other.lock().acquire("a", TTL).await?;
    assert!(begun.elapsed() <= TTL * 2, "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn store_that_lost_only_what_others_wrote_is_noticed_by_its_revision() -> Result<()> {
    let store = Store::new();
    let (client, other) = (store.client(), store.client());
    let guard = client.lock().acquire("a", TTL).await?;
    for n in 0..3 {
        other.config().set("x", &n).await?;
    }
    client.config().get::<u32>("x").await?;
    store.restart(Restart::Older(2));
    assert_eq!(guard.lost().await, LossReason::Revoked, "what it wrote itself is there");
    assert_eq!(client.config().get::<u32>("x").await?.expect("was set").value, 0);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn frozen_store_executes_what_was_given_up_and_ends_leases_afterwards() -> Result<()> {
    let store = Store::new();
    let client = store.client_with(Options::default().request_timeout(Duration::from_secs(2)))?;
    let guard = client.lock().acquire("a", TTL).await?;
    client.config().set("x", &1).await?;
    store.freeze(TTL * 3);
    let given_up = client.config().set("x", &2).await;
    assert!(matches!(given_up, Err(Error::Timeout { .. })), "{given_up:?}");
    assert_eq!(guard.lost().await, LossReason::Expired);
    assert_eq!(store.keys().len(), 2, "the store still has it");
    sleep(TTL * 3).await;
    assert_eq!(store.keys(), ["config/x"]);
    assert_eq!(client.config().get::<u32>("x").await?.expect("was set").value, 2);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn full_store_takes_what_is_given_back() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    store.space(Space::Full);
    assert!(matches!(client.lock().acquire("b", TTL).await, Err(Error::NoSpace { .. })));
    sleep(TTL * 2).await;
    guard.unlock().await?;
    assert_eq!(store.keys(), [""; 0]);
    store.space(Space::Left);
    client.lock().acquire("b", TTL).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn client_without_permission_keeps_its_lease() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    store.permit(Permission::Nothing);
    assert!(matches!(client.config().get::<u32>("x").await, Err(Error::PermissionDenied { .. })));
    assert!(matches!(client.config().watch::<u32>("x").await, Err(Error::PermissionDenied { .. })));
    sleep(TTL * 2).await;
    store.permit(Permission::Everything);
    guard.unlock().await?;
    settle().await;
    assert_eq!(store.keys(), [""; 0]);
    Ok(())
}
