//! Values that come back exactly, and the refusal of those that would not.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{Batch, ConfigExt, Error, Result, Version};
use coord_config::{Audience, GrayExt, HistoryExt, Instance, LiveExt};
use fastrand::Rng;
use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::value::RawValue;

use crate::{
    expect::expect_decode,
    suite::tests,
    tools::{LIMIT, within},
};

/// Numbers of all sizes, by their bits.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Numbers {
    floats: Vec<f64>,
    small: Vec<f32>,
    edges: (i64, u64, i128, u128),
}

impl Numbers {
    fn random() -> Self {
        let mut rng = Rng::with_seed(7);
        let edges = (i64::MIN, u64::MAX, i128::MIN, u128::MAX);
        let mut floats = vec![5e-324, f64::MIN_POSITIVE, f64::MAX, -0.0, 0.1, 1e23, 9_007_199_254_740_993.0];
        floats.extend((0..2000).map(|_| f64::from_bits(rng.u64(..))).filter(|float| float.is_finite()));
        floats.extend((0..2000).map(|_| rng.f64()));
        let small = (0..500).map(|_| f32::from_bits(rng.u32(..))).filter(|float| float.is_finite()).collect();
        Self { floats, small, edges }
    }
}

impl PartialEq for Numbers {
    fn eq(&self, other: &Self) -> bool {
        let bits = |numbers: &Self| {
            let floats: Vec<_> = numbers.floats.iter().map(|float| float.to_bits()).collect();
            let small: Vec<_> = numbers.small.iter().map(|float| float.to_bits()).collect();
            (floats, small, numbers.edges)
        };
        bits(self) == bits(other)
    }
}

/// A map with one key twice.
struct Twice;

