//! Clients: the handles that users hold.

use std::{fmt, process, sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, Error, Health, IdOptions, InstanceIdAllocator, InstanceIds, LeaseHealth,
    Owner, Provider, Result, ServiceRegistry, Ttl,
};

use crate::{Store, config::Config, connection::Connection, ids::Ids, lock::Locks, registry::Registry};

/// How a client differs from others. [`Store::client_with`] checks it.
///
/// ```
/// use std::time::Duration;
/// use coord_memory::{Options, Store};
///
/// let options = Options::default().label("billing").instance_id_ttl(Duration::from_secs(5));
/// let client = Store::new().client_with(options)?;
/// assert_eq!(client.owner().to_string(), format!("billing memory/{}/client-1", std::process::id()));
/// # Ok::<(), coord_api::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The TTL of instance ids; 30 s by default.
    pub instance_id_ttl: Duration,
    /// What operators call the client, for example the name of the service; it is a part of the [`Owner`] in
    /// what the client stores.
    pub label: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { instance_id_ttl: Duration::from_secs(30), label: None }
    }
}

impl Options {
    /// Sets the TTL of instance ids.
    #[must_use]
    pub fn instance_id_ttl(mut self, ttl: Duration) -> Self {
        self.instance_id_ttl = ttl;
        self
    }

    /// Sets what operators call the client.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
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
    /// One of each for all, so that what is shared by registry or by config center is shared by client.
    registry: Arc<Registry>,
    config: Arc<Config>,
    id_ttl: Ttl,
}

impl Client {
    pub(crate) fn new(store: Store, options: Options) -> Result<Self> {
        let Options { instance_id_ttl, label } = options;
        let id_ttl = Ttl::parse(instance_id_ttl).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => Error::invalid("instance_id_ttl", reason),
            other => other,
        })?;
        if let Some(label) = &label {
            Owner::check_label(label)?;
        }
        let name = |number| Owner::new("memory", process::id(), label, format!("client-{number}"));
        let connection = Arc::new(Connection::open(store, name));
        let registry = Arc::new(Registry(connection.clone()));
        let config = Arc::new(Config(connection.clone()));
        Ok(Self { connection, registry, config, id_ttl })
    }

    /// How the client describes itself in what it stores: on the host `memory`, with a name such as
    /// `client-3`, which no other client of the store has.
    pub fn owner(&self) -> &Owner {
        self.connection.owner()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.owner())
    }
}

#[async_trait]
impl Provider for Client {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        Arc::new(Locks(self.connection.clone()))
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.registry.clone()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.config.clone()
    }

    fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        Arc::new(Ids { connection: self.connection.clone(), ttl: self.id_ttl })
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.instance_ids().allocator(IdOptions::new(service, max_id))
    }

    fn lease_health(&self) -> LeaseHealth {
        self.connection.lease_health()
    }

    async fn health(&self) -> Result<Health> {
        self.connection.health().await
    }

    async fn close(&self) -> Result<()> {
        self.connection.close()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_are_refused_by_name() {
        let refused = |options| Store::new().client_with(options).expect_err("is bad").to_string();
        let good = Options::default();
        let table = [
            (refused(good.clone().label("")), "invalid label: "),
            (refused(good.clone().instance_id_ttl(Duration::ZERO)), "invalid instance_id_ttl: "),
        ];
        for (message, expected) in table {
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
