//! The provider over etcd.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, Error, Health, InstanceIdAllocator, InstanceIds, LeaseHealth, Owner,
    Provider, Result, ServiceRegistry,
};
use coord_kv::{Background as Tasks, Options};
use tokio::runtime;

use crate::{
    background::Background,
    connect::connect,
    options::{Checked, Connect, EtcdConfig},
    store::EtcdStore,
    transport::{
        channel::try_limit,
        cluster::AT_THE_START,
        tls,
        version::{MemberVersion, Versions, warn_of_faults},
    },
};

/// Client of etcd. Clones are cheap and share the connection, the leases and the background thread.
///
/// # Example
/// ```no_run
/// use std::time::Duration;
/// use coord_api::{DistributedLock, Provider};
/// use coord_etcd::{Client, EtcdConfig};
///
/// # async fn example() -> coord_api::Result<()> {
/// let client = Client::connect(EtcdConfig::new(["127.0.0.1:2379"]).namespace("shop")).await?;
/// let guard = client.lock().acquire("nightly-report", Duration::from_secs(30)).await?;
/// guard.unlock().await?;
/// client.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    inner: coord_kv::Client,
    versions: Arc<Versions>,
}

impl Client {
    /// Connects, authenticates and reads once, so that a wrong address, user or permission is reported here.
    /// With [`Connect::Lazily`] only a bad configuration is reported here, and the rest happens when etcd is
    /// there.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad configuration, before anything is sent;
    /// [`Error::Unavailable`], [`Error::Timeout`], [`Error::Tls`], [`Error::Unauthenticated`] or
    /// [`Error::PermissionDenied`] when etcd can not be used.
    ///
    /// # Cancel safety
    /// Dropping this future drops the connection.
    pub async fn connect(config: EtcdConfig) -> Result<Self> {
        let checked = config.check()?;
        let scheme = checked.endpoints.scheme;
        Self::connect_as(config, checked).await.map_err(|error| tls::at_the_start(scheme, error))
    }

    async fn connect_as(config: EtcdConfig, checked: Checked) -> Result<Self> {
        let mut background = Background::start().map_err(|error| Error::Unavailable {
            what: "a background thread".into(),
            source: Some(error.into()),
        })?;
        let must_answer = config.connect == Connect::AtOnce;
        let unique = format!("{:08x}", fastrand::u32(..));
        let host = gethostname::gethostname();
        let owner = Owner::new(host.to_string_lossy(), std::process::id(), config.label.clone(), unique);
        let options = Options {
            roots: checked.roots.clone(),
            owner,
            request_timeout: config.request_timeout,
            close_timeout: config.close_timeout,
            id_ttl: checked.instance_id_ttl,
            background: Tasks::on(background.handle().clone()),
        };
        let home = runtime::Handle::try_current().ok();
        let connected = background.handle().spawn(async move {
            let connection = connect(&config, &checked, home).await?;
            let versions = connection.versions.clone();
            let limit = try_limit(&checked.endpoints, config.request_timeout);
            let store = EtcdStore::new(connection, checked.roots.probe(), config.request_timeout, limit);
            Ok::<_, Error>((store, versions))
        });
        let (store, versions) = connected.await.unwrap_or(Err(Error::Closed))?;
        let handle = background.handle().clone();
        let inner = coord_kv::Client::new(Arc::new(store), options, move |last_work| {
            background.stop_after(last_work);
        });
        handle.spawn(warn_of_faults(versions.clone(), inner.closed_or_gone()));
        if must_answer {
            inner.probe().await?;
        }
        // Where a member does not answer soon, or nobody waits, endpoints of two clusters are refused as soon as that is known.
        let limit = if must_answer { AT_THE_START } else { Duration::ZERO };
        tokio::time::timeout(limit, inner.check_members()).await.unwrap_or(Ok(()))?;
        Ok(Self { inner, versions: Arc::new(versions) })
    }

    /// Asks each endpoint which version of etcd runs there. [`faults`](crate::ServerVersion::faults) tells
    /// the known faults of a version. When a client connects this is done in the background, and faults are
    /// logged as warnings.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn server_versions(&self) -> Vec<MemberVersion> {
        self.versions.ask().await
    }
}

#[async_trait]
impl Provider for Client {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        self.inner.lock()
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.inner.registry()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.inner.config()
    }

    fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        self.inner.instance_ids()
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.inner.instance_id_allocator(service, max_id)
    }

    fn lease_health(&self) -> LeaseHealth {
        self.inner.lease_health()
    }

    async fn health(&self) -> Result<Health> {
        self.inner.health().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
