//! The entry point: one provider per process and store.

use std::{fmt, sync::Arc};

use async_trait::async_trait;

use crate::{
    ConfigCenter, DistributedLock, Elections, Health, InstanceIdAllocator, InstanceIds, LeaseHealth, Result,
    ServiceRegistry,
};

/// Client of a coordination store. Code that takes an `Arc<dyn Provider>` runs on every backend.
///
/// # Contract
/// - [`close`](Self::close) may be called often and by many:
/// - it gives back every lock, id and registration of this provider,
/// - it wakes every waiter with [`Error::Closed`](crate::Error::Closed), fires every `lost()`, and ends every
///   watch,
/// - it returns within the configured close timeout.
/// - After `close` every call answers [`Error::Closed`](crate::Error::Closed); a bad argument is still
///   [`Error::InvalidArgument`](crate::Error::InvalidArgument).
/// - Dropping the last handle does the same in the background, as far as it can. Leases that could not be
///   given back are freed by the store when they expire.
///
/// # Example
/// ```
/// use std::{sync::Arc, time::Duration};
/// use coord_api::{ConfigExt, Provider};
///
/// async fn count_start(provider: Arc<dyn Provider>) -> coord_api::Result<u64> {
///     let guard = provider.lock().acquire("starts", Duration::from_secs(10)).await?;
///     let config = provider.config();
///     let starts = config.get::<u64>("starts").await?.map_or(0, |found| found.value) + 1;
///     config.set("starts", &starts).await?;
///     guard.unlock().await?;
///     Ok(starts)
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = coord_memory::Store::new();
/// assert_eq!(count_start(Arc::new(store.client())).await?, 1);
/// assert_eq!(count_start(Arc::new(store.client())).await?, 2);
/// # Ok(()) }
/// ```
#[async_trait]
pub trait Provider: fmt::Debug + Send + Sync {
    /// The locks of this store.
    fn lock(&self) -> Arc<dyn DistributedLock>;

    /// The elections of this store.
    fn elections(&self) -> Arc<dyn Elections>;

    /// The service registry of this store.
    fn registry(&self) -> Arc<dyn ServiceRegistry>;

    /// The config center of this store.
    fn config(&self) -> Arc<dyn ConfigCenter>;

    /// The instance ids of this store.
    fn instance_ids(&self) -> Arc<dyn InstanceIds>;

    /// An allocator of ids `1..max_id` among the instances of `service`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a bad name or a bound that is not
    /// within 2 and 2^20; [`Error::Closed`](crate::Error::Closed) after close.
    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>>;

    /// Returns the health of this provider's leases, as it sees them without asking the store: that of the
    /// worst; healthy if there are none. It is lost until the store is known to have freed the lease. For
    /// metrics and readiness probes; what a single lock or id is worth, its own `lost()` tells.
    fn lease_health(&self) -> LeaseHealth;

    /// Checks whether the store answers, with the time of one linearizable read, and the health of the
    /// leases. It is for readiness probes, and answers within [`HEALTH_LIMIT`](crate::HEALTH_LIMIT) whatever
    /// the store does. Not for a liveness probe: a new process would not find the store either, and lose what
    /// this one holds.
    ///
    /// # Errors
    /// [`Error::Closed`](crate::Error::Closed) after close. Any other says why the store does not answer this client:
    /// [`Error::Unavailable`](crate::Error::Unavailable), [`Error::Timeout`](crate::Error::Timeout), or that it does not
    /// let the client in. The leases may be held all the same, as [`lease_health`](Self::lease_health) tells.
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    ///
    /// ```
    /// use coord_api::Provider;
    ///
    /// async fn is_ready(provider: &dyn Provider) -> bool {
    ///     provider.health().await.is_ok_and(|health| health.is_ready())
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = coord_memory::Store::new().client();
    /// assert!(is_ready(&client).await);
    /// client.close().await?;
    /// assert!(!is_ready(&client).await);
    /// # Ok(()) }
    /// ```
    async fn health(&self) -> Result<Health>;

    /// Gives back everything and ends every wait; see the contract above.
    ///
    /// # Errors
    /// [`Error::Unavailable`](crate::Error::Unavailable) or [`Error::Timeout`](crate::Error::Timeout) when
    /// the store could not be told. The provider is closed all the same, and the store frees what is left
    /// when its leases expire.
    async fn close(&self) -> Result<()>;
}
