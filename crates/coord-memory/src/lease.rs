//! Leases in the store, and the places that live on them.
//!
//! All that a client holds for one TTL is on one lease, so holding much costs no more renewals and no more
//! timers than holding little. The store ends a lease a little after its holder's own deadline.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{Hold, Lease, LeaseHealth, LossReason, Ttl};
use tokio::time::Instant;

use crate::{
    session::{ClientId, News},
    store::{Grip, Item, State},
};

/// How much longer than its holder the store believes in a lease.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// The most leases that a client keeps without a place on them. Callers choose times to live, so without a limit a
/// client could renew any number of leases for ever.
const MOST_UNUSED: usize = 8;

/// How long a lease is kept without a place on it: one time to live, 10 s at least and a minute at most.
fn kept_unused(ttl: Ttl) -> Duration {
    ttl.as_duration().clamp(Duration::from_secs(10), Duration::from_secs(60))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LeaseId(u64);

/// A lease in the store.
pub(crate) struct StoredLease {
    pub(crate) client: ClientId,
    ttl: Ttl,
    /// The holder's view of it.
    pub(crate) lease: Lease,
    expires: Instant,
    /// What lives on it, by the revision at which it was taken.
    pub(crate) places: BTreeMap<u64, Item>,
    /// Since when nothing lives on it.
    unused_since: Option<Instant>,
}

impl StoredLease {
    /// When the holder renews it.
    pub(crate) fn renewal(&self) -> Instant {
        self.deadline() - self.ttl.as_duration() * 2 / 3
    }

    /// Returns when the holder gives it back, if nothing is taken on it until then.
    pub(crate) fn given_back(&self) -> Option<Instant> {
        self.unused_since.map(|since| since + kept_unused(self.ttl))
    }

    /// Removes a place from the list.
    pub(crate) fn remove(&mut self, place: u64) -> Option<Item> {
        let item = self.places.remove(&place);
        if self.places.is_empty() && self.unused_since.is_none() {
            self.unused_since = Some(Instant::now());
        }
        item
    }

    /// Until when a holder may believe in the lease that has not heard of its end; `None` if it has.
    fn believed(&self) -> Option<Instant> {
        if self.lease.loss().is_some() { None } else { Some(self.expires) }
    }

    /// When the holder gives up.
    pub(crate) fn deadline(&self) -> Instant {
        self.expires - GRACE
    }
}

impl State {
    /// Takes a place on the client's lease for `ttl`. The caller puts there what `item` says.
    pub(crate) fn take(&mut self, client: ClientId, ttl: Ttl, item: Item) -> Grip {
        let lease = self.current_lease(client, ttl);
        let revision = self.next_revision();
        let stored = self.leases.get_mut(&lease).expect("a current lease is stored");
        stored.places.insert(revision, item);
        stored.unused_since = None;
        Grip { client, lease, revision, hold: Hold::on(stored.lease.clone()) }
    }

    fn current_lease(&mut self, client: ClientId, ttl: Ttl) -> LeaseId {
        if let Some(&id) = self.session(client).leases.get(&ttl) {
            // Usually the keeper has renewed it; if a busy runtime kept it from that, this call does.
            if self.leases[&id].lease.health() == LeaseHealth::Healthy || self.renew(id, Instant::now()) {
                return id;
            }
        }
        self.grant(client, ttl, Instant::now())
    }

    fn grant(&mut self, client: ClientId, ttl: Ttl, now: Instant) -> LeaseId {
        self.leases_granted += 1;
        let id = LeaseId(self.leases_granted);
        let granted = StoredLease {
            client,
            ttl,
            lease: Lease::granted(now, ttl.as_duration()),
            expires: now + ttl.as_duration() + GRACE,
            places: BTreeMap::new(),
            unused_since: Some(now),
        };
        self.expiries.insert((granted.expires, id));
        self.leases.insert(id, granted);
        self.session(client).leases.insert(ttl, id);
        self.give_back_unused(client, now);
        if self.expiries.first().is_some_and(|(_, first)| *first == id) {
            // Any client may be the only one that still runs when this one expires.
            self.sessions.values().for_each(|session| session.wake.notify_one());
        } else {
            self.session(client).wake.notify_one();
        }
        id
    }

    /// Gives back what a client does not use any more of its current leases: those whose time without a place is over,
    /// and those that are more than a client keeps, the longest unused first. A client that is cut off can not.
    pub(crate) fn give_back_unused(&mut self, client: ClientId, now: Instant) {
        let Some(session) = self.sessions.get(&client).filter(|session| session.is_up()) else { return };
        let unused = session.leases.values().filter_map(|id| Some((self.leases[id].unused_since?, *id)));
        let mut unused: Vec<_> = unused.collect();
        unused.sort_unstable();
        let too_many = unused.len().saturating_sub(MOST_UNUSED);
        for (n, (_, id)) in unused.into_iter().enumerate() {
            if n >= too_many && self.leases[&id].given_back().is_none_or(|at| now < at) {
                continue;
            }
            let ended = self.leases.remove(&id).expect("a current lease is stored");
            self.expiries.remove(&(ended.expires, id));
            self.session(client).leases.remove(&ended.ttl);
            ended.lease.lose(LossReason::Released);
        }
    }

    /// Renews a current lease; `false` if it was lost before.
    pub(crate) fn renew(&mut self, id: LeaseId, now: Instant) -> bool {
        let stored = self.leases.get_mut(&id).expect("a current lease is stored");
        match stored.lease.renewed(now, stored.ttl.as_duration()) {
            Ok(()) => {
                self.expiries.remove(&(stored.expires, id));
                stored.expires = now + stored.ttl.as_duration() + GRACE;
                self.expiries.insert((stored.expires, id));
                true
            }
            Err(reason) => {
                self.retire(id, reason);
                false
            }
        }
    }

    /// Sees to it that nothing more is put on a lease that is lost: the client's next one is another.
    pub(crate) fn retire(&mut self, id: LeaseId, reason: LossReason) {
        let stored = &self.leases[&id];
        if let Some(session) = self.sessions.get_mut(&stored.client)
            && session.leases.get(&stored.ttl) == Some(&id)
        {
            session.leases.remove(&stored.ttl);
            let (ttl, places) = (stored.ttl.as_secs(), stored.places.len());
            tracing::warn!(owner = %session.owner, ttl, places, %reason, "lease lost");
        }
    }

    /// Ends leases: first every holder is told, then the places are freed, so that nobody is given a place
    /// only to lose it with the next lease.
    pub(crate) fn end_leases(&mut self, ids: &[LeaseId], reason: LossReason) {
        for id in ids {
            let (client, lease) = (self.leases[id].client, self.leases[id].lease.clone());
            self.retire(*id, lease.loss().unwrap_or(reason));
            self.tell(client, News::Lease(lease, reason));
        }
        for id in ids {
            if !self.leases[id].places.is_empty() {
                self.next_revision();
            }
            let believed = self.leases[id].believed();
            // The youngest first: a waiter leaves before it could be given what it waits for.
            while let Some((place, item)) = self.leases.get_mut(id).and_then(|ended| ended.places.pop_last())
            {
                self.clear(item, place, believed);
            }
            let ended = self.leases.remove(id).expect("only this removes it");
            self.expiries.remove(&(ended.expires, *id));
        }
    }

    /// Ends the leases whose time is over. Their holders have given up before, at their own deadline.
    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some(&(at, id)) = self.expiries.first()
            && at <= now
        {
            self.end_leases(&[id], LossReason::Revoked);
        }
    }

    /// Every lease of one client, also those that it has given up.
    pub(crate) fn leases_of(&self, client: ClientId) -> Vec<LeaseId> {
        let own = self.leases.iter().filter(|(_, lease)| lease.client == client);
        own.map(|(id, _)| *id).collect()
    }

    /// Frees a place for its holder; `false` if it is no longer taken.
    pub(crate) fn free(&mut self, lease: LeaseId, place: u64) -> bool {
        self.free_believed(lease, place, None)
    }

    /// Frees a place that was taken from its holder, who may not have heard of it.
    pub(crate) fn take_away(&mut self, grip: &Grip) -> bool {
        let heard = grip.hold.loss().is_some();
        let expires = self.leases.get(&grip.lease).map(|lease| lease.expires);
        self.free_believed(grip.lease, grip.revision, expires.filter(|_| !heard))
    }

    fn free_believed(&mut self, lease: LeaseId, place: u64, believed: Option<Instant>) -> bool {
        let listed = self.leases.get_mut(&lease).and_then(|lease| lease.remove(place));
        let Some(item) = listed else {
            return false;
        };
        self.next_revision();
        self.clear(item, place, believed);
        true
    }

    /// Removes, at the current revision, what was at a place that is no longer listed on its lease. Its holder
    /// may believe in it until `believed`, if it has not heard.
    fn clear(&mut self, item: Item, place: u64, believed: Option<Instant>) {
        match item {
            Item::Lock(name) => self.leave_queue(name, place),
            Item::IdWaiter(service) => self.stop_waiting(service, place),
            Item::Id(service, id) => self.free_id(service, id, believed),
            Item::Entry(key) => self.delete(&key),
        }
    }
}

