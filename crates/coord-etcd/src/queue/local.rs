//! The places of one process in one queue, and the one watch that they share.
//!
//! Where several tasks of a process stand in a queue, one watch over the queue keeps a mirror of it and tells
//! each when its turn comes: a hand-off costs no request. Where one stands alone it watches its predecessor
//! instead (see `Spot`), so that a release does not wake every process in the queue.

use std::{
    collections::{BTreeSet, HashMap},
    mem,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use coord_api::{Error, Lease, LossReason, Result};
use etcd_client::GetOptions;
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

use super::mirror::Mirror;
use crate::{
    core::Core,
    error::may_pass,
    group::{LOCK, Look},
    keys::{Keys, Range},
    read::revision,
    session::Session,
    watch::hub::{Delivery, Subscription},
};

/// How long the shared watch stays when nobody waits: tasks that take turns come back soon.
const LINGER: Duration = Duration::from_secs(1);

/// The queues that this client stands in.
#[derive(Debug, Default)]
pub(crate) struct Queues(Mutex<HashMap<Arc<str>, Arc<Local>>>);

/// One queue that this client stands in.
#[derive(Debug)]
pub(super) struct Local {
    queue: Arc<str>,
    state: Mutex<State>,
    /// Tells those who wait alone that the shared watch is kept from now on.
    shared: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// How many places of ours there are, those of holders included.
    spots: usize,
    /// The leases and numbers in the keys of our places. A number is used again, since etcd remembers every key
    /// that ever was until it is compacted, and walks over them whenever it looks at the queue.
    numbers: BTreeSet<(i64, u64)>,
    /// Whether the shared watch is kept.
    is_shared: bool,
    mirror: Mirror,
    waiters: HashMap<String, Waiter>,
}

#[derive(Debug)]
struct Waiter {
    /// When its place was created: the same key may have been another place before.
    created: i64,
    grant: oneshot::Sender<Result<()>>,
}

/// One place of ours in a queue, counted, with a key that no other place of ours has.
#[derive(Debug)]
pub(super) struct Member {
    core: Weak<Core>,
    local: Arc<Local>,
    session: i64,
    lease: Lease,
    number: u64,
    is_retired: AtomicBool,
}

impl Queues {
    /// Counts one more place in `queue`, on `session`.
    pub(super) fn join(&self, core: &Arc<Core>, queue: &Arc<str>, session: &Session) -> Member {
        let mut queues = self.0.lock().expect("nothing panics while this is locked");
        let local = queues.entry(queue.clone()).or_insert_with(|| {
            let (queue, state) = (queue.clone(), Mutex::default());
            Arc::new(Local { queue, state, shared: Notify::new() })
        });
        let number = local.state().add(session.id);
        Member {
            core: Arc::downgrade(core),
            local: local.clone(),
            session: session.id,
            lease: session.lease.clone(),
            number,
            is_retired: AtomicBool::new(false),
        }
    }
}

impl State {
    /// Counts a place on a lease; its number is the smallest that is free.
    fn add(&mut self, lease: i64) -> u64 {
        self.spots += 1;
        let used = self.numbers.range((lease, 0)..=(lease, u64::MAX));
        let number = (0..).zip(used).take_while(|(number, (_, used))| number == used).count() as u64;
        self.numbers.insert((lease, number));
        number
    }

    /// Whether nobody of ours stands in the queue, it is not watched, and nothing is known that would matter later.
    fn is_unused(&self) -> bool {
        self.spots == 0 && self.numbers.is_empty() && !self.is_shared
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let Some(core) = self.core.upgrade() else { return };
        let mut queues = core.queues.0.lock().expect("nothing panics while this is locked");
        let mut state = self.local.state();
        state.spots -= 1;
        if !*self.is_retired.get_mut() || self.lease.loss().is_some() {
            state.numbers.remove(&(self.session, self.number));
        }
        if state.is_unused() {
            queues.remove(&self.local.queue);
        }
    }
}

impl Member {
    /// The key of the place.
    pub(super) fn key(&self) -> String {
        Keys::place_in(&self.local.queue, self.session, self.number)
    }

    /// Never uses the key again while its lease lives: a request about it may still be under way.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// Whether other places of this client are in the queue.
    pub(super) fn is_among_others(&self) -> bool {
        self.local.state().spots > 1
    }

    /// What the client does not know yet about the queue that it enters.
    pub(super) fn what_to_look_for(&self) -> Look {
        let state = self.local.state();
        if state.mirror.head().is_some() {
            // Someone is there, and the watch will tell when its turn is.
            Look::Away
        } else if state.spots > 1 {
            Look::AnyoneElse
        } else {
            Look::Predecessor
        }
    }

    /// Waits until the shared watch says that the place `key` is at the head. It begins when there is a second
    /// place.
    pub(super) async fn turn(&self, key: &str, created: i64) -> Result<()> {
        let (grant, granted) = oneshot::channel();
        self.local.state().waiters.insert(key.to_owned(), Waiter { created, grant });
        let _waiting = Waiting { local: &self.local, key };
        // The turn may have come between the answer to the request and this moment.
        self.local.update(|_| {});
        // Whoever comes second starts the watch, and it serves the first as well.
        if self.is_among_others()
            && let Some(core) = self.core.upgrade()
        {
            self.local.share(&core);
        }
        granted.await.unwrap_or(Err(Error::Closed))
    }

    /// Resolves when the shared watch is kept.
    pub(super) async fn shared(&self) {
        loop {
            let shared = self.local.shared.notified();
            if self.local.state().is_shared {
                return;
            }
            shared.await;
        }
    }

    /// Takes note that a place of ours was deleted, which its successor need not hear from the watch.
    pub(super) fn left(&self, key: &str) {
        self.local.update(|mirror| mirror.delete(key));
    }
}

/// Removes a waiter that does not wait any more.
struct Waiting<'a> {
    local: &'a Local,
    key: &'a str,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.local.state().waiters.remove(self.key);
    }
}

