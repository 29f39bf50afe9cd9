//! Locks: a queue per name, whose first place is the holder's.
//!
//! A contender takes its place, and the guard over it, before it waits. So a dropped `acquire` is a dropped
//! guard, which frees the place, and if the place had just become the first, the next one is told.

use std::{
    collections::{BTreeMap, VecDeque, hash_map},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    DistributedLock, FencingToken, HeldLock, Holder, LockGuard, LockName, Owner, Result, Ttl,
    backend::waiting::{Queue, QueuedPlace, wait_for_turn, wait_within},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    connection::Connection,
    keys::{self, Location},
    store::{Grip, Item, State},
};

/// One place in a queue.
pub(crate) struct Contender {
    pub(crate) grip: Grip,
    owner: Arc<Owner>,
    /// Tells the contender that it is first; taken then.
    grant: Option<oneshot::Sender<Granted>>,
    /// Whether its client has given it back, though the store does not know yet.
    left: bool,
}

/// From whom a contender hears that it is first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Granted {
    ByTheStore,
    /// From the one before, of the same client, whether the link is up or not.
    Locally,
}

impl State {
    /// Takes the last place in a lock's queue. Where it is not the first, the grant comes later.
    fn join_queue(
        &mut self,
        connection: &Connection,
        name: &LockName,
        ttl: Ttl,
    ) -> (Grip, Option<oneshot::Receiver<Granted>>) {
        let grip = self.take(connection.id(), ttl, Item::Lock(name.clone()));
        let owner = self.session(connection.id()).owner.clone();
        let queue = self.locks.entry(name.clone()).or_default();
        let (grant, granted) = (!queue.is_empty()).then(oneshot::channel).unzip();
        queue.push_back(Contender { grip: grip.clone(), owner, grant, left: false });
        (grip, granted)
    }

    /// Removes a place from a lock's queue; if it was the first, the next one is told.
    pub(crate) fn leave_queue(&mut self, name: LockName, place: u64) {
        let hash_map::Entry::Occupied(mut entry) = self.locks.entry(name) else {
            return;
        };
        let queue = entry.get_mut();
        if let Some(at) = position(queue, place) {
            queue.remove(at);
        }
        match queue.front_mut() {
            None => drop(entry.remove()),
            Some(first) => {
                if let Some(grant) = first.grant.take() {
                    // A contender that has just given up removes its place as well, and the next is told.
                    let _ = grant.send(Granted::ByTheStore);
                }
            }
        }
    }

    /// Takes note that a client gives back a place of a lock's queue, which the store will hear of later. If the next is
    /// of the same client it is told: nobody else can come before it. Not if writes may be under way that depend on the
    /// place.
    pub(crate) fn leave_unseen(&mut self, name: &LockName, place: u64) {
        let Some(queue) = self.locks.get_mut(name) else { return };
        let Some(leaver) = position(queue, place).and_then(|at| queue.get_mut(at)) else { return };
        if leaver.grip.hold.is_fence() {
            return;
        }
        leaver.left = true;
        let client = leaver.grip.client;
        let mut of_client = queue.iter_mut().take_while(|contender| contender.grip.client == client);
        if let Some(next) = of_client.find(|contender| !contender.left)
            && let Some(grant) = next.grant.take()
        {
            let _ = grant.send(Granted::Locally);
        }
    }

    /// Who is at a place of a lock's queue.
    pub(crate) fn contender(&self, name: &LockName, place: u64) -> Option<&Grip> {
        let queue = self.locks.get(name)?;
        Some(&queue[position(queue, place)?].grip)
    }

    /// All places of a lock's queue, in their order.
    pub(crate) fn places(&self, name: &LockName) -> Vec<Grip> {
        self.locks.get(name).into_iter().flatten().map(|contender| contender.grip.clone()).collect()
    }

    /// Whether the place that `held` names is the first of its lock's queue that nobody has left.
    pub(crate) fn is_held(&self, held: &HeldLock) -> bool {
        let Location::Lock(name, place) = keys::locate(&held.key) else {
            return false;
        };
        let first = self.locks.get(&name).and_then(|queue| queue.iter().find(|contender| !contender.left));
        place == held.token.get() && first.is_some_and(|first| first.grip.revision == place)
    }

    fn holders(&self, name: &LockName) -> Vec<Holder> {
        let queue = self.locks.get(name).into_iter().flatten();
        queue
            .map(|Contender { grip, owner, .. }| {
                let (key, token) = (keys::lock(name, grip.revision), FencingToken::new(grip.revision));
                Holder::new(Some((**owner).clone()), key, token)
            })
            .collect()
    }
}

