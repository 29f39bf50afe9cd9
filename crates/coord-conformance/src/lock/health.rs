//! What a provider tells about its leases.

use coord_api::{Error, HEALTH_LIMIT, LeaseHealth};
use tokio::time::Instant;

use crate::{
    TestClient,
    suite::tests,
    tools::{LIMIT, LONG, SHORT, eventually, within},
};

#[track_caller]
fn becomes(client: &TestClient, expected: fn(LeaseHealth) -> bool) -> impl Future<Output = ()> {
    eventually(LIMIT, move || async move { expected(client.provider.lease_health()) })
}

fn is_healthy(health: LeaseHealth) -> bool {
    health == LeaseHealth::Healthy
}

fn is_suspect(health: LeaseHealth) -> bool {
    health == LeaseHealth::Suspect
}

fn is_lost(health: LeaseHealth) -> bool {
    matches!(health, LeaseHealth::Lost(_))
}

tests! { "lock";
    /// Contract 2: a client is healthy while it holds nothing and while renewals arrive; when they are
    /// overdue it is suspect, then lost, and healthy again when the network is back and the loss is dealt with.
    async fn the_health_of_the_leases_is_told(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        assert_eq!(client.provider.lease_health(), LeaseHealth::Healthy, "there are no leases");
        let guard = within(LIMIT, client.lock().acquire("job", SHORT)).await.expect("is free");
        becomes(&client, is_healthy).await;
        client.link.cut();
        becomes(&client, is_suspect).await;
        becomes(&client, is_lost).await;
        assert!(guard.is_lost());
        tokio::time::sleep(SHORT).await;
        assert!(is_lost(client.provider.lease_health()), "it has not heard how the store sees it");
        assert_eq!(other.provider.lease_health(), LeaseHealth::Healthy, "it has a network of its own");
        client.link.restore();
        becomes(&client, is_healthy).await;
        assert!(guard.is_lost(), "for good");
        // The connection may take a moment to come back.
        eventually(LIMIT, || async { client.lock().try_acquire("job", SHORT).await.is_ok() }).await;
        becomes(&client, is_healthy).await;
    }

    /// Contract 10: a probe is answered in its time, and tells a store that is away from a client that is closed.
    async fn a_probe_is_answered_whatever_the_store_does(world: &dyn World) {
        let client = world.client().await;
        let health = within(LIMIT, client.provider.health()).await.expect("the store answers");
        assert!(health.is_ready() && health.leases == LeaseHealth::Healthy, "{health:?}");
        let _guard = within(LIMIT, client.lock().acquire("job", LONG)).await.expect("is free");
        client.link.cut();
        let begun = Instant::now();
        let error = within(LIMIT, client.provider.health()).await.expect_err("the store is away");
        assert!(matches!(error, Error::Timeout { .. } | Error::Unavailable { .. }), "{error:?}");
        // Twice the time, for busy machines.
        assert!(begun.elapsed() < HEALTH_LIMIT * 2, "{:?}", begun.elapsed());
        client.link.restore();
        eventually(LIMIT, || async {
            client.provider.health().await.is_ok_and(|health| health.is_ready() && health.latency < LIMIT)
        })
        .await;
        client.close().await;
        let error = client.provider.health().await.expect_err("is closed");
        assert!(matches!(error, Error::Closed), "{error:?}");
    }

    /// Contract 2: the health is that of the worst lease, however well the others do.
    async fn the_worst_lease_counts(world: &dyn World) {
        let client = world.client().await;
        let long = within(LIMIT, client.lock().acquire("long", LONG)).await.expect("is free");
        let short = within(LIMIT, client.lock().acquire("short", SHORT)).await.expect("is free");
        client.link.cut();
        becomes(&client, is_suspect).await;
        becomes(&client, is_lost).await;
        assert!(short.is_lost() && !long.is_lost());
        client.link.restore();
        becomes(&client, is_healthy).await;
        assert!(!long.is_lost());
    }

    /// Contract 2: a short outage is told as suspect, and harms nothing.
    async fn a_short_outage_is_only_suspect(world: &dyn World) {
        let client = world.client().await;
        let guard = within(LIMIT, client.lock().acquire("job", SHORT * 3)).await.expect("is free");
        client.link.cut();
        becomes(&client, is_suspect).await;
        client.link.restore();
        becomes(&client, is_healthy).await;
        assert!(!guard.is_lost());
    }
}