impl Local {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while this is locked")
    }

    /// Changes the mirror, and tells whoever is at the head then.
    fn update(&self, change: impl FnOnce(&mut Mirror)) {
        let mut state = self.state();
        let State { mirror, waiters, .. } = &mut *state;
        change(mirror);
        if let Some((created, head)) = mirror.head()
            && waiters.get(head).is_some_and(|waiter| waiter.created == created)
            && let Some(waiter) = waiters.remove(head)
        {
            // One that has just given up leaves the queue, and the next is told then.
            let _ = waiter.grant.send(Ok(()));
        }
    }

    /// Tells a waiter that its place, which existed before revision `at`, is not there any more.
    fn tell_if_deleted(&self, key: &str, at: i64) {
        let mut state = self.state();
        let is_gone =
            |waiter: &Waiter| waiter.created < at && state.mirror.created(key) != Some(waiter.created);
        if state.waiters.get(key).is_some_and(is_gone)
            && let Some(waiter) = state.waiters.remove(key)
        {
            let _ = waiter.grant.send(Err(Error::Lost { reason: LossReason::Deleted }));
        }
    }

    fn share(self: &Arc<Self>, core: &Arc<Core>) {
        if self.becomes_shared() {
            core.runtime.spawn(keep(self.clone(), Arc::downgrade(core)));
        }
    }

    /// Takes note that the watch is kept, and tells those who wait alone; `false` if it was before.
    fn becomes_shared(&self) -> bool {
        let becomes = !mem::replace(&mut self.state().is_shared, true);
        if becomes {
            self.shared.notify_waiters();
        }
        becomes
    }

    /// Whether nobody waits; then the watch is given up.
    fn give_up_if_idle(&self, core: &Core) -> bool {
        let mut queues = core.queues.0.lock().expect("nothing panics while this is locked");
        let mut state = self.state();
        if !state.waiters.is_empty() {
            return false;
        }
        state.mirror = Mirror::default();
        state.is_shared = false;
        if state.is_unused() {
            queues.remove(&self.queue);
        }
        true
    }
}

/// Keeps the mirror of a queue until nobody waits in it for a while.
async fn keep(local: Arc<Local>, core: Weak<Core>) {
    loop {
        let Some(strong) = core.upgrade() else { return };
        if local.give_up_if_idle(&strong) {
            return;
        }
        let begun = begin(&local, &strong).await;
        drop(strong);
        match begun {
            Ok((changes, read_at)) => follow(&local, changes, read_at).await,
            Err(error) if may_pass(&error) => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(50..250))).await;
            }
            Err(error) => refuse(&local, &error),
        }
    }
}

/// Subscribes from now on, then reads the queue; the subscription and the revision of the read.
async fn begin(local: &Local, core: &Core) -> Result<(Subscription, i64)> {
    let mut changes = core.hub.subscribe(Range::Prefix(local.queue.clone()));
    match tokio::time::timeout(core.request_timeout, changes.next()).await {
        Ok(Some(Delivery::Refused(error))) => return Err(*error),
        Ok(Some(_)) => {}
        _ => return Err(Error::Unavailable { what: "etcd".into(), source: None }),
    }
    let waiting: Vec<_> = local.state().waiters.keys().cloned().collect();
    let options = GetOptions::new().with_prefix().with_keys_only();
    let found = core.get(LOCK, &*local.queue, Some(options)).await?;
    let places =
        found.kvs().iter().filter_map(|kv| Some((kv.key_str().ok()?.to_owned(), kv.create_revision())));
    local.update(|mirror| mirror.reset(places));
    let read_at = revision(found.header());
    for key in &waiting {
        local.tell_if_deleted(key, read_at + 1);
    }
    Ok((changes, read_at))
}

