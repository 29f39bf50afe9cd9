//! Guards that a write can be made conditional on.

use std::sync::Arc;

use crate::{FencingToken, Hold};

/// A guard by which a write is fenced: a [`LockGuard`](crate::LockGuard), or the [`Term`](crate::Term) of a leader.
///
/// [`Batch::while_held`](crate::Batch::while_held) and [`ConfigExt::set_if_held`](crate::ConfigExt::set_if_held) take any of
/// them. No other crate implements it.
#[expect(private_bounds, reason = "is sealed")]
pub trait Fence: HasFence + Send + Sync {}

/// Access to the fence of a guard.
pub(crate) trait HasFence {
    fn fenced(&self) -> Fenced<'_>;
}

/// Entry in the store that a write depends on.
pub(crate) struct Fenced<'a> {
    pub(crate) key: &'a str,
    pub(crate) token: FencingToken,
    pub(crate) hold: &'a Hold,
}

impl<F: Fence + ?Sized> Fence for Arc<F> {}

impl<F: Fence + ?Sized> HasFence for Arc<F> {
    fn fenced(&self) -> Fenced<'_> {
        (**self).fenced()
    }
}
