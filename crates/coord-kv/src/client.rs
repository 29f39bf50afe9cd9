//! The provider over a store.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    ConfigCenter, DistributedLock, Error, Health, IdOptions, InstanceIdAllocator, InstanceIds, LeaseHealth,
    LossReason, Owner, Provider, Result, ServiceRegistry, Ttl, UpdateLocks, backend::ConnectivitySource,
};
use futures::{StreamExt, future::BoxFuture, stream::BoxStream};

use crate::{
    commit::Commits,
    config::KvConfigCenter,
    ids::{Ids, KvIds},
    keyspace::{CheckedRoots, Keys},
    lock::KvLock,
    queue::Queues,
    registry::{KvRegistry, Records},
    request::{
        Background, Beliefs, KeepOpen, Kept, Rpc, RpcOptions, background::run_detached, timer,
        verify::keep_verified,
    },
    session::Sessions,
    store::{LeaseId, Notice, Range, Store},
    watch::Hub,
};

/// The settings of a client.
#[derive(Clone, Debug)]
pub struct Options {
    /// The roots of its keys.
    pub roots: CheckedRoots,
    /// Name of this client in the values that it stores.
    pub owner: Owner,
    /// Longest time that one request may take, with all its attempts.
    pub request_timeout: Duration,
    /// Longest time that closing may take.
    pub close_timeout: Duration,
    /// The time to live of instance ids.
    pub id_ttl: Ttl,
    /// The runtime for all that has to happen in time.
    pub background: Background,
}

/// The areas of a client, and the order in which they end.
#[derive(Debug)]
struct Areas {
    rpc: Arc<Rpc>,
    hub: Arc<Hub>,
    sessions: Arc<Sessions>,
    queues: Arc<Queues>,
    commits: Arc<Commits>,
    records: Arc<Records>,
    ids: Arc<Ids>,
    close_timeout: Duration,
}

impl Beliefs for Areas {
    fn leases(&self) -> HashSet<LeaseId> {
        self.sessions.held()
    }

    fn end(&self) {
        self.sessions.lose_all(LossReason::Revoked);
        self.commits.forget_markers();
        self.records.forget_revisions();
        self.hub.begin_anew();
    }

    fn lease_ended(&self, lease: LeaseId) {
        self.queues.forget(lease);
    }
}

impl Areas {
    fn new(store: Arc<dyn Store>, options: Options) -> Arc<Self> {
        let Options { roots, owner, request_timeout, close_timeout, id_ttl, background } = options;
        let needs = RpcOptions { keys: Keys::below(roots), request_timeout, owner, background };
        Arc::new_cyclic(|areas: &Weak<Self>| {
            let source = ConnectivitySource::default();
            let rpc = Arc::new(Rpc::new(store, needs, source.connectivity(), areas.clone()));
            let hub = Hub::start(rpc.clone(), source);
            let sessions = Sessions::new(rpc.clone());
            let queues = Queues::new(&rpc, &sessions, &hub);
            Self {
                commits: Commits::new(&sessions),
                records: Records::new(&rpc, &sessions, &hub),
                ids: Ids::new(&sessions, &queues, &hub, id_ttl),
                rpc,
                hub,
                sessions,
                queues,
                close_timeout,
            }
        })
    }

    /// Closes: every guard learns that it lost, every wait ends, every lease is revoked.
    async fn shut_down(&self) -> Result<()> {
        self.rpc.mark_closed();
        self.hub.stop();
        let leases = self.sessions.close();
        let revoking = async {
            // Before their lease goes, and they with it.
            self.ids.quarantine_all().await;
            self.sessions.revoke_all(&leases).await
        };
        let (unrevoked, outcome) = match timer::timeout(self.close_timeout, revoking).await {
            Ok(outcomes) => {
                let failed = leases.iter().zip(&outcomes).filter(|(_, outcome)| outcome.is_err());
                let unrevoked = failed.map(|(lease, _)| *lease).collect();
                (unrevoked, outcomes.into_iter().collect::<Result<(), _>>().map_err(Error::from))
            }
            Err(_elapsed) => (leases, Err(Error::Timeout { operation: "close", after: self.close_timeout })),
        };
        self.sessions.forget_all_but(unrevoked);
        outcome
    }
}

