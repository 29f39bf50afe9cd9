//! The same steps on memory and on etcd, with the same results.
//!
//! Two clients take turns, each step ends before the next one begins. Compared are answers, kinds of errors, holders, what
//! watches tell, and of versions and tokens which are equal and which are larger.
//! `PROPTEST_CASES=N` tries more sequences.

#[path = "differential/outcome.rs"]
mod outcome;
#[path = "differential/steps.rs"]
mod steps;

use coord_etcd::EtcdConfig;
use coord_memory::Store;
use coord_tests::EtcdServer;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Builder;

use outcome::Lines;
use steps::{Step, run, steps};

#[test]
fn memory_and_etcd_answer_the_same() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let server = runtime.block_on(EtcdServer::shared()).unwrap_or_else(|error| panic!("{error:#}"));
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(48);
    // A failing sequence is made as short as possible, which runs it many times over.
    let config = Config { cases, failure_persistence: None, max_shrink_iters: 200, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        let (memory, etcd) =
            runtime.block_on(async { (on_memory(&steps).await, on_etcd(&server, &steps).await) });
        prop_assert_eq!(memory, etcd);
        Ok(())
    });
    // The container of the server is removed by the runtime that it was started on.
    let _entered = runtime.enter();
    drop(server);
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

async fn on_memory(steps: &[Step]) -> Lines {
    let store = Store::new();
    run(&[&store.client(), &store.client()], steps).await
}

async fn on_etcd(server: &EtcdServer, steps: &[Step]) -> Lines {
    let namespace = format!("differential-{:016x}", fastrand::u64(..));
    let config = EtcdConfig::new([server.endpoint().trim_start_matches("http://")]).namespace(namespace);
    let one = coord_etcd::Client::connect(config.clone()).await.expect("etcd is there");
    let other = coord_etcd::Client::connect(config).await.expect("etcd is there");
    run(&[&one, &other], steps).await
}
