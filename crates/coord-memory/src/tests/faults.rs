//! Every fault on demand, and what clients make of it.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{
    ConfigExt, Error, LeaseHealth, LossReason, Provider, RegistrationStatus, Result, ServiceRegistry,
};
use tokio::time::{Instant, sleep};

use super::{TTL, info, settle};
use crate::{NetworkFaults, Options, Store};

#[tokio::test(start_paused = true)]
async fn a_short_cut_harms_nothing_and_a_long_one_is_told() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let guard = client.lock().acquire("a", TTL).await?;
    client.disconnect();
    sleep(TTL / 2).await;
    client.reconnect();
    sleep(TTL / 2).await;
    assert!(!guard.is_lost());
    client.disconnect();
    sleep(TTL).await;
    client.reconnect();
    assert_eq!(guard.lost().await, LossReason::Expired, "though the store still has it");
    assert!(matches!(guard.unlock().await, Err(Error::Lost { .. })));
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_cut_off_answers_at_once() -> Result<()> {
    let client = Store::new().client();
    let _held = client.lock().acquire("a", TTL).await?;
    client.disconnect();
    let begun = Instant::now();
    let unavailable =
        |outcome: Result<()>| assert!(matches!(outcome, Err(Error::Unavailable { .. })), "{outcome:?}");
    unavailable(client.config().set("x", &1).await.map(drop));
    unavailable(client.lock().acquire("b", TTL).await.map(drop));
    unavailable(client.lock().try_acquire("b", TTL * 2).await.map(drop));
    unavailable(client.registry().register(info(), TTL).await.map(drop));
    unavailable(client.registry().discover("svc").await.map(drop));
    unavailable(client.config().watch::<u32>("x").await.map(drop));
    unavailable(client.instance_id_allocator("svc", 8)?.try_acquire_id().await.map(drop));
    unavailable(client.health().await.map(drop));
    // A watch waits until the stream is tried again.
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_cut_off_learns_of_a_revocation_later() -> Result<()> {
    let store = Store::new();
    let (cut_off, other) = (store.client(), store.client());
    let guard = cut_off.lock().acquire("a", TTL).await?;
    let id = cut_off.instance_id_allocator("svc", 8)?;
    id.acquire_id().await?;
    cut_off.disconnect();
    cut_off.revoke_leases();
    let next = other.lock().try_acquire("a", TTL).await?.expect("is free");
    assert!(next.token() > guard.token(), "what the token is for");
    assert!(!guard.is_lost() && id.id().is_some());
    cut_off.reconnect();
    assert_eq!(guard.lost().await, LossReason::Revoked);
    settle().await;
    assert_eq!(id.id(), None);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn registrations_come_back_after_every_fault() -> Result<()> {
    let store = Store::new();
    let (client, other) = (store.client(), store.client());
    let mut registration = client.registry().register(info(), TTL).await?;
    let recovers = async |registration: &mut coord_api::Registration| {
        // A recovery that succeeds at once is seen as one change.
        while registration.status_changed().await != RegistrationStatus::Registered {}
        assert_eq!(other.registry().discover("svc").await.unwrap(), [info()]);
    };
    store.delete_raw("services/svc/1");
    recovers(&mut registration).await;
    client.fail_next(3);
    store.revoke_leases();
    recovers(&mut registration).await;
    client.disconnect();
    sleep(TTL * 2).await;
    assert_eq!(other.registry().discover("svc").await?, []);
    client.reconnect();
    recovers(&mut registration).await;

    store.put_raw("services/svc/1", "{");
    let mend = async {
        sleep(TTL).await;
        store.delete_raw("services/svc/1");
    };
    tokio::join!(recovers(&mut registration), mend);
    sleep(TTL).await;
    registration.deregister().await?;
    assert_eq!(store.keys(), [""; 0]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn ids_of_others_are_refused_with_their_owner() -> Result<()> {
    let store = Store::new();
    let (one, other) = (store.client(), store.client());
    let owner =
        async |registry: std::sync::Arc<dyn ServiceRegistry>| match registry.register(info(), TTL).await {
            Err(Error::AlreadyRegistered { owner, .. }) => owner,
            answer => panic!("{answer:?}"),
        };
    let registration = one.registry().register(info(), TTL).await?;
    assert_eq!(owner(other.registry()).await, one.owner().to_string());
    registration.deregister().await?;
    store.put_raw("services/svc/1", r#"{"id":"1","name":"svc","address":"h","port":1}"#);
    assert_eq!(owner(other.registry()).await, "another program");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn an_operator_can_delete_any_key() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let options = coord_api::IdOptions::new("a/b", 8).quarantine(Duration::ZERO);
    let (a, ids) = (client.lock(), client.instance_ids().allocator(options)?);
    let held = a.acquire("a/b", TTL).await?;
    ids.acquire_id().await?;
    store.put_raw("config/x", "1");
    let keys = store.keys();
    assert_eq!(keys, ["config/x", "ids/a%2Fb/1", held.key()]);
    for key in keys {
        assert!(store.delete_raw(&key) && !store.delete_raw(&key), "{key}");
    }
    assert_eq!(held.lost().await, LossReason::Deleted);
    settle().await;
    assert_eq!(ids.id(), None);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn a_stalled_client_does_everything_later() -> Result<()> {
    let store = Store::new();
    let (client, other) = (store.client(), store.client());
    let (config, start) = (client.config(), Instant::now());
    let guard = client.lock().acquire("a", TTL).await?;
    let mut watch = client.config().watch::<u32>("x").await?;
    watch.next().await.expect("is not closed")?;
    client.stall(TTL / 3);
    client.stall(TTL / 2);
    client.stall(TTL / 4);
    other.config().set("x", &1).await?;
    let heard = async {
        watch.next().await.expect("is not closed")?;
        Ok::<_, Error>(start.elapsed())
    };
    let written = async { config.set("y", &1).await.map(|_| start.elapsed()) };
    let (heard, written, unlocked) = tokio::join!(heard, written, async {
        let unlocked = guard.unlock().await;
        unlocked.map(|()| start.elapsed())
    });
    for later in [heard?, written?, unlocked?] {
        assert!(later >= TTL / 2 && later < TTL, "{later:?}");
    }
    assert_eq!(store.keys(), ["config/x", "config/y"]);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn who_wakes_up_after_its_deadline_has_lost() -> Result<()> {
    let store = Store::new();
    let (client, other) = (store.client(), store.client());
    let guard = client.lock().acquire("a", TTL).await?;
    client.stall(TTL * 2);
    let next = other.lock().acquire("a", TTL).await?;
    assert!(guard.is_lost());
    assert_eq!(client.lease_health(), LeaseHealth::Lost(LossReason::Expired));
    assert!(client.lock().try_acquire("a", TTL).await?.is_none(), "is asked when the client goes on");
    settle().await;
    assert_eq!(client.lease_health(), LeaseHealth::Healthy);
    assert_eq!(guard.lost().await, LossReason::Expired);
    drop(guard);
    next.unlock().await
}

#[tokio::test(start_paused = true)]
async fn a_stall_may_be_cut_short_in_every_way() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    let config = client.config();
    client.stall(Duration::MAX);
    let (written, ()) = tokio::join!(config.set("x", &1), async { client.reconnect() });
    written?;
    client.stall(TTL);
    let (refused, ()) = tokio::join!(config.set("x", &2), async { client.disconnect() });
    assert!(matches!(refused, Err(Error::Unavailable { .. })));
    client.stall(TTL);
    assert!(config.set("x", &2).await.is_err(), "is still cut off");
    client.reconnect();
    client.stall(TTL);
    let (ended, closed) = tokio::join!(config.set("x", &3), client.close());
    assert!(ended.is_err() && closed.is_err(), "{ended:?} {closed:?}");
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn the_health_is_that_of_the_worst_lease() -> Result<()> {
    let client = Store::new().client();
    assert_eq!(client.lease_health(), LeaseHealth::Healthy);
    let _long = client.lock().acquire("long", TTL * 10).await?;
    let _short = client.lock().acquire("short", TTL).await?;
    client.disconnect();
    sleep(TTL * 2 / 3).await;
    assert_eq!(client.lease_health(), LeaseHealth::Suspect);
    client.revoke_leases();
    assert_eq!(client.lease_health(), LeaseHealth::Suspect, "it has not heard of it");
    sleep(TTL).await;
    assert_eq!(client.lease_health(), LeaseHealth::Lost(LossReason::Expired));
    client.reconnect();
    sleep(TTL).await;
    assert_eq!(client.lease_health(), LeaseHealth::Healthy);
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn request_that_was_given_up_takes_nothing_when_it_is_executed_late() -> Result<()> {
    let store = Store::new();
    let client = store.client_with(Options::default().request_timeout(Duration::from_secs(2)))?;
    let _lease = client.lock().acquire("other", TTL * 10).await?;
    client.network(NetworkFaults::new().seed(1).execute_late(1.0, Duration::from_secs(600)));
    assert!(client.lock().acquire("a", TTL * 10).await.is_err());
    client.network(NetworkFaults::new());
    sleep(Duration::from_secs(700)).await;
    let held = store.client().lock().try_acquire("a", TTL).await?;
    assert!(held.is_some(), "nobody holds it: {:?}", store.keys());
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn holder_whose_renewals_are_lost_one_way_learns_of_its_loss_in_time() -> Result<()> {
    let store = Store::new();
    let client = store.client();
    for faults in [NetworkFaults::new().lose_renewals(1.0), NetworkFaults::new().lose_renewal_answers(1.0)] {
        client.network(NetworkFaults::new());
        let guard = client.lock().acquire("a", TTL).await?;
        client.network(faults);
        let begun = Instant::now();
        assert_eq!(guard.lost().await, LossReason::Expired);
        assert!(begun.elapsed() <= TTL);
        client.network(NetworkFaults::new());
        sleep(TTL * 2).await;
    }
    Ok(())
}

#[tokio::test(start_paused = true)]
async fn closing_tells_the_loss_of_a_registration_whose_update_has_no_answer() -> Result<()> {
    let client = Store::new().client();
    let registration = client.registry().register(info(), TTL * 10).await?;
    client.network(NetworkFaults::new().lose_requests(1.0));
    let begun = Instant::now();
    let updating = async {
        let updated = registration.update(BTreeMap::new()).await;
        assert!(matches!(updated, Err(Error::Closed)), "{updated:?}");
        assert_eq!(registration.lost().await, LossReason::Closed);
        // Closing itself takes as long as it may, since nobody answers.
        assert!(begun.elapsed() < TTL, "{:?}", begun.elapsed());
    };
    let closing = async {
        settle().await;
        client.close().await
    };
    let _ = tokio::join!(updating, closing);
    Ok(())
}
