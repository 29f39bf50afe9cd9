//! What the areas share: all that stands on the store, and the order in which it is made and ends.

use std::{
    collections::HashSet,
    fmt,
    ops::Deref,
    sync::{Arc, Weak},
    time::Duration,
};

use coord_api::{
    Error, LossReason, Result, Ttl, Turns,
    backend::{ContactSource, Views},
};
use futures::future::BoxFuture;

use crate::{
    commit::Commits,
    ids::HeldIds,
    queue::{Queues, send::Sender},
    registry::Records,
    request::{Beliefs, Rpc, RpcOptions},
    session::Sessions,
    store::{LeaseId, Store},
    watch::hub::Hub,
};

/// All that stands on the store. Background tasks hold this; what users hold is a [`KeepOpen`].
#[derive(Debug)]
pub(crate) struct Core {
    rpc: Arc<Rpc>,
    pub(crate) hub: Hub,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) commits: Arc<Commits>,
    pub(crate) sender: Sender,
    pub(crate) queues: Queues,
    pub(crate) close_timeout: Duration,
    pub(crate) id_ttl: Ttl,
    pub(crate) records: Arc<Records>,
    pub(crate) views: Views,
    pub(crate) turns: Turns,
    /// The ids that this client may hold.
    pub(crate) held_ids: HeldIds,
}

impl Core {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        options: RpcOptions,
        close_timeout: Duration,
        id_ttl: Ttl,
    ) -> Arc<Self> {
        Arc::new_cyclic(|core: &Weak<Self>| {
            let (runtime, source) = (options.runtime.clone(), ContactSource::default());
            let rpc = Arc::new(Rpc::new(store, options, source.contact(), core.clone()));
            let sessions = Sessions::new(rpc.clone());
            Self {
                hub: Hub::start(&runtime, &rpc, source),
                sender: Sender::start(&runtime, Arc::downgrade(&rpc)),
                commits: Commits::new(rpc.clone(), sessions.clone()),
                sessions,
                rpc,
                queues: Queues::default(),
                close_timeout,
                id_ttl,
                records: Arc::default(),
                views: Views::default(),
                turns: Turns::new(),
                held_ids: HeldIds::default(),
            }
        })
    }

    /// Closes: every guard learns that it lost, every wait ends, every lease is revoked.
    pub(crate) async fn shut_down(&self) -> Result<()> {
        self.rpc.mark_closed();
        self.hub.stop();
        let leases = self.sessions.close();
        let revoking = async {
            // Before their lease goes, and they with it.
            self.quarantine_all().await;
            self.sessions.revoke_all(&leases).await
        };
        let outcome = match tokio::time::timeout(self.close_timeout, revoking).await {
            Ok(outcomes) => outcomes.into_iter().collect::<Result<(), _>>().map_err(Error::from),
            Err(_elapsed) => Err(Error::Timeout { operation: "close", after: self.close_timeout }),
        };
        self.sessions.forget_all();
        outcome
    }

    /// Returns what requests need.
    pub(crate) fn rpc(&self) -> &Arc<Rpc> {
        &self.rpc
    }
}

impl Deref for Core {
    type Target = Rpc;

    fn deref(&self) -> &Rpc {
        &self.rpc
    }
}

impl Beliefs for Core {
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

/// Runs the last work of a client when nobody holds it any more, and lets go of its runtime then.
pub(crate) type OnLastDrop = Box<dyn FnOnce(BoxFuture<'static, ()>) + Send + Sync>;

/// What users' handles, guards and watches hold. When the last one is dropped, the leases are given back.
pub(crate) struct KeepOpen {
    pub(crate) core: Arc<Core>,
    on_last_drop: Option<OnLastDrop>,
}

impl fmt::Debug for KeepOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} client {}", self.core.store.description().name, self.core.owner)
    }
}

impl KeepOpen {
    pub(crate) fn new(core: Arc<Core>, on_last_drop: OnLastDrop) -> Arc<Self> {
        Arc::new(Self { core, on_last_drop: Some(on_last_drop) })
    }
}

impl Drop for KeepOpen {
    fn drop(&mut self) {
        let core = self.core.clone();
        let last_work = Box::pin(async move {
            if let Err(error) = core.shut_down().await {
                tracing::debug!(%error, "leases could not be given back and will expire");
            }
        });
        if let Some(on_last_drop) = self.on_last_drop.take() {
            on_last_drop(last_work);
        }
    }
}
