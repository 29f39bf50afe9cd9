//! The store: what etcd is elsewhere. One state under one mutex, which no one holds across an await.
//!
//! Every change of what is stored begins a new revision. What lives on a lease is a *place*, named by its
//! lease and the revision at which it was taken. A place is listed on its lease exactly as long as its entry
//! is in the store, so whoever frees a place by that name can never free someone else's.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use coord_api::{Entry, Hold, LockName, LossReason, Result, ServiceName, Version};
use tokio::time::Instant;

use crate::{
    Client, Options,
    ids::Pool,
    keys,
    lease::{LeaseId, StoredLease},
    lock::Contender,
    session::{ClientId, News, Session},
    watch::Log,
};

/// A coordination store in this process. Clones are the same store; each new one is empty.
///
/// ```
/// use coord_api::{ConfigExt, Provider};
/// use coord_memory::Store;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = Store::new();
/// store.client().config().set("limits/upload", &10).await?;
/// let seen = store.client().config().get::<u32>("limits/upload").await?;
/// assert_eq!(seen.expect("was set").value, 10);
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Store(Arc<Shared>);

/// What the keepers of clients share as well. They are tasks, which end a little after their clients: they
/// are not counted among those that the store lives for.
pub(crate) type Shared = Arc<Mutex<State>>;

impl Store {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client with the default [`Options`]: one process, as the store sees it.
    pub fn client(&self) -> Client {
        self.client_with(Options::default()).expect("the defaults are good")
    }

    /// A client with options of its own.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](coord_api::Error::InvalidArgument) with the field that can not be used.
    pub fn client_with(&self, options: Options) -> Result<Client> {
        Client::new(self.clone(), options)
    }

    /// A handle that does not keep the store.
    ///
    /// A store lives as long as a [`Store`], a [`Client`] or anything that keeps one: a guard, a
    /// registration, a watch.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = Store::new();
    /// let weak = store.downgrade();
    /// let guard = store.client().lock().acquire("nightly-report", Duration::from_secs(30)).await?;
    /// drop(store);
    /// assert!(weak.upgrade().is_some());
    /// drop(guard);
    /// assert!(weak.upgrade().is_none());
    /// # Ok(()) }
    /// ```
    pub fn downgrade(&self) -> WeakStore {
        WeakStore(Arc::downgrade(&self.0))
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// The state as it is now: what has expired is gone, and who has stalled long enough goes on.
    pub(crate) fn lock_now(&self) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        state.catch_up(Instant::now());
        state
    }
}

/// The state. A panic elsewhere must not make guards panic when they are dropped, hence no poisoning.
pub(crate) fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A [`Store`] that may be gone; see [`Store::downgrade`].
#[derive(Clone, Debug)]
pub struct WeakStore(Weak<Shared>);

impl WeakStore {
    /// The store, if anything still keeps it.
    pub fn upgrade(&self) -> Option<Store> {
        self.0.upgrade().map(Store)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Store")
            .field("revision", &state.revision)
            .field("clients", &state.sessions.len())
            .field("leases", &state.leases.len())
            .finish_non_exhaustive()
    }
}

/// The identity of a store, which no other one has, not even of a process that has the same id later.
pub(crate) struct Identity(u64);

impl Default for Identity {
    fn default() -> Self {
        static PROCESS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        static STORES: AtomicU64 = AtomicU64::new(0);
        Self(PROCESS.hash_one(STORES.fetch_add(1, Ordering::Relaxed)))
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "memory/{:016x}", self.0)
    }
}

/// All that is stored. Each area's rules are in the file of that area.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) identity: Identity,
    pub(crate) revision: u64,
    /// The services and the config, by store key.
    pub(crate) entries: BTreeMap<String, Stored>,
    pub(crate) log: Log,
    /// The queue of each lock that someone holds; the first one is the holder.
    pub(crate) locks: HashMap<LockName, VecDeque<Contender>>,
    /// The ids of each service that has been used.
    pub(crate) ids: HashMap<ServiceName, Pool>,
    /// The ids that rest, by the moment at which that ends.
    pub(crate) rests: BTreeSet<(Instant, ServiceName, u32)>,
    pub(crate) leases: BTreeMap<LeaseId, StoredLease>,
    /// The leases by the moment at which they end.
    pub(crate) expiries: BTreeSet<(Instant, LeaseId)>,
    /// The clients that have stalled, by the moment at which they go on.
    pub(crate) stalls: BTreeSet<(Instant, ClientId)>,
    /// The clients that have not been dropped.
    pub(crate) sessions: BTreeMap<ClientId, Session>,
    pub(crate) clients_opened: u64,
    pub(crate) leases_granted: u64,
}

/// One entry of the services or the config.
pub(crate) struct Stored {
    pub(crate) value: Bytes,
    pub(crate) revision: u64,
    /// Whose it is, if it lives on a lease.
    pub(crate) grip: Option<Grip>,
}

impl Stored {
    /// As users see it, under the name they know it by.
    pub(crate) fn entry(&self, name: String) -> Entry {
        Entry::new(name, Version::new(self.revision), self.value.clone())
    }
}

/// A place with its holder.
#[derive(Clone)]
pub(crate) struct Grip {
    pub(crate) client: ClientId,
    pub(crate) lease: LeaseId,
    /// When it was taken; with the lease it names the place.
    pub(crate) revision: u64,
    /// How the holder is told.
    pub(crate) hold: Hold,
}

/// What is at a place.
pub(crate) enum Item {
    /// A contender in this lock's queue.
    Lock(LockName),
    /// A waiter for an id of this service.
    IdWaiter(ServiceName),
    /// A taken id.
    Id(ServiceName, u32),
    /// The entry with this store key.
    Entry(String),
}

impl State {
    /// Begins a change.
    pub(crate) fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Writes an entry at the current revision.
    pub(crate) fn put(&mut self, key: String, value: Bytes, grip: Option<Grip>) {
        let revision = self.revision;
        self.log.push(revision, key.clone(), Some(value.clone()));
        self.entries.insert(key, Stored { value, revision, grip });
    }

    /// Deletes an entry at the current revision.
    pub(crate) fn delete(&mut self, key: &str) {
        if let Some((key, _)) = self.entries.remove_entry(key) {
            self.log.push(self.revision, key, None);
        }
    }

    /// Tells the holder of an entry, if it has one, that the entry is no longer its own.
    pub(crate) fn evict(&mut self, key: &str, reason: LossReason) {
        let Some(grip) = self.entries.get_mut(key).and_then(|stored| stored.grip.take()) else {
            return;
        };
        self.tell(grip.client, News::Hold(grip.hold, reason));
        if let Some(lease) = self.leases.get_mut(&grip.lease) {
            lease.remove(grip.revision);
        }
    }

    /// Every key, in order.
    pub(crate) fn keys(&self) -> Vec<String> {
        let queued = self
            .locks
            .iter()
            .flat_map(|(name, queue)| queue.iter().map(|one| keys::lock(name, one.grip.revision)));
        let ids = self.ids.iter().flat_map(|(service, pool)| pool.taken().map(|id| keys::id(service, id)));
        let mut keys: Vec<_> = self.entries.keys().cloned().chain(queued).chain(ids).collect();
        keys.sort_unstable();
        keys
    }
}