/// Queues are in the order in which their places were taken.
fn position(queue: &VecDeque<Contender>, place: u64) -> Option<usize> {
    queue.binary_search_by_key(&place, |contender| contender.grip.revision).ok()
}

/// The locks of one client.
#[derive(Debug)]
pub(crate) struct Locks(pub(crate) Arc<Connection>);

impl Locks {
    fn guard(&self, name: LockName, grip: Grip) -> LockGuard {
        // Places are numbered by the store's revisions and served in their order, so the number of a place
        // is larger than that of every holder before.
        let (key, token) = (keys::lock(&name, grip.revision), FencingToken::new(grip.revision));
        LockGuard::new(name, key, token, self.0.place(grip))
    }
}

/// The queue of one lock.
struct LockQueue<'a> {
    locks: &'a Locks,
    name: LockName,
    ttl: Ttl,
}

/// A place in it, with the guard over it.
struct Waiting<'a> {
    locks: &'a Locks,
    guard: LockGuard,
    since: Instant,
    /// `None` once it is at the head.
    granted: Option<oneshot::Receiver<Granted>>,
}

impl<'a> Queue for LockQueue<'a> {
    type Place = Waiting<'a>;

    async fn enter(&self) -> Result<Waiting<'a>> {
        let connection = &self.locks.0;
        let (grip, granted) = connection.call().await?.join_queue(connection, &self.name, self.ttl);
        let guard = self.locks.guard(self.name.clone(), grip);
        if granted.is_some() {
            tracing::debug!(lock = guard.name(), token = %guard.token(), "waiting for the lock");
        }
        Ok(Waiting { locks: self.locks, guard, since: Instant::now(), granted })
    }

    async fn pause(&self) {
        // Closed: that is told by what is tried next.
        let _ = self.locks.0.online().await;
    }
}

impl QueuedPlace for Waiting<'_> {
    async fn turn(&mut self) -> Result<()> {
        if let Some(granted) = &mut self.granted {
            let needs_link = |from: &Granted| *from == Granted::ByTheStore;
            self.locks.0.granted(self.guard.lost(), granted, needs_link).await?;
            self.granted = None;
        }
        self.guard.check()
    }

    fn is_behind(&self) -> bool {
        self.granted.is_some()
    }
}

impl Waiting<'_> {
    fn into_guard(self) -> LockGuard {
        let (guard, waited) = (self.guard, self.since.elapsed());
        tracing::debug!(lock = guard.name(), token = %guard.token(), ?waited, "lock acquired");
        guard
    }
}

#[async_trait]
impl DistributedLock for Locks {
    async fn acquire(&self, name: &str, ttl: Duration) -> Result<LockGuard> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        Ok(wait_for_turn(&LockQueue { locks: self, name, ttl }).await?.into_guard())
    }

    async fn acquire_waiting(&self, name: &str, ttl: Duration, wait: Duration) -> Result<Option<LockGuard>> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        let had = wait_within(&LockQueue { locks: self, name, ttl }, wait).await?;
        Ok(had.map(Waiting::into_guard))
    }

    async fn try_acquire(&self, name: &str, ttl: Duration) -> Result<Option<LockGuard>> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        let mut state = self.0.call().await?;
        if state.locks.contains_key(&name) {
            return Ok(None);
        }
        let (grip, _) = state.join_queue(&self.0, &name, ttl);
        drop(state);
        let guard = self.guard(name, grip);
        tracing::debug!(lock = guard.name(), token = %guard.token(), "lock acquired");
        Ok(Some(guard))
    }

    async fn queues(&self) -> Result<BTreeMap<String, Vec<Holder>>> {
        let state = self.0.call().await?;
        Ok(state.locks.keys().map(|name| (name.to_string(), state.holders(name))).collect())
    }

    async fn holders(&self, name: &str) -> Result<Vec<Holder>> {
        let name = LockName::parse(name)?;
        Ok(self.0.call().await?.holders(&name))
    }
}

#[cfg(test)]
mod tests {
    use coord_api::{ConfigExt, Error, Provider};
    use futures::FutureExt;

    use super::*;
    use crate::Store;

