//! The memory backend's worlds: a store each, on a clock that waits for nothing.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_conformance::{Backend, BoxFuture, Link, Raw, TestClient, World};
use coord_memory::{Client, Options, Store};

/// The in-process backend under test.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryBackend;

#[async_trait]
impl Backend for MemoryBackend {
    fn block_on(&self, test: BoxFuture<'static, ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        runtime.expect("a runtime on this thread needs nothing from the system").block_on(test);
    }

    async fn world(&self) -> Box<dyn World> {
        Box::new(MemoryWorld(Store::new()))
    }
}

struct MemoryWorld(Store);

#[async_trait]
impl World for MemoryWorld {
    async fn client(&self) -> TestClient {
        let options = Options::default().instance_id_ttl(Duration::from_secs(2));
        let client = self.0.client_with(options).expect("the options are good");
        TestClient::new(Arc::new(client.clone()), Arc::new(MemoryLink(client)))
    }

    async fn revoke_leases(&self) {
        self.0.revoke_leases();
    }

    async fn put_raw(&self, at: Raw<'_>, value: &[u8]) {
        self.0.put_raw(&store_key(at), value.to_vec());
    }

    async fn delete_raw(&self, at: Raw<'_>) {
        self.0.delete_raw(&store_key(at));
    }

    async fn delete_queue(&self, lock: &str) {
        self.0.delete_queue(lock);
    }

    async fn keys(&self) -> Vec<String> {
        self.0.keys()
    }

    async fn compact(&self) {
        self.0.compact();
    }
}

/// The key as it is documented, built without the backend's own code.
fn store_key(at: Raw<'_>) -> String {
    match at {
        Raw::Service { name, id } => {
            format!("services/{}/{}", name.replace('/', "%2F"), id.replace('/', "%2F"))
        }
        Raw::Id { service, id } => format!("ids/{}/{id}", service.replace('/', "%2F")),
        Raw::Config { key } => format!("config/{key}"),
        Raw::Candidate { election, name } => format!("elections/{}/{name}", election.replace('/', "%2F")),
    }
}

struct MemoryLink(Client);

impl Link for MemoryLink {
    fn cut(&self) {
        self.0.disconnect();
    }

    fn restore(&self) {
        self.0.reconnect();
    }
}
