//! A value of the user's type, whose `Drop` is code of the user: it may panic wherever the last handle goes.

use std::sync::{Arc, atomic::AtomicU64};

use super::{check_result::guarded, current::count};

/// A share of a value. A panic of the value's `Drop` ends here, and counts as a rejection.
pub(super) struct Held<T> {
    /// `None` only once this is dropped.
    value: Option<Arc<T>>,
    rejections: Option<Arc<AtomicU64>>,
}

impl<T> Held<T> {
    /// Holds a value.
    pub(super) fn new(value: Arc<T>) -> Self {
        Self { value: Some(value), rejections: None }
    }

    /// Counts a panic from now on. Before, whoever refuses the value counts that.
    pub(super) fn counting(mut self, rejections: &Arc<AtomicU64>) -> Self {
        self.rejections = Some(rejections.clone());
        self
    }

    /// The value.
    pub(super) fn get(&self) -> &Arc<T> {
        self.value.as_ref().expect("is there until drop")
    }
}

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self { value: self.value.clone(), rejections: self.rejections.clone() }
    }
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if guarded(|| drop(value)).is_none() {
            tracing::warn!("a config value panicked when it was dropped");
            self.rejections.iter().for_each(|rejections| count(rejections));
        }
    }
}
