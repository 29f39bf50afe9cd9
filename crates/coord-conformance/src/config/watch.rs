//! What a watch over config values tells.

use std::time::Duration;

use coord_api::{Batch, ConfigEvent, ConfigExt, Setting};

use super::{Known, is, next};
use crate::{
    Raw,
    expect::expect_decode,
    suite::tests,
    tools::{LIMIT, LONG_LIMIT, spawn, within},
};

fn setting<T>(key: &str, value: T, version: coord_api::Version) -> Setting<T> {
    Setting { key: key.into(), value, version }
}

tests! { "config";
    /// Contract 8: a watch over a key begins with its value, then tells each write and deletion, with
    /// versions.
    async fn a_watch_tells_every_change(world: &dyn World) {
        let (one, other) = (world.client().await.config(), world.client().await.config());
        let first = one.set("key", &1).await.expect("is written");
        let mut watch = other.watch::<u32>("key").await.expect("is answered");
        match next(&mut watch).await.expect("is good") {
            ConfigEvent::Snapshot { version, settings } => {
                assert!(version >= first);
                assert_eq!(settings, [setting("key", 1, first)]);
            }
            event => panic!("expected a snapshot, got {event:?}"),
        }
        let mut last = first;
        for value in [2, 2, 3] {
            let version = one.set("key", &value).await.expect("is written");
            last = version;
            assert_eq!(
                next(&mut watch).await.expect("is good"),
                ConfigEvent::Set(setting("key", value, version))
            );
        }
        assert!(one.delete("key").await.expect("is answered"));
        match next(&mut watch).await.expect("is good") {
            ConfigEvent::Deleted { key, version } => {
                assert_eq!(key, "key");
                let again = one.set("key", &4).await.expect("is written");
                assert!(version > last && version < again);
                assert_eq!(
                    next(&mut watch).await.expect("is good"),
                    ConfigEvent::Set(setting("key", 4, again))
                );
            }
            event => panic!("expected a deletion, got {event:?}"),
        }
    }

    /// Contract 8: a watch over a key that does not exist begins with an empty snapshot and tells its
    /// creation.
    async fn a_watch_may_begin_before_the_key_exists(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch::<u32>("key").await.expect("is answered");
        let first = next(&mut watch).await.expect("is good");
        assert!(matches!(&first, ConfigEvent::Snapshot { settings, .. } if settings.is_empty()), "{first:?}");
        let version = config.set("key", &1).await.expect("is written");
        assert_eq!(next(&mut watch).await.expect("is good"), ConfigEvent::Set(setting("key", 1, version)));
    }

    /// Contract 11: a watch over one key tells nothing of the keys below it or of similar names.
    async fn a_watch_over_a_key_sees_that_key_only(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch::<u32>("foo").await.expect("is answered");
        next(&mut watch).await.expect("is a snapshot");
        for key in ["foo/a", "foobar", "foo-2", "fo", "a/foo"] {
            config.set(key, &0).await.expect("is written");
        }
        let version = config.set("foo", &1).await.expect("is written");
        assert_eq!(next(&mut watch).await.expect("is good"), ConfigEvent::Set(setting("foo", 1, version)));
    }

    /// Contract 8: a watch over a prefix tells of all keys below it, ordered, and of no others.
    async fn a_watch_over_a_prefix_sees_whole_segments(world: &dyn World) {
        let config = world.client().await.config();
        let b = config.set("foo/b", &2).await.expect("is written");
        let a = config.set("foo/a", &1).await.expect("is written");
        config.set("foobar", &0).await.expect("is written");
        let mut watch = config.watch_prefix::<u32>("foo").await.expect("is answered");
        match next(&mut watch).await.expect("is good") {
            ConfigEvent::Snapshot { settings, .. } => {
                assert_eq!(settings, [setting("foo/a", 1, a), setting("foo/b", 2, b)]);
            }
            event => panic!("expected a snapshot, got {event:?}"),
        }
        for key in ["foo", "foobar", "foo-2/a", "fo/a"] {
            config.set(key, &0).await.expect("is written");
        }
        let version = config.set("foo/c/deep", &3).await.expect("is written");
        assert_eq!(
            next(&mut watch).await.expect("is good"),
            ConfigEvent::Set(setting("foo/c/deep", 3, version))
        );
        assert!(config.delete("foo/a").await.expect("is answered"));
        let deleted = next(&mut watch).await.expect("is good");
        assert!(matches!(&deleted, ConfigEvent::Deleted { key, .. } if key == "foo/a"), "{deleted:?}");
    }

    /// Contract 11: a watch over the empty prefix tells of every key, in the form that every call takes.
    async fn a_watch_over_everything(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch_prefix::<String>("").await.expect("is answered");
        let mut known = Known::new();
        for key in ["a", "a/b", "z/y/x"] {
            config.set(key, key).await.expect("is written");
        }
        known.follow(&mut watch, LIMIT, |values| values.len() == 3).await;
        for key in known.values.keys() {
            assert_eq!(&config.get::<String>(key).await.expect("is read").expect("exists").value, key);
        }
    }

    /// Contract 8: a batch arrives as its writes, all with its version.
    async fn a_batch_arrives_with_one_version(world: &dyn World) {
        let config = world.client().await.config();
        config.set("app/old", &0).await.expect("is written");
        let mut watch = config.watch_prefix::<u32>("app").await.expect("is answered");
        let mut known = Known::new();
        known.follow(&mut watch, LIMIT, |values| values.len() == 1).await;
        let batch = Batch::new()
            .set("app/a", &1)
            .and_then(|batch| batch.set("app/b", &2))
            .and_then(|batch| batch.delete("app/old"));
        let committed = config.commit(batch.expect("is valid")).await.expect("is written");
        for _ in 0..3 {
            known.apply(next(&mut watch).await.expect("is good"));
            assert_eq!(known.last, committed.version);
        }
        assert!(is(&known.values, "app/a", &1) && is(&known.values, "app/b", &2));
        assert_eq!(known.values.len(), 2);
    }

    /// Contract 8: what another program writes or deletes arrives like any other change.
    async fn changes_of_other_programs_arrive(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch::<u32>("key").await.expect("is answered");
        let mut known = Known::new();
        world.put_raw(Raw::Config { key: "key" }, b" 7 ").await;
        known.follow(&mut watch, LIMIT, |values| is(values, "key", &7)).await;
        world.delete_raw(Raw::Config { key: "key" }).await;
        known.follow(&mut watch, LIMIT, std::collections::BTreeMap::is_empty).await;
    }

    /// Contract 8: a value that can not be decoded is an item with key and path, and the watch goes on.
    async fn a_bad_value_is_an_item(world: &dyn World) {
        let config = world.client().await.config();
        config.set("app/bad", &vec!["text"]).await.expect("is written");
        config.set("app/good", &vec![1]).await.expect("is written");
        let mut watch = config.watch_prefix::<Vec<u32>>("app").await.expect("is answered");
        match next(&mut watch).await.expect("is good") {
            ConfigEvent::Snapshot { settings, .. } => {
                assert_eq!(
                    settings.iter().map(|setting| setting.key.as_str()).collect::<Vec<_>>(),
                    ["app/good"]
                );
            }
            event => panic!("expected a snapshot, got {event:?}"),
        }
        let decode_error = |key: &str, path: &str| (key.to_owned(), path.to_owned());
        assert_eq!(expect_decode(next(&mut watch).await), decode_error("app/bad", "[0]"));
        world.put_raw(Raw::Config { key: "app/good" }, b"[1, 2, \"three\"]").await;
        assert_eq!(expect_decode(next(&mut watch).await), decode_error("app/good", "[2]"));
        world.put_raw(Raw::Config { key: "app/good" }, b"\xff").await;
        assert_eq!(expect_decode(next(&mut watch).await).0, "app/good");
        let version = config.set("app/good", &vec![9]).await.expect("is written");
        let mended = next(&mut watch).await.expect("is good");
        assert_eq!(mended, ConfigEvent::Set(setting("app/good", vec![9], version)));
    }

    /// Contract 8: there is no gap between the snapshot and the first change: whoever opens a watch while
    /// another writes sees every number from the snapshot to the last, in order.
    async fn no_write_is_missed_while_a_watch_opens(world: &dyn World) {
        let (writer, reader) = (world.client().await.config(), world.client().await.config());
        let writing = spawn(async move {
            for number in 1..=200_u32 {
                writer.set("counter", &number).await.expect("is written");
            }
        });
        let mut watches = Vec::new();
        for _ in 0..8 {
            watches.push(reader.watch::<u32>("counter").await.expect("is answered"));
            tokio::time::sleep(Duration::from_millis(4)).await;
        }
        for mut watch in watches {
            let mut known = Known::new();
            let mut last = 0;
            let reading = async {
                while last < 200 {
                    let event = watch.next().await.expect("does not end").expect("is good");
                    let after_snapshot = matches!(event, ConfigEvent::Set(_));
                    known.apply(event);
                    let Some((value, _)) = known.values.get("counter") else {
                        continue;
                    };
                    if after_snapshot {
                        assert_eq!(*value, last + 1, "a write was missed or told twice");
                    }
                    assert!(*value >= last, "{value} after {last}");
                    last = *value;
                }
            };
            within(LONG_LIMIT, reading).await;
        }
        writing.join().await;
    }

    /// Contract 8: every watcher sees the same changes in the same order.
    async fn all_watchers_see_the_same(world: &dyn World) {
        let (one, other) = (world.client().await.config(), world.client().await.config());
        let mut watches = vec![
            one.watch_prefix::<u32>("app").await.expect("is answered"),
            one.watch_prefix::<u32>("app").await.expect("is answered"),
            other.watch_prefix::<u32>("app").await.expect("is answered"),
        ];
        for watch in &mut watches {
            next(watch).await.expect("is a snapshot");
        }
        for number in 0..30 {
            let (config, key) = (if number % 2 == 0 { &one } else { &other }, format!("app/{}", number % 4));
            if number % 5 == 4 {
                config.delete(&key).await.expect("is answered");
            } else {
                config.set(&key, &number).await.expect("is written");
            }
        }
        one.set("app/end", &0).await.expect("is written");
        let mut seen = Vec::new();
        for watch in &mut watches {
            let mut events = Vec::new();
            loop {
                let event = next(watch).await.expect("is good");
                let end = matches!(&event, ConfigEvent::Set(setting) if setting.key == "app/end");
                events.push(event);
                if end {
                    break;
                }
            }
            seen.push(events);
        }
        assert!(seen[0].len() > 20);
        assert!(seen.iter().all(|events| *events == seen[0]), "{seen:?}");
    }

    /// Contract 8: no item is lost when the wait for the next one is given up.
    async fn waiting_for_an_item_may_be_given_up(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch::<u32>("key").await.expect("is answered");
        let mut seen = Vec::new();
        for number in 1..=50_u32 {
            config.set("key", &number).await.expect("is written");
            if let Ok(item) = tokio::time::timeout(Duration::from_micros(100), watch.next()).await {
                seen.push(item.expect("does not end").expect("is good"));
            }
        }
        while !matches!(seen.last(), Some(ConfigEvent::Set(setting)) if setting.value == 50) {
            seen.push(next(&mut watch).await.expect("is good"));
        }
        assert_eq!(seen.len(), 51, "a snapshot and 50 writes: {seen:?}");
    }
}
