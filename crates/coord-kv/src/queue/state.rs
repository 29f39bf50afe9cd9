//! Entries of one process in one queue, and the one watch that they share.
//!
//! Where several tasks of a process are in a queue, one watch over the queue keeps a mirror of it. The watch
//! wakes each task whose entry comes to the head: a hand-off costs no request. From one task to the next it
//! takes no time either. When the first leaves, the second is woken before the store is asked, since nobody
//! else can come before it. A task that is alone watches its predecessor instead (see `Ticket`), so that a
//! release does not wake every process in the queue.
//!
//! All that the store tells of one revision is one step. Tasks that lost their entries by it are told first,
//! and only then the task at the head.

use std::{
    collections::BTreeMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, Weak},
};

use coord_api::{Error, Hold, LossReason, Result};
use tokio::sync::{Notify, oneshot};

use super::{
    arrivals::Arrivals,
    entry::QueuedKey,
    mirror::{Affected, Mirror},
    numbers::Numbers,
    wait_all,
};
use crate::{
    queue::{Queues, send::ReadAlong},
    session::Session,
};

/// State of one queue that this client has entries in.
#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) queue: Arc<str>,
    state: Mutex<State>,
    /// Signal to the tasks that wait alone: the shared watch is kept from now on.
    shared: Notify,
    /// Signal that the store has deleted an entry that was left.
    left: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// Number of entries of this client, those of holders included.
    pub(super) places: usize,
    /// Numbers in the keys of this client's entries, by their leases. A number is used again: etcd remembers
    /// every key that ever was until it is compacted, and walks over them whenever it reads the queue.
    numbers: BTreeMap<i64, Numbers>,
    /// Callers that wait for the answer to a request for an entry.
    pub(super) arrivals: Arrivals<QueuedKey>,
    /// Whether the shared watch is kept.
    is_shared: bool,
    pub(super) mirror: Mirror,
    pub(super) waiters: BTreeMap<String, Waiter>,
    /// Entries of this client that somebody stands in, holders included, by their keys.
    standing: BTreeMap<String, Standing>,
    /// Keys of the entries that nobody stands in any more and that the store may still have, in the order in
    /// which they were left. A key is empty if it is not known.
    leaving: BTreeMap<u64, String>,
    /// Number of entries that were ever left.
    left: u64,
}

/// Entry of this client that somebody stands in.
#[derive(Debug)]
pub(super) struct Standing {
    /// Revision at which it was created: the same key may have been another entry before.
    pub(super) created: i64,
    /// Hold that ends with the entry.
    pub(super) hold: Hold,
    /// Session of its lease, which is renewed at once if the entry is gone.
    pub(super) session: Weak<Session>,
}

/// Guard of an entry that was left and that the store may still have. Dropped when the store is known to have
/// deleted the entry, or deletes it with its lease.
#[derive(Debug)]
pub(super) struct Leaving {
    local: Arc<QueueState>,
    number: u64,
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.local.state().leaving.remove(&self.number);
        self.local.left.notify_waiters();
    }
}

#[derive(Debug)]
pub(super) struct Waiter {
    /// Revision at which its entry was created: the same key may have been another entry before.
    pub(super) created: i64,
    pub(super) grant: oneshot::Sender<Result<()>>,
}

/// Waiter that is to be told that it is at the head.
#[derive(Debug)]
#[must_use = "nobody else tells it"]
pub(super) struct Next(oneshot::Sender<Result<()>>);

impl Next {
    pub(super) fn tell(self) {
        // A waiter that has just given up leaves the queue, and the next one is told then.
        let _ = self.0.send(Ok(()));
    }
}

impl State {
    /// Returns what the client does not know yet about the queue that it enters on a lease.
    pub(super) fn what_to_read_along(&self, lease: i64) -> ReadAlong {
        if self.mirror.head().is_some() || self.arrivals.ends_with(lease) {
            // Somebody is there, and the watch will tell when this entry is at the head.
            ReadAlong::Nothing
        } else if self.places > 1 {
            ReadAlong::Occupied
        } else {
            ReadAlong::Predecessor
        }
    }

