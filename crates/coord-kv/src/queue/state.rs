//! The places of one process in one queue, and the one watch that they share.
//!
//! Where several tasks of a process stand in a queue, one watch over the queue keeps a mirror of it and tells
//! each when its turn comes: a hand-off costs no request. From one task to the next it takes no time either: when the
//! first leaves, the second is told before the store is, since nobody else can come before it. Where one stands alone it
//! watches its predecessor instead (see `Ticket`), so that a release does not wake every process in the queue.
//!
//! All that the store tells of one moment is one step: first whoever lost its place by it is told, and only then whoever
//! is at the head.

use std::{
    collections::{BTreeMap, HashMap},
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

/// One queue that this client stands in.
#[derive(Debug)]
pub(super) struct QueueState {
    pub(super) queue: Arc<str>,
    state: Mutex<State>,
    /// Tells those who wait alone that the shared watch is kept from now on.
    shared: Notify,
    /// Tells that the store has deleted a place that was left.
    left: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// How many places of ours there are, those of holders included.
    pub(super) places: usize,
    /// The numbers in the keys of our places, by their leases. A number is used again, since etcd remembers every key
    /// that ever was until it is compacted, and walks over them whenever it looks at the queue.
    numbers: BTreeMap<i64, Numbers>,
    /// Who waits for the answer to a request for a place.
    pub(super) arrivals: Arrivals<QueuedKey>,
    /// Whether the shared watch is kept.
    is_shared: bool,
    pub(super) mirror: Mirror,
    pub(super) waiters: HashMap<String, Waiter>,
    /// The places of ours that somebody stands in, holders included, by their keys.
    standing: HashMap<String, Standing>,
    /// The places that nobody stands in any more and that the store may still have, in the order in which they were left,
    /// with their keys where those are known.
    leaving: BTreeMap<u64, String>,
    /// How many were ever left.
    left: u64,
}

/// Somebody of ours stands in a place.
#[derive(Debug)]
pub(super) struct Standing {
    /// When it was created: the same key may have been another place before.
    pub(super) created: i64,
    /// Ends with the place.
    pub(super) hold: Hold,
    /// The lease that it lives on, which is asked for if the place is gone.
    pub(super) session: Weak<Session>,
}

/// A place that was left and that the store may still have. Dropped when the store is known to have deleted it, or does
/// so with its lease.
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
    /// When its place was created: the same key may have been another place before.
    pub(super) created: i64,
    pub(super) grant: oneshot::Sender<Result<()>>,
}

/// Who is to be told that it is at the head.
#[derive(Debug)]
#[must_use = "nobody else tells it"]
pub(super) struct Next(oneshot::Sender<Result<()>>);

impl Next {
    pub(super) fn tell(self) {
        // One that has just given up leaves the queue, and the next is told then.
        let _ = self.0.send(Ok(()));
    }
}

impl State {
    /// What the client does not know yet about the queue that it enters on a lease.
    pub(super) fn what_to_read_along(&self, lease: i64) -> ReadAlong {
        if self.mirror.head().is_some() || self.arrivals.ends_with(lease) {
            // Someone is there, and the watch will tell when its turn is.
            ReadAlong::Nothing
        } else if self.places > 1 {
            ReadAlong::Occupied
        } else {
            ReadAlong::Predecessor
        }
    }

    /// The smallest number that is free for a place on a lease.
    pub(super) fn number(&mut self, lease: i64) -> u64 {
        self.numbers.entry(lease).or_default().take()
    }

    /// Takes the number of a place back, which may be used again.
    pub(super) fn give_back(&mut self, lease: i64, number: u64) {
        // Of a lease that is over nothing is kept.
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

    /// Tells those whose places are gone without their doing, and lets their leases be asked for.
    fn tell_who_lost(&mut self, affected: Affected) {
        let affected = match affected {
            Affected::Nobody => return,
            Affected::Places(keys) => keys,
            Affected::All => self.standing.keys().cloned().collect(),
        };
        for key in affected {
            let is_gone = |standing: &Standing| self.mirror.is_gone(&key, standing.created);
            if !self.standing.get(&key).is_some_and(is_gone) {
                continue;
            }
            if let Some(Standing { hold, session, .. }) = self.standing.remove(&key) {
                hold.end(LossReason::Deleted);
                if let Some(session) = session.upgrade() {
                    session.renew_now();
                }
            }
            if let Some(waiter) = self.waiters.remove(&key) {
                let _ = waiter.grant.send(Err(Error::Lost { reason: LossReason::Deleted }));
            }
        }
    }

    /// Who waits and is at the head.
    fn next(&mut self) -> Option<Next> {
        let Self { mirror, waiters, .. } = self;
        let (created, head) = mirror.head()?;
        let waits = waiters.get(head).is_some_and(|waiter| waiter.created == created);
        let waiter = if waits { waiters.remove(head) } else { None };
        waiter.map(|waiter| Next(waiter.grant))
    }

    /// Whether a place of somebody else's, or of another one of ours who stands in it, is before one that was created then,
    /// as far as the store has told.
    pub(super) fn is_behind(&self, created: i64) -> bool {
        self.mirror.head().is_some_and(|(head, key)| head < created && !self.is_leaving(key))
    }

    /// Whether nobody stands in a place of ours any more.
    pub(super) fn is_leaving(&self, key: &str) -> bool {
        self.leaving.values().any(|leaving| leaving == key)
    }

    /// Whether nobody of ours stands in the queue, it is not watched, and nothing is known that would matter later.
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

    /// Changes the mirror in one step, and tells whom that concerns.
    pub(super) fn update(&self, change: impl FnOnce(&mut Mirror) -> Affected) {
        if let Some(next) = self.change(change) {
            next.tell();
        }
    }

    /// Changes the mirror in one step; who of those who wait is at the head then. Whoever lost its place is told before
    /// that is found out.
    pub(super) fn change(&self, change: impl FnOnce(&mut Mirror) -> Affected) -> Option<Next> {
        let mut state = self.state();
        let affected = change(&mut state.mirror);
        state.tell_who_lost(affected);
        state.next()
    }

    /// Takes note that somebody stands in a place.
    pub(super) fn stand(&self, key: String, standing: Standing) {
        let mut state = self.state();
        state.standing.insert(key.clone(), standing);
        // Its end may have been told before the answer to its request.
        state.tell_who_lost(Affected::Places(vec![key]));
    }

    /// Takes note that nobody stands in a place any more, before its end is asked for.
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

    /// Waits until the store has none of the places any more that were left up to now.
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

    /// Tells every waiter why its turn can not be waited for.
    pub(super) fn refuse(&self, error: &Error) {
        for (_, waiter) in self.state().waiters.drain() {
            let _ = waiter.grant.send(Err(error.duplicate()));
        }
    }

    /// Begins the shared watch, if there is none.
    pub(super) fn share(self: &Arc<Self>, queues: &Arc<Queues>) {
        if self.becomes_shared() {
            queues.runtime.spawn(wait_all::keep(self.clone(), Arc::downgrade(queues)));
        }
    }

    /// Resolves when the shared watch is kept.
    pub(super) async fn shared(&self) {
        loop {
            let shared = self.shared.notified();
            if self.state().is_shared {
                return;
            }
            shared.await;
        }
    }

    /// Takes note that the watch is kept, and tells those who wait alone; `false` if it was before.
    pub(super) fn becomes_shared(&self) -> bool {
        let becomes = !mem::replace(&mut self.state().is_shared, true);
        if becomes {
            self.shared.notify_waiters();
        }
        becomes
    }

    /// Whether nobody waits; then the watch is given up.
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