#[cfg(test)]
mod tests {
    use coord_api::{Error, IdOptions, LossReason, Provider, Result};
    use tokio::{runtime, time::sleep};

    use super::*;
    use crate::Store;

    const TTL: Duration = Duration::from_secs(3);

    fn runtime() -> runtime::Runtime {
        let mut builder = runtime::Builder::new_current_thread();
        builder.enable_all().start_paused(true).build().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn all_that_is_held_for_one_ttl_is_on_one_lease_that_is_renewed() -> Result<()> {
        let store = Store::new();
        let locks = store.client().lock();
        let mut held = Vec::new();
        for n in 0..1000 {
            held.push(locks.acquire(&format!("job-{n}"), TTL).await?);
        }
        let _other = locks.acquire("other", TTL * 2).await?;
        assert_eq!(store.lock().leases.len(), 2);
        assert_eq!(store.lock().expiries.len(), 2);
        sleep(TTL * 10).await;
        assert!(held.iter().all(|guard| !guard.is_lost()));
        drop(held);
        assert_eq!(store.keys().len(), 1);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn leases_without_places_are_few_and_given_back() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let held = client.lock().acquire("held", TTL).await?;
        for seconds in 10..410 {
            client.lock().acquire("job", Duration::from_secs(seconds)).await?.unlock().await?;
        }
        assert!(store.lock().leases.len() <= 2 + MOST_UNUSED, "{}", store.lock().leases.len());
        let at_last = client.lock().acquire("job", Duration::from_secs(409)).await?;
        sleep(Duration::from_secs(61)).await;
        assert_eq!(store.lock().leases.len(), 2, "those that are used");
        assert_eq!(store.lock().expiries.len(), 2);
        assert!(!held.is_lost() && !at_last.is_lost());
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_loss_the_next_place_is_on_another_lease() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let lost = client.lock().acquire("a", TTL).await?;
        tokio::time::advance(TTL).await;
        assert!(lost.is_lost(), "a process that was frozen knows at once");
        let held = client.lock().acquire("b", TTL).await?;
        sleep(TTL).await;
        assert!(lost.is_lost() && !held.is_lost());
        assert_eq!(store.keys(), [held.key()]);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn the_store_believes_a_little_longer_than_the_holder() -> Result<()> {
        let store = Store::new();
        let (frozen, other) = (store.client(), store.client());
        let guard = frozen.lock().acquire("a", TTL).await?;
        frozen.disconnect();
        let start = Instant::now();
        let lost = tokio::spawn(guard.lost());
        let next = other.lock().acquire("a", TTL).await?;
        assert_eq!(start.elapsed(), TTL + GRACE);
        assert_eq!(lost.await.unwrap(), LossReason::Expired);
        assert!(next.token() > guard.token());
        Ok(())
    }

    #[test]
    fn what_a_dead_runtime_held_expires_for_everyone_else() {
        let store = Store::new();
        let dying = runtime();
        let guard = dying.block_on(store.client().lock().acquire("a", TTL)).unwrap();
        drop(dying);
        runtime().block_on(async {
            let waiting = Instant::now();
            let next = store.client().lock().acquire("a", TTL).await.unwrap();
            assert!(guard.is_lost() && waiting.elapsed() <= TTL + GRACE);
            drop(guard);
            assert_eq!(store.keys(), [next.key()], "a late drop frees nobody else's place");
        });
    }

    #[test]
    fn a_client_goes_on_when_it_is_used_on_another_runtime() {
        let store = Store::new();
        let locks = store.client().lock();
        drop(runtime().block_on(locks.acquire("a", TTL)).unwrap());
        runtime().block_on(async {
            let guard = locks.acquire("a", TTL).await.unwrap();
            sleep(TTL * 3).await;
            guard.unlock().await.unwrap();
        });
    }

    #[test]
    fn dropping_needs_no_runtime() {
        let store = Store::new();
        let client = store.client();
        let (held, kept) = runtime().block_on(async {
            let held = client.lock().acquire("a", TTL).await.unwrap();
            let options = IdOptions::new("svc", 8).quarantine(Duration::ZERO);
            (held, client.instance_ids().allocator(options).unwrap())
        });
        runtime().block_on(kept.acquire_id()).unwrap();
        drop(held);
        assert_eq!(store.keys(), ["ids/svc/1"]);
        drop(kept);
        assert_eq!(store.keys(), [""; 0]);
        drop(client);
        assert!(store.lock().sessions.is_empty() && store.lock().leases.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_held_keeps_a_client_whose_handles_are_gone() -> Result<()> {
        let store = Store::new();
        let guard = store.client().lock().acquire("a", TTL).await?;
        sleep(TTL * 3).await;
        assert_eq!(store.lock().sessions.len(), 1);
        guard.unlock().await?;
        assert!(store.lock().sessions.is_empty() && store.lock().leases.is_empty());
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_dropped_while_cut_off_is_freed_by_expiry() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let guard = client.lock().acquire("a", TTL).await?;
        client.disconnect();
        drop((guard, client));
        assert_eq!(store.keys().len(), 1);
        let start = Instant::now();
        let _next = store.client().lock().acquire("a", TTL).await?;
        assert_eq!(start.elapsed(), TTL + GRACE);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn close_frees_all_or_says_that_it_could_not() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let guard = client.lock().acquire("a", TTL).await?;
        client.disconnect();
        for _ in 0..2 {
            assert!(matches!(client.close().await, Err(Error::Unavailable { .. })));
        }
        assert_eq!(guard.lost().await, LossReason::Closed);
        assert_eq!(store.keys().len(), 1);
        client.reconnect();
        client.close().await?;
        assert_eq!(store.keys(), [""; 0]);
        assert!(matches!(client.lock().acquire("a", TTL).await, Err(Error::Closed)));
        assert!(matches!(client.lock().acquire("", TTL).await, Err(Error::InvalidArgument { .. })));
        Ok(())
    }
}
