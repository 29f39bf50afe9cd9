//! Live values of types whose own code fails.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use coord_api::{ConfigExt, Error};
use coord_config::LiveExt;
use futures::FutureExt;
use serde::{Deserialize, Deserializer};

use crate::{
    suite::tests,
    tools::{LIMIT, eventually, within},
};

/// Panics while it is read at 13, and when it is dropped at 7.
#[derive(Debug)]
struct Fragile(u32);

impl<'de> Deserialize<'de> for Fragile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(deserializer)?;
        assert!(number != 13, "expected: this type panics while it is read");
        Ok(Self(number))
    }
}

impl Drop for Fragile {
    fn drop(&mut self) {
        assert!(self.0 != 7 || std::thread::panicking(), "expected: this type panics when it is dropped");
    }
}

tests! { "config";
    /// Contract 9: a type that panics while it is read is a rejection; the next value is taken.
    async fn a_type_that_panics_is_a_rejection(world: &dyn World) {
        let config = world.client().await.config();
        config.set("fragile", &1).await.expect("is written");
        for layered in [false, true] {
            let builder = config.live::<Fragile>("fragile");
            let builder = if layered { builder.over("below") } else { builder };
            let mut live = builder.start().await.expect("exists");
            let before = live.current().0;
            config.set("fragile", &13).await.expect("is written");
            eventually(LIMIT, || async { live.counters().rejections == 1 }).await;
            let rejection = live.state().rejection.expect("is told");
            assert!(rejection.reason.contains("panicked"), "{rejection}");
            assert_eq!(live.current().0, before);
            assert!(live.changed().now_or_never().is_none(), "the provider is open");
            let refused = config.live::<Fragile>("fragile").validate(|_| ()).start().await;
            assert!(matches!(refused, Err(Error::Decode { .. })), "{refused:?}");
            config.set("fragile", &(before + 1)).await.expect("is written");
            assert_eq!(within(LIMIT, live.changed()).await.expect("is open").0, before + 1);
            assert!(live.state().is_good());
        }
    }

    /// Contract 9: a type that panics when it is dropped is counted, and the value is followed as before.
    async fn a_drop_that_panics_ends_nothing(world: &dyn World) {
        let config = world.client().await.config();
        let refuses = Arc::new(AtomicBool::new(false));
        config.set("fragile", &7).await.expect("is written");
        let check = {
            let refuses = refuses.clone();
            move |_: &Fragile| if refuses.load(Ordering::Relaxed) { Err("is refused") } else { Ok(()) }
        };
        let mut live = config.live::<Fragile>("fragile").validate(check).start().await.expect("exists");
        // More than are kept for those who want every change.
        for number in 100..150 {
            config.set("fragile", &number).await.expect("is written");
            assert_eq!(within(LIMIT, live.changed()).await.expect("is open").0, number);
        }
        assert!(live.state().is_good());
        assert_eq!(live.counters().rejections, 1);
        refuses.store(true, Ordering::Relaxed);
        config.set("fragile", &7).await.expect("is written");
        eventually(LIMIT, || async { live.counters().rejections == 2 }).await;
        refuses.store(false, Ordering::Relaxed);
        config.set("fragile", &8).await.expect("is written");
        assert_eq!(within(LIMIT, live.changed()).await.expect("is open").0, 8);
    }
}
