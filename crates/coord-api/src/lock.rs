//! Distributed locks that tell their holder when they are lost.

use std::{collections::BTreeMap, fmt, pin::pin, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Error, Fence, LockName, Lost, Owner, Result,
    backend::Place,
    fence::{Fenced, HasFence},
};

/// Mutual exclusion between processes, and between tasks of one process.
///
/// # Contract
/// - **Exclusive and fair.** The first to ask gets the lock first, across processes and across tasks of one
///   process. Locks are not reentrant: a task that acquires twice waits for itself.
/// - **Handed on at once** to the next in the queue if that is a task of the same client, also while the
///   store can not be reached. Others get it when the store has freed it.
/// - **Waiting holds nothing.** A waiter outlasts outages and lost leases: it takes another place in the
///   queue, behind those who came meanwhile. [`Error::Lost`] is about a lock that was held.
/// - **Leased.** A held lock lives on a lease of `ttl` that coord renews. `ttl` is 1 s to 24 h, fractions
///   are rounded up, and [`LockGuard::ttl`] tells what the store granted.
/// - **Loss is told.** When renewals fail, [`LockGuard::lost`] fires before anyone else can get the lock. A
///   lost lock never comes back.
/// - **Fenced.** Each holder of a name has a [`FencingToken`] larger than every holder's before it.
/// - Names follow the rule of [`LockName`]; a name and a path below it are two locks.
///
/// # Cancel safety
/// Every future here may be dropped at any point: nothing stays queued, held or stored.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use coord_api::{DistributedLock, Provider};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = coord_memory::Store::new();
/// let locks = store.client().lock();
/// let guard = locks.acquire("nightly-report", Duration::from_secs(30)).await?;
/// assert!(locks.try_acquire("nightly-report", Duration::from_secs(30)).await?.is_none());
/// guard.run(async { /* work for one process at a time */ }).await?;
/// guard.unlock().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait DistributedLock: fmt::Debug + Send + Sync {
    /// Waits in the queue until the lock is free, then holds it.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] before anything is sent;
    /// - [`Error::Closed`];
    /// - [`Error::Unavailable`] or [`Error::Timeout`] when the store could not be reached when it was asked
    ///   first. Nothing stays behind then.
    ///
    /// Once it stands in the queue an outage only lets it wait: it takes another place when its own is lost.
    /// It answers only errors that waiting does not mend, as [`Error::PermissionDenied`].
    async fn acquire(&self, name: &str, ttl: Duration) -> Result<LockGuard>;

    /// Takes the lock if it is free now; `None` if someone holds it or waits for it. A place that this client has given
    /// up before does not count: the store is asked when that one is gone.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    async fn try_acquire(&self, name: &str, ttl: Duration) -> Result<Option<LockGuard>>;

    /// Waits in the queue for `wait` at most. `None` only if the store has said that others are before, for which it
    /// has half a second at least. [`acquire_within`](DistributedLockExt::acquire_within) is what users call.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire), but [`Error::Unavailable`] and [`Error::Timeout`] only when the time is over.
    async fn acquire_waiting(&self, name: &str, ttl: Duration, wait: Duration) -> Result<Option<LockGuard>>;

    /// Returns the queue of a lock as it is now, in order: the first holds it, the others wait.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Closed`], [`Error::Unavailable`], [`Error::Timeout`].
    async fn holders(&self, name: &str) -> Result<Vec<Holder>>;

    /// Every lock that someone holds or waits for, with its queue as [`holders`](Self::holders) tells it, as they were
    /// at one moment. For people who look after a store: it reads all places of all queues.
    ///
    /// # Errors
    /// As [`holders`](Self::holders).
    async fn queues(&self) -> Result<BTreeMap<String, Vec<Holder>>>;
}

/// Place in the queue of a lock.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Owner; `None` for a place of another program, which does not say.
    pub owner: Option<Owner>,
    /// Its key in the store.
    pub key: String,
    /// The fencing token that it has, or will have when its turn comes.
    pub token: FencingToken,
}

impl Holder {
    /// A place as a backend found it.
    pub fn new(owner: Option<Owner>, key: impl Into<String>, token: FencingToken) -> Self {
        Self { owner, key: key.into(), token }
    }
}

