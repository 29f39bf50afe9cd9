//! Equal requests to the store of the process and to etcd, with equal answers.
//!
//! coord asks a store for what the trait `Store` says and for nothing else. Here the two are compared below coord: random
//! transactions, reads, leases and watches, one after the other, and all that is answered. Revisions are compared as distances
//! from the start, errors by their kind and by whether the request may have had an effect. A difference is made as short as
//! possible. `PROPTEST_CASES=N` tries more sequences.

#[path = "stores/expiry.rs"]
mod expiry;
#[path = "stores/run.rs"]
mod run;
#[path = "stores/side.rs"]
mod side;
#[path = "stores/steps.rs"]
mod steps;

use std::{sync::Arc, time::Duration};

use coord_etcd::{EtcdConfig, bare};
use coord_kv::store;
use coord_memory::Store;
use coord_tests::EtcdServer;
use etcd_client::CompactionOptions;
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::{Builder, Runtime};

use run::{Until, run};
use side::{Compact, Side};
use steps::steps;

/// An etcd that nobody else writes to, since revisions are counted.
struct Etcd {
    store: Arc<dyn store::Store>,
    admin: etcd_client::Client,
    _server: EtcdServer,
}

impl Etcd {
    async fn start() -> Self {
        let server = EtcdServer::start().await.unwrap_or_else(|error| panic!("{error:#}"));
        let config = EtcdConfig::new([server.endpoint()]);
        let store = bare::store(config).await.expect("etcd is there");
        let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd is there");
        Self { store, admin, _server: server }
    }

    async fn side(&self) -> Side {
        let admin = self.admin.clone();
        let compact: Compact = Box::new(move |revision| {
            let admin = admin.clone();
            Box::pin(async move {
                let physical = CompactionOptions::new().with_physical();
                // Fails if it is compacted already.
                let _ = admin.kv_client().compact(revision, Some(physical)).await;
            })
        });
        Side::new(self.store.clone(), compact).await
    }
}

/// A store of this process, on a clock that goes as fast as nobody waits for anything else.
async fn memory() -> Side {
    let store = Store::new();
    let bare = store.bare();
    let compact: Compact = Box::new(move |_revision| {
        store.forget_changes();
        Box::pin(std::future::ready(()))
    });
    Side::new(bare, compact).await
}

fn paused() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().expect("a runtime")
}

#[test]
fn memory_and_etcd_answer_requests_the_same() {
    let runtime = runtime();
    let etcd = runtime.block_on(Etcd::start());
    let outcome = TestRunner::new(cases(200)).run(&steps(), |steps| {
        let quiet = Until::Quiet(Duration::from_secs(1));
        let memory = paused().block_on(async { run(memory().await, &steps, quiet).await });
        let etcd = runtime.block_on(async { run(etcd.side().await, &steps, Until::AsMuchAs(&memory)).await });
        prop_assert_eq!(memory, etcd);
        Ok(())
    });
    // The container of the server is removed by the runtime that it was started on.
    let _entered = runtime.enter();
    drop(etcd);
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

fn cases(most: u32) -> Config {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(most);
    Config { cases, failure_persistence: None, max_shrink_iters: 400, ..Config::default() }
}

#[test]
fn etcd_answers_as_itself() {
    let runtime = runtime();
    let etcd = runtime.block_on(Etcd::start());
    let outcome = TestRunner::new(cases(4)).run(&steps(), |steps| {
        let (one, other) = runtime.block_on(async {
            let one = run(etcd.side().await, &steps, Until::Quiet(Duration::from_millis(250))).await;
            let other = run(etcd.side().await, &steps, Until::AsMuchAs(&one)).await;
            (one, other)
        });
        prop_assert_eq!(one, other);
        Ok(())
    });
    // The container of the server is removed by the runtime that it was started on.
    let _entered = runtime.enter();
    drop(etcd);
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
}

#[test]
fn keys_of_a_lease_go_together_when_it_is_over() {
    let runtime = runtime();
    let etcd = runtime.block_on(Etcd::start());
    let on_etcd = runtime.block_on(async { expiry::run(&etcd.side().await).await });
    let on_memory = paused().block_on(async { expiry::run(&memory().await).await });
    let _entered = runtime.enter();
    drop(etcd);
    assert_eq!(on_etcd, expiry::expected());
    assert_eq!(on_memory, expiry::expected());
}
