//! Values that some instances get first.

use coord_api::{ConfigExt, Error};
use coord_config::{Audience, GrayExt, HistoryExt, Instance, Live, LiveExt};

use crate::{
    expect::expect_invalid,
    suite::tests,
    tools::{LIMIT, eventually, within},
};

#[track_caller]
fn becomes(live: &Live<u32>, value: u32) -> impl Future<Output = ()> {
    eventually(LIMIT, move || async move { *live.current() == value })
}

tests! { "config";
    /// Contract 9: the order is default, base, gray; who is not in the audience notices nothing.
    async fn gray_comes_before_base_before_default(world: &dyn World) {
        let (writer, config) = (world.client().await.config(), world.client().await.config());
        let live = |region| {
            let instance = Instance::new("im-1").with("region", region);
            config.live("limits").default(1).instance(instance).start()
        };
        let (eu, us) = (live("eu").await.expect("has a default"), live("us").await.expect("has a default"));
        let plain = config.live("limits").default(1).start().await.expect("has a default");
        assert_eq!((*eu.current(), *us.current(), *plain.current()), (1, 1, 1));
        let gray = writer.gray("limits");
        gray.release(&3, Audience::labelled("region", "eu")).await.expect("is released");
        becomes(&eu, 3).await;
        writer.set("limits", &2).await.expect("is written");
        becomes(&us, 2).await;
        becomes(&plain, 2).await;
        assert_eq!(*eu.current(), 3);
        let found = gray.current().await.expect("is read").expect("is under way");
        assert_eq!((found.value.get(), found.author), ("3", writer.owner().to_string()));

        gray.release(&4, Audience::labelled("region", "us")).await.expect("is replaced");
        becomes(&eu, 2).await;
        becomes(&us, 4).await;
        assert!(gray.discard().await.expect("is answered"));
        assert!(!gray.discard().await.expect("is answered"));
        becomes(&us, 2).await;
        assert_eq!((plain.counters().changes, *plain.current()), (1, 2));
        let late = live("us").await.expect("exists");
        assert_eq!(*late.current(), 2);
        assert_eq!(world.keys().await.len(), 1, "nothing is left beside the value");
    }

    /// Contract 9: promoting gives the value to everyone, in one step: who has it sees no other in between.
    async fn a_promoted_gray_value_is_never_left(world: &dyn World) {
        let (writer, config) = (world.client().await.config(), world.client().await.config());
        writer.set("limits", &0).await.expect("is written");
        let chosen = config.live::<u32>("limits").instance(Instance::new("im-1")).start().await.expect("exists");
        let plain = config.live::<u32>("limits").start().await.expect("exists");
        let mut changes = chosen.changes();
        for value in 1..=20 {
            writer.gray("limits").release(&value, Audience::percent(100)).await.expect("is released");
            becomes(&chosen, value).await;
            writer.gray("limits").promote().await.expect("is promoted");
            becomes(&plain, value).await;
            assert_eq!(writer.get::<u32>("limits").await.expect("is read").expect("exists").value, value);
            let change = within(LIMIT, changes.next()).await.expect("is open");
            assert_eq!((*change.old, *change.new, change.missed), (value - 1, value, 0));
        }
        let history = writer.history("limits").await.expect("is read");
        assert_eq!(history[0].comment.as_deref(), Some("gray release promoted"));
        let none = writer.gray("limits").promote().await;
        assert!(matches!(none, Err(Error::Missing { .. })), "{none:?}");
        for percent in [0, 101] {
            let refused = writer.gray("limits").release(&1, Audience::percent(percent)).await;
            expect_invalid("audience", "percent", refused);
        }
    }
}
