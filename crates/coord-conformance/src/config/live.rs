//! Values that follow the store.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, ConfigExt, Entry, EntryEvent, Error, Owner, Result, Scope, UpdateLocks,
    Version, Watch,
};
use coord_config::{Live, LiveExt, Origin, RejectionCause, WhenDeleted};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Raw,
    suite::tests,
    tools::{LIMIT, LONG_LIMIT, SHORT, eventually, spawn, within},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    upload: u64,
    /// Always twice `upload`.
    twice: u64,
}

fn limits(upload: u64) -> Limits {
    Limits { upload, twice: 2 * upload }
}

/// Waits until the live value is this one.
#[track_caller]
fn becomes(live: &Live<Limits>, upload: u64) -> impl Future<Output = ()> {
    eventually(LIMIT * 2, move || async move { live.current().upload == upload })
}

/// A file of the test's own, gone with it.
struct TestFile(PathBuf);

impl TestFile {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("coord-live-{:016x}.json", fastrand::u64(..))))
    }

    /// Files are written by a thread that no virtual clock waits for.
    async fn holds(&self, text: &str) {
        for _ in 0..10_000 {
            if std::fs::read_to_string(&self.0).is_ok_and(|found| found.contains(text)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
        panic!("{text} is not in the file");
    }
}

impl Drop for TestFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A config center whose watches say nothing after their first item while it is deaf.
#[derive(Debug)]
struct Deaf {
    center: Arc<dyn ConfigCenter>,
    deaf: AtomicBool,
}

#[async_trait]
impl ConfigCenter for Deaf {
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>> {
        self.center.read(scope).await
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        self.center.commit(batch).await
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        let watch = self.center.watch_entries(scope).await?;
        if !self.deaf.load(Ordering::Relaxed) {
            return Ok(watch);
        }
        Ok(Watch::new(watch.connectivity(), watch.take(1).chain(stream::pending())))
    }

    fn owner(&self) -> Owner {
        self.center.owner()
    }

    fn update_locks(&self) -> &UpdateLocks {
        self.center.update_locks()
    }
}

tests! { "config";
    /// Contract 9: a live value begins with what is stored and follows every change, for all its handles.
    async fn a_live_value_follows_its_key(world: &dyn World) {
        let (writer, config) = (world.client().await.config(), world.client().await.config());
        let first = writer.set("limits", &limits(1)).await.expect("is written");
        let mut live = config.live::<Limits>("limits").start().await.expect("exists");
        let mut other = live.clone();
        assert_eq!((*live.current()).clone(), limits(1));
        assert_eq!(live.origin(), Origin::Store(first));
        assert!(live.state().is_good());
        for upload in 2..=5 {
            let version = writer.set("limits", &limits(upload)).await.expect("is written");
            for live in [&mut live, &mut other] {
                let told = within(LIMIT, live.changed()).await.expect("is open");
                assert_eq!((told.upload, live.origin()), (upload, Origin::Store(version)));
            }
        }
        assert_eq!(live.counters().changes, 4);
        writer.set("limits", &limits(5)).await.expect("is written");
        writer.set("limits", &limits(6)).await.expect("is written");
        let told = within(LIMIT, live.changed()).await.expect("is open");
        assert_eq!(told.upload, 6, "the same value again is no change");
    }

    /// Contract 9: live values with no rules but their key are one, which is decoded once for all of them. Each has
    /// its own place in the changes, and it lasts as long as one of them does.
    async fn live_values_with_no_other_rules_are_one(world: &dyn World) {
        let client = world.client().await;
        client.config().set("limits", &limits(1)).await.expect("is written");
        let start = || async { client.config().live::<Limits>("limits").start().await.expect("exists") };
        let (first, mut second) = (start().await, start().await);
        assert!(Arc::ptr_eq(&first.current(), &second.current()));
        let checked = client.config().live("limits").validate(|_: &Limits| ()).start().await.expect("exists");
        assert!(!Arc::ptr_eq(&first.current(), &checked.current()), "it may refuse what the others take");
        let untyped = client.config().live::<serde_json::Value>("limits").start().await.expect("exists");
        assert_eq!(*untyped.current(), json!(limits(1)));

        client.config().set("limits", &limits(2)).await.expect("is written");
        assert_eq!(within(LIMIT, second.changed()).await.expect("is open").upload, 2);
        let mut third = start().await;
        assert_eq!(third.current().upload, 2);
        drop(first);
        client.config().set("limits", &limits(3)).await.expect("is written");
        for live in [&mut second, &mut third] {
            assert_eq!(within(LIMIT, live.changed()).await.expect("is open").upload, 3);
        }
        assert!(Arc::ptr_eq(&second.current(), &third.current()));
        drop((second, third));
        assert_eq!(start().await.counters().changes, 0, "nobody had it any more");
    }

    /// Contract 9: whoever starts a live value finds there what was written before, whatever others have.
    async fn a_live_value_never_starts_behind_the_store(world: &dyn World) {
        let center = world.client().await.config();
        center.set("limits", &limits(0)).await.expect("is written");
        let deaf = Arc::new(Deaf { center: center.clone(), deaf: AtomicBool::new(true) });
        let config: Arc<dyn ConfigCenter> = deaf.clone();
        let behind = config.live::<Limits>("limits").start().await.expect("exists");
        deaf.deaf.store(false, Ordering::Relaxed);
        let mut all = Vec::new();
        for upload in 1..=20 {
            center.set("limits", &limits(upload)).await.expect("is written");
            all.push(config.live::<Limits>("limits").start().await.expect("exists"));
            assert_eq!(all[all.len() - 1].current().upload, upload);
        }
        assert_eq!(behind.current().upload, 0);
        for live in &all {
            becomes(live, 20).await;
        }
    }

    /// Contract 9: without a value there is the default, or an error that names the key.
    async fn a_live_value_needs_a_value_or_a_default(world: &dyn World) {
        let config = world.client().await.config();
        let missing = config.live::<Limits>("limits").start().await;
        assert!(matches!(&missing, Err(Error::Missing { what }) if what.contains("limits")), "{missing:?}");
        let mut live = config.live("limits").default(limits(7)).start().await.expect("has a default");
        assert_eq!((live.current().upload, live.origin()), (7, Origin::Default));
        config.set("limits", &limits(8)).await.expect("is written");
        assert_eq!(within(LIMIT, live.changed()).await.expect("is open").upload, 8);
        for key in ["", "/limits", "a//b"] {
            let refused = config.live::<Limits>(key).default(limits(1)).start().await;
            assert!(matches!(refused, Err(Error::InvalidArgument { field: "config key", .. })), "{refused:?}");
        }
    }

    /// Contract 9: a reader in a tight loop never sees a torn or an older value, while it changes 10,000 times.
    async fn readers_never_see_a_torn_or_older_value(world: &dyn World) {
        const CHANGES: u64 = 10_000;
        let (writer, config) = (world.client().await.config(), world.client().await.config());
        writer.set("limits", &limits(0)).await.expect("is written");
        let live = config.live::<Limits>("limits").start().await.expect("exists");
        let reader = std::thread::spawn({
            let live = live.clone();
            move || {
                let (mut last, mut reads) = (0, 0_u64);
                while last < CHANGES {
                    let now = live.current();
                    assert_eq!(now.twice, 2 * now.upload, "torn");
                    assert!(now.upload >= last, "{} after {last}", now.upload);
                    last = now.upload;
                    reads += 1;
                    if reads.is_multiple_of(1000) {
                        // Two cores are shared with a server and other tests.
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
                reads
            }
        });
        for upload in 1..=CHANGES {
            // Each has a limit of its own, since all of them take a minute on a slow machine.
            within(LIMIT, writer.set("limits", &limits(upload))).await.expect("is written");
            if upload.is_multiple_of(64) {
                tokio::task::yield_now().await;
            }
        }
        becomes(&live, CHANGES).await;
        assert!(reader.join().expect("saw nothing wrong") > 0);
        assert_eq!(live.counters().rejections, 0);
    }

    /// Contract 9: value, origin, rejection and counters never contradict each other, whenever one looks.
    async fn a_rejection_belongs_to_its_value(world: &dyn World) {
        const ROUNDS: u64 = 100;
        let config = world.client().await.config();
        config.set("limits", &limits(0)).await.expect("is written");
        let even = |limits: &Limits| if limits.upload.is_multiple_of(2) { Ok(()) } else { Err("is odd") };
        let live = config.live::<Limits>("limits").validate(even).start().await.expect("exists");
        let reader = std::thread::spawn({
            let live = live.clone();
            move || {
                let mut looks = 0_u64;
                while live.current().upload < 2 * ROUNDS {
                    let (origin, counted) = (live.origin(), live.counters().rejections);
                    let rejection = live.state().rejection;
                    if let Some(rejection) = &rejection {
                        assert!(rejection.version > origin.version(), "{rejection} is older than {origin:?}");
                    }
                    if live.current().upload < 2 * counted {
                        assert!(rejection.is_some(), "{counted} are counted, and none is told");
                    }
                    looks += 1;
                    if looks.is_multiple_of(1000) {
                        // Two cores are shared with a server and other tests.
                        std::thread::sleep(Duration::from_micros(100));
                    }
                }
            }
        });
        for round in 1..=ROUNDS {
            config.set("limits", &limits(2 * round - 1)).await.expect("is written");
            eventually(LIMIT, || async { live.counters().rejections == round }).await;
            config.set("limits", &limits(2 * round)).await.expect("is written");
            becomes(&live, 2 * round).await;
            assert!(live.state().is_good());
        }
        reader.join().expect("saw nothing wrong");
    }

    /// Contract 9: garbage by another program is told with its JSON path and changes nothing; the next good write
    /// is taken.
    async fn a_bad_update_keeps_the_last_good_value(world: &dyn World) {
        let config = world.client().await.config();
        config.set("limits", &limits(1)).await.expect("is written");
        let live = config
            .live::<Limits>("limits")
            .validate(|limits| if limits.upload < 100 { Ok(()) } else { Err("upload is 100 or more") })
            .start()
            .await
            .expect("exists");
        let at = Raw::Config { key: "limits" };
        let table = [
            (&br#"{"upload": "s3cret", "twice": 2}"#[..], RejectionCause::Decode { path: "upload".into() }),
            (b"{", RejectionCause::Decode { path: ".".into() }),
            (br#"{"upload": 100, "twice": 200}"#, RejectionCause::Validator),
        ];
        for (count, (garbage, cause)) in (1..).zip(table) {
            world.put_raw(at, garbage).await;
            eventually(LIMIT, || async { live.counters().rejections == count }).await;
            let rejection = live.state().rejection.expect("is told");
            assert_eq!((&rejection.cause, rejection.key.as_str()), (&cause, "limits"));
            assert!(!format!("{rejection} {live:?}").contains("s3cret"));
            assert_eq!((*live.current()).clone(), limits(1));
            let entry = config.get_entry("limits").await.expect("is read").expect("exists");
            assert_eq!(rejection.version, entry.version());
        }
        world.put_raw(at, br#"{"upload": 2, "twice": 4}"#).await;
        becomes(&live, 2).await;
        assert!(live.state().is_good());
        let fresh = config.live::<Limits>("limits").validate(|_| Err::<(), _>("never")).start().await;
        assert!(matches!(fresh, Err(Error::InvalidArgument { field: "value", .. })), "{fresh:?}");
    }

    /// Contract 9: the hook is told the old and the new value, may refuse, and is not the end when it panics.
    async fn a_hook_may_refuse(world: &dyn World) {
        let config = world.client().await.config();
        config.set("limits", &limits(1)).await.expect("is written");
        let live = config
            .live::<Limits>("limits")
            .on_change(|old, new| match new.upload {
                13 => Err(format!("{} to 13 brings bad luck", old.upload)),
                14 => panic!("expected: this hook panics"),
                _ => Ok(()),
            })
            .start()
            .await
            .expect("exists");
        for upload in [13, 14] {
            config.set("limits", &limits(upload)).await.expect("is written");
            eventually(LIMIT, || async { live.counters().rejections == upload - 12 }).await;
            let rejection = live.state().rejection.expect("is told");
            assert_eq!(rejection.cause, RejectionCause::Hook);
            assert!(rejection.reason == "1 to 13 brings bad luck" || rejection.reason == "panicked");
            assert_eq!(live.current().upload, 1);
        }
        config.set("limits", &limits(15)).await.expect("is written");
        becomes(&live, 15).await;
    }

    /// Contract 9: a deleted key is an event, and a choice.
    async fn a_deletion_keeps_the_value_or_goes_back_to_the_default(world: &dyn World) {
        let config = world.client().await.config();
        let version = config.set("limits", &limits(1)).await.expect("is written");
        let keeping = config.live("limits").default(limits(9)).start().await.expect("exists");
        let back = config.live("limits").default(limits(9)).when_deleted(WhenDeleted::Default);
        let back = back.start().await.expect("exists");
        let mut changes = keeping.changes();
        assert!(config.delete("limits").await.expect("is answered"));
        let change = within(LIMIT, changes.next()).await.expect("is open");
        assert_eq!((change.new.upload, change.origin), (1, Origin::Kept(version)));
        becomes(&back, 9).await;
        assert_eq!((back.origin(), back.counters().deletions), (Origin::Default, 1));
        config.set("limits", &limits(2)).await.expect("is written");
        becomes(&keeping, 2).await;
        becomes(&back, 2).await;
    }

    /// Contract 9: fields come from the default, the key below and the key itself, in this order.
    async fn layers_fill_what_is_missing(world: &dyn World) {
        let config = world.client().await.config();
        config.set("common/limits", &json!({"upload": 5})).await.expect("is written");
        let live = config.live("svc/limits").over("common/limits").default_fields(limits(1));
        let mut live = live.start().await.expect("has a default");
        let now = |live: &Live<Limits>| (live.current().upload, live.current().twice);
        assert_eq!(now(&live), (5, 2));
        for (key, value, expected) in [
            ("svc/limits", json!({"twice": 7}), (5, 7)),
            ("common/limits", json!({"upload": 6, "twice": 6}), (6, 7)),
            ("svc/limits", json!({"upload": 8}), (8, 6)),
        ] {
            config.set(key, &value).await.expect("is written");
            within(LIMIT, live.changed()).await.expect("is open");
            assert_eq!(now(&live), expected, "{key} {value}");
        }
        assert!(config.delete("svc/limits").await.expect("is answered"));
        within(LIMIT, live.changed()).await.expect("is open");
        assert_eq!(now(&live), (6, 6));
    }

    /// Contract 9: during a partition a live value is stale and stays; afterwards it is right, though the store has
    /// forgotten what happened meanwhile.
    async fn a_live_value_outlives_a_partition(world: &dyn World) {
        let (writer, watching) = (world.client().await.config(), world.client().await);
        writer.set("limits", &limits(1)).await.expect("is written");
        let live = watching.config().live::<Limits>("limits").start().await.expect("exists");
        for round in 1..=2 {
            let mut contact = live.connectivity();
            watching.link.cut();
            for upload in 1..=10 {
                writer.set("limits", &limits(round * 10 + upload)).await.expect("is written");
            }
            world.compact().await;
            if live.state().freshness.is_fresh() {
                within(LONG_LIMIT, contact.changed()).await;
            }
            assert!(live.state().freshness.stale_for().is_some());
            tokio::time::sleep(SHORT).await;
            watching.link.restore();
            becomes(&live, round * 10 + 10).await;
            eventually(LIMIT * 2, || async { live.state().is_good() }).await;
        }
        watching.close().await;
        eventually(LIMIT, || async { !live.state().freshness.is_fresh() }).await;
        assert!(matches!(within(LIMIT, live.clone().changed()).await, Ok(_) | Err(Error::Closed)));
        assert_eq!(live.current().upload, 30);
    }

    /// Contract 9: a service starts while the store is away with the file's value, stale, which turns fresh when the
    /// store is back; without a file with the default or an error, as chosen.
    async fn a_service_starts_while_the_store_is_away(world: &dyn World) {
        let (writer, away) = (world.client().await.config(), world.client().await);
        let version = writer.set("limits", &limits(1)).await.expect("is written");
        let file = TestFile::new();
        let saving = writer.live::<Limits>("limits").snapshot_file(&file.0).start().await.expect("exists");
        file.holds(&format!("\"version\": {version}")).await;
        drop(saving);

        away.link.cut();
        let config = away.config();
        let builder = || config.live::<Limits>("limits").start_within(SHORT);
        let from_file = within(LIMIT, builder().snapshot_file(&file.0).start()).await.expect("has a file");
        assert_eq!((from_file.current().upload, from_file.origin()), (1, Origin::File(version)));
        assert!(!from_file.state().freshness.is_fresh());
        let from_default = within(LIMIT, builder().default(limits(9)).default_while_away().start()).await;
        let from_default = from_default.expect("may use the default");
        assert_eq!((from_default.current().upload, from_default.origin()), (9, Origin::Default));
        assert!(!from_default.state().freshness.is_fresh());
        crate::expect::expect_unreachable(within(LIMIT, builder().default(limits(9)).start()).await);

        let version = writer.set("limits", &limits(2)).await.expect("is written");
        away.link.restore();
        for live in [&from_file, &from_default] {
            becomes(live, 2).await;
            eventually(LIMIT, || async { live.state().is_good() }).await;
            assert_eq!(live.origin(), Origin::Store(version));
        }
        file.holds(&format!("\"version\": {version}")).await;
    }

    /// Contract 9: a change that no watch told is found by the periodic comparison.
    async fn a_change_that_was_never_told_is_found(world: &dyn World) {
        let center = world.client().await.config();
        center.set("limits", &limits(1)).await.expect("is written");
        let deaf = Arc::new(Deaf { center: center.clone(), deaf: AtomicBool::new(true) });
        let config: Arc<dyn ConfigCenter> = deaf.clone();
        let live = config.live::<Limits>("limits").reconcile_every(Duration::from_secs(1));
        let live = live.start().await.expect("exists");
        deaf.deaf.store(false, Ordering::Relaxed);
        center.set("limits", &limits(2)).await.expect("is written");
        becomes(&live, 2).await;
        assert_eq!(live.counters().reconciliations, 1);
        center.set("limits", &limits(3)).await.expect("is written");
        becomes(&live, 3).await;
        assert_eq!(live.counters().reconciliations, 1);
    }

    /// Contract 8: a consumer of changes that is behind misses some, is told how many, and sees a chain that fits.
    async fn changes_are_a_chain(world: &dyn World) {
        let config = world.client().await.config();
        config.set("limits", &limits(0)).await.expect("is written");
        let live = config.live::<Limits>("limits").start().await.expect("exists");
        let (mut quick, mut slow) = (live.changes(), live.changes());
        let reading = spawn(async move {
            let mut seen = 0;
            while seen < 200 {
                let change = quick.next().await.expect("is open");
                assert_eq!(change.old.upload, seen);
                seen = change.new.upload;
            }
        });
        for upload in 1..=200 {
            config.set("limits", &limits(upload)).await.expect("is written");
        }
        becomes(&live, 200).await;
        reading.join().await;
        let (mut seen, mut missed, mut kept) = (0, 0, 0);
        while seen < 200 {
            let change = within(LIMIT, slow.next()).await.expect("is open");
            assert_eq!(change.old.upload, seen);
            (seen, missed, kept) = (change.new.upload, missed + change.missed, kept + 1);
        }
        assert!(kept <= 32 && kept + missed <= 200, "{kept} kept and {missed} missed: the buffer is bounded");
    }

    /// Contract 12: ten writers that add one a hundred times each end at a thousand, also with partitions.
    async fn a_thousand_updates_are_a_thousand(world: &dyn World) {
        let mut writers = Vec::new();
        let cut = world.client().await;
        for number in 0..10 {
            let client = if number == 0 { cut.clone() } else { world.client().await };
            writers.push(spawn(async move {
                let config = client.config();
                let mut done = 0;
                while done < 100 {
                    match config.update("counter", |old: Option<u32>| old.unwrap_or(0) + 1).await {
                        Ok(_) => done += 1,
                        // Nothing was written then.
                        Err(Error::Unavailable { .. }) => tokio::time::sleep(Duration::from_millis(20)).await,
                        Err(error) => panic!("{error:?}"),
                    }
                }
            }));
        }
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            cut.link.cut();
            tokio::time::sleep(Duration::from_millis(300)).await;
            cut.link.restore();
        }
        for writer in writers {
            writer.join_within(LONG_LIMIT).await;
        }
        let config = world.client().await.config();
        let found = config.get::<u32>("counter").await.expect("is read").expect("exists");
        assert_eq!(found.value, 1000);
        assert!(found.version > Version::ABSENT);
    }
}
