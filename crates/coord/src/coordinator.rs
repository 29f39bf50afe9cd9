//! The one type that services start from.

use std::sync::Arc;

use async_trait::async_trait;

use crate::{
    Config, ConfigCenter, DistributedLock, Elections, Health, InstanceIdAllocator, InstanceIds, LeaseHealth,
    Provider, Result, ServiceRegistry,
};

/// The client of one coordination store, whichever backend it has. Cheap to clone; clones are one client.
///
/// A process usually has one. It is a [`Provider`] itself, and has that trait's methods as its own, so that
/// no import is needed. Closing it, or dropping the last thing that came from it, gives back every lock, id
/// and registration; see [`Provider`] for what is promised.
///
/// ```
/// use coord::Coordinator;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord::Result<()> {
/// let coordinator = Coordinator::connect("memory://").await?;
/// let ids = coordinator.instance_id_allocator("im-gateway", 1023)?;
/// println!("gochat.messages.downstream.{}", ids.acquire_id().await?);
/// coordinator.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Coordinator {
    provider: Arc<dyn Provider>,
    /// One for all, since it knows the schemas.
    config: Arc<dyn ConfigCenter>,
}

impl Coordinator {
    /// Connects to the store that a URL names.
    ///
    /// | URL | store | cargo feature |
    /// |---|---|---|
    /// | `memory://` | a new one in this process, for this coordinator alone | `memory` |
    /// | `memory://name` | one in this process, which exists as long as anything that came from a coordinator of that name | `memory` |
    /// | `etcd://host:port,host:port/namespace` | etcd, below `/namespace/` (`/coord/` if left out) | `etcd` |
    ///
    /// URLs take no credentials, since logs and process lists show them: use
    /// [`connect_with`](Self::connect_with) for authentication, TLS and timeouts.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a URL that can not be used, with what
    /// to change; others as the backend finds the store.
    ///
    /// ```
    /// use coord::prelude::*;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord::Result<()> {
    /// let one = Coordinator::connect("memory://shop").await?;
    /// let other = Coordinator::connect("memory://shop").await?;
    /// one.config().set("limits/upload", &10).await?;
    /// assert!(other.config().get::<u32>("limits/upload").await?.is_some());
    ///
    /// let alone = Coordinator::connect("memory://").await?;
    /// assert!(alone.config().get::<u32>("limits/upload").await?.is_none());
    /// # Ok(()) }
    /// ```
    pub async fn connect(url: &str) -> Result<Self> {
        Self::connect_with(Config::from_url(url)?).await
    }

    /// Wraps any backend, for example a client of a memory store that a test has faults for.
    ///
    /// ```
    /// use coord::{ConfigExt, Coordinator, memory::Store};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let client = Store::new().client();
    /// let coordinator = Coordinator::new(client.clone());
    /// client.disconnect();
    /// assert!(coordinator.config().get::<u32>("limits/upload").await.expect_err("is cut off").is_retryable());
    /// # }
    /// ```
    pub fn new(provider: impl Provider + 'static) -> Self {
        Self::from(Arc::new(provider) as Arc<dyn Provider>)
    }

    /// Connects to the store that a configuration describes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) with the field that can not be used; others
    /// as the backend finds the store.
    ///
    /// ```
    /// use coord::{Config, Coordinator};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let config: Config = serde_json::from_str(r#"{ "backend": "memory", "name": "shop" }"#)?;
    /// let coordinator = Coordinator::connect_with(config).await?;
    /// coordinator.close().await?;
    /// # Ok(()) }
    /// ```
    #[cfg_attr(
        not(feature = "etcd"),
        expect(clippy::unused_async, reason = "only etcd has something to wait for")
    )]
    pub async fn connect_with(config: Config) -> Result<Self> {
        match config {
            #[cfg(feature = "memory")]
            Config::Memory(config) => Ok(Self::new(crate::named::client(config)?)),
            #[cfg(feature = "etcd")]
            Config::Etcd(config) => Ok(Self::new(crate::etcd::Client::connect(config).await?)),
        }
    }

    /// The locks of this store.
    pub fn lock(&self) -> Arc<dyn DistributedLock> {
        self.provider.lock()
    }

    /// The elections of this store.
    pub fn elections(&self) -> Arc<dyn Elections> {
        self.provider.elections()
    }

    /// The service registry of this store.
    pub fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.provider.registry()
    }

    /// The config center of this store.
    ///
    /// With the feature `schema`, what is written through it is held to the JSON Schemas in the store, whoever set them
    /// (`SchemaExt::schemas`): a value that does not fit is
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument). The first write reads the schemas, later ones need no
    /// further request. A program that is built without the feature is not held to them.
    pub fn config(&self) -> Arc<dyn ConfigCenter> {
        self.config.clone()
    }

    /// The instance ids of this store.
    pub fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        self.provider.instance_ids()
    }

    /// An allocator of ids `1..max_id` among the instances of `service`. Keep it: a second call gives a
    /// second allocator, which holds another id.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a bad name or a bound that is not
    /// within 2 and 2^20.
    pub fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.provider.instance_id_allocator(service, max_id)
    }

    /// How the leases of this client are doing: the worst of them. For metrics and readiness probes; what a
    /// single lock or id is worth, its own `lost()` tells.
    ///
    /// ```
    /// use coord::{Coordinator, LeaseHealth};
    ///
    /// fn is_ready(coordinator: &Coordinator) -> bool {
    ///     coordinator.lease_health() == LeaseHealth::Healthy
    /// }
    /// ```
    pub fn lease_health(&self) -> LeaseHealth {
        self.provider.lease_health()
    }

    /// Whether the store answers, and how the leases are doing: for a readiness probe. It takes less than a second,
    /// whatever the store does; see [`Provider::health`].
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed) after close; any other says why the store does not answer.
    ///
    /// ```
    /// use coord::Coordinator;
    ///
    /// # async fn example(coordinator: Coordinator) {
    /// match coordinator.health().await {
    ///     Ok(health) if health.is_ready() => println!("ready, {:?} to the store", health.latency),
    ///     Ok(health) => println!("not ready: {:?}", health.leases),
    ///     Err(error) => println!("not ready: {error}"),
    /// }
    /// # }
    /// ```
    pub async fn health(&self) -> Result<Health> {
        self.provider.health().await
    }

    /// Gives back everything and ends every wait; see [`Provider::close`].
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable) or [`Error::Timeout`](crate::Error::Timeout) when
    /// the store could not be told; it frees what is left when the leases expire.
    pub async fn close(&self) -> Result<()> {
        self.provider.close().await
    }

    /// The same client, for code that takes an `Arc<dyn Provider>`.
    pub fn provider(&self) -> Arc<dyn Provider> {
        Arc::new(self.clone())
    }
}

impl From<Arc<dyn Provider>> for Coordinator {
    fn from(provider: Arc<dyn Provider>) -> Self {
        let config = provider.config();
        #[cfg(feature = "schema")]
        let config = coord_config::SchemaExt::checked(&config);
        Self { provider, config }
    }
}

#[async_trait]
impl Provider for Coordinator {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        self.provider.lock()
    }

    fn elections(&self) -> Arc<dyn Elections> {
        self.provider.elections()
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.provider.registry()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.config.clone()
    }

    fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        self.provider.instance_ids()
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.provider.instance_id_allocator(service, max_id)
    }

    fn lease_health(&self) -> LeaseHealth {
        self.provider.lease_health()
    }

    async fn health(&self) -> Result<Health> {
        self.provider.health().await
    }

    async fn close(&self) -> Result<()> {
        self.provider.close().await
    }
}