/// Applies changes after `read_at` until some may have been missed, or nobody has waited for a while.
async fn follow(local: &Local, mut changes: Subscription, read_at: i64) {
    let mut waited_at = Instant::now();
    while waited_at.elapsed() < LINGER {
        match tokio::time::timeout(LINGER, changes.next()).await {
            Ok(Some(Delivery::Changes(changes))) => {
                for change in changes.iter().filter(|change| change.revision > read_at) {
                    if change.value.is_some() {
                        local.update(|mirror| mirror.put(change.key.clone(), change.created));
                    } else {
                        local.update(|mirror| mirror.delete(&change.key));
                        local.tell_if_deleted(&change.key, change.revision);
                    }
                }
            }
            Ok(Some(Delivery::Started { .. })) | Err(_) => {}
            Ok(Some(Delivery::Refused(_)) | None) => return,
        }
        if !local.state().waiters.is_empty() {
            waited_at = Instant::now();
        }
    }
}

/// Tells every waiter that its turn can not be waited for.
fn refuse(local: &Local, error: &Error) {
    for (_, waiter) in local.state().waiters.drain() {
        let source = error.to_string().into();
        let _ = waiter.grant.send(Err(Error::PermissionDenied { operation: LOCK, source }));
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    /// A place in a queue whose watch is kept by nobody but the test.
    fn member(spots: usize) -> Member {
        let state = Mutex::new(State { spots, is_shared: true, ..State::default() });
        let local = Local { queue: "queue/".into(), state, shared: Notify::new() };
        let lease = Lease::granted(Instant::now(), LINGER);
        let (session, number, is_retired) = (1, 0, AtomicBool::new(false));
        Member { core: Weak::new(), local: Arc::new(local), session, lease, number, is_retired }
    }

    #[test]
    fn the_head_of_the_mirror_is_told_and_nobody_else() {
        let member = member(2);
        let (mut first, mut second) = (Box::pin(member.turn("1", 7)), Box::pin(member.turn("2", 8)));
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        member.local.update(|mirror| mirror.reset([("2".into(), 8), ("1".into(), 7)]));
        assert!(matches!((&mut first).now_or_never(), Some(Ok(()))));
        assert!((&mut second).now_or_never().is_none());
        member.left("1");
        assert!(matches!(second.now_or_never(), Some(Ok(()))));
    }

    #[test]
    fn a_turn_that_came_before_anyone_waited_for_it_is_not_missed() {
        let member = member(2);
        member.local.update(|mirror| mirror.put("1".into(), 7));
        assert!(matches!(member.turn("1", 7).now_or_never(), Some(Ok(()))));
    }

    #[test]
    fn an_earlier_place_with_the_same_key_is_not_ones_own() {
        let member = member(2);
        member.local.update(|mirror| mirror.put("1".into(), 7));
        let mut turn = Box::pin(member.turn("1", 9));
        assert!((&mut turn).now_or_never().is_none(), "the place of revision 7 is another one");
        member.local.update(|mirror| mirror.delete("1"));
        member.local.tell_if_deleted("1", 8);
        assert!((&mut turn).now_or_never().is_none(), "the place of revision 9 was not deleted");
        member.local.update(|mirror| mirror.reset([("2".into(), 8), ("1".into(), 9)]));
        assert!((&mut turn).now_or_never().is_none());
        member.left("2");
        assert!(matches!(turn.now_or_never(), Some(Ok(()))));
    }

    #[test]
    fn a_waiter_whose_place_was_deleted_is_told() {
        let member = member(2);
        let mut turn = Box::pin(member.turn("2", 8));
        assert!((&mut turn).now_or_never().is_none());
        member.local.update(|mirror| mirror.reset([("1".into(), 7)]));
        member.local.tell_if_deleted("2", 9);
        assert!(matches!(turn.now_or_never(), Some(Err(Error::Lost { reason: LossReason::Deleted }))));
    }

    #[test]
    fn who_waits_alone_is_told_once_there_is_a_watch() {
        let member = member(2);
        member.local.state().is_shared = false;
        let mut shared = Box::pin(member.shared());
        assert!((&mut shared).now_or_never().is_none());
        assert!(member.local.becomes_shared());
        assert!(shared.now_or_never().is_some());
        assert!(member.shared().now_or_never().is_some(), "it was before");
        assert!(!member.local.becomes_shared(), "one watch is enough");
    }

    #[test]
    fn a_waiter_that_gave_up_is_forgotten() {
        let member = member(2);
        let mut turn = Box::pin(member.turn("1", 7));
        assert!((&mut turn).now_or_never().is_none());
        drop(turn);
        assert!(member.local.state().waiters.is_empty());
    }

    #[test]
    fn the_smallest_free_number_is_used_again() {
        let mut state = State::default();
        assert_eq!([state.add(1), state.add(1), state.add(2), state.add(1)], [0, 1, 0, 2]);
        state.numbers.remove(&(1, 1));
        assert_eq!([state.add(1), state.add(1)], [1, 3]);
        for number in 0..4 {
            state.numbers.remove(&(1, number));
        }
        state.numbers.remove(&(2, 0));
        assert!(state.numbers.is_empty());
    }
}
