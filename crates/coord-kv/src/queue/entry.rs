//! Entries of this client in its queues: each has its own key, on a lease, in a queue that contenders share.

use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use coord_api::{Error, Result, backend::lock};
use tokio::sync::oneshot;

use super::{
    arrivals::{Assigned, Replies},
    entrant::Entrant,
    mirror::{Affected, Mirror},
    state::{Next, QueueState, Waiter},
};
use crate::{
    keyspace::Keys,
    queue::send::{Answer, FollowUps, Outcome, QueueOp, ReadAlong, Reply, Sender},
    request::Rpc,
    session::{Session, Sessions},
    store::Failure,
    watch::Hub,
};

/// Queues that this client has entries in.
#[derive(Debug)]
pub(crate) struct Queues {
    rpc: Arc<Rpc>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) hub: Arc<Hub>,
    sender: Sender,
    by_name: ByName,
    /// End of the keys of this client's candidates.
    pub(super) signature: Arc<str>,
}

impl Deref for Queues {
    type Target = Rpc;

    fn deref(&self) -> &Rpc {
        &self.rpc
    }
}

/// States of the queues, by their prefixes.
#[derive(Debug, Default)]
struct ByName(Mutex<BTreeMap<Arc<str>, Arc<QueueState>>>);

impl ByName {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<QueueState>>> {
        lock(&self.0)
    }

    /// Forgets the keys of entries on a lease that is over: nothing about them can arrive any more.
    fn forget(&self, lease: i64) {
        self.lock().retain(|_, local| {
            let mut state = local.state();
            state.forget(lease);
            !state.is_unused()
        });
    }
}

/// Entry of this client in a queue, counted while it exists, with a key that no other entry of this client
/// has.
#[derive(Debug)]
pub(super) struct QueuedKey {
    queues: Weak<Queues>,
    local: Arc<QueueState>,
    session: Arc<Session>,
    number: u64,
    /// End of the key, if it has one.
    signature: Option<Arc<str>>,
    is_retired: AtomicBool,
}

/// Choice for a queue that is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IfOccupied {
    Wait,
    LeaveAlone,
}

impl Queues {
    pub(crate) fn new(rpc: &Arc<Rpc>, sessions: &Arc<Sessions>, hub: &Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            sender: Sender::start(rpc),
            rpc: rpc.clone(),
            sessions: sessions.clone(),
            hub: hub.clone(),
            by_name: ByName::default(),
            signature: Keys::signature(&rpc.owner).into(),
        })
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Arc<QueueState>>> {
        self.by_name.lock()
    }

    /// Forgets the keys of entries on a lease that is over.
    pub(crate) fn forget(&self, lease: i64) {
        self.by_name.forget(lease);
    }

    /// Takes in that somebody has deleted an entry of this client.
    pub(crate) fn deleted(&self, key: &str, created: i64) {
        let queue = key.rfind('/').map_or(key, |end| &key[..=end]);
        let local = self.lock().get(queue).cloned();
        if let Some(local) = local {
            local.deleted(key, created);
        }
    }

    /// Counts one more entry in `queue`, on `session`, and sends the request for it. Returns the queue's
    /// state and a receiver, which gets the answer to this request, or to one for another entry that will do.
    pub(super) fn enter(
        self: &Arc<Self>,
        queue: &Arc<str>,
        session: Arc<Session>,
        if_occupied: IfOccupied,
        entrant: &Entrant,
    ) -> (Arc<QueueState>, oneshot::Receiver<Assigned<QueuedKey>>) {
        let local = {
            let mut queues = self.lock();
            let local =
                queues.entry(queue.clone()).or_insert_with(|| Arc::new(QueueState::new(queue.clone())));
            // Counted before the queues are unlocked, since a queue without entries is forgotten.
            local.state().places += 1;
            local.clone()
        };
        // Locked until the request is sent, so that `arrivals` has the order of the requests.
        let mut state = local.state();
        let (lease, epoch, number) = (session.id, session.epoch.clone(), state.number(session.id));
        let signature = entrant.signature(&self.signature);
        let key = Keys::place_in(queue, lease, number, signature.as_deref());
        let value = entrant.value(&self.holder);
        let waits = if_occupied == IfOccupied::Wait;
        // Of two candidates each has its own value.
        let may_be_exchanged = waits && entrant.is_like_others();
        let (op, overlaps) = if waits {
            let read_along = state.what_to_read_along(lease);
            let overlaps = read_along == ReadAlong::Nothing
                && (state.arrivals.is_empty() || state.arrivals.ends_with(lease));
            (QueueOp::Enter { key, value, epoch, read_along }, overlaps)
        } else {
            (QueueOp::EnterIfEmpty { key, value, epoch }, false)
        };
        let (request, answer) = state.arrivals.add(may_be_exchanged.then_some(lease));
        let member = QueuedKey {
            queues: Arc::downgrade(self),
            local: local.clone(),
            session,
            number,
            signature,
            is_retired: AtomicBool::new(false),
        };
        let not_sent = self.sender.enter(
            queue.clone(),
            op,
            overlaps,
            Box::new(Entering { number: request, member: Some(member) }),
        );
        // Dropping a request that was not sent locks the state again.
        drop(state);
        drop(not_sent);
        (local, answer)
    }

    /// Waits until the store has none of the entries in `queue` any more that this client has left up to now.
    /// May be dropped.
    pub(super) async fn all_left(&self, queue: &str) {
        let local = self.lock().get(queue).cloned();
        if let Some(local) = local {
            local.all_left().await;
        }
    }
}

