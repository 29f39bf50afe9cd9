//! The least that a user needs, and what it can not do with that.

use std::{sync::Arc, time::Duration};

use coord_api::{
    ConfigEvent, ConfigExt, Error, IdOptions, LossReason, Provider, Result, Scope, ServiceEvent, ServiceInfo,
    Snowflake,
};
use coord_config::{Audience, GrayExt, HistoryExt, LiveExt, SchemaExt};
use tokio::time::timeout;

use crate::{LIMIT, config, connect, with_users};

const TTL: Duration = Duration::from_secs(60);

/// Everything that coord does, once.
async fn use_everything(one: &Arc<dyn Provider>, other: &Arc<dyn Provider>) -> Result<()> {
    // Locks, waited for as well.
    let guard = one.lock().acquire("jobs/nightly", TTL).await?;
    assert!(other.lock().try_acquire("jobs/nightly", TTL).await?.is_none());
    let waiter = tokio::spawn({
        let lock = other.lock();
        async move { lock.acquire("jobs/nightly", TTL).await }
    });
    while one.lock().holders("jobs/nightly").await?.len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    one.config().set_if_held(&guard, "fenced", &1).await?;
    guard.unlock().await?;
    drop(timeout(LIMIT, waiter).await.expect("in time").expect("no panic")?);

    // The registry.
    let mut instances = other.registry().watch("im").await?;
    assert!(matches!(instances.next().await, Some(Ok(ServiceEvent::Snapshot { .. }))));
    let registration = one.registry().register(ServiceInfo::new("im", "1", "10.0.0.1", 80), TTL).await?;
    assert!(matches!(instances.next().await, Some(Ok(ServiceEvent::Added(_)))));
    registration.update([("zone".to_owned(), "eu".to_owned())].into()).await?;
    assert_eq!(other.registry().discover("im").await?.len(), 1);
    assert_eq!(other.registry().view("im").await?.instances().len(), 1);
    registration.deregister().await?;

    // Config with all that is kept beside the values.
    let config = one.config();
    let mut watch = other.config().watch_prefix::<u32>("limits").await?;
    assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
    config.set("limits/a", &1).await?;
    config.update("limits/a", |value: Option<u32>| value.unwrap_or_default() + 1).await?;
    let live = other.config().live::<u32>("limits/a").start().await?;
    assert_eq!(*live.current(), 2);
    let before = config.record("limits/a").author("ann").set(&3).await?;
    config.record("limits/a").author("bob").set(&4).await?;
    config.record("limits/a").author("ann").rollback(before).await?;
    assert!(config.history("limits/a").await?.len() >= 3);
    config.gray("limits/a").release(&5, Audience::percent(10)).await?;
    config.gray("limits/a").promote().await?;
    config.schemas().set::<u32>(Scope::Prefix("limits")).await?;
    config.checked().set("limits/b", &6).await?;
    assert_eq!(config.list("limits").await?.len(), 2);
    assert!(config.delete("limits/b").await?);

    // Ids.
    let ids = one.instance_ids().allocator(IdOptions::new("im", 16).identity("im-1"))?;
    ids.acquire_id().await?;
    let snowflake = Snowflake::start(&*ids).await?;
    snowflake.next_id().await?;
    snowflake.finish().await?;
    assert_eq!(other.instance_ids().holders("im").await?.len(), 1);
    ids.release_id().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_on_the_namespace_is_enough_for_everything_and_for_nothing_else() {
    let server = with_users(&[]).await;
    let shop = || config(&server).user("shop", "s3cret");
    let (one, other) = (connect(shop()).await, connect(shop()).await);
    timeout(LIMIT * 2, use_everything(&one, &other)).await.expect("in time").expect("the role is enough");
    one.close().await.expect("closes");
    other.close().await.expect("closes");
    let left =
        server.etcdctl(&["get", "--prefix", "--keys-only", "/shop/locks/"]).await.expect("etcdctl works");
    assert_eq!(left.trim(), "", "closing gave back what was held");

    // A config write on a lock of another namespace.
    server.add_user("other", "s3cret", "readwrite", "/other/").await.expect("etcdctl works");
    let foreign = connect(config(&server).namespace("other").user("other", "s3cret")).await;
    let guard = foreign.lock().acquire("job", TTL).await.expect("is free");
    let shop = connect(shop()).await;
    let crossed = shop.config().set_if_held(&guard, "limits", &1).await;
    println!("a lock of another namespace: {crossed:?}");
    assert!(crossed.is_err(), "the key of that lock can not be read");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_may_read_discovers_and_follows_and_is_told_that_it_may_not_write() {
    let server = with_users(&[]).await;
    server.add_user("viewer", "s3cret", "read", "/shop/").await.expect("etcdctl works");
    let shop = connect(config(&server).user("shop", "s3cret")).await;
    let viewer = connect(config(&server).user("viewer", "s3cret")).await;
    shop.config().set("limits", &1).await.expect("may write");
    let instance = |id: &str| ServiceInfo::new("im", id, "10.0.0.1", 80);
    let _registration = shop.registry().register(instance("1"), TTL).await.expect("registers");

    let config = viewer.config();
    assert_eq!(config.get::<u32>("limits").await.expect("may read").expect("exists").value, 1);
    assert_eq!(config.list("").await.expect("may read").len(), 1);
    let live = config.live::<u32>("limits").start().await.expect("may follow");
    let mut watch = config.watch::<u32>("limits").await.expect("may watch");
    assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
    let view = viewer.registry().view("im").await.expect("may discover");
    assert_eq!(view.instances().len(), 1);
    assert_eq!(viewer.registry().discover("im").await.expect("may discover").len(), 1);
    assert!(viewer.lock().holders("job").await.expect("may look").is_empty());
    assert!(viewer.instance_ids().holders("im").await.expect("may look").is_empty());
    shop.config().set("limits", &2).await.expect("may write");
    let seen = timeout(LIMIT, watch.next()).await.expect("in time");
    assert!(matches!(seen, Some(Ok(ConfigEvent::Set(ref set))) if set.value == 2), "{seen:?}");
    while *live.current() != 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    let denied = |what: &str, error: Option<Error>| {
        assert!(matches!(error, Some(Error::PermissionDenied { .. })), "{what}: {error:?}");
    };
    denied("set", config.set("limits", &3).await.err());
    denied("delete", config.delete("limits").await.err());
    denied("record", config.record("limits").set(&3).await.err());
    denied("acquire", timeout(LIMIT, viewer.lock().acquire("job", TTL)).await.expect("is told").err());
    denied("try_acquire", viewer.lock().try_acquire("job", TTL).await.err());
    denied("register", viewer.registry().register(instance("2"), TTL).await.err());
    let ids = viewer.instance_id_allocator("im", 16).expect("is good");
    denied("acquire_id", timeout(LIMIT, ids.acquire_id()).await.expect("is told").err());
    assert_eq!(*live.current(), 2, "nothing was written");
    viewer.close().await.expect("closes");
}

/// Writes of one moment go to etcd together, which refuses all of them for one.
#[tokio::test(flavor = "multi_thread")]
async fn of_many_writes_only_those_that_the_role_forbids_are_refused() {
    let server = with_users(&[]).await;
    server.add_user("half", "s3cret", "read", "/shop/").await.expect("etcdctl works");
    for prefix in ["/shop/config/may/", "/shop/internal/"] {
        let grant = ["role", "grant-permission", "coord-half", "--prefix=true", "readwrite", prefix];
        server.etcdctl(&grant).await.expect("etcdctl works");
    }
    let config = connect(config(&server).user("half", "s3cret")).await.config();
    let write = |n: usize| {
        let (config, may) = (config.clone(), n % 16 != 15);
        async move { (may, config.set(&format!("{}/{n}", if may { "may" } else { "not" }), &n).await) }
    };
    for (may, written) in futures::future::join_all((0..64).map(write)).await {
        match written {
            Ok(_) => assert!(may),
            Err(error) => assert!(!may && matches!(error, Error::PermissionDenied { .. }), "{error:?}"),
        }
    }
    assert_eq!(config.list("may").await.expect("may read").len(), 60);
}

const REVOKE: &[&str] = &["role", "revoke-permission", "coord-shop", "--prefix=true", "/shop/"];
const GRANT: &[&str] = &["role", "grant-permission", "coord-shop", "--prefix=true", "readwrite", "/shop/"];

#[tokio::test(flavor = "multi_thread")]
async fn clean_up_that_a_role_forbids_is_done_when_it_is_restored() {
    let server = with_users(&[]).await;
    server.add_user("other", "s3cret", "readwrite", "/shop/").await.expect("etcdctl works");
    let shop = connect(config(&server).user("shop", "s3cret")).await;
    let other = connect(config(&server).user("other", "s3cret")).await;
    let (locks, others) = (shop.lock(), other.lock());
    let dropped = locks.acquire("dropped", TTL).await.expect("is free");
    let unlocked = locks.acquire("unlocked", TTL).await.expect("is free");
    let before = others.acquire("waited-for", TTL).await.expect("is free");
    let waiter = tokio::spawn({
        let locks = locks.clone();
        async move { locks.acquire("waited-for", TTL).await }
    });
    while others.holders("waited-for").await.expect("may look").len() < 2 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let instance = ServiceInfo::new("im", "1", "10.0.0.1", 80);
    let registration = shop.registry().register(instance, TTL).await.expect("registers");
    let range = || IdOptions::new("im", 2).quarantine(Duration::ZERO);
    let ids = shop.instance_ids().allocator(range()).expect("is valid");
    ids.acquire_id().await.expect("is free");

    server.etcdctl(REVOKE).await.expect("etcdctl works");
    let refused = timeout(LIMIT, unlocked.unlock()).await.expect("is told");
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    drop((dropped, registration));
    waiter.abort();
    let refused = timeout(LIMIT, ids.release_id()).await.expect("is told");
    assert!(matches!(refused, Err(Error::PermissionDenied { .. })), "{refused:?}");
    // All of it has been refused by then.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(others.try_acquire("dropped", TTL).await.expect("is answered").is_none());
    assert_eq!(other.registry().discover("im").await.expect("may look").len(), 1);

    server.etcdctl(GRANT).await.expect("etcdctl works");
    before.unlock().await.expect("is held");
    let next = other.instance_ids().allocator(range()).expect("is valid");
    timeout(Duration::from_secs(15), async {
        for name in ["dropped", "unlocked", "waited-for"] {
            let guard = others.acquire(name, TTL).await.expect("becomes free");
            guard.unlock().await.expect("is held");
        }
        next.acquire_id().await.expect("becomes free");
        while !other.registry().discover("im").await.expect("may look").is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("nothing stays taken");
}

#[tokio::test(flavor = "multi_thread")]
async fn loss_for_want_of_a_permission_says_so() {
    let server = with_users(&[]).await;
    let shop = connect(config(&server).user("shop", "s3cret")).await;
    let guard = shop.lock().acquire("job", Duration::from_secs(3)).await.expect("is free");
    server.etcdctl(REVOKE).await.expect("etcdctl works");
    let reason = timeout(LIMIT, guard.lost()).await.expect("in time");
    let cause = guard.lost().cause().expect("has one");
    println!("{reason}: {cause}");
    assert_eq!(reason, LossReason::Refused);
    assert!(cause.contains("permission denied"), "{cause}");
}
