//! Instance ids: small numbers, unique among the living instances of a service.

use std::{
    fmt,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;

use crate::{Error, Hold, Lost, Owner, Result, backend::Stamps, mutex::lock};

/// The instance ids of a store: allocators, and who holds what.
///
/// [`Provider::instance_id_allocator`](crate::Provider::instance_id_allocator) is the short form of
/// [`allocator`](Self::allocator).
///
/// # Cancel safety
/// Every future here may be dropped at any point.
///
/// # Example
/// ```
/// use coord_api::{IdOptions, InstanceIdAllocator, InstanceIds, Provider};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let ids = coord_memory::Store::new().client().instance_ids();
/// let allocator = ids.allocator(IdOptions::new("im-gateway", 1023).identity("10.0.1.10:8080"))?;
/// let id = allocator.acquire_id().await?;
/// let holders = ids.holders("im-gateway").await?;
/// assert_eq!((holders[0].id, holders[0].identity.as_deref()), (id, Some("10.0.1.10:8080")));
/// # Ok(()) }
/// ```
#[async_trait]
pub trait InstanceIds: fmt::Debug + Send + Sync {
    /// An allocator as `options` say. Keep it: it holds the id.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the field that can not be used; [`Error::Closed`] after close.
    fn allocator(&self, options: IdOptions) -> Result<Arc<dyn InstanceIdAllocator>>;

    /// Returns who holds which id of a service, ordered by id, as of one moment. Ids that rest are left out.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad name; others as the store answers.
    async fn holders(&self, service: &str) -> Result<Vec<IdHolder>>;
}

/// Gives this process at most one id out of `1..max_id`.
///
/// # Contract
/// - No two holders have one id at the same time, by their own belief: [`lost`](Self::lost) fires before
///   the id is given to anyone else. A lost id never comes back; the next `acquire_id` may give another.
/// - The id lives on a lease that coord renews. An id that was released or lost, or whose holder crashed,
///   rests for the [quarantine](IdOptions::quarantine) before anyone else gets it.
/// - An allocator holds at most one id. Several allocators, also of one process, hold different ids. Which of
///   the free ids one gets is not promised, but to the [identity](IdOptions::identity) that had it last.
/// - **Fair.** Callers that wait with `acquire_id` and the same `max_id` are served in the order in which
///   they asked, also across processes.
/// - Services never meet: the same id may be held once in each.
/// - Allocators of one service may have different bounds, for example while a new version is rolled out. An id
///   above the bound of others is held as any other; they never get it.
///
/// # Cancel safety
/// Every future here may be dropped at any point: no id stays taken by nobody.
///
/// # Example
/// ```
/// use coord_api::{InstanceIdAllocator, Provider};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = coord_memory::Store::new();
/// let allocator = store.client().instance_id_allocator("im-gateway", 1023)?;
/// let id = allocator.acquire_id().await?;
/// assert_eq!(allocator.id(), Some(id));
/// println!("gochat.messages.downstream.{id}");
/// allocator.release_id().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait InstanceIdAllocator: fmt::Debug + Send + Sync {
    /// Waits until an id is free and takes it. Returns the id that is held already, if one is.
    ///
    /// A caller goes on waiting when its lease or the way to the store is lost, and queues again when it is
    /// back.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed), [`Error::Unavailable`](crate::Error::Unavailable),
    /// [`Error::Timeout`](crate::Error::Timeout); nothing stays taken.
    async fn acquire_id(&self) -> Result<NonZeroU32>;

    /// Takes an id if one is free now. Returns the id that is held already, if one is.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted) when every id is taken; others as
    /// [`acquire_id`](Self::acquire_id).
    async fn try_acquire_id(&self) -> Result<NonZeroU32>;

    /// The id that is held now; `None` before it is acquired, after it is released and once it is lost.
    fn id(&self) -> Option<NonZeroU32>;

    /// A future of the loss of the id that was acquired last; `None` if there is none.
    fn lost(&self) -> Option<Lost>;

    /// The id that is held now, to bind something to this very hold: a [`Snowflake`](crate::Snowflake).
    fn held(&self) -> Option<HeldId>;

    /// Gives the id back. Without an id this is `Ok`.
    ///
    /// # Errors
    /// [`Error::Lost`](crate::Error::Lost) if the id was no longer held: it is not touched, someone else may
    /// have it. On any other error the release goes on in the background.
    async fn release_id(&self) -> Result<()>;
}

/// The longest identity in bytes.
pub const MAX_IDENTITY_BYTES: usize = 255;

/// The longest quarantine.
pub const MAX_QUARANTINE: Duration = Duration::from_secs(24 * 60 * 60);

/// Which ids an allocator gives, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdOptions {
    /// Among whose instances the ids are unique.
    pub service: String,
    /// The exclusive upper bound: ids are 1 to `max_id - 1`.
    pub max_id: u32,
    /// See [`identity`](Self::identity).
    pub identity: Option<String>,
    /// See [`quarantine`](Self::quarantine).
    pub quarantine: Option<Duration>,
}

impl IdOptions {
    /// Ids of `1..max_id` among the instances of `service`.
    pub fn new(service: impl Into<String>, max_id: u32) -> Self {
        Self { service: service.into(), max_id, identity: None, quarantine: None }
    }

    /// Names the instance, for example by `host:port` or its pod. After a restart it gets the id that it had
    /// last, if that is free or rests. At any time at most one process may use an identity. If it had
    /// crashed, its id is held until the lease is over, and it gets another one before that.
    #[must_use]
    pub fn identity(mut self, identity: impl Into<String>) -> Self {
        self.identity = Some(identity.into());
        self
    }

