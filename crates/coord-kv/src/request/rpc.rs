//! The context of a request: the store, the keys, the known history of the store, and the limits of time.

use std::{
    collections::HashSet,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coord_api::{Connectivity, Error, Home, Owner, Result};
use tokio::sync::watch;

use crate::{
    keyspace::Keys,
    request::{Background, Refusal, history::History, verify::Verifications},
    store::{LeaseId, Limits, Store},
};

/// Beliefs of the floors above about the store.
pub(crate) trait Beliefs: Send + Sync {
    /// Returns the leases that this client believes in.
    fn leases(&self) -> HashSet<LeaseId>;

    /// Ends all of it: the store has another history.
    fn end(&self);

    /// Ends all that is known of a lease that is over.
    fn lease_ended(&self, lease: LeaseId);
}

/// Context of a request. Background tasks hold this; it does not keep the client open.
pub(crate) struct Rpc {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) keys: Keys,
    pub(crate) history: Arc<History>,
    pub(crate) verifications: Verifications,
    pub(crate) refusal: Refusal,
    pub(crate) beliefs: Weak<dyn Beliefs>,
    /// Whether the store is heard.
    pub(crate) connectivity: Connectivity,
    pub(crate) background: Background,
    pub(crate) request_timeout: Duration,
    /// Name of this client in the values that it stores.
    pub(crate) owner: Owner,
    /// The owner as it is stored in a place of ours, for people who look there.
    pub(crate) holder: Arc<[u8]>,
    attempts: AtomicU64,
    closed: watch::Sender<bool>,
}

/// The settings of an [`Rpc`].
pub(crate) struct RpcOptions {
    pub(crate) keys: Keys,
    pub(crate) request_timeout: Duration,
    pub(crate) owner: Owner,
    pub(crate) background: Background,
}

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("store", &self.store).field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Rpc {
    pub(crate) fn new(
        store: Arc<dyn Store>,
        options: RpcOptions,
        connectivity: Connectivity,
        beliefs: Weak<dyn Beliefs>,
    ) -> Self {
        let RpcOptions { keys, request_timeout, owner, background } = options;
        let holder = serde_json::to_vec(&owner).expect("strings and numbers always serialize").into();
        Self {
            store,
            keys,
            history: Arc::default(),
            verifications: Verifications::default(),
            refusal: Refusal::default(),
            beliefs,
            connectivity,
            background,
            request_timeout,
            owner,
            holder,
            attempts: AtomicU64::new(1),
            closed: watch::Sender::new(false),
        }
    }

    /// Returns a number that this client uses once.
    pub(crate) fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns how many members the store has.
    pub(crate) fn members(&self) -> usize {
        self.store.description().members
    }

    /// Returns the limits of a transaction.
    pub(crate) fn limits(&self) -> Limits {
        self.store.description().limits
    }

    /// Returns the store, and the part of it that config values are in.
    pub(crate) fn home(&self) -> Home {
        let addresses = self.store.description().addresses.iter().cloned();
        let home = Home::new(self.keys.config_root(), addresses);
        match self.history.cluster() {
            0 => home,
            cluster => home.of_store(format!("{cluster:x}")),
        }
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Answers `Ok` while the client is open, and its members are of one store.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() { Err(Error::Closed) } else { self.refusal.check() }
    }

    /// Waits until the client is closed.
    pub(crate) async fn closed(&self) {
        // The sender is a part of `self`, so this can not fail.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Waits until the client is closed or gone.
    pub(crate) fn closed_or_gone(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut closed = self.closed.subscribe();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// Marks the client closed: from here on nothing new begins, and every wait ends.
    pub(crate) fn mark_closed(&self) {
        self.closed.send_replace(true);
    }
}
