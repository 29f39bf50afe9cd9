//! The handle that keeps a client open: users' handles, guards and watches hold it, background tasks do not.

use std::{fmt, ops::Deref, sync::Arc};

/// Runs a last work when it is dropped.
pub(crate) struct KeepOpen(Option<Box<dyn FnOnce() + Send + Sync>>);

impl KeepOpen {
    pub(crate) fn new(last_work: impl FnOnce() + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self(Some(Box::new(last_work))))
    }
}

impl fmt::Debug for KeepOpen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepOpen").finish_non_exhaustive()
    }
}

impl Drop for KeepOpen {
    fn drop(&mut self) {
        if let Some(last_work) = self.0.take() {
            last_work();
        }
    }
}

/// An area of a client for users, who keep the client open with it.
#[derive(Debug)]
pub(crate) struct Kept<T> {
    pub(crate) area: Arc<T>,
    open: Arc<KeepOpen>,
}

impl<T> Kept<T> {
    pub(crate) fn new(area: &Arc<T>, open: &Arc<KeepOpen>) -> Self {
        Self { area: area.clone(), open: open.clone() }
    }

    /// Returns another area of the same client.
    pub(crate) fn with<U>(&self, area: &Arc<U>) -> Kept<U> {
        Kept::new(area, &self.open)
    }
}

impl<T> Clone for Kept<T> {
    fn clone(&self) -> Self {
        Self::new(&self.area, &self.open)
    }
}

impl<T> Deref for Kept<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.area
    }
}