/// Sugar over every [`DistributedLock`].
pub trait DistributedLockExt: DistributedLock {
    /// Waits at most `wait` for the lock; `None` if the store has said that others are before. A wait of zero is
    /// [`try_acquire`](DistributedLock::try_acquire). Within its time it outlasts outages, also at the beginning.
    ///
    /// # Errors
    /// As [`acquire`](DistributedLock::acquire). A store that does not answer in the time is no contention
    /// but [`Error::Unavailable`] or [`Error::Timeout`]. It has half a second at least, however short `wait`
    /// is.
    ///
    /// # Cancel safety
    /// As [`acquire`](DistributedLock::acquire).
    ///
    /// # Example
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, DistributedLockExt, Error, Provider};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = coord_memory::Store::new().client();
    /// let (locks, ttl) = (client.lock(), Duration::from_secs(30));
    /// let guard = locks.acquire_within("nightly-report", ttl, Duration::ZERO).await?.expect("is free");
    /// let wait = Duration::from_millis(100);
    /// assert!(locks.acquire_within("nightly-report", ttl, wait).await?.is_none(), "others are before");
    /// client.disconnect();
    /// let answer = locks.acquire_within("nightly-report", ttl, wait).await;
    /// assert!(matches!(answer, Err(Error::Unavailable { .. })), "nobody knows");
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    fn acquire_within(
        &self,
        name: &str,
        ttl: Duration,
        wait: Duration,
    ) -> impl Future<Output = Result<Option<LockGuard>>> + Send {
        async move {
            if wait.is_zero() {
                self.try_acquire(name, ttl).await
            } else {
                self.acquire_waiting(name, ttl, wait).await
            }
        }
    }
}

impl<L: DistributedLock + ?Sized> DistributedLockExt for L {}

/// A number that grows from each holder of a lock to the next.
///
/// A write to the config center is fenced by [`Batch::while_held`](crate::Batch::while_held). To a resource
/// outside the store give the token along with every request. A resource is safe from a frozen holder that
/// does not know yet that it lost, if it does two things. It remembers the largest token that it has seen, on
/// reads as well as on writes, and refuses smaller ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// A token from a backend's counter.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Fence for LockGuard {}

impl HasFence for LockGuard {
    fn fenced(&self) -> Fenced<'_> {
        Fenced { key: &self.key, token: self.token, hold: self.place.hold() }
    }
}

/// A held lock. [`unlock`](Self::unlock) gives it back and says whether it was still held; dropping the
/// guard gives it back as well, in the background.
#[must_use = "dropping the guard releases the lock"]
#[derive(Debug)]
pub struct LockGuard {
    name: LockName,
    key: String,
    token: FencingToken,
    place: Place,
}

impl LockGuard {
    /// A guard over a place that a backend holds.
    pub fn new(name: LockName, key: String, token: FencingToken, place: Place) -> Self {
        Self { name, key, token, place }
    }

    /// The lock's name.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// The key of this holder in the store, for people who look there. The caller may make writes depend on
    /// the token. So the lock is given to the next only when the store has freed it, also within a process.
    pub fn key(&self) -> &str {
        self.place.hold().fences();
        &self.key
    }

    /// The fencing token of this holder.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The time to live that the store granted; at least what was asked for.
    pub fn ttl(&self) -> Duration {
        self.place.hold().lease().ttl()
    }

    /// Returns how long the lock is certainly held without another renewal; zero once lost.
    pub fn remaining(&self) -> Duration {
        if self.is_lost() { Duration::ZERO } else { self.place.hold().lease().remaining() }
    }

    /// A future of the loss, to be selected against work that runs elsewhere.
    pub fn lost(&self) -> Lost {
        self.place.hold().lost()
    }

    /// Returns whether the lock is lost. Exact at the moment of the call, also right after a freeze.
    pub fn is_lost(&self) -> bool {
        self.place.hold().loss().is_some()
    }

    /// `Ok` while the lock is held.
    ///
    /// # Errors
    /// [`Error::Lost`] once it is lost.
    pub fn check(&self) -> Result<()> {
        self.place.hold().check()
    }

    /// Runs `work` as long as the lock is held.
    ///
    /// # Errors
    /// [`Error::Lost`] as soon as the lock is lost; `work` is dropped at its current await point then.
    ///
    /// # Cancel safety
    /// Dropping this future drops `work`; the lock stays held by the guard.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output> {
        let work = pin!(work);
        tokio::select! {
            biased;
            reason = self.lost() => Err(Error::Lost { reason }),
            output = work => self.place.hold().check().map(|()| output),
        }
    }

    /// Gives the lock back and waits until the store has freed it. The next in the queue need not wait for that if it is
    /// a task of the same client, unless [`key`](Self::key) or [`while_held`](crate::Batch::while_held) was called.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was no longer held. On any other error the release goes on in the background
    /// until the store has it or the lease is over.
    ///
    /// # Cancel safety
    /// Once called the lock is given back, also if this future is dropped.
    pub async fn unlock(self) -> Result<()> {
        self.place.give_back().await
    }
}
