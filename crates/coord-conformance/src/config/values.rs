//! Values as they come back.

use std::collections::BTreeMap;

use coord_api::{ConfigExt, Error, MAX_VALUE_BYTES, Version};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Raw,
    expect::{expect_decode, expect_too_large, expect_unreachable},
    suite::tests,
    tools::{LIMIT, within},
};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Limits {
    upload: u64,
    name: String,
    nested: BTreeMap<String, Vec<Option<i64>>>,
    mode: Mode,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
enum Mode {
    Off,
    Rate { per_second: f64 },
}

fn limits() -> Limits {
    Limits {
        upload: 10,
        name: "日报 \"quoted\"\n\u{1f600}\u{0}".into(),
        nested: BTreeMap::from([("a".into(), vec![Some(1), None]), (String::new(), vec![])]),
        mode: Mode::Rate { per_second: 0.1 },
    }
}

tests! { "config";
    /// Contract 12: a typed value comes back as it was written, for every client, with its key and version.
    async fn a_value_comes_back_as_it_was_written(world: &dyn World) {
        let (one, other) = (world.client().await.config(), world.client().await.config());
        let version = within(LIMIT, one.set("common/limits", &limits())).await.expect("is written");
        for config in [&one, &other] {
            let found = config.get::<Limits>("common/limits").await.expect("is read").expect("exists");
            assert_eq!(
                (found.key.as_str(), found.value, found.version),
                ("common/limits", limits(), version)
            );
        }
        one.set("common/mode", &Mode::Off).await.expect("is written");
        let mode = other.get::<Mode>("common/mode").await.expect("is read").expect("exists");
        assert_eq!(mode.value, Mode::Off);
    }

    /// Contract 12: numbers keep every digit, bytes and text every byte.
    async fn numbers_and_bytes_keep_every_digit(world: &dyn World) {
        let config = world.client().await.config();
        let numbers = (i64::MIN, i64::MAX, u64::MAX, (1_u64 << 53) + 1, f64::MIN_POSITIVE, -0.0_f64);
        config.set("numbers", &numbers).await.expect("is written");
        let found =
            config.get::<(i64, i64, u64, u64, f64, f64)>("numbers").await.expect("is read").expect("exists");
        assert_eq!(found.value, numbers);
        let bytes: Vec<u8> = (0..=255).collect();
        config.set("bytes", &bytes).await.expect("is written");
        assert_eq!(config.get::<Vec<u8>>("bytes").await.expect("is read").expect("exists").value, bytes);
        let text: String = ('\0'..='\u{ff}').chain(['\u{2028}', '\u{ffff}', '\u{10ffff}']).collect();
        config.set("text", &text).await.expect("is written");
        assert_eq!(config.get::<String>("text").await.expect("is read").expect("exists").value, text);
    }

    /// Contract 12: what is not there is `None`, and a stored `null` is not the same.
    async fn absent_and_null_are_two_things(world: &dyn World) {
        let config = world.client().await.config();
        assert!(config.get::<Option<u32>>("maybe").await.expect("is read").is_none());
        config.set("maybe", &None::<u32>).await.expect("is written");
        let found = config.get::<Option<u32>>("maybe").await.expect("is read").expect("exists");
        assert_eq!(found.value, None);
        expect_decode(config.get::<u32>("maybe").await);
        config.set("text", "null").await.expect("is written");
        assert_eq!(config.get::<String>("text").await.expect("is read").expect("exists").value, "null");
        config.set("empty", "").await.expect("is written");
        assert_eq!(config.get::<String>("empty").await.expect("is read").expect("exists").value, "");
    }

    /// Contract 12: a value of another type is an error with key, version and path, and stays as it is.
    async fn a_value_of_another_type_is_told_with_its_path(world: &dyn World) {
        let config = world.client().await.config();
        let value = json!({"upload": 1, "name": "n", "nested": {"a": [1, "s3cret"]}, "mode": "Off"});
        let version = config.set("limits", &value).await.expect("is written");
        let error = config.get::<Limits>("limits").await.expect_err("has another type");
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        match error {
            Error::Decode { key, version: found, path, .. } => {
                assert_eq!((key.as_str(), found, path.as_str()), ("limits", version, "nested.a[1]"));
            }
            other => panic!("expected Decode, got {other:?}"),
        }
        assert_eq!(config.get::<Value>("limits").await.expect("is read").expect("exists").value, value);
    }

    /// Contract 12: what other programs write is read if it is JSON, and an error but no harm if it is not.
    async fn values_of_other_programs_are_read_or_refused(world: &dyn World) {
        let config = world.client().await.config();
        let at = Raw::Config { key: "foreign" };
        world.put_raw(at, b" { \"a\" : [ 1 , 2 ] }\n").await;
        let found = config.get::<Value>("foreign").await.expect("is read").expect("exists");
        assert_eq!(found.value, json!({"a": [1, 2]}));
        let too_deep = "[".repeat(200) + &"]".repeat(200);
        for garbage in [&b"{"[..], b"", b"\xff\xfe", b"1 2", b"plain text", too_deep.as_bytes()] {
            world.put_raw(at, garbage).await;
            assert_eq!(expect_decode(config.get::<Value>("foreign").await).0, "foreign");
            let entry = config.get_entry("foreign").await.expect("is read").expect("exists");
            assert_eq!(entry.as_bytes(), garbage, "the bytes themselves can be read");
        }
        let entries = config.list("").await.expect("garbage does not hide the list");
        assert_eq!(entries.len(), 1);
        world.delete_raw(at).await;
        assert!(config.get::<Value>("foreign").await.expect("is read").is_none());
    }

    /// Contract 12: the largest value is stored whole; a larger one is refused before anything is written.
    async fn too_large_values_are_refused(world: &dyn World) {
        let config = world.client().await.config();
        // Two bytes are the quotes.
        let largest = "x".repeat(MAX_VALUE_BYTES - 2);
        let version = within(LIMIT, config.set("blob", &largest)).await.expect("is within the limit");
        for size in [MAX_VALUE_BYTES - 1, 5 << 20] {
            expect_too_large("value", config.set("blob", &"y".repeat(size)).await);
            expect_too_large("value", config.set("other", &"y".repeat(size)).await);
            expect_too_large("value", config.compare_and_set("blob", version, &"y".repeat(size)).await);
        }
        let found = config.get::<String>("blob").await.expect("is read").expect("exists");
        assert_eq!((found.value.len(), found.version), (largest.len(), version));
        assert!(config.get::<String>("other").await.expect("is read").is_none());
    }

    /// Contract 12: whatever can be written can be read, also at the greatest depth; deeper is refused.
    async fn too_deep_values_are_refused(world: &dyn World) {
        let config = world.client().await.config();
        let nested = |levels: usize| (1..levels).fold(json!([]), |inner, _| json!([inner]));
        config.set("deep", &nested(127)).await.expect("is within the limit");
        let found = config.get::<Value>("deep").await.expect("can be read").expect("exists");
        assert_eq!(found.value, nested(127));
        let refused = config.set("deep", &nested(128)).await;
        crate::expect::expect_invalid("value", "128 levels", refused);
        // JSON has no keys but text.
        let unspeakable = BTreeMap::from([((1, 2), 3)]);
        crate::expect::expect_invalid(
            "value",
            "a map with tuples as keys",
            config.set("deep", &unspeakable).await,
        );
        let entry = config.get_entry("deep").await.expect("is read").expect("exists");
        assert_eq!((entry.version(), entry.version() > Version::ABSENT), (found.version, true));
    }

    /// Contract 8: a read sees every write that was answered before, whoever wrote it.
    async fn reads_see_every_answered_write(world: &dyn World) {
        let clients = [world.client().await.config(), world.client().await.config()];
        for number in 0_usize..40 {
            let (writer, reader) = (&clients[number % 2], &clients[(number + 1) % 2]);
            let version = writer.set("turn", &number).await.expect("is written");
            let found = reader.get::<usize>("turn").await.expect("is read").expect("exists");
            assert_eq!((found.value, found.version), (number, version));
            let listed = reader.list("").await.expect("is read");
            assert_eq!(listed[0].version(), version);
        }
    }

    /// Contract 12: while the store is out of reach, reads and writes fail in bounded time, and work again
    /// afterwards.
    async fn an_unreachable_store_is_told(world: &dyn World) {
        let (cut_off, other) = (world.client().await, world.client().await.config());
        let config = cut_off.config();
        config.set("key", &1).await.expect("is written");
        cut_off.link.cut();
        expect_unreachable(within(LIMIT, config.get::<u32>("key")).await);
        expect_unreachable(within(LIMIT, config.list("")).await);
        expect_unreachable(within(LIMIT, config.set("key", &2)).await);
        assert_eq!(other.get::<u32>("key").await.expect("is read").expect("exists").value, 1);
        cut_off.link.restore();
        within(LIMIT, async {
            while config.get::<u32>("key").await.is_err() {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        })
        .await;
        config.set("key", &3).await.expect("is written");
        assert_eq!(other.get::<u32>("key").await.expect("is read").expect("exists").value, 3);
    }
}
