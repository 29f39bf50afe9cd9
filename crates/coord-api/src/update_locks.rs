//! Locks for updates of configuration: a mutex for each key, so that tasks of one client do not refuse each other's writes.
//!
//! They are only an optimization. The store's compare-and-set keeps updates safe, also across clients.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::sync::OwnedMutexGuard;

use crate::{Entry, mutex::lock, timer};

/// Longest wait for a lock. After that an update goes on without it, which is slower and not wrong: the store
/// refuses a write over an unread value. So an update that hangs does not hold up others for as long.
const MAX_WAIT: Duration = Duration::from_millis(500);

/// Locks of all updates in flight in one client. Every [`ConfigCenter`](crate::ConfigCenter) has them.
#[derive(Debug, Default)]
pub struct UpdateLocks(Mutex<HashMap<String, Updates>>);

/// Updates of one key.
#[derive(Debug, Default)]
struct Updates {
    /// Number of updates that hold the lock or wait for it.
    users: usize,
    /// Lock with the entry of the last write, which the next update need not read then.
    lock: Arc<tokio::sync::Mutex<Option<Entry>>>,
}

impl UpdateLocks {
    /// Returns locks that nobody holds.
    pub fn new() -> Self {
        Self::default()
    }

    /// Locks `key` for an update, after a wait of [`MAX_WAIT`] at most.
    pub(crate) async fn lock<'a>(&'a self, key: &'a str) -> UpdateGuard<'a> {
        let lock = {
            let mut keys = self.keys();
            let updates = keys.entry(key.to_owned()).or_default();
            updates.users += 1;
            updates.lock.clone()
        };
        // The guard is made first, so that it also counts out an update that is dropped while it waits.
        let mut guard = UpdateGuard { locks: self, key, last: None };
        guard.last = timer::within(MAX_WAIT, lock.lock_owned()).await;
        guard
    }

    fn keys(&self) -> MutexGuard<'_, HashMap<String, Updates>> {
        lock(&self.0)
    }
}

/// Guard of one update.
#[derive(Debug)]
pub(crate) struct UpdateGuard<'a> {
    locks: &'a UpdateLocks,
    key: &'a str,
    /// Lock, with the entry of the previous update; `None` if the wait was too long.
    last: Option<OwnedMutexGuard<Option<Entry>>>,
}

impl UpdateGuard<'_> {
    /// Takes the entry that the previous update wrote, which is probably still stored.
    pub(crate) fn take_last(&mut self) -> Option<Entry> {
        self.last.as_mut()?.take()
    }

    /// Unlocks, and leaves the written entry for the next update.
    pub(crate) fn wrote(mut self, entry: Option<Entry>) {
        if let Some(last) = &mut self.last {
            **last = entry;
        }
    }
}

impl Drop for UpdateGuard<'_> {
    fn drop(&mut self) {
        self.last = None;
        let mut keys = self.locks.keys();
        if let Some(updates) = keys.get_mut(self.key) {
            updates.users -= 1;
            if updates.users == 0 {
                keys.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::Version;

    fn entry(version: u64) -> Entry {
        Entry::new("a", Version::new(version), "1")
    }

    #[tokio::test]
    async fn update_waits_for_the_previous_one_and_gets_its_entry() {
        let locks = UpdateLocks::new();
        let mut first = locks.lock("a").await;
        assert_eq!(first.take_last(), None);
        let mut second = Box::pin(locks.lock("a"));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(locks.lock("b").now_or_never().is_some(), "another key has its own lock");
        first.wrote(Some(entry(7)));
        let mut second = second.now_or_never().expect("is unlocked");
        assert_eq!(second.take_last(), Some(entry(7)));
        assert_eq!(second.take_last(), None, "once");
        drop(second);
        assert!(locks.keys().is_empty());
    }

    #[tokio::test]
    async fn dropped_updates_leave_nothing_behind() {
        let locks = UpdateLocks::new();
        locks.lock("a").await.wrote(Some(entry(7)));
        assert_eq!(locks.lock("a").await.take_last(), None, "nobody knows how long ago that was");
        let first = locks.lock("a").await;
        let waiting = locks.lock("a");
        assert!(waiting.now_or_never().is_none());
        assert!(locks.lock("a").now_or_never().is_none());
        drop(first);
        assert!(locks.keys().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn update_that_hangs_does_not_block_others_for_long() {
        let locks = UpdateLocks::new();
        let first = locks.lock("a").await;
        let mut second = locks.lock("a").await;
        assert_eq!(second.take_last(), None);
        second.wrote(Some(entry(7)));
        drop(first);
        assert!(locks.keys().is_empty());
    }
}
