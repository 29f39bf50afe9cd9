//! Waiting for an id for a limited time.

use std::time::Duration;

use coord_api::{Error, InstanceIdAllocatorExt};

use crate::{
    expect::expect_unreachable,
    suite::tests,
    tools::{LIMIT, spawn, within},
};

tests! { "ids";
    /// Contract 7: that every id is taken is told on the store's word alone, however short the wait is; a store that does
    /// not answer is none that is full.
    async fn an_outage_is_never_taken_for_a_range_that_is_full(world: &dyn World) {
        let (holder, client) = (world.client().await, world.client().await);
        let (held, waiting) = (holder.ids_at_once("svc", 2), client.ids_at_once("svc", 2));
        within(LIMIT, held.acquire_id_within(Duration::from_nanos(1))).await.expect("is free");
        for millis in [0, 1, 200] {
            let waited = within(LIMIT, waiting.acquire_id_within(Duration::from_millis(millis))).await;
            assert!(matches!(waited, Err(Error::Exhausted { max: 2 })), "{waited:?}");
        }
        client.link.cut();
        for millis in [0, 1, 200, 1_000] {
            let wait = Duration::from_millis(millis);
            expect_unreachable(within(LIMIT, waiting.acquire_id_within(wait)).await);
        }
        client.link.restore();
        let waiter = spawn(async move { waiting.acquire_id_within(LIMIT).await });
        tokio::time::sleep(Duration::from_millis(500)).await;
        held.release_id().await.expect("is held");
        assert_eq!(waiter.join().await.expect("is free").get(), 1);
    }
}
