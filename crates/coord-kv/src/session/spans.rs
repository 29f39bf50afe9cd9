//! The span `lease` of each lease: its life from the grant until the store has revoked it.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use tracing::Span;

use crate::store::LeaseId;

/// Spans of the leases that are not revoked yet; empty while nobody listens.
#[derive(Debug, Default)]
pub(super) struct LeaseSpans(Mutex<HashMap<LeaseId, Span>>);

impl LeaseSpans {
    fn lock(&self) -> MutexGuard<'_, HashMap<LeaseId, Span>> {
        self.0.lock().expect("nothing panics while this is locked")
    }

    /// Begins the span of a lease that was granted. It is no part of the call that asked for the lease, since
    /// others use that as well.
    pub(super) fn begin(&self, lease: LeaseId) -> Span {
        let span = tracing::debug_span!(parent: None, "lease", id = format_args!("{lease:x}"));
        if !span.is_disabled() {
            self.lock().insert(lease, span.clone());
        }
        span
    }

    /// Returns the span of a lease; an empty one if it has none.
    pub(super) fn of(&self, lease: LeaseId) -> Span {
        self.lock().get(&lease).cloned().unwrap_or_else(Span::none)
    }

    /// Ends the span of a lease that is revoked.
    pub(super) fn end(&self, lease: LeaseId) {
        let span = self.lock().remove(&lease).unwrap_or_else(Span::none);
        span.in_scope(|| tracing::debug!(lease = format_args!("{lease:x}"), "lease revoked"));
    }
}
