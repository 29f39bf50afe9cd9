//! A service's instances, kept up to date and read in nanoseconds.

use std::{fmt, ops::Deref, sync::Arc};

use arc_swap::ArcSwap;
use tokio::{sync::watch, task::AbortHandle};

use crate::{Connectivity, Error, Freshness, Result, ServiceEvent, ServiceInfo, ServiceName};

/// The instances of a service at one moment, ordered by id. It never changes; a [`ServiceView`] replaces it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Instances(Vec<Arc<ServiceInfo>>);

impl Instances {
    /// The instance with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<ServiceInfo>> {
        self.find(id).ok().map(|index| &self.0[index])
    }

    fn find(&self, id: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|instance| instance.id.as_str().cmp(id))
    }

    pub(crate) fn apply(&mut self, event: ServiceEvent) {
        match event {
            ServiceEvent::Snapshot { instances, .. } => *self = instances.into_iter().map(Arc::new).collect(),
            ServiceEvent::Added(instance) | ServiceEvent::Updated { new: instance, .. } => {
                let found = self.find(&instance.id);
                match found {
                    Ok(index) => self.0[index] = Arc::new(instance),
                    Err(index) => self.0.insert(index, Arc::new(instance)),
                }
            }
            ServiceEvent::Removed(instance) => {
                if let Ok(index) = self.find(&instance.id) {
                    self.0.remove(index);
                }
            }
        }
    }
}

impl Deref for Instances {
    type Target = [Arc<ServiceInfo>];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// In the order of their ids.
impl FromIterator<Arc<ServiceInfo>> for Instances {
    fn from_iter<I: IntoIterator<Item = Arc<ServiceInfo>>>(instances: I) -> Self {
        let mut instances: Vec<_> = instances.into_iter().collect();
        // Hardly any work where they are in order already.
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        Self(instances)
    }
}

/// The instances of a service as they are now; from [`ServiceRegistry::view`](crate::ServiceRegistry::view).
///
/// Clones are cheap. All views of a service that come from one provider share one list and one watch, which
/// ends with the last of them.
///
/// # Contract
/// - [`instances`](Self::instances) waits for nothing: neither for the store nor for who updates the list.
/// - The list follows the registry as a [`Watch`](crate::Watch) does, and so is behind it by the time that an event
///   takes. [`discover`](crate::ServiceRegistry::discover) asks the store.
/// - While the store is away or refuses the watch, and after the provider was closed, the last list stays.
///   [`freshness`](Self::freshness) tells for how long it has not been kept up to date.
/// - An instance whose record is overwritten with something that can not be read stays as it was, with a warning
///   in the log.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use coord_api::{Provider, ServiceInfo, ServiceRegistry};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let registry = coord_memory::Store::new().client().registry();
/// let view = registry.view("im-logic").await?;
/// assert!(view.instances().is_empty());
///
/// let me = ServiceInfo::new("im-logic", "im-logic-1", "10.0.1.10", 8080);
/// let registration = registry.register(me, Duration::from_secs(30)).await?;
/// for instance in view.ready().await?.iter() {
///     println!("{} at {}", instance.id, instance.authority());
/// }
/// assert!(view.freshness().is_fresh());
/// # registration.deregister().await
/// # }
/// ```
#[derive(Clone)]
pub struct ServiceView {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
}

/// State that all views of a service share. Dropping it ends the task that keeps it up to date.
pub(crate) struct Shared {
    pub(crate) service: ServiceName,
    pub(crate) instances: Arc<ArcSwap<Instances>>,
    pub(crate) changes: watch::Receiver<()>,
    pub(crate) connectivity: Connectivity,
    pub(crate) keeper: AbortHandle,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl Shared {
    /// Returns whether the list can still change.
    pub(crate) fn is_kept(&self) -> bool {
        self.changes.has_changed().is_ok()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.service).finish()
    }
}

impl ServiceView {
    pub(crate) fn of(shared: Arc<Shared>) -> Self {
        Self { changes: shared.changes.clone(), shared }
    }

    /// The name of the service.
    pub fn service(&self) -> &str {
        self.shared.service.as_str()
    }

    /// The instances now.
    pub fn instances(&self) -> Arc<Instances> {
        self.shared.instances.load_full()
    }

    /// As [`instances`](Self::instances), for a short look: no counter is shared between threads, so many of them may
    /// look in tight loops without slowing each other.
    pub fn look<R>(&self, look: impl FnOnce(&Instances) -> R) -> R {
        look(&self.shared.instances.load())
    }

    /// Returns whether the list is kept up to date, and if not, for how long it has not been.
    pub fn freshness(&self) -> Freshness {
        self.shared.connectivity.freshness()
    }

    /// A handle that tells when the [`freshness`](Self::freshness) changes. It does not keep the view.
    pub fn connectivity(&self) -> Connectivity {
        self.shared.connectivity.clone()
    }

    /// Waits until there is an instance, and returns all.
    ///
    /// # Errors
    /// [`Error::Closed`] when the provider is closed first.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn ready(&self) -> Result<Arc<Instances>> {
        let mut changes = self.shared.changes.clone();
        loop {
            changes.mark_unchanged();
            let instances = self.instances();
            if !instances.is_empty() {
                return Ok(instances);
            }
            changes.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// Waits until the instances are not as this handle last told by this method (or when it was made), and
    /// returns them. Quick changes are seen as one.
    ///
    /// # Errors
    /// [`Error::Closed`] when the provider is closed; nothing changes any more.
    ///
    /// # Cancel safety
    /// May be dropped and called again: no change is lost.
    pub async fn changed(&mut self) -> Result<Arc<Instances>> {
        self.changes.changed().await.map_err(|_| Error::Closed)?;
        Ok(self.instances())
    }
}

impl fmt::Debug for ServiceView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceView")
            .field("service", &self.service())
            .field("instances", &self.instances().len())
            .field("freshness", &self.freshness())
            .finish()
    }
}
