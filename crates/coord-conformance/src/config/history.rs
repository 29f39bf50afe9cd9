//! Who changed a value, and the way back.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, ConfigExt, ConfigKey, Entry, EntryEvent, Error, Owner, Result, Scope,
    UpdateLocks, Version, Watch,
};
use coord_config::{HistoryExt, LiveExt, MAX_HISTORY, MAX_RECORDED_BYTES};
use serde_json::json;

use crate::{
    Raw,
    expect::{expect_conflict, expect_invalid, expect_too_large},
    suite::tests,
    tools::{LIMIT, LONG_LIMIT, spawn, within},
};

/// Does something else before its first commit, and lets others come first.
#[derive(Debug)]
struct Between {
    center: Arc<dyn ConfigCenter>,
    what: Mutex<Option<Batch>>,
}

#[async_trait]
impl ConfigCenter for Between {
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>> {
        self.center.read(scope).await
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        let what = self.what.lock().expect("nobody panics").take();
        if let Some(what) = what {
            self.center.commit(what).await?;
            tokio::task::yield_now().await;
        }
        self.center.commit(batch).await
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        self.center.watch_entries(scope).await
    }

    fn owner(&self) -> Owner {
        self.center.owner()
    }

    fn update_locks(&self) -> &UpdateLocks {
        self.center.update_locks()
    }
}