    /// Takes the smallest number that is free for an entry on a lease.
    pub(super) fn number(&mut self, lease: i64) -> u64 {
        self.numbers.entry(lease).or_default().take()
    }

    /// Takes the number of an entry back, which may be used again.
    pub(super) fn give_back(&mut self, lease: i64, number: u64) {
        // Nothing is kept of a lease that is over.
        let Some(numbers) = self.numbers.get_mut(&lease) else { return };
        numbers.give_back(number);
        if numbers.is_unused() {
            self.numbers.remove(&lease);
        }
    }

    /// Forgets the numbers on a lease that is over.
    pub(super) fn forget(&mut self, lease: i64) {
        self.numbers.remove(&lease);
    }

    /// Tells holders and waiters whose entries are gone without their doing, and has their leases renewed at
    /// once.
    fn tell_who_lost(&mut self, affected: Affected) {
        let affected = match affected {
            Affected::Nobody => return,
            Affected::Places(keys) => keys,
            Affected::All => self.standing.keys().cloned().collect(),
        };
        for key in affected {
            let is_gone = |standing: &Standing| self.mirror.is_gone(&key, standing.created);
            if self.standing.get(&key).is_some_and(is_gone) {
                self.tell_that_lost(&key);
            }
        }
    }

    /// Tells the holder of an entry, or who waits in it, that it is gone.
    fn tell_that_lost(&mut self, key: &str) {
        if let Some(Standing { hold, session, .. }) = self.standing.remove(key) {
            hold.end(LossReason::Deleted);
            if let Some(session) = session.upgrade() {
                session.renew_now();
            }
        }
        if let Some(waiter) = self.waiters.remove(key) {
            let _ = waiter.grant.send(Err(Error::Lost { reason: LossReason::Deleted }));
        }
    }

    /// Takes the waiter that is at the head, if one is.
    fn next(&mut self) -> Option<Next> {
        let Self { mirror, waiters, .. } = self;
        let (created, head) = mirror.head()?;
        let waits = waiters.get(head).is_some_and(|waiter| waiter.created == created);
        let waiter = if waits { waiters.remove(head) } else { None };
        waiter.map(|waiter| Next(waiter.grant))
    }

    /// Returns whether the head of the queue was created before `created` and somebody stands in it, as far
    /// as the store has told. It may be of another client or of this one.
    pub(super) fn is_behind(&self, created: i64) -> bool {
        self.mirror.head().is_some_and(|(head, key)| head < created && !self.is_leaving(key))
    }

    /// Returns whether `key` is an entry of this client that nobody stands in any more.
    pub(super) fn is_leaving(&self, key: &str) -> bool {
        self.leaving.values().any(|leaving| leaving == key)
    }

    /// Returns whether this client has no entry in the queue, does not watch it, and knows nothing that would
    /// matter later.
    pub(super) fn is_unused(&self) -> bool {
        self.places == 0 && self.numbers.is_empty() && !self.is_shared
    }
}

