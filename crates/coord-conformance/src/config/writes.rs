//! Versions, conditions and batches.

use coord_api::{Batch, ConfigEvent, ConfigExt, MAX_BATCH_KEYS, Setting, Version};
use futures::future::{self, join_all};

use super::next;
use crate::{
    expect::expect_conflict,
    suite::tests,
    tools::{LIMIT, LONG_LIMIT, poll_at_most, spawn, within},
};

tests! { "config";
    /// Contract 8: every write gets a version larger than all that were answered before it, whatever the key and
    /// the client.
    async fn versions_grow_with_every_write(world: &dyn World) {
        let (one, other) = (world.client().await.config(), world.client().await.config());
        let mut last = Version::ABSENT;
        for number in 0..10 {
            for (config, key) in [(&one, "a"), (&other, "a"), (&one, "b")] {
                let version = config.set(key, &number).await.expect("is written");
                assert!(version > last, "{version} after {last}");
                last = version;
                assert_eq!(config.get::<u32>(key).await.expect("is read").expect("exists").version, version);
            }
        }
        let unchanged = one.get_entry("a").await.expect("is read").expect("exists").version();
        assert!(unchanged < last, "a write to another key does not change this one's version");
        assert!(one.delete("a").await.expect("is answered"));
        assert!(
            one.set("a", &0).await.expect("is written") > last,
            "a key that comes back does not start anew"
        );
    }

    /// Contract 8: writes of one client at the same moment are all written, as they are answered, and each is an event.
    async fn writes_of_one_moment_are_all_written(world: &dyn World) {
        // A watch that is further behind than its buffer begins anew, which is promised as well: so not more than that.
        const TOGETHER: u32 = 120;
        const KEYS: u32 = 40;
        let config = world.client().await.config();
        let mut watch = world.client().await.config().watch_prefix::<u32>("all").await.expect("is answered");
        assert!(matches!(next(&mut watch).await, Ok(ConfigEvent::Snapshot { .. })));
        let writes = (0..TOGETHER).map(|n| {
            let config = config.clone();
            async move {
                let key = format!("all/{}", n % KEYS);
                let version = config.set(&key, &n).await.expect("is written");
                Setting { key, value: n, version }
            }
        });
        let followed = async {
            let mut told = Vec::new();
            while told.len() < TOGETHER as usize {
                let ConfigEvent::Set(setting) = next(&mut watch).await.expect("is good") else {
                    panic!("nothing else was done");
                };
                told.push(setting);
            }
            told
        };
        let (mut answered, mut told) = within(LONG_LIMIT, future::join(join_all(writes), followed)).await;
        assert!(told.is_sorted_by_key(|setting| setting.version));
        for n in 0..KEYS {
            let key = format!("all/{n}");
            let last = told.iter().rfind(|setting| setting.key == key).expect("was told");
            let found = config.get::<u32>(&key).await.expect("is read").expect("exists");
            assert_eq!((found.value, found.version), (last.value, last.version), "{key}");
        }
        told.sort_by_key(|setting| setting.value);
        answered.sort_by_key(|setting| setting.value);
        assert_eq!(told, answered);
    }

    /// Contract 6: writes that are dropped, at whatever point, are written whole or not at all, and hold up nobody.
    async fn dropped_writes_hold_up_nobody(world: &dyn World) {
        let config = world.client().await.config();
        let write = |key: String| {
            let config = config.clone();
            async move { config.set(&key, &1).await.expect("is written") }
        };
        for round in 0..24 {
            let dropped = (0..16).map(|n| poll_at_most((round + n) % 6, write(format!("dropped/{round}/{n}"))));
            drop(within(LIMIT, join_all(dropped)).await);
            within(LIMIT, write(format!("kept/{round}"))).await;
        }
        within(LIMIT, join_all((24..224).map(|n| write(format!("kept/{n}"))))).await;
        assert_eq!(config.list("kept").await.expect("is read").len(), 224);
    }

    /// Contract 12: a conditional write replaces exactly the version that it names.
    async fn compare_and_set_replaces_the_version_it_names(world: &dyn World) {
        let config = world.client().await.config();
        let created = config.compare_and_set("key", Version::ABSENT, &1).await.expect("is created");
        let replaced = config.compare_and_set("key", created, &2).await.expect("is replaced");
        assert!(replaced > created);
        let found = config.get::<u32>("key").await.expect("is read").expect("exists");
        assert_eq!((found.value, found.version), (2, replaced));
    }

    /// Contract 12: a conditional write that finds another version, or none, tells both and writes nothing.
    async fn a_conflict_tells_both_versions(world: &dyn World) {
        let config = world.client().await.config();
        let nowhere = Version::new(1);
        expect_conflict("key", nowhere, Version::ABSENT, config.compare_and_set("key", nowhere, &0).await);
        assert!(config.get::<u32>("key").await.expect("is read").is_none(), "a missing key is not created");

        let first = config.set("key", &1).await.expect("is written");
        let second = config.set("key", &2).await.expect("is written");
        for expected in [Version::ABSENT, first, Version::new(second.get() + 1), Version::new(u64::MAX >> 1)]
        {
            expect_conflict("key", expected, second, config.compare_and_set("key", expected, &3).await);
        }
        let found = config.get::<u32>("key").await.expect("is read").expect("exists");
        assert_eq!((found.value, found.version), (2, second));
        assert!(config.delete("key").await.expect("is answered"));
        expect_conflict("key", second, Version::ABSENT, config.compare_and_set("key", second, &4).await);
    }

    /// Contract 12: of several clients that create one key exactly one succeeds.
    async fn one_of_several_concurrent_creations_wins(world: &dyn World) {
        let clients =
            [world.client().await.config(), world.client().await.config(), world.client().await.config()];
        let values: Vec<usize> = (0..9).collect();
        let creations =
            values.iter().map(|number| clients[number % 3].compare_and_set("key", Version::ABSENT, number));
        let outcomes = within(LIMIT, join_all(creations)).await;
        let winners: Vec<_> = (0..9).filter(|number| outcomes[*number].is_ok()).collect();
        assert_eq!(winners.len(), 1, "{outcomes:?}");
        let found = clients[0].get::<usize>("key").await.expect("is read").expect("exists");
        assert_eq!(found.value, winners[0]);
        for outcome in outcomes.into_iter().filter(Result::is_err) {
            expect_conflict("key", Version::ABSENT, found.version, outcome);
        }
    }

    /// Contract 12: deleting tells whether the key existed; doing it again is no error.
    async fn deleting_tells_whether_the_key_existed(world: &dyn World) {
        let config = world.client().await.config();
        assert!(!config.delete("key").await.expect("is answered"));
        config.set("key", &1).await.expect("is written");
        assert!(config.delete("key").await.expect("is answered"));
        assert!(config.get::<u32>("key").await.expect("is read").is_none());
        assert!(!config.delete("key").await.expect("is answered"));
        assert_eq!(world.keys().await, [""; 0]);
    }

    /// Contract 11: a list is ordered, covers whole path segments only, and its keys are those of every other
    /// call.
    async fn lists_cover_whole_segments(world: &dyn World) {
        let config = world.client().await.config();
        for key in ["foo/b", "foobar", "foo", "foo/a/deep", "foo-2/a", "foo/a", "bar", "foo/c"] {
            config.set(key, key).await.expect("is written");
        }
        for (prefix, expected) in [
            ("foo", &["foo/a", "foo/a/deep", "foo/b", "foo/c"][..]),
            ("foo/a", &["foo/a/deep"]),
            ("foo-2", &["foo-2/a"]),
            ("fo", &[]),
            ("bar", &[]),
            ("", &["bar", "foo", "foo-2/a", "foo/a", "foo/a/deep", "foo/b", "foo/c", "foobar"]),
        ] {
            let listed = config.list(prefix).await.expect("is read");
            let keys: Vec<_> = listed.iter().map(coord_api::Entry::key).collect();
            assert_eq!(keys, expected, "below {prefix:?}");
            for entry in listed {
                assert_eq!(entry.decode::<String>().expect("is text"), entry.key());
                let found = config.get::<String>(entry.key()).await.expect("is read").expect("exists");
                assert_eq!((found.value.as_str(), found.version), (entry.key(), entry.version()));
            }
        }
    }

    /// Contract 11: keys of other programs that no call takes are in no list and no watch.
    async fn keys_that_no_call_takes_are_left_out(world: &dyn World) {
        let config = world.client().await.config();
        let mut watch = config.watch_prefix::<u32>("foo").await.expect("is answered");
        assert!(matches!(next(&mut watch).await, Ok(ConfigEvent::Snapshot { .. })));
        let long = format!("foo/{}", "x".repeat(300));
        let bad = ["foo//a", "foo/ a", "foo/a/", "foo/%2F", "foo/..", "foo/a\u{1}b", "foo/", &long];
        for key in bad {
            world.put_raw(crate::Raw::Config { key }, b"1").await;
        }
        world.delete_raw(crate::Raw::Config { key: bad[0] }).await;
        config.set("foo/good", &2).await.expect("is written");
        for prefix in ["foo", ""] {
            let listed = config.list(prefix).await.expect("is read");
            let keys: Vec<_> = listed.iter().map(coord_api::Entry::key).collect();
            assert_eq!(keys, ["foo/good"], "below {prefix:?}");
        }
        let Ok(ConfigEvent::Set(setting)) = next(&mut watch).await else { panic!("nothing else is told") };
        assert_eq!((setting.key.as_str(), setting.value), ("foo/good", 2));
        let mut late = config.watch_prefix::<u32>("foo").await.expect("is answered");
        let Ok(ConfigEvent::Snapshot { settings, .. }) = next(&mut late).await else { panic!("comes first") };
        assert_eq!(settings, [setting]);
    }

    /// Contract 8: a batch is written whole, and all its keys get one version.
    async fn a_batch_is_written_whole(world: &dyn World) {
        let config = world.client().await.config();
        let old = config.set("old", &0).await.expect("is written");
        let batch = Batch::new()
            .require("old", old)
            .and_then(|batch| batch.require("a", Version::ABSENT))
            .and_then(|batch| batch.set("a", &1))
            .and_then(|batch| batch.set("b", &2))
            .and_then(|batch| batch.delete("old"))
            .and_then(|batch| batch.delete("never-there"));
        let committed = config.commit(batch.expect("is valid")).await.expect("is written");
        assert!(committed.version > old);
        assert_eq!(committed.deleted, 1);
        let listed = config.list("").await.expect("is read");
        let found: Vec<_> = listed.iter().map(|entry| (entry.key(), entry.version())).collect();
        assert_eq!(found, [("a", committed.version), ("b", committed.version)]);
    }

    /// Contract 8: a batch with one condition that does not hold writes nothing, and names the first such
    /// key.
    async fn a_batch_with_a_conflict_writes_nothing(world: &dyn World) {
        let config = world.client().await.config();
        let kept = config.set("kept", &0).await.expect("is written");
        let stale = config.set("stale", &0).await.expect("is written");
        let now = config.set("stale", &1).await.expect("is written");
        let batch = Batch::new()
            .require("kept", kept)
            .and_then(|batch| batch.require("stale", stale))
            .and_then(|batch| batch.require("missing", now))
            .and_then(|batch| batch.set("new", &1))
            .and_then(|batch| batch.set("stale", &2))
            .and_then(|batch| batch.delete("kept"));
        expect_conflict("stale", stale, now, config.commit(batch.expect("is valid")).await);
        let listed = config.list("").await.expect("is read");
        let found: Vec<_> = listed.iter().map(|entry| (entry.key(), entry.version())).collect();
        assert_eq!(found, [("kept", kept), ("stale", now)]);
    }

    /// Contract 8: a batch that changes nothing is answered with a version of its moment: not before any
    /// write that was answered, and before every write that comes.
    async fn a_batch_that_changes_nothing_has_a_version(world: &dyn World) {
        let config = world.client().await.config();
        let mut last = config.set("key", &1).await.expect("is written");
        let nothing = Batch::new();
        let checks = Batch::new().require("key", last).expect("is valid");
        let absent = Batch::new().delete("never-there").and_then(|batch| batch.delete("nor-there"));
        let written = last;
        for batch in [nothing, checks, absent.expect("is valid")] {
            let shown = format!("{batch:?}");
            let committed = config.commit(batch).await.expect(&shown);
            assert_eq!(committed.deleted, 0, "{shown}");
            assert!(committed.version >= last, "{shown}: {} after {last}", committed.version);
            let found = config.get_entry("key").await.expect("is read").expect("exists");
            assert_eq!(found.version(), written, "{shown}");
            last = config.set("other", &1).await.expect("is written");
            assert!(last > committed.version, "{shown}: {} before {last}", committed.version);
        }
        assert_eq!(world.keys().await.len(), 2);
    }

    /// Contract 12: a batch without writes checks its conditions all the same.
    async fn conditions_are_checked_without_writes(world: &dyn World) {
        let config = world.client().await.config();
        let first = config.set("key", &1).await.expect("is written");
        let now = config.set("key", &2).await.expect("is written");
        let batch = Batch::new().require("key", first).expect("is valid");
        expect_conflict("key", first, now, config.commit(batch).await);
    }

    /// Contract 8: the largest batch is written whole.
    async fn the_largest_batch_is_written(world: &dyn World) {
        let config = world.client().await.config();
        let batch = (0..MAX_BATCH_KEYS).try_fold(Batch::new(), |batch, number| {
            let key = format!("key-{number:02}");
            batch.require(&key, Version::ABSENT)?.set(&key, &number)
        });
        let committed = config.commit(batch.expect("is within the limits")).await.expect("is written");
        let listed = config.list("").await.expect("is read");
        assert_eq!(listed.len(), MAX_BATCH_KEYS);
        assert!(listed.iter().all(|entry| entry.version() == committed.version));
    }

    /// Contract 12: concurrent updates of one value lose nothing.
    async fn no_update_is_lost(world: &dyn World) {
        let mut writers = Vec::new();
        for _ in 0..4 {
            let config = world.client().await.config();
            for _ in 0..2 {
                let config = config.clone();
                writers.push(spawn(async move {
                    for _ in 0..25 {
                        let add_one = |old: Option<u32>| old.unwrap_or(0) + 1;
                        config.update("counter", add_one).await.expect("is written");
                    }
                }));
            }
        }
        for writer in writers {
            writer.join_within(LONG_LIMIT).await;
        }
        let config = world.client().await.config();
        assert_eq!(config.get::<u32>("counter").await.expect("is read").expect("exists").value, 200);
    }
}
