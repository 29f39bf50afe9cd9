//! The same steps on memory and on etcd, with the same results.
//!
//! Two clients take turns, each step ends before the next one begins, but for what is given up in between: a guard that is
//! dropped and tried anew at once, an acquisition that is dropped half-way. A third client vanishes now and then. Compared are answers, kinds of errors, holders, what
//! watches tell, and of versions and tokens which are equal and which are larger.
//! `PROPTEST_CASES=N` tries more sequences.

#[path = "differential/locks.rs"]
mod locks;
#[path = "differential/outcome.rs"]
mod outcome;
#[path = "differential/steps.rs"]
mod steps;

use std::{collections::BTreeSet, time::Duration};

use coord_api::Provider;
use coord_conformance::BoxFuture;
use coord_etcd::EtcdConfig;
use coord_memory::Store;
use coord_tests::{EtcdServer, Proxy};
use etcd_client::{GetOptions, KeyValue};
use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio::runtime::Builder;

use locks::{Stage, outage};
use outcome::Lines;
use steps::{Step, run, steps};

/// How the client that vanishes calls itself.
const STRANGER: &str = "stranger";

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

/// A store of this process.
struct OnMemory([coord_memory::Client; 3]);

impl Stage for OnMemory {
    fn client(&self, number: usize) -> &dyn Provider {
        &self.0[number]
    }

    fn stranger(&self) -> &dyn Provider {
        &self.0[2]
    }

    fn vanish(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.0[2].revoke_leases() })
    }

    fn cut(&self) {
        self.0[1].disconnect();
    }

    fn restore(&self) {
        self.0[1].reconnect();
    }
}

/// A namespace of an etcd.
struct OnEtcd {
    clients: [coord_etcd::Client; 3],
    admin: etcd_client::Client,
    /// The stranger's locks are below it.
    locks: String,
    /// The way of the second client.
    network: Proxy,
}

impl Stage for OnEtcd {
    fn client(&self, number: usize) -> &dyn Provider {
        &self.clients[number]
    }

    fn stranger(&self) -> &dyn Provider {
        &self.clients[2]
    }

    fn vanish(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let all = GetOptions::new().with_prefix();
            let places = self.admin.kv_client().get(&*self.locks, Some(all)).await.expect("etcd answers");
            let of_stranger =
                places.kvs().iter().filter(|kv| kv.value_str().is_ok_and(|v| v.contains(STRANGER)));
            for lease in of_stranger.map(KeyValue::lease).collect::<BTreeSet<_>>() {
                self.admin.lease_client().revoke(lease).await.expect("is revoked");
            }
        })
    }

    fn cut(&self) {
        self.network.cut();
    }

    fn restore(&self) {
        self.network.restore();
    }
}

impl OnEtcd {
    async fn new(server: &EtcdServer) -> Self {
        let namespace = format!("differential-{:016x}", fastrand::u64(..));
        let address = server.endpoint().trim_start_matches("http://");
        let network = Proxy::start(address.to_owned()).await.expect("a port is free");
        let client = async |way: &str, label: &str| {
            let config = EtcdConfig::new([way]).namespace(&*namespace).label(label);
            let config = config.request_timeout(Duration::from_secs(2));
            coord_etcd::Client::connect(config).await.expect("etcd is there")
        };
        let clients = [
            client(address, "one").await,
            client(network.address(), "other").await,
            client(address, STRANGER).await,
        ];
        let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd is there");
        Self { clients, admin, locks: format!("/{namespace}/locks/"), network }
    }
}

async fn on_memory(steps: &[Step]) -> Lines {
    let store = Store::new();
    run(&OnMemory([store.client(), store.client(), store.client()]), steps).await
}

async fn on_etcd(server: &EtcdServer, steps: &[Step]) -> Lines {
    run(&OnEtcd::new(server).await, steps).await
}

/// Who waits outlasts an outage on both, and neither takes it for contention.
#[test]
fn memory_and_etcd_answer_the_same_through_an_outage() {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let server = runtime.block_on(EtcdServer::shared()).unwrap_or_else(|error| panic!("{error:#}"));
    let (memory, etcd) = runtime.block_on(async {
        let store = Store::new();
        let memory = OnMemory([store.client(), store.client(), store.client()]);
        let etcd = OnEtcd::new(&server).await;
        tokio::join!(outage(&memory), outage(&etcd))
    });
    // The container of the server is removed by the runtime that it was started on.
    let _entered = runtime.enter();
    drop(server);
    assert_eq!(memory, etcd);
    println!("{memory:#?}");
}
