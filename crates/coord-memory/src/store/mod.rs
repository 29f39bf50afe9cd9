//! The store: what etcd is elsewhere. Its state is under one mutex, which no one holds across an await.

mod changes;
pub(crate) mod faults;
mod lease;
mod pairs;
mod raw;
mod state;
mod trace;
mod txn;
mod watchers;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use coord_api::Result;
use tokio::time::Instant;

use crate::{Client, Options};

pub(crate) use state::{ClientId, State};
pub(crate) use txn::MOST_OPERATIONS;
pub(crate) use watchers::{Look, StreamId};

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

/// The state, which tasks of clients share as well. They end a little after their clients: they are not counted among those
/// that the store lives for.
#[derive(Clone, Default)]
pub(crate) struct Shared(Arc<Mutex<State>>);

impl Shared {
    /// Returns the state. A panic elsewhere must not make guards panic when they are dropped, hence no poisoning.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the state as it is now, and the present.
    pub(crate) fn lock_now(&self) -> (MutexGuard<'_, State>, Instant) {
        let mut state = self.lock();
        let now = Instant::now();
        state.catch_up(now);
        (state, now)
    }
}

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

    /// Returns the way of a new client, below coord: for tests that compare stores.
    #[doc(hidden)]
    pub fn bare(&self) -> Arc<dyn coord_kv::store::Store> {
        Arc::new(crate::network::Network::join(self.shared().clone()))
    }

    /// Forgets the history of changes, of which watches that are up to date take no note.
    #[doc(hidden)]
    pub fn forget_changes(&self) {
        self.lock_now().forget_changes();
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.0
    }

    fn lock_now(&self) -> MutexGuard<'_, State> {
        self.0.lock_now().0
    }
}

/// A [`Store`] that may be gone; see [`Store::downgrade`].
#[derive(Clone)]
pub struct WeakStore(Weak<Shared>);

impl WeakStore {
    /// The store, if anything still keeps it.
    pub fn upgrade(&self) -> Option<Store> {
        self.0.upgrade().map(Store)
    }
}

impl fmt::Debug for WeakStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WeakStore")
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lock_now().fmt(f)
    }
}
