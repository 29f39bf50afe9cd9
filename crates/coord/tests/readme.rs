//! The programs in the README are these.

use std::time::Duration;

use coord::{LossReason, memory::Store, prelude::*};

#[tokio::test(start_paused = true)]
async fn a_report_that_lost_its_lock_stops() -> coord::Result<()> {
    let store = Store::new();
    let (one, other) = (store.client(), store.client());
    let guard = one.lock().acquire("nightly-report", Duration::from_secs(30)).await?;

    one.disconnect();
    let report = guard.run(std::future::pending::<()>());
    assert!(matches!(report.await, Err(coord::Error::Lost { reason: LossReason::Expired })));

    let next = other.lock().acquire("nightly-report", Duration::from_secs(30)).await?;
    assert!(next.token() > guard.token());
    Ok(())
}

#[test]
fn the_readme_shows_what_is_compiled_here() {
    let readme = include_str!("../../../README.md");
    for shown in [include_str!("../examples/first.rs"), include_str!("readme.rs")] {
        let (_what_it_is, program) = shown.split_once("\n\n").expect("begins with a comment");
        let program = program.split("\n#[test]").next().expect("split is never empty");
        let start = program.trim();
        assert!(readme.contains(start), "README.md does not show:\n{start}");
    }
}

#[cfg(feature = "etcd")]
#[test]
fn the_readme_shows_a_configuration_that_can_be_read() {
    let readme = include_str!("../../../README.md");
    let (_, rest) = readme.split_once("```json\n").expect("shows one in JSON");
    let (json, _) = rest.split_once("```").expect("blocks end");
    let config = serde_json::from_str(json).expect("is a good configuration");
    let coord::Config::Etcd(config) = config else { panic!("{config:?}") };
    assert_eq!((config.endpoints.len(), config.namespace.as_str()), (3, "shop"));
}