impl Drop for QueuedKey {
    fn drop(&mut self) {
        let Some(all) = self.queues.upgrade() else { return };
        let mut queues = all.lock();
        let mut state = self.local.state();
        state.places -= 1;
        state.mirror.forget(|| self.key());
        if !*self.is_retired.get_mut() || self.session.lease.loss().is_some() {
            state.give_back(self.session.id, self.number);
        }
        if state.is_unused() {
            queues.remove(&self.local.queue);
        }
    }
}

impl QueuedKey {
    /// Returns the key of the entry.
    pub(super) fn key(&self) -> String {
        Keys::place_in(&self.local.queue, self.session.id, self.number, self.signature.as_deref())
    }

    /// Returns the session of the lease that the entry lives on.
    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Returns the state of the queue that the entry is in.
    pub(super) fn local(&self) -> &Arc<QueueState> {
        &self.local
    }

    /// Sends the request that deletes the entry. Returns its answer.
    pub(super) fn leave(&self, queues: &Queues, follow_ups: FollowUps) -> Answer {
        queues.sender.leave(self.local.queue.clone(), self.key(), follow_ups)
    }

    /// Retires the key: it is not used again while its lease lives, since a request about it may still be in
    /// flight.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Returns whether this client has other entries in the queue.
    pub(super) fn is_among_others(&self) -> bool {
        self.local.state().places > 1
    }

    /// Waits until the shared watch says that the entry `key` is at the head. The watch begins when there is
    /// a second entry.
    pub(super) async fn turn(&self, key: &str, created: i64) -> Result<()> {
        let (grant, granted) = oneshot::channel();
        self.local.state().waiters.insert(key.to_owned(), Waiter { created, grant });
        let _waiting = Waiting { local: &self.local, key };
        // The entry may have come to the head between the answer to its request and this moment.
        self.local.update(|_| Affected::Nobody);
        // The second entry starts the watch, which serves the first as well.
        if self.is_among_others()
            && let Some(queues) = self.queues.upgrade()
        {
            self.local.share(&queues);
        }
        granted.await.unwrap_or(Err(Error::Closed))
    }

    /// Takes note that an entry of this client was deleted, which its successor need not hear from the watch.
    pub(super) fn left(&self, key: &str) {
        self.local.update(|mirror| {
            mirror.delete(key);
            Affected::Nobody
        });
    }

    /// Takes note that nobody stands in an entry of this client any more, though the store still has it.
    /// Returns the next waiter if it is one of this client, to be woken at once. A contender of another
    /// client is at the head only when both entries are gone.
    pub(super) fn hand_on(&self, key: &str, created: i64) -> Option<Next> {
        // Only worth it if another entry of this client could follow.
        let leave = |mirror: &mut Mirror| {
            mirror.leave(key, created);
            Affected::Nobody
        };
        if self.is_among_others() { self.local.change(leave) } else { None }
    }
}

/// Request for an entry.
#[derive(Debug)]
pub(crate) struct Entering {
    number: u64,
    /// Entry that is asked for; taken with the answer.
    member: Option<QueuedKey>,
}

impl Reply for Entering {
    fn sent(&self) {
        if let Some(member) = &self.member {
            member.local.state().arrivals.send();
        }
    }

    /// Gives the entries that are known to be the first to the callers that asked first.
    fn answered(mut self: Box<Self>, outcome: Result<Outcome, Failure>) {
        let member = self.member.take().expect("only this method takes it, and it consumes the request");
        let local = member.local.clone();
        let told = local.state().arrivals.answered(self.number, Assigned { place: member, outcome });
        tell(told);
    }
}

/// Gives each caller its entry. A caller that is gone for good has lost the lease, and the entry with it.
fn tell(told: Replies<QueuedKey>) {
    for (first, entered) in told {
        let _ = first.send(entered);
    }
}