tests! { "config";
    /// Contract 8: a recorded write is in the history with its version, author, time and comment, and the value is
    /// plain JSON as ever.
    async fn a_recorded_write_tells_who_when_and_why(world: &dyn World) {
        let (one, other) = (world.client().await.config(), world.client().await.config());
        let before = SystemTime::now();
        let first = one.record("a/limits").comment("launch").set(&10).await.expect("is written");
        let second = other.record("a/limits").author("bob").set(&20).await.expect("is written");
        let found = one.get::<u32>("a/limits").await.expect("is read").expect("exists");
        assert_eq!((found.value, found.version), (20, second));
        let history = other.history("a/limits").await.expect("is read");
        let shown: Vec<_> =
            history.iter().map(|r| (r.version, r.author.clone(), r.comment.as_deref())).collect();
        assert_eq!(shown, [(second, Some("bob".into()), None), (first, Some(one.owner().to_string()), Some("launch"))]);
        assert!(history.iter().all(|r| !r.deleted && r.at + Duration::from_secs(5) >= before));
        let entry = one.recorded("a/limits", first).await.expect("is kept").expect("was a value");
        assert_eq!((entry.decode::<u32>().expect("is a number"), entry.version()), (10, first));
        let listed = one.list("").await.expect("is read");
        let keys: Vec<_> = listed.iter().map(coord_api::Entry::key).collect();
        assert_eq!(keys, ["a/limits"], "the history is beside the values");
        assert!(one.history("a").await.expect("is read").is_empty());
    }

    /// Contract 8: the way back is open whatever was written in between, also after the store has forgotten its own
    /// history.
    async fn a_rollback_is_a_new_version(world: &dyn World) {
        let config = world.client().await.config();
        let first = config.record("limits").set(&json!({"a": 1, "b": [1, 2]})).await.expect("is written");
        let second = config.record("limits").set(&json!({"a": 2, "b": [1]})).await.expect("is written");
        world.put_raw(Raw::Config { key: "limits" }, b"garbage").await;
        world.compact().await;
        assert_eq!(config.history("limits").await.expect("is read").len(), 2);
        let diff = config.diff("limits", first, second).await.expect("both are kept");
        let shown: Vec<_> = diff.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["/a: 1 -> 2", "/b/1: - 2"]);
        let third = config.record("limits").rollback(first).await.expect("is kept");
        let found = config.get::<serde_json::Value>("limits").await.expect("is read").expect("exists");
        assert_eq!((found.value, found.version), (json!({"a": 1, "b": [1, 2]}), third));
        let comment = config.history("limits").await.expect("is read").remove(0).comment;
        assert_eq!(comment, Some(format!("rollback to version {first}")));

        let gone = config.record("limits").comment("not used").delete().await.expect("is deleted");
        assert!(config.get_entry("limits").await.expect("is read").is_none());
        assert!(config.recorded("limits", gone).await.expect("is kept").is_none());
        config.record("limits").rollback(second).await.expect("is kept");
        let missing = config.record("limits").rollback(Version::new(1 << 40)).await;
        assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
    }

    /// Contract 8: recorded writes of several keys in one batch take effect all or not at all, each with its record.
    async fn recorded_writes_in_one_batch_are_all_or_nothing(world: &dyn World) {
        let config = world.client().await.config();
        config.set("rooms", &1).await.expect("is written");
        let both = async || {
            let batch = config.record("rooms").comment("launch").add_to(Batch::new(), &10).await?;
            config.record("members").comment("launch").add_to(batch, &500).await
        };
        let batch = both().await.expect("fits");
        let at = config.commit(batch).await.expect("is written").version;
        for (key, value, versions) in [("rooms", 10, 2), ("members", 500, 1)] {
            let found = config.get::<u32>(key).await.expect("is read").expect("exists");
            assert_eq!((found.value, found.version), (value, at), "{key}");
            let history = config.history(key).await.expect("is read");
            assert_eq!((history.len(), history[0].version), (versions, at), "{key}");
            assert_eq!(history[0].comment.as_deref(), Some("launch"), "{key}");
        }
        let late = both().await.expect("fits");
        let between = config.record("members").set(&7).await.expect("is written");
        expect_conflict("members", at, between, config.commit(late).await);
        assert_eq!(config.get::<u32>("rooms").await.expect("is read").expect("exists").version, at);
        let large = config.record("rooms").add_to(Batch::new(), &"x".repeat(MAX_RECORDED_BYTES)).await;
        expect_too_large("recorded value", large);
        let bad = config.record("rooms").comment("\u{7}").add_to(Batch::new(), &1).await;
        expect_invalid("comment", "\u{7}", bad);
    }

    /// Contract 8: the differences of two versions are those of their text: no digit is lost.
    async fn differences_are_told_digit_by_digit(world: &dyn World) {
        let config = world.client().await.config();
        let raw = |json: &str| serde_json::value::RawValue::from_string(json.to_owned()).expect("is JSON");
        let first = config.record("n").set(&raw("{\"a\":12345678901234567890123}")).await.expect("is written");
        let second = config.record("n").set(&raw("{\"a\":12345678901234567890124}")).await.expect("is written");
        let diff = config.diff("n", first, second).await.expect("both are kept");
        let shown: Vec<_> = diff.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["/a: 12345678901234567890123 -> 12345678901234567890124"]);
    }

    /// Contract 8: a value that was written without a record is found by the next recorded write, and can be had back.
    async fn what_was_not_recorded_is_found(world: &dyn World) {
        let config = world.client().await.config();
        config.set("limits", &1).await.expect("is written");
        let before = config.get_entry("limits").await.expect("is read").expect("exists").version();
        assert!(config.history("limits").await.expect("is read").is_empty());
        let first = config.record("limits").author("ann").set(&2).await.expect("is written");
        world.put_raw(Raw::Config { key: "limits" }, b"3").await;
        world.put_raw(Raw::Config { key: "limits" }, b"4").await;
        let raw = config.get_entry("limits").await.expect("is read").expect("exists").version();
        let second = config.record("limits").author("bob").set(&5).await.expect("is written");
        let third = config.record("limits").author("bob").set(&6).await.expect("is written");
        let history = config.history("limits").await.expect("is read");
        let shown: Vec<_> = history.iter().map(|r| (r.version, r.author.as_deref())).collect();
        let (ann, bob) = (Some("ann"), Some("bob"));
        assert_eq!(shown, [(third, bob), (second, bob), (raw, None), (first, ann), (before, None)]);
        for (version, value) in [(before, 1), (first, 2), (raw, 4), (second, 5), (third, 6)] {
            let entry = config.recorded("limits", version).await.expect("is kept").expect("was a value");
            assert_eq!((entry.decode::<u32>().expect("is a number"), entry.version()), (value, version));
        }
        let diff = config.diff("limits", raw, second).await.expect("both are kept");
        assert_eq!(diff.iter().map(ToString::to_string).collect::<Vec<_>>(), ["(all): 4 -> 5"]);
        config.record("limits").rollback(raw).await.expect("is kept");
        assert_eq!(config.get::<u32>("limits").await.expect("is read").expect("exists").value, 4);

        // What is no JSON is told, but not kept.
        world.put_raw(Raw::Config { key: "limits" }, b"garbage").await;
        let garbage = config.get_entry("limits").await.expect("is read").expect("exists").version();
        config.record("limits").delete().await.expect("is deleted");
        assert_eq!(config.history("limits").await.expect("is read")[1].version, garbage);
        let missing = config.recorded("limits", garbage).await;
        assert!(matches!(missing, Err(Error::Missing { .. })), "{missing:?}");
        assert_eq!(world.keys().await.len(), 7, "the index and six values; none for the garbage and the deletion");
    }

    /// Contract 8: nothing is lost of what comes between the reads and the write of a recorder.
    async fn what_comes_between_is_in_the_history(world: &dyn World) {
        let config = world.client().await.config();
        let first = config.record("limits").set(&1).await.expect("is written");
        let between = |what| -> Arc<dyn ConfigCenter> {
            Arc::new(Between { center: config.clone(), what: Mutex::new(Some(what)) })
        };
        let unrecorded = Batch::new().set("limits", &2).expect("is valid");
        let second = between(unrecorded).record("limits").set(&3).await.expect("is written");
        let history = config.history("limits").await.expect("is read");
        assert_eq!((history[0].version, history[1].author.as_deref(), history[2].version), (second, None, first));
        let found = config.recorded("limits", history[1].version).await.expect("is kept").expect("a value");
        assert_eq!(found.decode::<u32>().expect("is a number"), 2);

        // Deletions of what is not there change no version of the key.
        let mut deletions = Vec::new();
        for _ in 0..4 {
            let one = between(Batch::new());
            deletions.push(spawn(async move { one.record("gone").delete().await.expect("is answered") }));
        }
        for deletion in deletions {
            deletion.join_within(LIMIT).await;
        }
        assert_eq!(config.history("gone").await.expect("is read").len(), 4);
    }

    /// Contract 8: a history that another program has overwritten is begun anew by the next recorded write.
    async fn an_overwritten_history_begins_anew(world: &dyn World) {
        let config = world.client().await.config();
        let index = ConfigKey::parse("limits").expect("is good").beside("history", "index");
        let record = |number: u64| json!([{"number": number, "version": 1, "author": "x", "at_ms": u64::MAX}]);
        let nonsense = [json!({"not": "ours"}), json!(null), json!([1]), record(u64::MAX)];
        for (round, value) in (0_u32..).zip(nonsense) {
            config.record("limits").set(&round).await.expect("is written");
            let spoiled = Batch::new().set_at(index.clone(), &value).expect("is valid");
            config.commit(spoiled).await.expect("is written");
            let read = config.history("limits").await;
            assert!(matches!(read, Err(Error::Decode { .. })), "{value}: {read:?}");
            let first = config.record("limits").set(&(round + 100)).await.expect("is written");
            let second = config.record("limits").set(&(round + 200)).await.expect("is written");
            let history = config.history("limits").await.expect("is read");
            assert_eq!((history[0].version, history[1].version), (second, first), "{value}");
            config.record("limits").rollback(first).await.expect("is kept");
            let found = config.get::<u32>("limits").await.expect("is read").expect("exists");
            assert_eq!(found.value, round + 100);
        }
    }

    /// Contract 8: the history of a key that is deleted is kept for a rollback, and removed when it is not wanted.
    async fn a_history_is_forgotten_when_asked(world: &dyn World) {
        let config = world.client().await.config();
        assert!(!config.forget_history("limits").await.expect("is answered"));
        let mut last = Version::ABSENT;
        for number in 0..25 {
            last = config.record("limits").set(&number).await.expect("is written");
        }
        config.record("limits").delete().await.expect("is deleted");
        config.record("limits").rollback(last).await.expect("is kept");
        config.record("limits").delete().await.expect("is deleted");
        assert!(config.forget_history("limits").await.expect("is answered"));
        assert!(!config.forget_history("limits").await.expect("is answered"));
        assert_eq!(world.keys().await, [""; 0]);
        assert!(config.history("limits").await.expect("is read").is_empty());
        config.record("limits").set(&1).await.expect("is written");
        config.forget_history("limits").await.expect("is answered");
        assert_eq!(config.get::<u32>("limits").await.expect("is read").expect("exists").value, 1);
        config.record("limits").set(&2).await.expect("is written");
        assert_eq!(config.history("limits").await.expect("is read").len(), 2, "the value before is taken in");
        expect_invalid("config key", "/", config.forget_history("/").await);
    }

    /// Contract 8: however many writers there are, each record fits its value, and the history is bounded.
    async fn a_history_is_exact_and_bounded(world: &dyn World) {
        let mut writers = Vec::new();
        for writer in 0..4 {
            let config = world.client().await.config();
            writers.push(spawn(async move {
                for number in 0..10 {
                    let value = format!("{writer}-{number}");
                    config.record("limits").comment(&value).set(&value).await.expect("is written");
                }
            }));
        }
        for writer in writers {
            writer.join_within(LONG_LIMIT).await;
        }
        let config = world.client().await.config();
        let history = config.history("limits").await.expect("is read");
        assert_eq!(history.len(), MAX_HISTORY);
        assert!(history.is_sorted_by(|later, earlier| later.version > earlier.version), "{history:?}");
        for record in &history {
            let entry = config.recorded("limits", record.version).await.expect("is kept").expect("a value");
            assert_eq!(Some(entry.decode::<String>().expect("is text")), record.comment);
        }
        let now = config.get_entry("limits").await.expect("is read").expect("exists");
        assert_eq!(now.version(), history[0].version);
        assert_eq!(world.keys().await.len(), MAX_HISTORY + 2, "the value, the index and the ring");
    }

    /// Contract 11: bad arguments are refused by name, and a conflict is one of the value.
    async fn bad_records_are_refused(world: &dyn World) {
        let config = world.client().await.config();
        let too_long = "x".repeat(600);
        expect_invalid("comment", "600 bytes", config.record("limits").comment(&too_long).set(&1).await);
        expect_invalid("author", "a newline", config.record("limits").author("a\nb").set(&1).await);
        expect_invalid("config key", "/", config.record("/").set(&1).await);
        let too_large = "x".repeat(MAX_RECORDED_BYTES);
        expect_too_large("recorded value", config.record("limits").set(&too_large).await);
        assert_eq!(world.keys().await, [""; 0]);
        let largest = "x".repeat(MAX_RECORDED_BYTES - 2);
        let version = within(LIMIT, config.record("limits").set(&largest)).await.expect("is within the limit");
        let stale = Version::new(version.get() + 1);
        expect_conflict("limits", stale, version, config.record("limits").expecting(stale).set(&1).await);
        config.record("limits").expecting(version).set(&1).await.expect("is at that version");
    }

    /// Contract 9: the changes of a live value tell who made them.
    async fn changes_tell_who_made_them(world: &dyn World) {
        let (writer, config) = (world.client().await.config(), world.client().await.config());
        let live = config.live("limits").default(0).start().await.expect("has a default");
        let mut changes = live.changes();
        let version = writer.record("limits").author("ann").comment("launch").set(&1).await.expect("is written");
        let change = within(LIMIT, changes.next()).await.expect("is open");
        let record = change.record.expect("was recorded");
        assert_eq!((record.version, record.author.as_deref()), (version, Some("ann")));
        writer.set("limits", &2).await.expect("is written");
        let change = within(LIMIT, changes.next()).await.expect("is open");
        assert_eq!((*change.old, *change.new, change.record), (1, 2, None));
    }
}