impl Serialize for Twice {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("max", &0)?;
        map.serialize_entry("max", &5)?;
        map.end()
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pool {
    ratio: f64,
    limit: Option<f32>,
}

#[track_caller]
fn refused<T: std::fmt::Debug>(what: &str, path: &str, outcome: Result<T>) {
    match outcome {
        Err(Error::InvalidArgument { reason, .. }) => {
            let place = format!("at `{path}`");
            assert!(reason.contains("`pool`") && reason.contains(&place), "{what}: {reason}");
        }
        other => panic!("{what}: expected a refusal with key and path, got {other:?}"),
    }
}

tests! { "config";
    /// Contract 12: a number comes back with the same bits, whichever way it went.
    async fn numbers_come_back_bit_by_bit(world: &dyn World) {
        let (writer, config) = (world.client().await.config(), world.client().await.config());
        let numbers = Numbers::random();
        let first = writer.set("numbers", &numbers).await.expect("is written");
        let found = config.get::<Numbers>("numbers").await.expect("is read").expect("exists");
        assert!(found.value == numbers, "get");
        let text = config.get_entry("numbers").await.expect("is read").expect("exists").as_bytes().clone();

        let same = |old: Option<Numbers>| old.expect("exists");
        let updated = writer.update("numbers", same).await.expect("is written");
        assert!(updated.value == numbers && updated.version > first, "update");
        let entry = config.get_entry("numbers").await.expect("is read").expect("exists");
        assert!(*entry.as_bytes() == text, "an update that changes nothing writes the same text");

        let live = config.live::<Numbers>("numbers").start().await.expect("exists");
        let over = config.live::<Numbers>("own").over("numbers").default_fields(Numbers::random());
        let over = over.start().await.expect("exists");
        let default = config.live("nowhere").default_fields(numbers.clone()).start().await.expect("has a default");
        assert!(*live.current() == numbers && *over.current() == numbers && *default.current() == numbers, "live");

        let recorded = writer.record("history").set(&numbers).await.expect("is written");
        writer.record("history").set(&0).await.expect("is written");
        writer.record("history").rollback(recorded).await.expect("is kept");
        let found = config.get::<Numbers>("history").await.expect("is read").expect("exists");
        assert!(found.value == numbers, "rollback");

        writer.gray("history").release(&numbers, Audience::percent(100)).await.expect("is released");
        let gray = config.live::<Numbers>("history").instance(Instance::new("im-1"));
        assert!(*gray.start().await.expect("exists").current() == numbers, "gray");
        writer.gray("history").promote().await.expect("is promoted");
        let entry = config.get_entry("history").await.expect("is read").expect("exists");
        assert!(*entry.as_bytes() == text, "promoted");
    }

    /// Contract 12: NaN and infinities are refused with key and path by every write, and nothing is written.
    async fn numbers_that_json_lacks_are_refused(world: &dyn World) {
        let client = world.client().await;
        let config = client.config();
        let good = Pool { ratio: 0.5, limit: None };
        let version = config.set("pool", &good).await.expect("is written");
        let guard = client.lock().acquire("pool", Duration::from_secs(10)).await.expect("is free");
        for (bad, path) in [
            (Pool { ratio: f64::NAN, limit: None }, "ratio"),
            (Pool { ratio: 0.5, limit: Some(f32::NEG_INFINITY) }, "limit"),
        ] {
            refused("set", path, config.set("pool", &bad).await);
            refused("compare_and_set", path, config.compare_and_set("pool", version, &bad).await);
            refused("update", path, config.update("pool", |_: Option<Pool>| bad.clone()).await);
            refused("set_if_held", path, config.set_if_held(&guard, "pool", &bad).await);
            refused("batch", path, Batch::new().set("pool", &bad));
            refused("record", path, config.record("pool").set(&bad).await);
            let gray = config.gray("pool").release(&bad, Audience::percent(1)).await;
            refused("gray", path, gray);
            refused("default", path, config.live("pool").default_fields(bad).start().await);
        }
        refused("map", "a[1]", config.set("pool", &BTreeMap::from([("a", [0.0, f64::INFINITY])])).await);
        let found = config.get::<Pool>("pool").await.expect("is read").expect("exists");
        assert_eq!((found.value, found.version), (good, version));
        assert!(config.history("pool").await.expect("is read").is_empty());
        guard.unlock().await.expect("is held");
    }

    /// Contract 12: text that some readers refuse, or read as something else, is refused by every write.
    async fn text_that_not_everyone_reads_is_refused(world: &dyn World) {
        let config = world.client().await.config();
        let version = config.set("pool", &1).await.expect("is written");
        let raw = |text: &str| RawValue::from_string(text.into()).expect("is JSON");
        let (twice, escape) = (raw(r#"{"in":[{"max":0,"max":5}]}"#), raw(r#"["\ud800"]"#));
        for (value, path) in [(&twice, "in[0].max"), (&escape, "[0]")] {
            refused("set_json", path, Batch::new().set_json("pool", value.get().to_owned()));
            refused("set", path, config.set("pool", value).await);
            refused("record", path, config.record("pool").set(value).await);
            refused("gray", path, config.gray("pool").release(value, Audience::percent(1)).await);
        }
        refused("a map", "max", config.set("pool", &Twice).await);
        refused("a map", "max", config.record("pool").expecting(version).set(&Twice).await);
        // What another program wrote is no value to go back to.
        world.put_raw(crate::Raw::Config { key: "pool" }, br#"{"max":0,"max":5}"#).await;
        config.record("pool").set(&2).await.expect("is written");
        let found = config.history("pool").await.expect("is read")[1].version;
        let back = config.record("pool").rollback(found).await;
        assert!(matches!(back, Err(Error::Missing { .. } | Error::InvalidArgument { .. })), "{back:?}");
        assert_eq!(config.get::<u32>("pool").await.expect("is read").expect("exists").value, 2);
        within(LIMIT, config.delete("pool")).await.expect("is answered");
    }

    /// Contract 12: a byte order mark is named as what it is, to who writes and to who reads.
    async fn a_byte_order_mark_is_told(world: &dyn World) {
        let config = world.client().await.config();
        let refused = Batch::new().set_json("pool", "\u{feff}1").expect_err("is refused").to_string();
        assert!(refused.contains("byte order mark") && refused.contains("`pool`"), "{refused}");
        world.put_raw(crate::Raw::Config { key: "pool" }, "\u{feff}1".as_bytes()).await;
        let read = config.get::<u32>("pool").await;
        let source = std::error::Error::source(read.as_ref().expect_err("is refused")).map(ToString::to_string);
        assert!(source.as_ref().is_some_and(|words| words.contains("byte order mark")), "{source:?}");
        assert_eq!(expect_decode(read).0, "pool");
        assert!(config.get_entry("pool").await.expect("is read").expect("exists").version() > Version::ABSENT);
    }
}