/// Takes in what the store says without being asked; ends with the client, or with the store.
async fn heed(areas: Weak<Areas>, mut notices: BoxStream<'static, Notice>) {
    while let Some(notice) = notices.next().await {
        let Some(areas) = areas.upgrade() else { return };
        match notice {
            Notice::LeaseEnded(lease) => areas.sessions.ended(lease),
            Notice::KeyDeleted { key, created } => {
                areas.queues.deleted(&key, created);
                areas.ids.deleted(&key);
            }
        }
    }
}

/// Client of a store, with all four areas over it. Clones are cheap and share the leases.
#[derive(Clone)]
pub struct Client {
    areas: Kept<Areas>,
    /// Registry of all clones, so that whatever is shared by registry or by config center is shared by
    /// client.
    registry: Arc<KvRegistry>,
    config: Arc<KvConfigCenter>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} client {}", self.areas.rpc.store.description().name, self.areas.rpc.owner)
    }
}

impl Client {
    /// Makes a client of a store. When the client and everything made from it are dropped, `on_last_drop` is
    /// given the last work to run, which gives the leases back. Nothing runs on the runtime after that.
    pub fn new(
        store: Arc<dyn Store>,
        options: Options,
        on_last_drop: impl FnOnce(BoxFuture<'static, ()>) + Send + Sync + 'static,
    ) -> Self {
        let connections = store.connections();
        let areas = Areas::new(store, options);
        areas.rpc.background.spawn_with_first_use(keep_verified(Arc::downgrade(&areas.rpc), connections));
        if let Some(notices) = areas.rpc.store.notices() {
            areas.rpc.background.spawn_with_first_use(heed(Arc::downgrade(&areas), notices));
        }
        let last = areas.clone();
        let open = KeepOpen::new(move || {
            on_last_drop(Box::pin(async move {
                if let Err(error) = last.shut_down().await {
                    tracing::debug!(%error, "leases could not be given back and will expire");
                }
            }));
        });
        let areas = Kept::new(&areas, &open);
        let registry = Arc::new(KvRegistry { records: areas.with(&areas.records) });
        let (commits, hub) = (areas.with(&areas.commits), areas.hub.clone());
        let config = Arc::new(KvConfigCenter { commits, hub, update_locks: UpdateLocks::new() });
        Self { areas, registry, config }
    }

    /// Reads once, so that a wrong address, user or permission is told here.
    ///
    /// # Errors
    /// Whatever keeps the store from being used.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn probe(&self) -> Result<()> {
        let rpc = &self.areas.rpc;
        rpc.read("connect", &Range::Key(rpc.keys.probe().into())).await?;
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
        let rpc = self.areas.rpc.clone();
        if rpc.members() == 1 {
            return Ok(());
        }
        run_detached(&self.areas.rpc.background, move |_gone| async move { rpc.check_clusters().await }).await
    }

    /// Waits until the client is closed or gone, which the future itself does not prevent.
    pub fn closed_or_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        self.areas.rpc.closed_or_gone()
    }
}

#[async_trait]
impl Provider for Client {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        Arc::new(KvLock { queues: self.areas.with(&self.areas.queues) })
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.registry.clone()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.config.clone()
    }

    fn instance_ids(&self) -> Arc<dyn InstanceIds> {
        Arc::new(KvIds { ids: self.areas.with(&self.areas.ids) })
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.instance_ids().allocator(IdOptions::new(service, max_id))
    }

    fn lease_health(&self) -> LeaseHealth {
        self.areas.sessions.health()
    }

    async fn health(&self) -> Result<Health> {
        self.areas.rpc.health(|| self.areas.sessions.health()).await
    }

    async fn close(&self) -> Result<()> {
        let areas = self.areas.area.clone();
        // On the background runtime, so that it goes on if the caller gives up.
        run_detached(&self.areas.rpc.background, move |_gone| async move { areas.shut_down().await }).await
    }
}
