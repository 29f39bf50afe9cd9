//! The provider over etcd.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, Error, Health, IdOptions, InstanceIdAllocator, InstanceIds, LeaseHealth,
    Provider, Result, ServiceRegistry,
};

use tokio::runtime;

use crate::{
    background::{Background, owned},
    cluster::AT_THE_START,
    config::EtcdConfigCenter,
    connect::connect,
    core::{Core, Limits, Shared},
    endpoint::Member,
    ids::EtcdIds,
    keys::{Keys, Range},
    lock::EtcdLock,
    options::{Checked, Connect, EtcdConfig},
    registry::EtcdRegistry,
    tls,
    transport::try_limit,
    verify::keep_verified,
    version::{MemberVersion, warn_of_faults},
};

/// One client of etcd. Clones are cheap and share the connection, the leases and the background thread.
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
    shared: Arc<Shared>,
    /// One of each for all, so that what is shared by registry or by config center is shared by client.
    registry: Arc<EtcdRegistry>,
    config: Arc<EtcdConfigCenter>,
}

impl Client {
    /// Connects, authenticates and reads once, so that a wrong address, user or permission is told here; with
    /// [`Connect::Lazily`] only a bad configuration is, and the rest happens when etcd is there.
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
        let background = Background::start().map_err(|error| Error::Unavailable {
            what: "a background thread".into(),
            source: Some(error.into()),
        })?;
        let limits = Limits {
            request_timeout: config.request_timeout,
            try_limit: try_limit(&checked.endpoints, config.request_timeout),
            members: checked.endpoints.all.len(),
            addresses: checked.endpoints.all.iter().map(Member::authority).collect(),
            close_timeout: config.close_timeout,
            id_ttl: checked.instance_id_ttl,
            label: config.label.clone(),
        };
        let keys = Keys::below(checked.roots.clone());
        let must_answer = config.connect == Connect::AtOnce;
        let runtime = background.handle().clone();
        let home = runtime::Handle::try_current().ok();
        let core = owned(background.handle(), move |_gone| async move {
            let connection = connect(&config, &checked, home).await?;
            let versions = connection.versions.clone();
            let core = Core::new(connection, keys, &limits, runtime);
            tokio::spawn(warn_of_faults(versions, Arc::downgrade(&core)));
            tokio::spawn(keep_verified(Arc::downgrade(&core), core.made()));
            Ok(core)
        })
        .await?;
        let shared = Shared::new(core, background);
        let registry = Arc::new(EtcdRegistry { shared: shared.clone() });
        let center = Arc::new(EtcdConfigCenter { shared: shared.clone() });
        let client = Self { shared, registry, config: center };
        if must_answer {
            let core = &client.shared.core;
            core.read("connect", &Range::Key(core.keys.probe().into())).await?;
        }
        client.check_clusters(must_answer).await?;
        Ok(client)
    }

    /// Refuses endpoints of two clusters; where a member does not answer soon, or nobody waits, as soon as that is known.
    async fn check_clusters(&self, waits: bool) -> Result<()> {
        let core = self.shared.core.clone();
        if core.members == 1 {
            return Ok(());
        }
        let checked =
            owned(&self.shared.core.runtime, move |_gone| async move { core.check_clusters().await });
        let limit = if waits { AT_THE_START } else { Duration::ZERO };
        tokio::time::timeout(limit, checked).await.unwrap_or(Ok(()))
    }

    /// Asks each endpoint which version of etcd runs there; what is known to be wrong with one,
    /// [`faults`](crate::ServerVersion::faults) tells. When a client connects this is done in the background, and
    /// faults are logged as warnings.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn server_versions(&self) -> Vec<MemberVersion> {
        self.shared.core.versions.ask().await
    }
}

#[async_trait]
impl Provider for Client {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        Arc::new(EtcdLock { shared: self.shared.clone() })
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.registry.clone()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.config.clone()
    }

    fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        Arc::new(EtcdIds { shared: self.shared.clone() })
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.instance_ids().allocator(IdOptions::new(service, max_id))
    }

    fn lease_health(&self) -> LeaseHealth {
        self.shared.core.sessions.health()
    }

    async fn health(&self) -> Result<Health> {
        self.shared.core.health().await
    }

    async fn close(&self) -> Result<()> {
        let core = self.shared.core.clone();
        // On the background runtime, so that it goes on if the caller gives up.
        owned(&self.shared.core.runtime, move |_gone| async move { core.shut_down().await }).await
    }
}
