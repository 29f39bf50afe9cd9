//! The provider over a store.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, Health, IdOptions, InstanceIdAllocator, InstanceIds, LeaseHealth, Owner,
    Provider, Result, ServiceRegistry, Ttl,
};
use futures::future::BoxFuture;
use tokio::runtime;

use crate::{
    config::KvConfigCenter,
    core::{Core, KeepOpen},
    ids::KvIds,
    keyspace::{CheckedRoots, Keys},
    lock::KvLock,
    registry::KvRegistry,
    request::{RpcOptions, background::run_detached, verify::keep_verified},
    store::{Range, Store},
};

/// The settings of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// The roots of its keys.
    pub roots: CheckedRoots,
    /// How it calls itself in what it stores.
    pub owner: Owner,
    /// How long one request may take, with all its attempts.
    pub request_timeout: Duration,
    /// How long closing may take.
    pub close_timeout: Duration,
    /// The time to live of instance ids.
    pub id_ttl: Ttl,
    /// The runtime for all that has to happen in time. It should be one that nobody else keeps busy.
    pub runtime: runtime::Handle,
}

/// One client of a store, with all four areas over it. Clones are cheap and share the leases.
#[derive(Clone)]
pub struct Client {
    shared: Arc<KeepOpen>,
    /// One of each for all, so that what is shared by registry or by config center is shared by client.
    registry: Arc<KvRegistry>,
    config: Arc<KvConfigCenter>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client of a store. When it and all that came of it are dropped, `on_last_drop` is given the last work to run,
    /// which gives the leases back; nothing runs on the runtime after that.
    pub fn new(
        store: Arc<dyn Store>,
        options: Options,
        on_last_drop: impl FnOnce(BoxFuture<'static, ()>) + Send + Sync + 'static,
    ) -> Self {
        let Options { roots, owner, request_timeout, close_timeout, id_ttl, runtime } = options;
        let connections = store.connections();
        let keys = Keys::below(roots);
        let needs = RpcOptions { keys, request_timeout, owner, runtime: runtime.clone() };
        let core = Core::new(store, needs, close_timeout, id_ttl);
        runtime.spawn(keep_verified(Arc::downgrade(core.rpc()), connections));
        let shared = KeepOpen::new(core, Box::new(on_last_drop));
        let registry = Arc::new(KvRegistry { shared: shared.clone() });
        let config = Arc::new(KvConfigCenter { shared: shared.clone() });
        Self { shared, registry, config }
    }

    /// Reads once, so that a wrong address, user or permission is told here.
    ///
    /// # Errors
    /// Whatever keeps the store from being used.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn probe(&self) -> Result<()> {
        let core = &self.shared.core;
        core.read("connect", &Range::Key(core.keys.probe().into())).await?;
        Ok(())
    }

    /// Refuses members of two stores. Asked in the background: dropping the future does not end that, and the client is
    /// refused as soon as it is known.
    ///
    /// # Errors
    /// [`InvalidArgument`](coord_api::Error::InvalidArgument) if two members are of different stores.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn check_members(&self) -> Result<()> {
        let core = self.shared.core.clone();
        if core.members() == 1 {
            return Ok(());
        }
        run_detached(&self.shared.core.runtime, move |_gone| async move { core.check_clusters().await }).await
    }

    /// Waits until the client is closed or gone, which the future itself does not prevent.
    pub fn closed_or_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        self.shared.core.closed_or_gone()
    }
}

#[async_trait]
impl Provider for Client {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        Arc::new(KvLock { shared: self.shared.clone() })
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.registry.clone()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.config.clone()
    }

    fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        Arc::new(KvIds { shared: self.shared.clone() })
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
        run_detached(&self.shared.core.runtime, move |_gone| async move { core.shut_down().await }).await
    }
}
