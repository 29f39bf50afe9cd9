//! Sharing of live values: all values with no rules but their key are one, found in a cache of weak references.

use std::{any::Any, sync::Arc, time::Duration};

use coord_api::{ConfigCenter, Version, backend::WeakCache};

use super::{LiveBuilder, Task};

/// Cache of the shared live values of any type.
static SHARED: WeakCache<ShareKey, dyn Any + Send + Sync> = WeakCache::new();

/// Cache key of a live value without other rules: its key, and the interval of comparisons with the store.
#[derive(PartialEq)]
pub(super) struct ShareKey {
    key: String,
    reconcile_every: Option<Duration>,
}

impl ShareKey {
    /// Returns the cache key; `None` if there are other rules.
    pub(super) fn of<T>(builder: &LiveBuilder<T>) -> Option<Self> {
        let LiveBuilder { key, reconcile_every, over, instance, default, fill, checks, hook, file, .. } =
            builder;
        let composed = !over.is_empty() || instance.is_some();
        let replaced = default.is_some() || fill.is_some() || file.is_some();
        let asked = !checks.is_empty() || hook.is_some();
        (!composed && !replaced && !asked)
            .then(|| Self { key: key.clone(), reconcile_every: *reconcile_every })
    }

    /// Returns the shared value if it has the store's `version`, else the one that `launch` makes.
    ///
    /// A value that is behind, such as one that lost the store, is left to its present users. A newly started one always has
    /// the store's present version.
    pub(super) fn share<T: Send + Sync + 'static>(
        self,
        center: &Arc<dyn ConfigCenter>,
        version: Version,
        launch: impl FnOnce() -> Arc<Task<T>>,
    ) -> Arc<Task<T>> {
        let is_good = |task: &(dyn Any + Send + Sync)| {
            task.downcast_ref::<Task<T>>().is_some_and(|task| task.is_good_at(version))
        };
        let shared = SHARED.find_or_make(center, self, is_good, || launch());
        shared.downcast().expect("a value of this type is found or made")
    }
}
