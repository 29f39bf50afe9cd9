//! The places of one process in one queue, and the one watch that they share.
//!
//! Where several tasks of a process stand in a queue, one watch over the queue keeps a mirror of it and tells
//! each when its turn comes: a hand-off costs no request. From one task to the next it takes no time either: when the
//! first leaves, the second is told before the store is, since nobody else can come before it. Where one stands alone it
//! watches its predecessor instead (see `Spot`), so that a release does not wake every process in the queue.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard},
};

use coord_api::{Error, LossReason, Result};
use tokio::sync::{Notify, oneshot};

use super::{line::Line, member::Member, mirror::Mirror, shared};
use crate::{
    core::Core,
    group::{LOCK, Look},
};

/// One queue that this client stands in.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) queue: Arc<str>,
    state: Mutex<State>,
    /// Tells those who wait alone that the shared watch is kept from now on.
    shared: Notify,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// How many places of ours there are, those of holders included.
    pub(super) spots: usize,
    /// The leases and numbers in the keys of our places. A number is used again, since etcd remembers every key
    /// that ever was until it is compacted, and walks over them whenever it looks at the queue.
    pub(super) numbers: BTreeSet<(i64, u64)>,
    /// Who waits for the answer to a request for a place.
    pub(super) line: Line<Member>,
    /// Whether the shared watch is kept.
    is_shared: bool,
    pub(super) mirror: Mirror,
    pub(super) waiters: HashMap<String, Waiter>,
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
    pub(super) fn what_to_look_for(&self, lease: i64) -> Look {
        if self.mirror.head().is_some() || self.line.ends_with(lease) {
            // Someone is there, and the watch will tell when its turn is.
            Look::Away
        } else if self.spots > 1 {
            Look::AnyoneElse
        } else {
            Look::Predecessor
        }
    }

    /// The smallest number that is free for a place on a lease.
    pub(super) fn number(&mut self, lease: i64) -> u64 {
        let used = self.numbers.range((lease, 0)..=(lease, u64::MAX));
        let number = (0..).zip(used).take_while(|(number, (_, used))| number == used).count() as u64;
        self.numbers.insert((lease, number));
        number
    }

    /// Whether nobody of ours stands in the queue, it is not watched, and nothing is known that would matter later.
    pub(super) fn is_unused(&self) -> bool {
        self.spots == 0 && self.numbers.is_empty() && !self.is_shared
    }
}

impl Local {
    pub(super) fn new(queue: Arc<str>) -> Self {
        Self { queue, state: Mutex::default(), shared: Notify::new() }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while this is locked")
    }

    /// Changes the mirror, and tells whoever is at the head then.
    pub(super) fn update(&self, change: impl FnOnce(&mut Mirror)) {
        if let Some(next) = self.change(change) {
            next.tell();
        }
    }

    /// Changes the mirror; who of those who wait is at the head then.
    pub(super) fn change(&self, change: impl FnOnce(&mut Mirror)) -> Option<Next> {
        let mut state = self.state();
        let State { mirror, waiters, .. } = &mut *state;
        change(mirror);
        let (created, head) = mirror.head()?;
        let waits = waiters.get(head).is_some_and(|waiter| waiter.created == created);
        let waiter = if waits { waiters.remove(head) } else { None };
        waiter.map(|waiter| Next(waiter.grant))
    }

    /// Tells a waiter that its place, which existed before revision `at`, is not there any more.
    pub(super) fn tell_if_deleted(&self, key: &str, at: i64) {
        let mut state = self.state();
        let is_gone =
            |waiter: &Waiter| waiter.created < at && state.mirror.created(key) != Some(waiter.created);
        if state.waiters.get(key).is_some_and(is_gone)
            && let Some(waiter) = state.waiters.remove(key)
        {
            let _ = waiter.grant.send(Err(Error::Lost { reason: LossReason::Deleted }));
        }
    }

    /// Tells every waiter that its turn can not be waited for.
    pub(super) fn refuse(&self, error: &Error) {
        for (_, waiter) in self.state().waiters.drain() {
            let source = error.to_string().into();
            let _ = waiter.grant.send(Err(Error::PermissionDenied { operation: LOCK, source }));
        }
    }

    /// Begins the shared watch, if there is none.
    pub(super) fn share(self: &Arc<Self>, core: &Arc<Core>) {
        if self.becomes_shared() {
            core.runtime.spawn(shared::keep(self.clone(), Arc::downgrade(core)));
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
    pub(super) fn give_up_if_idle(&self, core: &Core) -> bool {
        let mut queues = core.queues.lock();
        let mut state = self.state();
        if !state.waiters.is_empty() {
            return false;
        }
        state.mirror.reset([]);
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
        let mut state = State { spots: 1, ..State::default() };
        assert_eq!(state.what_to_look_for(1), Look::Predecessor);
        state.spots = 2;
        assert_eq!(state.what_to_look_for(1), Look::AnyoneElse);
        let (_, _answer) = state.line.add(Some(1));
        assert_eq!(state.what_to_look_for(1), Look::Away, "one of ours is about to be there");
        assert_eq!(state.what_to_look_for(2), Look::AnyoneElse);
        state.mirror.put("1".into(), 7);
        assert_eq!(state.what_to_look_for(2), Look::Away);
    }

    #[test]
    fn who_waits_alone_is_told_once_there_is_a_watch() {
        let local = Local::new("queue/".into());
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
        state.numbers.remove(&(1, 1));
        assert_eq!([1, 1].map(|lease| state.number(lease)), [1, 3]);
        for number in 0..4 {
            state.numbers.remove(&(1, number));
        }
        state.numbers.remove(&(2, 0));
        assert!(state.numbers.is_empty());
    }
}
