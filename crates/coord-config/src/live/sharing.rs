//! Live values with no rules but their key are one for all who start them.

use std::{any::Any, sync::Arc, time::Duration};

use coord_api::{ConfigCenter, Version, backend::Sharing};

use super::{LiveBuilder, Task};

/// Of any type.
static SHARED: Sharing<Plain, dyn Any + Send + Sync> = Sharing::new();

/// All that a live value with no other rules is told: the key, and how often to compare it with the store.
#[derive(PartialEq)]
pub(super) struct Plain {
    key: String,
    reconcile_every: Option<Duration>,
}

impl Plain {
    /// `None` if there are other rules.
    pub(super) fn of<T>(builder: &LiveBuilder<T>) -> Option<Self> {
        let LiveBuilder { key, reconcile_every, over, instance, default, fill, checks, hook, file, .. } =
            builder;
        let composed = !over.is_empty() || instance.is_some();
        let replaced = default.is_some() || fill.is_some() || file.is_some();
        let asked = !checks.is_empty() || hook.is_some();
        (!composed && !replaced && !asked)
            .then(|| Self { key: key.clone(), reconcile_every: *reconcile_every })
    }

    /// The value in use, if it is the one that the store has at `version`; else what `launch` makes, which is in use
    /// from now on. One that is behind, such as one that lost the store, is left to those who have it: whoever starts
    /// one gets what the store has now.
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
        shared.downcast().expect("only one of this type is found or made")
    }
}
