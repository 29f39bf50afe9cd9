//! Everything through etcd's gRPC proxy, which answers renewals and numbers watches in its own way.

use std::{sync::Arc, time::Duration};

use coord_api::{ConfigEvent, ConfigExt, Provider, ServiceEvent, ServiceInfo};
use coord_config::LiveExt;
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, GrpcProxy};
use futures::future::join_all;
use tokio::time::timeout;

/// The proxy renews a lease every third of this, and looks what is due every half second.
const TTL: Duration = Duration::from_secs(5);
const LIMIT: Duration = Duration::from_secs(60);

struct Proxied {
    _server: EtcdServer,
    proxy: GrpcProxy,
}

impl Proxied {
    async fn start() -> Self {
        let server = EtcdServer::start().await.expect("starts");
        let proxy = GrpcProxy::start(server.endpoint()).await.expect("starts");
        Self { _server: server, proxy }
    }

    async fn client(&self) -> Arc<dyn Provider> {
        let config = EtcdConfig::new([self.proxy.endpoint()]).instance_id_ttl(TTL);
        Arc::new(Client::connect(config).await.expect("the proxy answers"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_and_id_through_the_proxy_are_held_over_many_ttls() {
    let world = Proxied::start().await;
    let (one, other) = (world.client().await, world.client().await);
    let guard = timeout(LIMIT, one.lock().acquire("job", TTL)).await.expect("in time").expect("is free");
    let ids = one.instance_id_allocator("svc", 2).expect("is valid");
    timeout(LIMIT, ids.acquire_id()).await.expect("in time").expect("is free");
    let waiter = tokio::spawn(async move { other.lock().acquire("job", TTL).await });
    let lost = timeout(TTL * 4, guard.lost()).await;
    assert!(lost.is_err(), "{lost:?}");
    assert!(!waiter.is_finished() && ids.id().is_some());
    guard.unlock().await.expect("is held");
    let next = timeout(LIMIT, waiter).await.expect("in time").expect("no panic").expect("is granted");
    next.unlock().await.expect("is held");
    ids.release_id().await.expect("is held");
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_through_the_proxy_see_their_own_changes() {
    const KEYS: u32 = 24;
    let world = Proxied::start().await;
    let clients = [world.client().await, world.client().await];
    let config = clients[0].config();
    // All at once, those of the two clients on the same keys.
    let watch = async |n: u32| {
        let watching = clients[n as usize % 2].config();
        let mut watch = watching.watch::<u32>(&format!("k/{}", n / 2)).await.expect("is allowed");
        assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
        watch
    };
    let watches = timeout(LIMIT, join_all((0..KEYS * 2).map(watch))).await.expect("all begin");
    for n in 0..KEYS {
        config.set(&format!("k/{n}"), &n).await.expect("is written");
    }
    for (n, mut watch) in (0..).zip(watches) {
        let seen = timeout(LIMIT, watch.next()).await.expect("is served");
        assert!(matches!(seen, Some(Ok(ConfigEvent::Set(ref set))) if set.value == n / 2), "{n}: {seen:?}");
    }

    let registry = clients[1].registry();
    let mut events = timeout(LIMIT, registry.watch("im")).await.expect("begins").expect("is allowed");
    assert!(matches!(events.next().await, Some(Ok(ServiceEvent::Snapshot { .. }))));
    let mut view = registry.view("im").await.expect("is allowed");
    let live = clients[1].config().live::<u32>("k/0").start().await.expect("is allowed");
    let instance = ServiceInfo::new("im", "1", "10.0.0.1", 80);
    let registration = clients[0].registry().register(instance, TTL).await.expect("registers");
    let seen = timeout(LIMIT, events.next()).await.expect("is served");
    assert!(matches!(seen, Some(Ok(ServiceEvent::Added(_)))), "{seen:?}");
    timeout(LIMIT, async {
        while view.instances().is_empty() {
            view.changed().await.expect("is open");
        }
        config.set("k/0", &700).await.expect("is written");
        while *live.current() != 700 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("views and live values are served");
    drop(registration);
    let seen = timeout(LIMIT, events.next()).await.expect("is served");
    assert!(matches!(seen, Some(Ok(ServiceEvent::Removed(_)))), "{seen:?}");
}
