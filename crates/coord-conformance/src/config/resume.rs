//! Watches that go on after whatever interrupts them.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{ConfigCenter, ConfigExt};

use super::{Known, is, write_many};
use crate::{
    suite::tests,
    tools::{LIMIT, LONG_LIMIT, SHORT, within},
};

/// The numbers below `prefix` as a fresh read tells them.
async fn read_all(config: &dyn ConfigCenter, prefix: &str) -> BTreeMap<String, (usize, coord_api::Version)> {
    let entries = config.list(prefix).await.expect("is read");
    let decode = |entry: &coord_api::Entry| entry.decode().expect("is a number");
    entries.iter().map(|entry| (entry.key().to_owned(), (decode(entry), entry.version()))).collect()
}

tests! { "config";
    /// Contract 8: a store that forgets its history changes nothing for a watcher that follows.
    async fn a_watch_survives_compaction(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch::<u32>("key").await.expect("is answered");
        let mut known = Known::new();
        for number in 0..5 {
            config.set("key", &number).await.expect("is written");
            world.compact().await;
            known.follow(&mut watch, LIMIT, |values| is(values, "key", &number)).await;
        }
    }

    /// Contract 8: a watcher that comes back after the store has forgotten what it missed gets a fresh
    /// snapshot.
    async fn a_watch_survives_a_compaction_that_it_missed(world: &dyn World) {
        let (writer, watching) = (world.client().await.config(), world.client().await);
        writer.set("app/deleted", &0_usize).await.expect("is written");
        let mut watch = watching.config().watch_prefix::<usize>("app").await.expect("is answered");
        let mut known = Known::new();
        known.follow(&mut watch, LIMIT, |values| values.len() == 1).await;
        watching.link.cut();
        write_many(world, "app", 30).await;
        assert!(writer.delete("app/deleted").await.expect("is answered"));
        world.compact().await;
        tokio::time::sleep(SHORT).await;
        watching.link.restore();
        let expected = read_all(&*writer, "app").await;
        assert_eq!(expected.len(), 10);
        known.follow(&mut watch, LIMIT * 2, |values| *values == expected).await;
        writer.set("app/after", &1_usize).await.expect("is written");
        known.follow(&mut watch, LIMIT, |values| values.contains_key("app/after")).await;
    }

    /// Contract 8: after a partition a watch tells what happened meanwhile and never goes back.
    async fn a_watch_survives_partitions(world: &dyn World) {
        let (writer, watching) = (world.client().await.config(), world.client().await);
        let mut watch = watching.config().watch::<u32>("key").await.expect("is answered");
        let mut known = Known::new();
        for round in 0..3_u32 {
            writer.set("key", &(round * 10)).await.expect("is written");
            known.follow(&mut watch, LIMIT * 2, |values| is(values, "key", &(round * 10))).await;
            let partition = async {
                watching.link.cut();
                for number in 1..=5 {
                    writer.set("key", &(round * 10 + number)).await.expect("is written");
                }
                tokio::time::sleep(Duration::from_millis(500) * (round + 1)).await;
                watching.link.restore();
            };
            // Whoever waits all the while is woken by the end of the partition, not by another write.
            let last = round * 10 + 5;
            tokio::join!(known.follow(&mut watch, LIMIT * 2, |values| is(values, "key", &last)), partition);
        }
    }

    /// Contract 8: what was deleted during a partition is gone for the watcher, too.
    async fn a_deletion_during_a_partition_is_told(world: &dyn World) {
        let (writer, watching) = (world.client().await.config(), world.client().await);
        writer.set("key", &1).await.expect("is written");
        let mut watch = watching.config().watch::<u32>("key").await.expect("is answered");
        let mut known = Known::new();
        known.follow(&mut watch, LIMIT, |values| is(values, "key", &1)).await;
        watching.link.cut();
        assert!(writer.delete("key").await.expect("is answered"));
        tokio::time::sleep(SHORT).await;
        watching.link.restore();
        known.follow(&mut watch, LIMIT * 2, BTreeMap::is_empty).await;
    }

    /// Contract 9: while the store is away a watch says nothing, neither an end nor an empty snapshot.
    async fn a_watch_is_silent_during_a_partition(world: &dyn World) {
        let (writer, watching) = (world.client().await.config(), world.client().await);
        writer.set("key", &1).await.expect("is written");
        let mut watch = watching.config().watch::<u32>("key").await.expect("is answered");
        let mut known = Known::new();
        known.follow(&mut watch, LIMIT, |values| is(values, "key", &1)).await;
        watching.link.cut();
        let item = tokio::time::timeout(SHORT * 2, watch.next()).await;
        assert!(item.is_err(), "{item:?} while the store is away");
        watching.link.restore();
        writer.set("key", &2).await.expect("is written");
        known.follow(&mut watch, LIMIT * 2, |values| is(values, "key", &2)).await;
    }

    /// Contract 9: whoever relies on a watch can see that the store is away, and that it is back.
    async fn a_watch_tells_that_the_store_is_away(world: &dyn World) {
        let watching = world.client().await;
        let watch = watching.config().watch::<u32>("key").await.expect("is answered");
        let mut contact = watch.connectivity();
        assert!(contact.freshness().is_fresh());
        watching.link.cut();
        let cut = within(LONG_LIMIT, contact.changed()).await;
        assert!(cut.stale_for().is_some_and(|time| time < LONG_LIMIT), "{cut:?}");
        watching.link.restore();
        let restored = within(LONG_LIMIT, contact.changed()).await;
        assert!(restored.is_fresh(), "{restored:?}");
        watching.close().await;
        assert!(!within(LIMIT, contact.changed()).await.is_fresh(), "a closed client hears nothing");
    }

    /// Contract 8: a consumer that does not look while thousands of writes pass finds the right values in the
    /// end.
    async fn a_slow_consumer_ends_up_right(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch_prefix::<usize>("app").await.expect("is answered");
        write_many(world, "app", 5_000).await;
        assert!(config.delete("app/0").await.expect("is answered"));
        let expected = read_all(&*config, "app").await;
        assert_eq!(expected.len(), 9);
        let mut known = Known::new();
        known.follow(&mut watch, LONG_LIMIT, |values| *values == expected).await;
        config.set("app/after", &1_usize).await.expect("is written");
        known.follow(&mut watch, LIMIT, |values| values.contains_key("app/after")).await;
    }

    /// Contract 8: a watcher that is slow holds up neither the writers nor the watchers beside it.
    async fn a_slow_consumer_holds_up_nobody(world: &dyn World) {
        let config = world.client().await.config();
        let slow = config.watch_prefix::<usize>("app").await.expect("is answered");
        let mut quick = config.watch_prefix::<usize>("app").await.expect("is answered");
        write_many(world, "app", 1_000).await;
        let mut known = Known::new();
        let expected = read_all(&*config, "app").await;
        known.follow(&mut quick, LONG_LIMIT, |values| *values == expected).await;
        drop(slow);
        config.set("app/after", &1_usize).await.expect("is written");
        known.follow(&mut quick, LIMIT, |values| values.contains_key("app/after")).await;
    }
}