    const TTL: Duration = Duration::from_secs(3);

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_dropped_just_when_it_was_granted_passes_the_lock_on() -> Result<()> {
        let store = Store::new();
        let locks = store.client().lock();
        let held = locks.acquire("a", TTL).await?;
        let mut cancelled = locks.acquire("a", TTL);
        let mut next = locks.acquire("a", TTL);
        assert!((&mut cancelled).now_or_never().is_none() && (&mut next).now_or_never().is_none());
        held.unlock().await?;
        drop(cancelled);
        let guard = next.now_or_never().expect("is granted at once")?;
        assert_eq!(store.keys(), [guard.key()]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_waiter_leaves_the_queue_at_once() -> Result<()> {
        let store = Store::new();
        let locks = store.client().lock();
        let held = locks.acquire("a", TTL).await?;
        let mut waiting = locks.acquire("a", TTL);
        assert!((&mut waiting).now_or_never().is_none());
        assert_eq!(store.keys().len(), 2);
        drop(waiting);
        assert_eq!(store.keys(), [held.key()]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_handed_the_lock_may_write_before_the_store_hears_of_that() -> Result<()> {
        let store = Store::new();
        let (client, other) = (store.client(), store.client());
        let held = client.lock().acquire("a", TTL).await?;
        let (locks, others) = (client.lock(), other.lock());
        let mut next = locks.acquire("a", TTL);
        let mut after = others.acquire("a", TTL);
        assert!((&mut next).now_or_never().is_none() && (&mut after).now_or_never().is_none());
        client.stall(Duration::from_millis(500));
        let mut unlocked = Box::pin(held.unlock());
        assert!((&mut unlocked).now_or_never().is_none(), "the store can not be told yet");
        let next = next.now_or_never().expect("is handed on at once")?;
        client.config().set_if_held(&next, "k", &1).await?;
        assert!((&mut after).now_or_never().is_none());
        unlocked.await?;
        next.unlock().await?;
        after.now_or_never().expect("is free").map(drop)
    }

    #[tokio::test(start_paused = true)]
    async fn a_grant_is_heard_of_when_the_link_is_up_again() -> Result<()> {
        let store = Store::new();
        let (holder, waiter) = (store.client(), store.client());
        let held = holder.lock().acquire("a", TTL).await?;
        let locks = waiter.lock();
        let mut waiting = locks.acquire("a", TTL);
        assert!((&mut waiting).now_or_never().is_none());
        waiter.disconnect();
        held.unlock().await?;
        assert!((&mut waiting).now_or_never().is_none());
        assert!(holder.lock().try_acquire("a", TTL).await?.is_none());
        waiter.reconnect();
        assert!(!waiting.await?.is_lost());
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_whose_lease_is_lost_waits_in_another_place() -> Result<()> {
        let store = Store::new();
        let (holder, waiter) = (store.client(), store.client());
        let held = holder.lock().acquire("a", TTL).await?;
        let locks = waiter.lock();
        let mut waiting = locks.acquire("a", TTL);
        assert!((&mut waiting).now_or_never().is_none());
        let place = holder.lock().holders("a").await?[1].token;
        waiter.disconnect();
        tokio::time::sleep(TTL * 2).await;
        assert!((&mut waiting).now_or_never().is_none() && !held.is_lost());
        waiter.reconnect();
        assert!((&mut waiting).now_or_never().is_none());
        assert!(holder.lock().holders("a").await?[1].token > place, "it stands there anew");

        store.revoke_leases();
        let guard = waiting.await?;
        assert!(held.is_lost() && !guard.is_lost());
        assert_eq!(store.keys(), [guard.key()], "its old place was never at the head");
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn close_wakes_waiters() -> Result<()> {
        let store = Store::new();
        let _held = store.client().lock().acquire("a", TTL).await?;
        let client = store.client();
        let locks = client.lock();
        let (waited, closed) = tokio::join!(locks.acquire("a", TTL), client.close());
        closed?;
        assert!(matches!(waited, Err(Error::Closed)));
        assert_eq!(store.keys().len(), 1);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_was_dropped_while_cut_off_still_tells_who_it_was() -> Result<()> {
        let store = Store::new();
        let client = store.client_with(crate::Options::default().label("billing"))?;
        let owner = client.owner().clone();
        assert_eq!(owner.label.as_deref(), Some("billing"));
        let guard = client.lock().acquire("a", TTL).await?;
        let expected = Holder::new(Some(owner), guard.key(), guard.token());
        client.disconnect();
        drop((client, guard));
        assert_eq!(store.client().lock().holders("a").await?, [expected]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn an_unlock_that_could_not_be_sent_arrives_later() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let guard = client.lock().acquire("a", TTL).await?;
        client.disconnect();
        assert!(matches!(guard.unlock().await, Err(Error::Unavailable { .. })));
        assert_eq!(store.keys().len(), 1);
        client.reconnect();
        assert_eq!(store.keys(), [""; 0]);
        Ok(())
    }
}
