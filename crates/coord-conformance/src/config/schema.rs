//! Values that have to fit a schema.

use coord_api::{Batch, ConfigExt, ConfigKey, Error, MAX_BATCH_KEYS, Scope, Version};
use coord_config::{Audience, GrayExt, HistoryExt, SchemaExt, SchemaScope};
use serde_json::json;

use crate::{
    expect::{expect_decode, expect_invalid},
    suite::tests,
    tools::{LONG_LIMIT, within},
};

tests! { "config";
    /// Contract 12: a value that does not fit is refused for every writer who checks, whichever way it writes, and
    /// nothing of its batch is written; the value is not in the error.
    async fn a_value_that_does_not_fit_is_refused(world: &dyn World) {
        let plain = world.client().await.config();
        let tool = world.client().await.config().checked();
        tool.set("limits", &json!({"max": "before"})).await.expect("there is no schema yet");
        let schema = json!({"type": "object", "properties": {"max": {"type": "integer", "minimum": 1}}});
        plain.schemas().set_json(Scope::Key("limits"), schema.clone()).await.expect("is set");
        plain.schemas().set_json(Scope::Prefix("common"), json!({"type": "object"})).await.expect("is set");

        let bad = json!({"max": "s3cret"});
        let error = tool.set("limits", &bad).await.expect_err("does not fit");
        let shown = format!("{error} {error:?}");
        assert!(shown.contains("`limits`") && shown.contains("`/max`") && !shown.contains("s3cret"), "{shown}");
        let before = tool.get_entry("limits").await.expect("is read").expect("exists").version();
        expect_invalid("value", "compare_and_set", tool.compare_and_set("limits", before, &bad).await);
        expect_invalid("value", "record", tool.record("limits").set(&bad).await);
        expect_invalid("value", "gray", tool.gray("limits").release(&bad, Audience::percent(5)).await);
        expect_invalid("value", "below a prefix", tool.set("common/x", &1).await);
        let batch = Batch::new().set("other", &1).and_then(|batch| batch.set("limits", &bad));
        expect_invalid("value", "a batch", tool.commit(batch.expect("is valid")).await);
        assert!(tool.get_entry("other").await.expect("is read").is_none());
        let now = tool.get_entry("limits").await.expect("is read").expect("exists").version();
        assert_eq!(now, before);

        tool.set("limits", &json!({"max": 1})).await.expect("fits");
        tool.set("common", &1).await.expect("is not below the prefix");
        tool.record("limits").set(&json!({"max": 2})).await.expect("fits");
        expect_invalid("value", "a bound", tool.set("limits", &json!({"max": 0})).await);

        let closed = json!({"type": "object", "additionalProperties": false});
        plain.schemas().set_json(Scope::Key("closed"), closed).await.expect("is set");
        let strange = format!("{}\u{1b}[2J", "x".repeat(500));
        let error = tool.set("closed", &json!({strange: 1})).await.expect_err("does not fit").to_string();
        assert!(!error.contains(char::is_control) && error.len() < 400, "{error:?}");
        plain.schemas().remove(Scope::Key("limits")).await.expect("is removed");
        tool.set("limits", &bad).await.expect("fits, since nothing is asked any more");
        let no_schema = plain.schemas().set_json(Scope::Key("limits"), json!({"type": "nonsense"})).await;
        assert!(matches!(no_schema, Err(Error::InvalidArgument { field: "schema", .. })), "{no_schema:?}");
    }

    /// Contract 12: while the store is away a write says so; it is checked as soon as the store is back.
    async fn a_write_is_never_unchecked(world: &dyn World) {
        let (admin, service) = (world.client().await.config(), world.client().await);
        let config = service.config().checked();
        admin.schemas().set::<u32>(Scope::Key("limits")).await.expect("is set");
        service.link.cut();
        let away = within(LONG_LIMIT, config.set("limits", &-1)).await.expect_err("the store is away");
        assert!(away.is_retryable(), "{away:?}");
        service.link.restore();
        expect_invalid("value", "after a cut", config.set("limits", &-1).await);
        config.set("limits", &1).await.expect("fits");
    }

    /// Contract 8: the largest batch, and the most conditions, are the same for who is held to schemas.
    async fn a_full_batch_is_written_with_schemas(world: &dyn World) {
        let client = world.client().await;
        let config = client.config().checked();
        client.config().schemas().set::<u32>(Scope::Prefix("full")).await.expect("is set");
        let guard = client.lock().acquire("full", LONG_LIMIT).await.expect("is free");
        let full = |name: &str, conditions: usize| {
            let batch = (0..MAX_BATCH_KEYS).try_fold(Batch::new(), |batch, number| {
                let key = format!("full/{name}-{number:02}");
                let batch = batch.set(&key, &number)?;
                if number < conditions { batch.require(&key, Version::ABSENT) } else { Ok(batch) }
            });
            batch.expect("is within the limits")
        };
        config.commit(full("plain", MAX_BATCH_KEYS)).await.expect("is written");
        let held = full("held", MAX_BATCH_KEYS - 1).while_held(&guard).expect("is within the limits");
        config.commit(held).await.expect("is written");
        expect_invalid("batch", "61 conditions", full("held", MAX_BATCH_KEYS).while_held(&guard));
        let one_more = full("more", 0).set("full/one-more", &1);
        expect_invalid("batch", "61 keys", one_more);
        assert_eq!(config.list("full").await.expect("is read").len(), 2 * MAX_BATCH_KEYS);
        let bad = full("bad", MAX_BATCH_KEYS - 1).delete("full/x");
        expect_invalid("batch", "61 keys", bad);
        let changed = config.commit(full("plain", MAX_BATCH_KEYS)).await;
        assert!(matches!(changed, Err(Error::Conflict { .. })), "{changed:?}");

        // What is kept beside a value takes no room either.
        config.record("full/plain-00").set(&7).await.expect("is written");
        config.gray("full/plain-00").release(&8, Audience::percent(100)).await.expect("is released");
        config.gray("full/plain-00").promote().await.expect("is promoted");
        guard.unlock().await.expect("is held");
    }

    /// Contract 12: schemas are read as they were set, and by what they are for.
    async fn schemas_are_read_as_they_were_set(world: &dyn World) {
        let (one, other) = (world.client().await.config(), world.client().await.config());
        assert!(other.schemas().list().await.expect("is read").is_empty());
        let schema = |most: u32| json!({"maximum": most});
        let all = [
            (SchemaScope::Key("common".into()), schema(1)),
            (SchemaScope::Key("common/mq".into()), schema(2)),
            (SchemaScope::Prefix(String::new()), schema(3)),
            (SchemaScope::Prefix("common".into()), schema(4)),
        ];
        for (scope, schema) in &all {
            one.schemas().set_json(scope.as_scope(), schema.clone()).await.expect("is set");
        }
        assert_eq!(other.schemas().list().await.expect("is read"), all);
        for (scope, schema) in &all {
            assert_eq!(other.schemas().get(scope.as_scope()).await.expect("is read").as_ref(), Some(schema));
        }
        assert_eq!(other.schemas().get(Scope::Key("common/other")).await.expect("is read"), None);
        expect_invalid("config key", "/", other.schemas().get(Scope::Key("/")).await);
        other.schemas().remove(Scope::Key("common")).await.expect("is removed");
        assert_eq!(one.schemas().list().await.expect("is read"), all[1..]);
    }

    /// Contract 12: schemas that another program has overwritten stop writes until one is set or removed.
    async fn overwritten_schemas_can_be_set_anew(world: &dyn World) {
        let (plain, tool) = (world.client().await.config(), world.client().await.config().checked());
        let place = ConfigKey::parse("all").expect("is good").beside("schemas", "");
        let spoiled = Batch::new().set_at(place, &json!([1])).expect("is valid");
        plain.commit(spoiled).await.expect("is written");
        expect_decode(tool.set("limits", &1).await);
        expect_decode(plain.schemas().list().await);
        let deep = (0..130).fold(json!(true), |inner, _| json!({"not": inner}));
        let refused = plain.schemas().set_json(Scope::Key("deep"), deep).await;
        assert!(matches!(refused, Err(Error::InvalidArgument { .. })), "{refused:?}");
        plain.schemas().remove(Scope::Key("limits")).await.expect("is removed");
        tool.set("limits", &1).await.expect("there is no schema");
    }
}
