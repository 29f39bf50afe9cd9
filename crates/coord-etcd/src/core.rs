//! What everything in this crate shares: the connection, the keys, the clock limits, the state of closing.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coord_api::{Error, Home, Owner, Result, Ttl, UpdateLocks, backend::Views};
use coord_grpc::Made;
use etcd_client::{KvClient, LeaseClient};
use tokio::{runtime, sync::watch};

use crate::{
    auth::Auth,
    background::Background,
    cluster::Refusal,
    commit::{Slots, Together},
    connect::Connection,
    group::Group,
    history::History,
    ids::HeldIds,
    keys::Keys,
    near::Near,
    queue::Queues,
    records::Records,
    session::{KeepAlives, Sessions},
    verify::Verifications,
    version::Versions,
    watch::hub::Hub,
};

/// The largest answer that is accepted: a page of config values, each of the largest size.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The shared core. Background tasks hold this; what users hold is a [`Shared`].
#[derive(Debug)]
pub(crate) struct Core {
    etcd: Etcd,
    pub(crate) keys: Keys,
    pub(crate) hub: Hub,
    pub(crate) auth: Option<Arc<Auth>>,
    pub(crate) sessions: Sessions,
    pub(crate) history: Arc<History>,
    pub(crate) verifications: Verifications,
    pub(crate) refusal: Refusal,
    made: Made,
    pub(crate) keep_alives: KeepAlives,
    pub(crate) slots: Slots,
    pub(crate) together: Together,
    pub(crate) group: Group,
    pub(crate) queues: Queues,
    pub(crate) runtime: runtime::Handle,
    pub(crate) request_timeout: Duration,
    /// How long one member has for one request, where there are others.
    pub(crate) try_limit: Option<Duration>,
    /// How many endpoints there are.
    pub(crate) members: usize,
    pub(crate) versions: Versions,
    pub(crate) close_timeout: Duration,
    pub(crate) id_ttl: Ttl,
    /// How this client calls itself in what it stores.
    pub(crate) owner: Owner,
    /// The same as it is stored in a place of ours, for people who look there.
    pub(crate) holder: Arc<[u8]>,
    pub(crate) records: Arc<Records>,
    pub(crate) views: Views,
    pub(crate) update_locks: UpdateLocks,
    /// The ids that this client may hold.
    pub(crate) held_ids: HeldIds,
    attempts: AtomicU64,
    /// The addresses of the members.
    addresses: Vec<String>,
    closed: watch::Sender<bool>,
}

/// The client library's handles; not `Debug`, since some of them print secrets.
struct Etcd {
    kv: KvClient,
    near: Option<Near>,
    lease: LeaseClient,
}

impl std::fmt::Debug for Etcd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Etcd").finish_non_exhaustive()
    }
}

/// What makes requests about keys over a client.
pub(crate) fn requests_of(client: &etcd_client::Client) -> KvClient {
    client.kv_client().max_decoding_message_size(MAX_ANSWER_BYTES)
}

/// The numbers that [`Core::new`] takes from the configuration.
pub(crate) struct Limits {
    pub(crate) request_timeout: Duration,
    pub(crate) try_limit: Option<Duration>,
    pub(crate) members: usize,
    pub(crate) addresses: Vec<String>,
    pub(crate) close_timeout: Duration,
    pub(crate) id_ttl: Ttl,
    pub(crate) label: Option<String>,
}

impl Core {
    pub(crate) fn new(
        connection: Connection,
        keys: Keys,
        limits: &Limits,
        runtime: runtime::Handle,
    ) -> Arc<Self> {
        let Connection { client, channel, near, auth, versions, made } = connection;
        let host = gethostname::gethostname();
        let unique = format!("{:08x}", fastrand::u32(..));
        let owner = Owner::new(host.to_string_lossy(), std::process::id(), limits.label.clone(), unique);
        let holder = serde_json::to_vec(&owner).expect("strings and numbers always serialize").into();
        Arc::new_cyclic(|core| Self {
            etcd: Etcd { kv: requests_of(&client), near, lease: client.lease_client() },
            keys,
            hub: Hub::start(&runtime, client.watch_client(), core.clone()),
            auth,
            sessions: Sessions::default(),
            history: Arc::default(),
            verifications: Verifications::default(),
            refusal: Refusal::default(),
            made,
            keep_alives: KeepAlives::new(channel, runtime.clone(), limits.request_timeout),
            slots: Slots::default(),
            together: Together::default(),
            group: Group::start(&runtime, core.clone()),
            queues: Queues::default(),
            runtime,
            request_timeout: limits.request_timeout,
            try_limit: limits.try_limit,
            members: limits.members,
            versions,
            close_timeout: limits.close_timeout,
            id_ttl: limits.id_ttl,
            owner,
            holder,
            records: Arc::default(),
            views: Views::default(),
            update_locks: UpdateLocks::new(),
            held_ids: HeldIds::default(),
            attempts: AtomicU64::new(1),
            addresses: limits.addresses.clone(),
            closed: watch::Sender::new(false),
        })
    }

    pub(crate) fn kv(&self) -> KvClient {
        self.etcd.kv.clone()
    }

    /// The short way, where it may be taken for the first try of a request.
    pub(crate) fn near_kv(&self) -> Option<KvClient> {
        self.etcd.near.as_ref().and_then(Near::kv)
    }

    pub(crate) fn lease(&self) -> LeaseClient {
        self.etcd.lease.clone()
    }

    /// A number that this client uses once.
    pub(crate) fn next_attempt(&self) -> u64 {
        self.attempts.fetch_add(1, Ordering::Relaxed)
    }

    /// The cluster, and the part of it that config values are in.
    pub(crate) fn home(&self) -> Home {
        let home = Home::new(self.keys.config_root(), self.addresses.iter().cloned());
        match self.history.cluster() {
            0 => home,
            cluster => home.of_store(format!("{cluster:x}")),
        }
    }

    /// The connections to members as they are made.
    pub(crate) fn made(&self) -> Made {
        self.made.clone()
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// `Ok` while the client is open, and its endpoints are of one cluster.
    pub(crate) fn check_open(&self) -> Result<()> {
        if self.is_closed() { Err(Error::Closed) } else { self.refusal.check() }
    }

    /// Waits until the client is closed.
    pub(crate) async fn closed(&self) {
        // The sender is a part of `self`, so this can not fail.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Marks the client closed: from here on nothing new begins, and every wait ends.
    pub(crate) fn mark_closed(&self) {
        self.closed.send_replace(true);
        self.hub.stop();
    }
}

/// What users' handles, guards and watches hold. When the last one is dropped, the leases are given back and
/// the background thread ends.
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    background: Background,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "etcd client {}", self.core.owner)
    }
}

impl Shared {
    pub(crate) fn new(core: Arc<Core>, background: Background) -> Arc<Self> {
        Arc::new(Self { core, background })
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let core = self.core.clone();
        self.background.stop_after(Box::pin(async move {
            if let Err(error) = core.shut_down().await {
                tracing::debug!(%error, "leases could not be given back and will expire");
            }
        }));
    }
}
