//! Values that have to fit a schema.

use coord_api::{Batch, ConfigExt, Error, Scope};
use coord_config::{Audience, GrayExt, HistoryExt, SchemaExt};
use serde_json::json;

use crate::{
    expect::expect_invalid,
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
}