impl Drop for Entering {
    /// Withdraws a request that gets no answer, since the client is closed.
    fn drop(&mut self) {
        if let Some(member) = self.member.take() {
            let (asked, told) = member.local.state().arrivals.forget(self.number);
            drop(asked);
            tell(told);
        }
    }
}

/// Guard that removes its waiter when the wait ends.
struct Waiting<'a> {
    local: &'a QueueState,
    key: &'a str,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.local.state().waiters.remove(self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::{Hold, LossReason};
    use futures::FutureExt;

    use super::*;
    use crate::queue::{mirror::Change, state::Standing};

    /// Returns an entry in a queue whose watch is kept by nobody but the test.
    fn member(places: usize) -> QueuedKey {
        let local = Arc::new(QueueState::new("queue/".into()));
        local.state().places = places;
        local.becomes_shared();
        let session = Session::unrenewed(1, Duration::from_secs(1));
        let is_retired = AtomicBool::new(false);
        QueuedKey { queues: Weak::new(), local, session, number: 0, signature: None, is_retired }
    }

    /// Takes note that somebody stands in an entry. Returns the hold, which tells of the loss.
    fn stands(member: &QueuedKey, key: &str, created: i64) -> Hold {
        let (hold, session) = (Hold::on(member.session.lease.clone()), Arc::downgrade(&member.session));
        member.local.stand(key.into(), Standing { created, hold: hold.clone(), session });
        hold
    }

    /// Delivers changes together: keys, revisions, and the revisions at which they were created.
    fn told(member: &QueuedKey, changes: &[(&str, i64, Option<i64>)]) {
        let changes = changes.iter().map(|(key, revision, created)| Change {
            key,
            revision: *revision,
            created: *created,
        });
        member.local.update(|mirror| mirror.apply(changes));
    }

    #[test]
    fn places_that_end_at_one_moment_make_nobody_the_head() {
        let member = member(4);
        let holds = [1, 2, 3].map(|n| stands(&member, &n.to_string(), n));
        let (mut second, mut third) = (Box::pin(member.turn("2", 2)), Box::pin(member.turn("3", 3)));
        assert!((&mut second).now_or_never().is_none() && (&mut third).now_or_never().is_none());
        member.local.update(|mirror| mirror.reset((1..=4).map(|n| (n.to_string(), n)), 4));
        // The lease of the first three ends. The fourth is somebody else's.
        told(&member, &[("1", 5, None), ("2", 5, None), ("3", 5, None)]);
        for turn in [second, third] {
            assert!(matches!(turn.now_or_never(), Some(Err(Error::Lost { reason: LossReason::Deleted }))));
        }
        assert_eq!(holds.map(|hold| hold.loss()), [Some(LossReason::Deleted); 3], "also of who held it");
    }

    #[test]
    fn places_that_are_gone_when_the_queue_is_read_make_nobody_the_head() {
        let member = member(3);
        let (held, waits) = (stands(&member, "1", 1), stands(&member, "2", 2));
        let later = stands(&member, "5", 9);
        let mut turn = Box::pin(member.turn("2", 2));
        assert!((&mut turn).now_or_never().is_none());
        member.local.update(|mirror| mirror.reset([("3".into(), 3)], 8));
        assert!(matches!(turn.now_or_never(), Some(Err(Error::Lost { .. }))));
        assert!(held.loss().is_some() && waits.loss().is_some());
        assert_eq!(later.loss(), None, "it was created after the read");
    }

    #[test]
    fn a_place_whose_end_was_told_before_its_beginning_is_gone() {
        let member = member(2);
        member.local.update(|mirror| mirror.reset([], 5));
        told(&member, &[("1", 6, Some(6)), ("1", 7, None)]);
        assert_eq!(stands(&member, "1", 6).loss(), Some(LossReason::Deleted));
        assert_eq!(stands(&member, "1", 8).loss(), None, "of this one nothing was told");
    }

    #[test]
    fn the_end_of_a_place_that_was_left_is_nobodys_loss() {
        let member = member(2);
        let hold = stands(&member, "1", 6);
        member.local.update(|mirror| mirror.reset([("1".into(), 6)], 6));
        let leaving = member.local.leaving("1", Some(6));
        told(&member, &[("1", 7, None)]);
        assert_eq!(hold.loss(), None);
        drop(leaving);
    }

    #[test]
    fn waiting_for_what_was_left_does_not_wait_for_more() {
        let member = member(3);
        let first = member.local.leaving("1", Some(1));
        let mut all = Box::pin(member.local.all_left());
        assert!((&mut all).now_or_never().is_none());
        let second = member.local.leaving("2", Some(2));
        drop(first);
        assert!(all.now_or_never().is_some());
        assert!(Box::pin(member.local.all_left()).now_or_never().is_none());
        assert!(member.local.state().is_leaving("2") && !member.local.state().is_leaving("1"));
        drop(second);
        assert!(Box::pin(member.local.all_left()).now_or_never().is_some());
    }

    #[test]
    fn waiters_are_told_the_true_error() {
        let member = member(2);
        let mut turn = Box::pin(member.turn("1", 7));
        assert!((&mut turn).now_or_never().is_none());
        member.local.refuse(&Error::Backend { operation: "watch", source: "is broken".into() });
        assert!(matches!(turn.now_or_never(), Some(Err(Error::Backend { operation: "watch", .. }))));
    }

    #[test]
    fn the_head_of_the_mirror_is_told_and_nobody_else() {
        let member = member(2);
        let (mut first, mut second) = (Box::pin(member.turn("1", 7)), Box::pin(member.turn("2", 8)));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        member.local.update(|mirror| mirror.reset([("2".into(), 8), ("1".into(), 7)], 8));
        assert!(matches!((&mut first).now_or_never(), Some(Ok(()))));
        assert!((&mut second).now_or_never().is_none());
        member.left("1");
        assert!(matches!(second.now_or_never(), Some(Ok(()))));
    }

    #[test]
    fn the_next_has_its_turn_when_the_first_leaves_and_not_when_the_store_hears_of_it() {
        let member = member(3);
        let mut second = Box::pin(member.turn("2", 8));
        assert!((&mut second).now_or_never().is_none());
        member.local.update(|mirror| mirror.reset([("1".into(), 7), ("2".into(), 8), ("3".into(), 9)], 9));
        member.hand_on("1", 7).expect("waits").tell();
        assert!(matches!(second.now_or_never(), Some(Ok(()))));
        // 3 is somebody else's, and 4 is behind it.
        let mut fourth = Box::pin(member.turn("4", 10));
        told(&member, &[("4", 10, Some(10))]);
        assert!(member.hand_on("2", 8).is_none());
        assert!((&mut fourth).now_or_never().is_none());
        told(&member, &[("3", 11, None)]);
        assert!(matches!(fourth.now_or_never(), Some(Ok(()))), "whatever the store says of the first two");
    }

    #[test]
    fn a_turn_that_came_before_anyone_waited_for_it_is_not_missed() {
        let member = member(2);
        told(&member, &[("1", 7, Some(7))]);
        assert!(matches!(member.turn("1", 7).now_or_never(), Some(Ok(()))));
    }

    #[test]
    fn an_earlier_place_with_the_same_key_is_not_ones_own() {
        let member = member(2);
        told(&member, &[("1", 7, Some(7))]);
        let mut turn = Box::pin(member.turn("1", 9));
        assert!((&mut turn).now_or_never().is_none(), "the place of revision 7 is another one");
        told(&member, &[("1", 8, None)]);
        assert!((&mut turn).now_or_never().is_none(), "the place of revision 9 was not deleted");
        member.local.update(|mirror| mirror.reset([("2".into(), 8), ("1".into(), 9)], 9));
        assert!((&mut turn).now_or_never().is_none());
        member.left("2");
        assert!(matches!(turn.now_or_never(), Some(Ok(()))));
    }

    #[test]
    fn a_waiter_whose_place_was_deleted_is_told() {
        let member = member(2);
        let hold = stands(&member, "2", 8);
        let mut turn = Box::pin(member.turn("2", 8));
        assert!((&mut turn).now_or_never().is_none());
        member.local.update(|mirror| mirror.reset([("1".into(), 7)], 8));
        assert!(matches!(turn.now_or_never(), Some(Err(Error::Lost { reason: LossReason::Deleted }))));
        assert_eq!(hold.loss(), Some(LossReason::Deleted));
    }

    #[test]
    fn keys_that_are_not_used_again_are_forgotten_with_their_lease() {
        let queues = ByName::default();
        for (queue, lease) in [("a/", 1), ("b/", 1), ("b/", 2)] {
            let local = Arc::new(QueueState::new(queue.into()));
            let local = queues.lock().entry(queue.into()).or_insert(local).clone();
            local.state().number(lease);
        }
        queues.forget(1);
        assert_eq!(queues.lock().keys().map(|queue| &**queue).collect::<Vec<_>>(), ["b/"]);
        queues.forget(2);
        assert!(queues.lock().is_empty());
    }

    #[test]
    fn a_waiter_that_gave_up_is_forgotten() {
        let member = member(2);
        let mut turn = Box::pin(member.turn("1", 7));
        assert!((&mut turn).now_or_never().is_none());
        drop(turn);
        assert!(member.local.state().waiters.is_empty());
    }
}
