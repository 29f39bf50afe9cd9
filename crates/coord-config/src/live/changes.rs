//! The changes of a live value, one by one.

use std::{fmt, sync::Arc};

use tokio::sync::broadcast::{self, error::RecvError};

use super::{Live, Origin, current::Current};
use crate::Record;

/// Change of a live value.
#[non_exhaustive]
pub struct Change<T> {
    /// The value before, as this consumer knew it.
    pub old: Arc<T>,
    /// The value since; the same one if the key was deleted and the value is kept.
    pub new: Arc<T>,
    /// Where the new value comes from, with its version.
    pub origin: Origin,
    /// Author, time and comment, if it was [recorded](crate::HistoryExt::record).
    pub record: Option<Record>,
    /// How many changes in between this consumer was too slow to see.
    pub missed: u64,
}

impl<T> Clone for Change<T> {
    fn clone(&self) -> Self {
        let Self { old, new, origin, record, missed } = self;
        Self { old: old.clone(), new: new.clone(), origin: *origin, record: record.clone(), missed: *missed }
    }
}

/// Shows no value.
impl<T> fmt::Debug for Change<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { origin, record, missed, .. } = self;
        f.debug_struct("Change")
            .field("origin", origin)
            .field("record", record)
            .field("missed", missed)
            .finish_non_exhaustive()
    }
}

/// Every change of a live value, in order; from [`Live::changes`]. A consumer that is 32 changes behind misses
/// some and is told how many; what is old and new in each change always fits together.
pub struct Changes<T> {
    /// Keeps the value followed.
    live: Live<T>,
    feed: broadcast::Receiver<Arc<Current<T>>>,
    last: Arc<Current<T>>,
    /// A change whose record is being read.
    taken: Option<Arc<Current<T>>>,
}

impl<T> Changes<T> {
    pub(super) fn new(live: Live<T>) -> Self {
        // In this order: what is published in between is in both, and told apart by its number.
        let feed = live.shared.each.resubscribe();
        let last = live.shared.now.load_full();
        Self { live, feed, last, taken: None }
    }

    /// The value whose changes these are.
    pub fn live(&self) -> &Live<T> {
        &self.live
    }

    /// Waits for the next change; `None` after the provider was closed. For each change the record is read: one
    /// request. A change whose record can not be read has none.
    ///
    /// # Cancel safety
    /// May be dropped and called again: no change is lost.
    pub async fn next(&mut self) -> Option<Change<T>> {
        while self.taken.is_none() {
            match self.feed.recv().await {
                Ok(current) if current.number <= self.last.number => {}
                Ok(current) => self.taken = Some(current),
                // Missed changes show in the next number.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
        let record = match self.taken.as_ref().map(|taken| taken.origin) {
            Some(Origin::Store(version)) => self.live.shared.record(version).await,
            _ => None,
        };
        let current = self.taken.take()?;
        let old = std::mem::replace(&mut self.last, current.clone());
        Some(Change {
            old: old.value.get().clone(),
            new: current.value.get().clone(),
            origin: current.origin,
            record,
            missed: current.number - old.number - 1,
        })
    }
}

impl<T> fmt::Debug for Changes<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("live", &self.live).finish_non_exhaustive()
    }
}
