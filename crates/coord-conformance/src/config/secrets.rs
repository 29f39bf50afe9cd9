//! Values are shown to nobody but who reads them.

use std::fmt::{self, Debug, Write as _};

use coord_api::{Batch, ConfigExt, Error, Scope, ServiceInfo, Version};
use coord_config::{Audience, GrayExt, HistoryExt, Instance, LiveExt, SchemaExt};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    Raw,
    listener::SECRET,
    suite::tests,
    tools::{LIMIT, LONG, eventually, spawn, within},
};

/// A value whose own `Debug` tells nothing, as a user's would.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Hidden(String);

impl Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hidden")
    }
}

fn hidden() -> Hidden {
    Hidden(SECRET.into())
}

/// All that was shown, in every form that there is.
#[derive(Default)]
struct Shown(String);

impl Shown {
    fn debug(&mut self, what: &impl Debug) {
        // Writing into a string never fails.
        let _ = writeln!(self.0, "{what:?} {what:#?}");
    }

    /// The debug form of a success; an error with all of its causes as well.
    fn outcome<T: Debug>(&mut self, outcome: &Result<T, Error>) {
        self.debug(outcome);
        let mut cause: Option<&dyn std::error::Error> = outcome.as_ref().err().map(|error| error as _);
        while let Some(error) = cause {
            let _ = writeln!(self.0, "{error} {error:?}");
            cause = error.source();
        }
    }

    fn is_clean(&self) {
        let line = self.0.lines().find(|line| line.contains(SECRET));
        assert_eq!(line, None, "a value is shown");
    }
}

tests! { "config";
    /// Contract 13: no value is in the `Debug` or `Display` of anything, in no error and no cause of one. The whole run
    /// listens that none is traced.
    async fn values_are_shown_nowhere(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        let config = client.config();
        let mut shown = Shown::default();
        let mut watch = config.watch::<Hidden>("k").await.expect("is watched");
        let mut entries = config.watch_entries(Scope::Prefix("")).await.expect("is watched");

        let batch = Batch::new().set("k", &hidden()).and_then(|batch| batch.set("l", &hidden()));
        shown.outcome(&batch);
        shown.outcome(&config.commit(batch.expect("is good")).await);
        shown.outcome(&config.set("k", &hidden()).await);
        shown.outcome(&config.get::<Hidden>("k").await);
        shown.outcome(&config.get_entry("k").await);
        shown.outcome(&config.list("").await);
        shown.outcome(&config.update("k", |_: Option<Hidden>| hidden()).await);
        shown.outcome(&config.delete("l").await);
        for _ in 0..2 {
            shown.outcome(&within(LIMIT, watch.next()).await.expect("goes on"));
            shown.outcome(&within(LIMIT, entries.next()).await.expect("goes on"));
        }
        shown.debug(&(&watch, &entries));

        // What fails.
        let conflict = config.compare_and_set("k", Version::ABSENT, &hidden()).await;
        assert!(matches!(conflict, Err(Error::Conflict { .. })), "{conflict:?}");
        shown.outcome(&conflict);
        let decode = config.get::<u32>("k").await;
        assert!(matches!(decode, Err(Error::Decode { .. })), "{decode:?}");
        shown.outcome(&decode);
        let too_large = config.set("k", &SECRET.repeat(100_000)).await;
        assert!(matches!(too_large, Err(Error::TooLarge { .. })), "{too_large:?}");
        shown.outcome(&too_large);
        world.put_raw(Raw::Config { key: "broken" }, format!("{{\"{SECRET}").as_bytes()).await;
        shown.outcome(&config.get::<Hidden>("broken").await);
        shown.outcome(&config.watch::<Hidden>("broken").await.expect("is watched").next().await.expect("has an item"));
        world.put_raw(Raw::Service { name: "svc", id: "1" }, format!("{{\"{SECRET}").as_bytes()).await;
        shown.outcome(&client.registry().discover("svc").await);
        shown.outcome(&client.registry().watch("svc").await.expect("is watched").next().await.expect("has an item"));
        let info = ServiceInfo::new("svc", "2", "10.0.0.1", 80);
        shown.outcome(&client.registry().register(info, LONG).await);
        let guard = client.lock().acquire("job", LONG).await.expect("is free");
        shown.outcome(&config.set_if_held(&guard, "k", &hidden()).await);
        shown.debug(&guard);
        world.revoke_leases().await;
        shown.outcome(&config.set_if_held(&guard, "k", &hidden()).await);

        // Live values, history, gray releases and schemas.
        let live = config.live::<Hidden>("k").instance(Instance::new("1")).validate(|_| Err("no")).default(hidden());
        shown.debug(&live);
        let live = live.start().await;
        shown.outcome(&live);
        let live = live.expect("has a default");
        world.put_raw(Raw::Config { key: "k" }, format!("[\"{SECRET}\"]").as_bytes()).await;
        eventually(LIMIT, || async { live.counters().rejections > 1 }).await;
        shown.debug(&(live.state(), live.origin(), live.counters()));
        shown.outcome(&config.record("k").author("ann").set(&hidden()).await);
        shown.outcome(&config.history("k").await);
        shown.outcome(&config.gray("k").release(&hidden(), Audience::percent(5)).await);
        shown.outcome(&config.gray("k").current().await);
        shown.outcome(&config.gray("k").promote().await);
        config.schemas().set_json(Scope::Key("k"), json!({"type": "integer"})).await.expect("is set");
        let checked = config.checked();
        let misfit = checked.set("k", &hidden()).await;
        assert!(matches!(misfit, Err(Error::InvalidArgument { .. })), "{misfit:?}");
        shown.outcome(&misfit);
        shown.debug(&(&checked, &config, client.provider.as_ref()));

        // Without an answer, and after the end.
        client.link.cut();
        let writing = spawn({
            let config = config.clone();
            async move { config.set("k", &hidden()).await }
        });
        shown.outcome(&writing.join_within(LIMIT * 2).await);
        client.link.restore();
        client.close().await;
        shown.outcome(&config.set("k", &hidden()).await);
        shown.outcome(&other.config().get::<Hidden>("k").await);
        shown.is_clean();
    }
}
