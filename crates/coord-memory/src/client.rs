//! Clients: the handles that users hold.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, Health, IdOptions, InstanceIdAllocator, InstanceIds, LeaseHealth, Owner,
    Provider, Result, ServiceRegistry,
};
use coord_kv::Background;
use futures::{FutureExt, future::BoxFuture};

use crate::{
    Options, Store,
    config::Config,
    network::{Network, Peer},
    store::Shared,
};

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
/// assert!((1..1023).contains(&id.get()));
/// provider.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Client {
    inner: coord_kv::Client,
    /// One for all clones, so that what is shared by config center is shared by client.
    config: Arc<Config>,
    store: Shared,
    owner: Owner,
}

/// Runs the last work of a client. Unless the store or the client stands still, that is done when this returns.
fn finish(background: &Background, last_work: BoxFuture<'static, ()>) {
    // A task that is long at work must not keep it from being done now.
    let mut last_work = Box::pin(tokio::task::unconstrained(last_work));
    if (&mut last_work).now_or_never().is_none() {
        let driven = background.clone();
        background.spawn(async move {
            last_work.await;
            drop(driven);
        });
    }
}

impl Client {
    pub(crate) fn new(store: Store, options: Options) -> Result<Self> {
        let shared = store.shared().clone();
        // Checked before anybody is taken in.
        options.clone().check(0)?;
        let network = Network::join(shared.clone());
        let options = options.check(network.peer().id())?;
        let (owner, background) = (options.owner.clone(), options.background.clone());
        let (peer, leaving) = (network.peer().clone(), network.clone());
        let inner = coord_kv::Client::new(Arc::new(network), options, move |last_work| {
            leaving.leave();
            finish(&background, last_work);
            drop(store);
        });
        let config = Arc::new(Config { inner: inner.config(), peer });
        Ok(Self { inner, config, store: shared, owner })
    }

    /// How the client describes itself in what it stores: on the host `memory`, with a name such as
    /// `client-3`, which no other client of the store has.
    pub fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.config.peer
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.store
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
        self.inner.lock()
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.inner.registry()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.config.clone()
    }

    fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        self.inner.instance_ids()
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.instance_ids().allocator(IdOptions::new(service, max_id))
    }

    fn lease_health(&self) -> LeaseHealth {
        self.inner.lease_health()
    }

    async fn health(&self) -> Result<Health> {
        self.inner.health().await
    }

    async fn close(&self) -> Result<()> {
        self.peer().close();
        self.inner.close().await
    }
}
