//! etcd is killed and comes back, with its data or without: nothing has to be started again on our side.

use std::{sync::Arc, time::Duration};

use coord_api::{
    ConfigEvent, ConfigExt, LossReason, Provider, RegistrationStatus, ServiceEvent, ServiceInfo,
};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::EtcdServer;
use tokio::time::{Instant, sleep, timeout};

const LONG: Duration = Duration::from_secs(30);

async fn client(server: &EtcdServer) -> Arc<dyn Provider> {
    let config = EtcdConfig::new([server.endpoint()]).request_timeout(Duration::from_secs(2));
    Arc::new(Client::connect(config).await.expect("etcd answers"))
}

fn instance(id: &str) -> ServiceInfo {
    ServiceInfo::new("im-logic", id, "10.0.0.1", 80)
}

/// Tries until etcd is back.
async fn again<T>(mut call: impl AsyncFnMut() -> coord_api::Result<T>) -> T {
    timeout(LONG, async {
        loop {
            match call().await {
                Ok(done) => return done,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            sleep(Duration::from_millis(50)).await;
        }
    })
    .await
    .expect("etcd is back")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_on_the_same_data_changes_nothing_for_holders_and_watchers() {
    let mut server = EtcdServer::start().await.expect("starts");
    let (one, other) = (client(&server).await, client(&server).await);

    one.config().set("limits", &1).await.expect("is written");
    let mut limits = other.config().watch::<u32>("limits").await.expect("is watched");
    let mut instances = other.registry().watch("im-logic").await.expect("is watched");
    let registration =
        one.registry().register(instance("1"), Duration::from_secs(10)).await.expect("registers");
    let lock = one.lock().acquire("job", Duration::from_secs(20)).await.expect("is free");
    let ids = one.instance_id_allocator("im-logic", 10).expect("is valid");
    let id = ids.acquire_id().await.expect("is free");
    let waiter = tokio::spawn({
        let other = other.clone();
        async move { other.lock().acquire("job", Duration::from_secs(20)).await }
    });
    assert!(matches!(limits.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
    assert!(matches!(instances.next().await, Some(Ok(ServiceEvent::Snapshot { .. }))));
    assert!(matches!(instances.next().await, Some(Ok(ServiceEvent::Added(found))) if found.id == "1"));

    let queue = ["get", "--prefix", "--keys-only", "/coord/locks/job/"];
    while server.etcdctl(&queue).await.expect("etcdctl works").matches("/coord/locks").count() < 2 {
        sleep(Duration::from_millis(20)).await;
    }

    server.kill9().await.expect("is killed");
    sleep(Duration::from_secs(1)).await;
    server.restart().await.expect("comes back");

    again(async || one.config().set("limits", &2).await).await;
    let seen = timeout(LONG, limits.next()).await.expect("the watch goes on");
    assert!(matches!(seen, Some(Ok(ConfigEvent::Set(ref limit))) if limit.value == 2), "{seen:?}");
    assert!(!lock.is_lost(), "its lease outlived the restart");
    assert_eq!(ids.id(), Some(id));
    assert!(!waiter.is_finished(), "the lock is still held");
    assert_eq!(registration.status(), RegistrationStatus::Registered);
    assert_eq!(again(async || other.registry().discover("im-logic").await).await.len(), 1);

    let token = lock.token();
    lock.unlock().await.expect("was held all the time");
    let next = timeout(LONG, waiter).await.expect("is its turn").expect("no panic").expect("got the lock");
    assert!(next.token() > token);

    let second = again(async || one.registry().register(instance("2"), Duration::from_secs(10)).await).await;
    let seen = timeout(LONG, instances.next()).await.expect("the watch goes on");
    assert!(matches!(seen, Some(Ok(ServiceEvent::Added(ref found))) if found.id == "2"), "{seen:?}");
    drop(second);
    one.close().await.expect("closes");
    other.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_the_ttl_is_told_at_the_local_deadline() {
    let mut server = EtcdServer::start().await.expect("starts");
    let (one, other) = (client(&server).await, client(&server).await);
    let lock = one.lock().acquire("job", Duration::from_secs(3)).await.expect("is free");
    let mut registration =
        one.registry().register(instance("1"), Duration::from_secs(3)).await.expect("registers");

    server.kill9().await.expect("is killed");
    let killed = Instant::now();
    let reason = timeout(LONG, lock.lost()).await.expect("is told while etcd is away");
    assert_eq!(reason, LossReason::Expired);
    assert!(killed.elapsed() < Duration::from_millis(3_200), "{:?}", killed.elapsed());
    let status = timeout(LONG, registration.status_changed()).await.expect("is told");
    assert!(matches!(status, RegistrationStatus::Recovering { .. }), "{status:?}");

    server.restart().await.expect("comes back");
    let status = timeout(LONG, registration.status_changed()).await.expect("comes back by itself");
    assert_eq!(status, RegistrationStatus::Registered);
    assert_eq!(again(async || other.registry().discover("im-logic").await).await.len(), 1);
    assert!(lock.is_lost(), "a lost lock stays lost");
    let next = timeout(LONG, again(async || other.lock().acquire("job", Duration::from_secs(3)).await)).await;
    let next = next.expect("the old lease is gone");
    assert!(next.token() > lock.token());
    assert!(lock.unlock().await.is_err());
    assert!(!next.is_lost(), "the late unlock did not touch the new holder");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_comes_back_empty_is_filled_again() {
    let mut server = EtcdServer::start().await.expect("starts");
    let (one, other) = (client(&server).await, client(&server).await);
    for n in 0..20 {
        one.config().set("limits", &n).await.expect("is written");
    }
    let mut limits = other.config().watch::<u32>("limits").await.expect("is watched");
    let mut registration =
        one.registry().register(instance("1"), Duration::from_secs(10)).await.expect("registers");
    assert!(matches!(limits.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));

    server.restart_empty().await.expect("comes back");
    let back = Instant::now();
    let status = timeout(LONG, registration.status_changed()).await.expect("the loss is told");
    assert!(matches!(status, RegistrationStatus::Recovering { .. }), "{status:?}");
    let status = timeout(LONG, registration.status_changed()).await.expect("comes back by itself");
    assert_eq!(status, RegistrationStatus::Registered);
    println!("registered again {:?} after etcd was back", back.elapsed());
    assert_eq!(again(async || other.registry().discover("im-logic").await).await.len(), 1);

    // A watch that waits for the old, larger revision would never hear of this.
    again(async || other.config().set("limits", &7).await).await;
    timeout(LONG, async {
        loop {
            match limits.next().await.expect("never ends").expect("is readable") {
                ConfigEvent::Set(limit) if limit.value == 7 => break,
                ConfigEvent::Snapshot { settings, .. } if settings.iter().any(|s| s.value == 7) => break,
                _ => {}
            }
        }
    })
    .await
    .expect("the watch sees the new store");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_registrations_are_back_soon_after_an_etcd_that_lost_them() {
    const INSTANCES: usize = 200;
    let mut server = EtcdServer::start().await.expect("starts");
    let (one, other) = (client(&server).await, client(&server).await);
    let registry = one.registry();
    // Renewals alone would take ten seconds to notice.
    let ttl = Duration::from_secs(30);
    let register = (0..INSTANCES).map(|n| registry.register(instance(&format!("{n:03}")), ttl));
    let registrations = futures::future::join_all(register).await;
    assert!(registrations.iter().all(Result::is_ok));
    let view = other.registry().view("im-logic").await.expect("etcd answers");
    assert_eq!(view.instances().len(), INSTANCES);

    server.kill9().await.expect("is killed");
    sleep(Duration::from_secs(4)).await;
    assert_eq!(view.instances().len(), INSTANCES, "the last instances stay");
    assert!(!view.freshness().is_fresh());
    server.restart_empty().await.expect("comes back");
    let back = Instant::now();
    timeout(LONG, async {
        while again(async || other.registry().discover("im-logic").await).await.len() < INSTANCES {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("all come back");
    println!("{INSTANCES} registrations are back {:?} after etcd was", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(6), "{:?}", back.elapsed());
    timeout(LONG, async {
        while view.instances().len() < INSTANCES || !view.freshness().is_fresh() {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the view is right again");
}