    /// How long a released or lost id rests before someone else gets it; the TTL of ids by default, rounded up
    /// to whole seconds. An id whose holder vanished rests for at least one TTL, since its holder may believe in
    /// it for as long.
    #[must_use]
    pub fn quarantine(mut self, quarantine: Duration) -> Self {
        self.quarantine = Some(quarantine);
        self
    }
}

/// Holder of an id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IdHolder {
    /// The id.
    pub id: NonZeroU32,
    /// The client that holds it; `None` for a program that does not say who it is.
    pub owner: Option<Owner>,
    /// The identity that it named.
    pub identity: Option<String>,
    /// Since when, by the holder's own clock.
    pub since: Option<SystemTime>,
}

impl IdHolder {
    /// A holder, for backends.
    pub fn new(
        id: NonZeroU32,
        owner: Option<Owner>,
        identity: Option<String>,
        since: Option<SystemTime>,
    ) -> Self {
        Self { id, owner, identity, since }
    }
}

/// Hold of one id: stays lost when its allocator acquires another. It does not keep the id.
#[derive(Clone, Debug)]
pub struct HeldId {
    id: NonZeroU32,
    /// The exclusive upper bound of the ids that its allocator may get.
    bound: u32,
    hold: Hold,
    stamps: Arc<dyn Stamps>,
    numbers: Arc<Mutex<Numbers>>,
}

/// Knowledge about the numbers that are made with a hold.
#[derive(Debug)]
struct Numbers {
    /// Up to when some may have been made, by this holder or those before, in milliseconds since 1970.
    until: Option<u64>,
    /// Whether somebody makes more.
    being_made: bool,
}

impl HeldId {
    /// A hold, for backends. `stamped` is up to when holders before it may have stamped data.
    pub(crate) fn new(id: NonZeroU32, hold: Hold, stamps: Arc<dyn Stamps>, stamped: Option<u64>) -> Self {
        let numbers = Numbers { until: stamped, being_made: false };
        let bound = id.get().saturating_add(1);
        Self { id, bound, hold, stamps, numbers: Arc::new(Mutex::new(numbers)) }
    }

    /// Returns the hold, of an allocator of ids below `bound`.
    pub(crate) fn below(self, bound: u32) -> Self {
        Self { bound: bound.max(self.bound), ..self }
    }

    /// The id.
    pub fn id(&self) -> NonZeroU32 {
        self.id
    }

    /// `Ok` while it is held.
    ///
    /// # Errors
    /// [`Error::Lost`] once lost or released.
    pub fn check(&self) -> Result<()> {
        self.hold.check()
    }

    /// Returns whether it is lost or released.
    pub fn is_lost(&self) -> bool {
        self.hold.loss().is_some()
    }

    /// A future of the loss.
    pub fn lost(&self) -> Lost {
        self.hold.lost()
    }

    /// The exclusive upper bound of the ids that its allocator may get.
    pub(crate) fn bound(&self) -> u32 {
        self.bound
    }

    /// The key in the store that says up to when data may have been stamped with the id.
    pub(crate) fn mark(&self) -> String {
        self.stamps.key()
    }

    /// Returns how long a hold lasts without renewals.
    pub(crate) fn ttl(&self) -> Duration {
        self.hold.lease().ttl()
    }

    /// Begins to make numbers with this hold. A single generator does at a time: two would make equal
    /// numbers.
    pub(crate) fn make_numbers(&self) -> Result<Numbering> {
        let Numbers { until, being_made } = &mut *numbers(&self.numbers);
        if std::mem::replace(being_made, true) {
            let reason = "its id is in use by a `Snowflake`: share that one, or end it first";
            return Err(Error::invalid("allocator", reason));
        }
        Ok(Numbering { after: *until, numbers: self.numbers.clone() })
    }

    /// Stores that this holder stamps data up to `until` at least, in milliseconds since 1970.
    pub(crate) async fn stamp(&self, until: u64) -> Result<()> {
        self.check()?;
        self.stamps.stamp(until).await
    }

    /// Stores that this holder stamped data up to `until` and will stamp no more.
    pub(crate) async fn settle(&self, until: u64) -> Result<()> {
        self.check()?;
        self.stamps.settle(until).await
    }
}

fn numbers(numbers: &Mutex<Numbers>) -> MutexGuard<'_, Numbers> {
    lock(numbers)
}

/// The right to make numbers with a hold, until it is dropped.
#[derive(Debug)]
pub(crate) struct Numbering {
    after: Option<u64>,
    numbers: Arc<Mutex<Numbers>>,
}

impl Numbering {
    /// Up to when numbers may have been made before, in milliseconds since 1970.
    pub(crate) fn after(&self) -> Option<u64> {
        self.after
    }

    /// Takes note that numbers were made up to this time, in milliseconds since 1970.
    pub(crate) fn made(&self, until: u64) {
        let mut numbers = numbers(&self.numbers);
        numbers.until = numbers.until.max(Some(until));
    }
}

impl Drop for Numbering {
    fn drop(&mut self) {
        numbers(&self.numbers).being_made = false;
    }
}

/// Checks the bound of a range of ids.
///
/// # Errors
/// [`Error::InvalidArgument`](crate::Error::InvalidArgument) below 2 (the range would be empty) or above
/// [`MAX_MAX_ID`].
pub fn check_max_id(max_id: u32) -> Result<()> {
    if (2..=MAX_MAX_ID).contains(&max_id) {
        return Ok(());
    }
    let reason = format!("{max_id} is not within 2 and {MAX_MAX_ID}; ids are 1 to max_id - 1");
    Err(Error::invalid("max_id", reason))
}

/// The largest `max_id`: 2^20, a generous bound for instances of one service.
pub const MAX_MAX_ID: u32 = 1 << 20;
