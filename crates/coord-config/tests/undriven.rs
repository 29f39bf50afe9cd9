//! A live value on a runtime that nobody drives.

use std::{
    thread,
    time::{Duration, Instant},
};

use coord_api::{ConfigExt, Provider};
use coord_config::LiveExt;
use tokio::runtime::{Builder, Runtime};

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().expect("can be built")
}

#[test]
fn live_value_of_an_undriven_runtime_is_stale() {
    let (driven, undriven, store) = (runtime(), runtime(), coord_memory::Store::new());
    let config = driven.block_on(async { store.client().config() });
    let (live, connectivity) = undriven.block_on(async {
        config.set("limits", &1).await.expect("is written");
        let live = config.live::<u32>("limits").start().await.expect("exists");
        let connectivity = live.connectivity();
        (live, connectivity)
    });
    assert!(live.state().is_good());
    driven.block_on(async { config.set("limits", &2).await.expect("is written") });
    let (begun, mut told) = (Instant::now(), connectivity.clone());
    // A task that waits elsewhere is notified as well.
    let told = driven.block_on(async { tokio::time::timeout(Duration::from_secs(30), told.changed()).await });
    assert!(!told.expect("is told").is_fresh());
    assert!(begun.elapsed() >= Duration::from_secs(2));
    let freshness = live.state().freshness;
    assert!(freshness.stale_for() > Some(Duration::from_secs(2)) && !connectivity.freshness().is_fresh());
    assert_eq!(*live.current(), 1);

    // Another one is started there, and does not share what is behind.
    undriven.block_on(async {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !(live.state().is_good() && *live.current() == 2) {
            assert!(Instant::now() < deadline, "{live:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    drop(undriven);
    thread::sleep(Duration::from_millis(10));
    assert!(!live.state().is_good(), "the runtime has ended");
}
