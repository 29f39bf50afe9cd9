//! The world of a test on etcd: a namespace of its own, seen through an admin's eyes.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use coord_conformance::{Backend, Link, Raw, TestClient, World};
use coord_etcd::EtcdConfig;
use etcd_client::{CompactionOptions, DeleteOptions, GetOptions, SortOrder, SortTarget};
use futures::future::BoxFuture;
use tokio::runtime::{Builder, Runtime};

use crate::{EtcdServer, Proxy};

/// One etcd for all tests of a run.
#[derive(Debug)]
pub struct EtcdBackend {
    server: Option<EtcdServer>,
    /// Drives the server's container and the proxies, which live longer than a test's runtime.
    runtime: Option<Runtime>,
}

impl Default for EtcdBackend {
    /// Starts it.
    ///
    /// # Panics
    /// When there is no etcd, with a line that says how to get one.
    fn default() -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime can be started");
        let server = runtime.block_on(EtcdServer::shared()).unwrap_or_else(|error| panic!("{error:#}"));
        Self { server: Some(server), runtime: Some(runtime) }
    }
}

impl EtcdBackend {
    fn endpoint(&self) -> String {
        self.server.as_ref().expect("is there until drop").endpoint().to_owned()
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("is there until drop")
    }
}

impl Drop for EtcdBackend {
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        {
            // The container is removed by the runtime that it was started on.
            let _entered = runtime.enter();
            self.server = None;
        }
        runtime.shutdown_background();
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    fn block_on(&self, test: BoxFuture<'static, ()>) {
        let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be started");
        runtime.block_on(test);
    }

    async fn world(&self) -> Box<dyn World> {
        let endpoint = self.endpoint();
        let admin = etcd_client::Client::connect([&endpoint], None).await.expect("etcd answers");
        Box::new(EtcdWorld {
            admin,
            target: endpoint.trim_start_matches("http://").to_owned(),
            namespace: format!("test-{:016x}", fastrand::u64(..)),
            runtime: self.runtime().handle().clone(),
            networks: Mutex::default(),
        })
    }
}

struct EtcdWorld {
    admin: etcd_client::Client,
    target: String,
    namespace: String,
    runtime: tokio::runtime::Handle,
    /// Kept until the test is over: a client may outlive its link.
    networks: Mutex<Vec<Arc<Proxy>>>,
}

struct Cable(Arc<Proxy>);

impl Link for Cable {
    fn cut(&self) {
        self.0.cut();
    }
    fn restore(&self) {
        self.0.restore();
    }
}

impl EtcdWorld {
    fn key(&self, at: Raw<'_>) -> String {
        let escaped = |name: &str| name.replace('/', "%2F");
        match at {
            Raw::Service { name, id } => {
                format!("/{}/services/{}/{}", self.namespace, escaped(name), escaped(id))
            }
            Raw::Id { service, id } => format!("/{}/ids/{}/ids/{id}", self.namespace, escaped(service)),
            Raw::Config { key } => format!("/{}/config/{key}", self.namespace),
            Raw::Candidate { election, name } => {
                format!("/{}/elections/{}/{name}", self.namespace, escaped(election))
            }
        }
    }

    /// Key and lease of everything in the world, the youngest first.
    async fn all(&self) -> Vec<(String, i64)> {
        let options = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_sort(SortTarget::Create, SortOrder::Descend);
        let prefix = format!("/{}/", self.namespace);
        let found = self.admin.kv_client().get(prefix, Some(options)).await.expect("etcd answers");
        found.kvs().iter().map(|kv| (kv.key_str().expect("is UTF-8").to_owned(), kv.lease())).collect()
    }
}

#[async_trait]
impl World for EtcdWorld {
    async fn client(&self) -> TestClient {
        let target = self.target.clone();
        let proxy = self.runtime.spawn(async move { Proxy::start(target).await });
        let proxy = proxy.await.expect("does not panic").expect("a port can be opened");
        let proxy = Arc::new(proxy);
        self.networks.lock().expect("nothing panics while this is locked").push(proxy.clone());
        let config = EtcdConfig::new([proxy.address()])
            .namespace(self.namespace.as_str())
            .request_timeout(Duration::from_secs(2))
            .instance_id_ttl(Duration::from_secs(2));
        let client = coord_etcd::Client::connect(config).await.expect("etcd answers");
        TestClient::new(Arc::new(client), Arc::new(Cable(proxy)))
    }

    async fn revoke_leases(&self) {
        let mut revoked = Vec::new();
        for (_, lease) in self.all().await {
            if lease != 0 && !revoked.contains(&lease) {
                revoked.push(lease);
                // One that expired meanwhile is as good.
                let _ = self.admin.lease_client().revoke(lease).await;
            }
        }
    }

    async fn put_raw(&self, at: Raw<'_>, value: &[u8]) {
        self.admin.kv_client().put(self.key(at), value, None).await.expect("etcd answers");
    }

    async fn delete_raw(&self, at: Raw<'_>) {
        self.admin.kv_client().delete(self.key(at), None).await.expect("etcd answers");
    }

    async fn delete_queue(&self, lock: &str) {
        let prefix = format!("/{}/locks/{}/", self.namespace, lock.replace('/', "%2F"));
        let all = DeleteOptions::new().with_prefix();
        self.admin.kv_client().delete(prefix, Some(all)).await.expect("etcd answers");
    }

    async fn keys(&self) -> Vec<String> {
        // What only coord reads is no entry: the marks of settled commits and the gates go with the client's leases,
        // the marks of ids are ended by whoever wants the id.
        let of_leases = ["commits", "gates"].map(|what| format!("/{}/internal/{what}/", self.namespace));
        let ids = format!("/{}/ids/", self.namespace);
        let is_entry = |key: &String| {
            let of_id = key.strip_prefix(&ids).and_then(|rest| rest.split('/').nth(1));
            !of_leases.iter().any(|prefix| key.starts_with(prefix))
                && !matches!(of_id, Some("held" | "identity" | "stamped" | "vanished"))
        };
        let mut keys: Vec<_> = self.all().await.into_iter().map(|(key, _)| key).filter(is_entry).collect();
        keys.sort();
        keys
    }

    async fn compact(&self) {
        let now = self.admin.kv_client().get("now", None).await.expect("etcd answers");
        let revision = now.header().expect("every answer has one").revision();
        let physical = CompactionOptions::new().with_physical();
        // Another test may have compacted later than this already.
        let _ = self.admin.kv_client().compact(revision, Some(physical)).await;
    }
}
