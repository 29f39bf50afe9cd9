//! Clients: the handles that users hold.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, InstanceIdAllocator, Provider, Result, ServiceName, ServiceRegistry, Ttl,
    backend::IdAllocator, check_max_id,
};

use crate::{Store, config::Config, connection::Connection, ids::Source, lock::Locks, registry::Registry};

/// How a client differs from others.
///
/// ```
/// use std::time::Duration;
/// use coord_memory::{Options, Store};
///
/// let options = Options::default().label("billing").id_ttl(Duration::from_secs(5));
/// assert_eq!(Store::new().client_with(options).owner(), "billing-1");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The TTL of instance ids; 30 s by default. It is checked when an allocator is made.
    pub id_ttl: Duration,
    /// What the client is called in what it stores and in the log, together with a number that makes it
    /// unique in its store; `memory-client` by default.
    pub label: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { id_ttl: Duration::from_secs(30), label: "memory-client".into() }
    }
}

impl Options {
    /// Sets the TTL of instance ids.
    #[must_use]
    pub fn id_ttl(mut self, ttl: Duration) -> Self {
        self.id_ttl = ttl;
        self
    }

    /// Sets what the client is called.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
}

/// One client of a [`Store`]: what a process is to etcd. Clones are the same client.
///
/// ```
/// use std::sync::Arc;
/// use coord_api::Provider;
/// use coord_memory::Store;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let provider: Arc<dyn Provider> = Arc::new(Store::new().client());
/// let id = provider.instance_id_allocator("im-gateway", 1023)?.acquire_id().await?;
/// assert_eq!(id.get(), 1);
/// provider.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) connection: Arc<Connection>,
    id_ttl: Duration,
}

impl Client {
    pub(crate) fn new(store: Store, options: Options) -> Self {
        let Options { id_ttl, label } = options;
        let connection = Arc::new(Connection::open(store, &label));
        Self { connection, id_ttl }
    }

    /// What the client is called in what it stores, for example `memory-client-3`.
    pub fn owner(&self) -> &str {
        self.connection.owner()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("owner", &self.owner()).finish_non_exhaustive()
    }
}

#[async_trait]
impl Provider for Client {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        Arc::new(Locks(self.connection.clone()))
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        Arc::new(Registry(self.connection.clone()))
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        Arc::new(Config(self.connection.clone()))
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        let service = ServiceName::parse(service)?;
        check_max_id(max_id)?;
        Ok(Arc::new(IdAllocator::new(Source {
            connection: self.connection.clone(),
            service,
            max_id,
            ttl: Ttl::parse(self.id_ttl)?,
        })))
    }

    async fn close(&self) -> Result<()> {
        self.connection.close()
    }
}
