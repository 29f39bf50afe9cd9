//! Service registration and discovery.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;

use crate::{Registration, Result, ServiceInfo, ServiceView, Version, Watch};

/// Where the instances of each service are.
///
/// # Contract
/// - A registration lives on a lease of `ttl` that coord renews. When the lease is lost, or the entry is
///   deleted from outside, it is registered again, with its latest metadata. This goes on for as long as its
///   [`Registration`] lives; [`Registration::status`] tells.
/// - An instance id belongs to the client that registered it. Another client is refused
///   ([`Error::AlreadyRegistered`](crate::Error::AlreadyRegistered)); the same client takes its own over.
/// - A [`view`](Self::view) and a [`watch`](Self::watch) keep the last known instances while the store is away.
/// - [`discover`](Self::discover) is linearizable: it sees every registration that was answered before.
/// - Services `im-logic` and `im-logic-2`, or `a` and `a/b`, never see each other's instances.
///
/// # Cancel safety
/// Every future here may be dropped at any point: an unfinished registration leaves nothing behind.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use coord_api::{Provider, ServiceInfo, ServiceRegistry};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = coord_memory::Store::new();
/// let registry = store.client().registry();
/// let me = ServiceInfo::new("im-logic", "im-logic-1", "10.0.1.10", 8080).with("region", "us-east-1");
/// let registration = registry.register(me, Duration::from_secs(30)).await?;
/// for instance in registry.discover("im-logic").await? {
///     println!("{} at {}", instance.id, instance.authority());
/// }
/// registration.deregister().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait ServiceRegistry: fmt::Debug + Send + Sync {
    /// Registers an instance and keeps it registered until the [`Registration`] is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) or [`Error::TooLarge`](crate::Error::TooLarge) before anything is sent;
    /// [`Error::AlreadyRegistered`](crate::Error::AlreadyRegistered) with the owner; [`Error::Closed`](crate::Error::Closed), [`Error::Unavailable`](crate::Error::Unavailable),
    /// [`Error::Timeout`](crate::Error::Timeout), after which nothing stays behind.
    async fn register(&self, service: ServiceInfo, ttl: Duration) -> Result<Registration>;

    /// The instances that are registered now, ordered by id. Records that can not be decoded are left out,
    /// with a warning in the log; [`watch`](Self::watch) reports them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument), [`Error::Closed`](crate::Error::Closed), [`Error::Unavailable`](crate::Error::Unavailable), [`Error::Timeout`](crate::Error::Timeout).
    async fn discover(&self, service: &str) -> Result<Vec<ServiceInfo>>;

    /// Every service that has an instance now, with its instances as [`discover`](Self::discover) tells them, as they
    /// were at one moment. For people who look after a store: it reads all records of all services.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    async fn services(&self) -> Result<BTreeMap<String, Vec<ServiceInfo>>>;

    /// Watches the instances of a service; see [`Watch`] for what is promised.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>>;

    /// The instances of a service, kept up to date; see [`ServiceView`] for what is promised. The first view of a
    /// service reads the instances, those after it share its list.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    async fn view(&self, service: &str) -> Result<ServiceView>;
}

/// Change of a service's instances.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ServiceEvent {
    /// All instances at one moment, ordered by id; replaces all that was known.
    Snapshot {
        /// The store's revision of the snapshot.
        version: Version,
        /// The instances.
        instances: Vec<ServiceInfo>,
    },
    /// A new instance.
    Added(ServiceInfo),
    /// An instance changed its record.
    Updated {
        /// The record before.
        old: ServiceInfo,
        /// The record now.
        new: ServiceInfo,
    },
    /// An instance is gone; this was its last record.
    Removed(ServiceInfo),
}
