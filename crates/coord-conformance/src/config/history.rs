//! Who changed a value, and the way back.

use std::time::{Duration, SystemTime};

use coord_api::{ConfigExt, Error, Version};
use coord_config::{HistoryExt, LiveExt, MAX_HISTORY, MAX_RECORDED_BYTES};
use serde_json::json;

use crate::{
    Raw,
    expect::{expect_conflict, expect_invalid, expect_too_large},
    suite::tests,
    tools::{LIMIT, LONG_LIMIT, spawn, within},
};

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
        assert_eq!(shown, [(second, "bob".into(), None), (first, one.owner().to_string(), Some("launch"))]);
        assert!(history.iter().all(|r| !r.deleted && r.at + Duration::from_secs(5) >= before));
        let entry = one.recorded("a/limits", first).await.expect("is kept").expect("was a value");
        assert_eq!((entry.decode::<u32>().expect("is a number"), entry.version()), (10, first));
        let listed = one.list("").await.expect("is read");
        let keys: Vec<_> = listed.iter().map(coord_api::Entry::key).collect();
        assert_eq!(keys, ["a/limits"], "the history is beside the values");
        assert!(one.history("a").await.expect("is read").is_empty());
    }

    /// Contract 8: what is not recorded leaves the history as it is; the way back is open all the same, also after
    /// the store has forgotten its own history.
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
        assert_eq!((record.version, record.author.as_str()), (version, "ann"));
        writer.set("limits", &2).await.expect("is written");
        let change = within(LIMIT, changes.next()).await.expect("is open");
        assert_eq!((*change.old, *change.new, change.record), (1, 2, None));
    }
}
