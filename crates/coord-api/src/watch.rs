//! The stream type of every watch.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
};

use futures::{
    Stream, StreamExt,
    stream::{self, BoxStream},
};

use crate::{Connectivity, Error, Result};

/// A watch: a snapshot, then every change after it, once and in order.
///
/// # Contract
/// - The first item is a snapshot; there is no gap between it and the first change.
/// - After a gap another snapshot comes, which replaces all that was known. Gaps come from a connection that
///   was lost for long, a compaction of the store, or a slow consumer. Nothing ever goes back in time.
/// - An entry that can not be decoded is an `Err` item ([`Error::Decode`]) and the watch goes on.
/// - While the store is away no items come, and [`connectivity`](Self::connectivity) tells; the watch goes on by itself
///   when it is back.
/// - It ends only when its provider is closed: one `Err(`[`Error::Closed`]`)`, then `None`.
/// - Memory is bounded however slow the consumer is.
///
/// # Cancel safety
/// [`next`](Self::next) may be dropped and called again: no item is lost. Dropping the watch ends it.
#[must_use = "a watch yields nothing unless it is polled"]
pub struct Watch<T> {
    connectivity: Connectivity,
    events: Option<BoxStream<'static, Result<T>>>,
}

impl<T> Watch<T> {
    /// Wraps a backend's stream. After an [`Error::Closed`] it is dropped and not polled again.
    pub fn new(connectivity: Connectivity, events: impl Stream<Item = Result<T>> + Send + 'static) -> Self {
        Self { connectivity, events: Some(events.boxed()) }
    }

    /// Returns whether the client hears from its store, so that what this watch told last is up to date.
    pub fn connectivity(&self) -> Connectivity {
        self.connectivity.clone()
    }

    /// A watch that tells of each item what `tell` makes of it.
    pub fn told_as<U, I>(self, mut tell: impl FnMut(Result<T>) -> I + Send + 'static) -> Watch<U>
    where
        T: Send + 'static,
        I: IntoIterator<Item = Result<U>, IntoIter: Send> + 'static,
    {
        Watch::new(self.connectivity(), self.flat_map(move |item| stream::iter(tell(item))))
    }

    /// Waits for the next item; `None` after the provider was closed.
    ///
    /// # Errors
    /// - [`Error::Decode`] for an entry that can not be decoded;
    /// - [`Error::Closed`] once at the end;
    /// - [`Error::PermissionDenied`] or [`Error::Unauthenticated`] each time the store refuses the watch,
    ///   which is tried again and again.
    pub async fn next(&mut self) -> Option<Result<T>> {
        StreamExt::next(self).await
    }
}

impl<T> Stream for Watch<T> {
    type Item = Result<T>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let Some(events) = &mut self.events else {
            return Poll::Ready(None);
        };
        let item = std::task::ready!(events.poll_next_unpin(cx));
        if matches!(item, None | Some(Err(Error::Closed))) {
            self.events = None;
        }
        Poll::Ready(item)
    }
}

impl<T> fmt::Debug for Watch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}