impl QueueState {
    pub(super) fn new(queue: Arc<str>) -> Self {
        Self { queue, state: Mutex::default(), shared: Notify::new(), left: Notify::new() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while this is locked")
    }

    /// Changes the mirror in one step, and tells the tasks that this concerns.
    pub(super) fn update(&self, change: impl FnOnce(&mut Mirror) -> Affected) {
        if let Some(next) = self.change(change) {
            next.tell();
        }
    }

    /// Changes the mirror in one step. Returns the waiter that is at the head then. Tasks that lost their
    /// entries are told before that is found out.
    pub(super) fn change(&self, change: impl FnOnce(&mut Mirror) -> Affected) -> Option<Next> {
        let mut state = self.state();
        let affected = change(&mut state.mirror);
        state.tell_who_lost(affected);
        state.next()
    }

    /// Takes in that somebody has deleted an entry of this client, which was created then.
    pub(super) fn deleted(&self, key: &str, created: i64) {
        let mut state = self.state();
        if state.standing.get(key).is_some_and(|standing| standing.created == created) {
            state.tell_that_lost(key);
        }
    }

    /// Takes note that somebody stands in an entry.
    pub(super) fn stand(&self, key: String, standing: Standing) {
        let mut state = self.state();
        state.standing.insert(key.clone(), standing);
        // The end of the entry may have been told before the answer to its request.
        state.tell_who_lost(Affected::Places(vec![key]));
    }

    /// Takes note that nobody stands in an entry any more, before its end is asked for.
    pub(super) fn leaving(self: &Arc<Self>, key: &str, created: Option<i64>) -> Leaving {
        let mut state = self.state();
        if state.standing.get(key).is_some_and(|standing| Some(standing.created) == created) {
            state.standing.remove(key);
        }
        let number = state.left;
        state.left += 1;
        state.leaving.insert(number, key.to_owned());
        Leaving { local: self.clone(), number }
    }

    /// Waits until the store has none of the entries any more that were left up to now.
    pub(super) async fn all_left(&self) {
        let until = self.state().left;
        loop {
            let left = self.left.notified();
            if self.state().leaving.first_key_value().is_none_or(|(first, _)| *first >= until) {
                return;
            }
            left.await;
        }
    }

    /// Tells every waiter the error for which it can not be woken.
    pub(super) fn refuse(&self, error: &Error) {
        for waiter in mem::take(&mut self.state().waiters).into_values() {
            let _ = waiter.grant.send(Err(error.duplicate()));
        }
    }

    /// Starts the shared watch, if there is none.
    pub(super) fn share(self: &Arc<Self>, queues: &Arc<Queues>) {
        if self.becomes_shared() {
            queues.background.spawn(wait_all::keep(self.clone(), Arc::downgrade(queues)));
        }
    }

    /// Waits until the shared watch is kept.
    pub(super) async fn shared(&self) {
        loop {
            let shared = self.shared.notified();
            if self.state().is_shared {
                return;
            }
            shared.await;
        }
    }

    /// Takes note that the watch is kept, and tells the tasks that wait alone. Returns `false` if it was kept
    /// before.
    pub(super) fn becomes_shared(&self) -> bool {
        let becomes = !mem::replace(&mut self.state().is_shared, true);
        if becomes {
            self.shared.notify_waiters();
        }
        becomes
    }

    /// Gives the watch up if nobody waits. Returns whether it did.
    pub(super) fn give_up_if_idle(&self, all: &Queues) -> bool {
        let mut queues = all.lock();
        let mut state = self.state();
        if !state.waiters.is_empty() {
            return false;
        }
        state.mirror.clear();
        state.is_shared = false;
        if state.is_unused() {
            queues.remove(&self.queue);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_is_looked_for_is_what_is_not_known() {
        let mut state = State { places: 1, ..State::default() };
        assert_eq!(state.what_to_read_along(1), ReadAlong::Predecessor);
        state.places = 2;
        assert_eq!(state.what_to_read_along(1), ReadAlong::Occupied);
        let (_, _answer) = state.arrivals.add(Some(1));
        assert_eq!(state.what_to_read_along(1), ReadAlong::Nothing, "one of ours is about to be there");
        assert_eq!(state.what_to_read_along(2), ReadAlong::Occupied);
        state.mirror.put("1".into(), 7);
        assert_eq!(state.what_to_read_along(2), ReadAlong::Nothing);
    }

    #[test]
    fn who_waits_alone_is_told_once_there_is_a_watch() {
        let local = QueueState::new("queue/".into());
        let mut shared = Box::pin(local.shared());
        assert!((&mut shared).now_or_never().is_none());
        assert!(local.becomes_shared());
        assert!(shared.now_or_never().is_some());
        assert!(local.shared().now_or_never().is_some(), "it was before");
        assert!(!local.becomes_shared(), "one watch is enough");
    }

    #[test]
    fn the_smallest_free_number_is_used_again() {
        let mut state = State::default();
        assert_eq!([1, 1, 2, 1].map(|lease| state.number(lease)), [0, 1, 0, 2]);
        state.give_back(1, 1);
        assert_eq!([1, 1].map(|lease| state.number(lease)), [1, 3]);
        for number in 0..4 {
            state.give_back(1, number);
        }
        state.give_back(2, 0);
        assert!(state.numbers.is_empty());
        state.number(3);
        state.forget(3);
        state.give_back(3, 0);
        assert!(state.numbers.is_empty(), "nothing is kept of a lease that is over");
    }
}
