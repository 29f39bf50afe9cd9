//! What a backend gives the tests: a world of its own for each, with clients that can be cut off.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, Elections, ElectionsExt, Elector, ElectorOptions, IdOptions,
    InstanceIdAllocator, Provider, ServiceRegistry,
};
use futures::future::BoxFuture;

/// A backend under test.
#[async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Runs one test on a fresh runtime of the kind the backend needs. The tests wait with `tokio::time`
    /// only, so a backend that lives in the process uses a paused clock and waits for nothing.
    fn block_on(&self, test: BoxFuture<'static, ()>);

    /// An empty world, isolated from that of every other test. Many are in use at the same time.
    async fn world(&self) -> Box<dyn World>;
}

/// The part of a store that one test has for itself, seen from outside.
#[async_trait]
pub trait World: Send + Sync {
    /// Another process: a provider of its own that shares nothing with the others but the store.
    ///
    /// Ids live on leases of 2 s and rest for at most a few seconds after a loss; a request that gets no
    /// answer fails after a few seconds.
    async fn client(&self) -> TestClient;

    /// Revokes, as an operator would, every lease that a key of this world lives on: those of the youngest
    /// keys first, so that a waiter loses its place before the one it waits for.
    async fn revoke_leases(&self);

    /// Writes as another program would, without a lease.
    async fn put_raw(&self, at: Raw<'_>, value: &[u8]);

    /// Deletes as another program would.
    async fn delete_raw(&self, at: Raw<'_>);

    /// Deletes every place in the queue of a lock at one moment, as an operator would: the leases live on.
    async fn delete_queue(&self, lock: &str);

    /// Every key that is stored in this world, sorted: of all areas, with the places in the queues of locks and elections,
    /// in the form in which [`LockGuard::key`](coord_api::LockGuard::key) tells them.
    async fn keys(&self) -> Vec<String>;

    /// Makes the store forget its history up to now.
    async fn compact(&self);
}

/// An entry as other programs address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Raw<'a> {
    /// The record of one instance.
    Service {
        /// The service's name.
        name: &'a str,
        /// The instance id.
        id: &'a str,
    },
    /// An id that is held.
    Id {
        /// The service's name.
        service: &'a str,
        /// The id.
        id: u32,
    },
    /// A config value.
    Config {
        /// The key.
        key: &'a str,
    },
    /// A candidate of an election.
    Candidate {
        /// The election's name.
        election: &'a str,
        /// The last segment of its key.
        name: &'a str,
    },
}

/// The network between one client and the store.
pub trait Link: Send + Sync {
    /// From now on nothing arrives, in both directions: no answer and no error either, as behind a firewall
    /// that drops packets.
    fn cut(&self);

    /// Lets traffic pass again.
    fn restore(&self);
}

/// One client of the store under test.
#[derive(Clone)]
pub struct TestClient {
    /// The client.
    pub provider: Arc<dyn Provider>,
    /// Its network.
    pub link: Arc<dyn Link>,
}

impl TestClient {
    /// A client with its network.
    pub fn new(provider: Arc<dyn Provider>, link: Arc<dyn Link>) -> Self {
        Self { provider, link }
    }

    /// The client's locks.
    pub fn lock(&self) -> Arc<dyn DistributedLock> {
        self.provider.lock()
    }

    /// The client's elections.
    pub fn elections(&self) -> Arc<dyn Elections> {
        self.provider.elections()
    }

    /// A candidate of the client, with a value, for an election that the test knows to be valid.
    pub fn elector(&self, election: &str, ttl: Duration, value: &str) -> Elector {
        let options = ElectorOptions::new(ttl).value(value.to_owned());
        self.elections().elector(election, options).expect("the options are valid")
    }

    /// The client's registry.
    pub fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.provider.registry()
    }

    /// The client's config center.
    pub fn config(&self) -> Arc<dyn ConfigCenter> {
        self.provider.config()
    }

    /// An allocator of the client for a range that the test knows to be valid.
    pub fn ids(&self, service: &str, max_id: u32) -> Arc<dyn InstanceIdAllocator> {
        self.provider.instance_id_allocator(service, max_id).expect("the service and the range are valid")
    }

    /// As [`ids`](Self::ids), for tests that are not about the rest of ids: these do not rest.
    pub fn ids_at_once(&self, service: &str, max_id: u32) -> Arc<dyn InstanceIdAllocator> {
        self.ids_with(IdOptions::new(service, max_id).quarantine(Duration::ZERO))
    }

    /// An allocator of the client with options that the test knows to be valid.
    pub fn ids_with(&self, options: IdOptions) -> Arc<dyn InstanceIdAllocator> {
        self.provider.instance_ids().allocator(options).expect("the options are valid")
    }

    /// Closes the client while the store can be reached.
    pub async fn close(&self) {
        self.provider.close().await.expect("the store can be reached while closing");
    }
}

impl fmt::Debug for TestClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TestClient").field(&self.provider).finish()
    }
}
