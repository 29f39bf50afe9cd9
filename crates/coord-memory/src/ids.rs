//! Instance ids: a pool per service, which knows its lowest free id without looking at the taken ones.
//!
//! As with locks, a waiter takes its place before it waits. A freed id rests, and then goes straight to the first
//! waiter that may have it, so no one who comes later can snatch it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, hash_map},
    num::NonZeroU32,
    sync::Arc,
    time::SystemTime,
};

use async_trait::async_trait;
use coord_api::{
    Error, IdHolder, IdOptions, InstanceIdAllocator, InstanceIds, LossReason, Owner, Result, ServiceName,
    Ttl,
    backend::{ClaimedId, IdAllocator, IdRange, IdSource, Place, Stamps},
};
use tokio::{sync::oneshot, time::Instant};

use crate::{
    connection::Connection,
    store::{Grip, Item, State},
};

/// The ids of one service.
#[derive(Default)]
pub(crate) struct Pool {
    taken: BTreeMap<u32, Taken>,
    /// Until when a freed id is kept from others, and the identity that may have it before.
    resting: BTreeMap<u32, (Instant, Option<String>)>,
    /// Free ids below or at `highest`.
    freed: BTreeSet<u32>,
    /// The highest id that was ever taken.
    highest: u32,
    waiting: VecDeque<Waiter>,
    /// The identity that had an id last, if that was the last id it had.
    last: BTreeMap<u32, String>,
    /// Up to when data may have been stamped with an id.
    stamped: BTreeMap<u32, u64>,
}

struct Taken {
    grip: Grip,
    claimant: Claimant,
    since: SystemTime,
}

/// Who asks.
#[derive(Clone)]
struct Claimant {
    owner: Arc<Owner>,
    range: Arc<IdRange>,
}

struct Waiter {
    grip: Grip,
    claimant: Claimant,
    grant: oneshot::Sender<Granted>,
}

/// An id, and up to when data may have been stamped with it.
type Granted = (u32, Option<u64>);

impl Pool {
    pub(crate) fn taken(&self) -> impl Iterator<Item = u32> {
        self.taken.keys().chain(self.resting.keys()).copied()
    }

    /// The id that `range` gets: that which its identity had last, or else the lowest free one.
    fn best_free(&self, range: &IdRange) -> Option<u32> {
        let own = range.identity.as_ref().and_then(|identity| {
            let (&id, _) = self.last.iter().find(|(_, last)| *last == identity)?;
            let rests_for_it = self.resting.get(&id).is_some_and(|(_, of)| of.as_ref() == Some(identity));
            (id < range.max_id && (rests_for_it || self.freed.contains(&id))).then_some(id)
        });
        own.or_else(|| {
            let lowest = self.freed.first().copied().unwrap_or(self.highest + 1);
            (lowest < range.max_id).then_some(lowest)
        })
    }

    fn put(&mut self, id: u32, grip: Grip, claimant: Claimant) -> Granted {
        self.freed.remove(&id);
        self.resting.remove(&id);
        self.highest = self.highest.max(id);
        self.last.remove(&id);
        if let Some(identity) = &claimant.range.identity {
            self.last.retain(|_, other| other != identity);
            self.last.insert(id, identity.clone());
        }
        self.taken.insert(id, Taken { grip, claimant, since: SystemTime::now() });
        (id, self.stamped.get(&id).copied())
    }

    fn is_unused(&self) -> bool {
        self.taken.is_empty()
            && self.resting.is_empty()
            && self.waiting.is_empty()
            && self.last.is_empty()
            && self.stamped.is_empty()
    }
}

impl State {
    /// Takes a free id. No waiter could have it: it would have been given to that waiter before.
    fn take_id(&mut self, source: &Source) -> Option<(Granted, Grip)> {
        let range = &source.claimant.range;
        let free = match self.ids.get(&range.service) {
            Some(pool) => pool.best_free(range)?,
            None => 1,
        };
        let item = Item::Id(range.service.clone(), free);
        let grip = self.take(source.connection.id(), source.ttl, item);
        let pool = self.ids.entry(range.service.clone()).or_default();
        if let Some((until, _)) = pool.resting.get(&free) {
            self.rests.remove(&(*until, range.service.clone(), free));
        }
        Some((pool.put(free, grip.clone(), source.claimant.clone()), grip))
    }

    /// Takes a place in the queue of waiters.
    fn wait_for_id(&mut self, source: &Source) -> (Grip, oneshot::Receiver<Granted>) {
        let service = &source.claimant.range.service;
        let grip = self.take(source.connection.id(), source.ttl, Item::IdWaiter(service.clone()));
        let (grant, granted) = oneshot::channel();
        let pool = self.ids.entry(service.clone()).or_default();
        pool.waiting.push_back(Waiter { grip: grip.clone(), claimant: source.claimant.clone(), grant });
        (grip, granted)
    }

    /// Removes a place from the queue of waiters.
    pub(crate) fn stop_waiting(&mut self, service: ServiceName, place: u64) {
        if let hash_map::Entry::Occupied(mut entry) = self.ids.entry(service) {
            let pool = entry.get_mut();
            pool.waiting.retain(|waiter| waiter.grip.revision != place);
            if pool.is_unused() {
                entry.remove();
            }
        }
    }

    /// Lets an id rest whose holder may believe in it until `believed`.
    pub(crate) fn free_id(&mut self, service: ServiceName, id: u32, believed: Instant) {
        let Some(pool) = self.ids.get_mut(&service) else { return };
        let Some(Taken { claimant, .. }) = pool.taken.remove(&id) else { return };
        let now = Instant::now();
        let until = believed.max(now + claimant.range.quarantine);
        pool.resting.insert(id, (until, claimant.range.identity.clone()));
        if until <= now {
            self.end_rest(service, id);
            return;
        }
        self.rests.insert((until, service, id));
        if self.rests.first().is_some_and(|(first, ..)| *first == until) {
            // Any client may be the only one that still runs when the rest is over.
            self.sessions.values().for_each(|session| session.wake.notify_one());
        }
    }

    /// Frees the ids that have rested.
    pub(crate) fn end_rests(&mut self, now: Instant) {
        while self.rests.first().is_some_and(|(until, ..)| *until <= now) {
            let (_, service, id) = self.rests.pop_first().expect("was just looked at");
            self.next_revision();
            self.end_rest(service, id);
        }
    }

    /// Ends the rest of an id, as if its time were over; `false` if it does not rest.
    pub(crate) fn wake_id(&mut self, service: &ServiceName, id: u32) -> bool {
        let resting = self.ids.get(service).and_then(|pool| pool.resting.get(&id));
        let Some(until) = resting.map(|(until, _)| *until) else { return false };
        self.rests.remove(&(until, service.clone(), id));
        self.next_revision();
        self.end_rest(service.clone(), id);
        true
    }

    /// Frees an id that rests: it goes to the first waiter that may have it.
    fn end_rest(&mut self, service: ServiceName, id: u32) {
        let hash_map::Entry::Occupied(mut entry) = self.ids.entry(service) else { return };
        let service = entry.key().clone();
        let pool = entry.get_mut();
        pool.resting.remove(&id);
        let first = pool.waiting.iter().position(|waiter| id < waiter.claimant.range.max_id);
        if let Some(waiter) = first.and_then(|at| pool.waiting.remove(at)) {
            let lease = self.leases.get_mut(&waiter.grip.lease);
            if let Some(place) = lease.and_then(|lease| lease.places.get_mut(&waiter.grip.revision)) {
                *place = Item::Id(service, id);
            }
            let granted = pool.put(id, waiter.grip, waiter.claimant);
            // A waiter that has just given up frees its place as well, and the next one gets the id.
            let _ = waiter.grant.send(granted);
            return;
        }
        pool.freed.insert(id);
        if pool.is_unused() {
            entry.remove();
        }
    }

    /// Who has an id.
    pub(crate) fn id_holder(&self, service: &ServiceName, id: u32) -> Option<&Grip> {
        Some(&self.ids.get(service)?.taken.get(&id)?.grip)
    }

    fn id_holders(&self, service: &ServiceName) -> Vec<IdHolder> {
        let taken = self.ids.get(service).into_iter().flat_map(|pool| &pool.taken);
        taken
            .map(|(id, Taken { claimant, since, .. })| {
                let (owner, identity) = ((*claimant.owner).clone(), claimant.range.identity.clone());
                IdHolder::new(number(*id), Some(owner), identity, Some(*since))
            })
            .collect()
    }
}

fn number(id: u32) -> NonZeroU32 {
    NonZeroU32::new(id).expect("ids begin with 1")
}

/// The ids of one client.
#[derive(Debug)]
pub(crate) struct Ids {
    pub(crate) connection: Arc<Connection>,
    pub(crate) ttl: Ttl,
}

#[async_trait]
impl InstanceIds for Ids {
    fn allocator(&self, options: IdOptions) -> Result<Arc<dyn InstanceIdAllocator>> {
        let range = Arc::new(IdRange::of(options, self.ttl)?);
        let connection = self.connection.clone();
        connection.check_open()?;
        let claimant = Claimant { owner: Arc::new(connection.owner().clone()), range };
        Ok(Arc::new(IdAllocator::new(Source { connection, claimant, ttl: self.ttl })))
    }

    async fn holders(&self, service: &str) -> Result<Vec<IdHolder>> {
        let service = ServiceName::parse(service)?;
        Ok(self.connection.call().await?.id_holders(&service))
    }
}

/// Where one allocator's ids come from.
struct Source {
    connection: Arc<Connection>,
    claimant: Claimant,
    ttl: Ttl,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Source").field(&self.claimant.range).finish()
    }
}

/// What comes of asking for an id.
enum Claim {
    Taken(Granted, Grip),
    Queued(Grip, oneshot::Receiver<Granted>),
}

impl Source {
    async fn begin(&self) -> Result<Claim> {
        let mut state = self.connection.call().await?;
        if let Some((id, grip)) = state.take_id(self) {
            return Ok(Claim::Taken(id, grip));
        }
        let (grip, granted) = state.wait_for_id(self);
        Ok(Claim::Queued(grip, granted))
    }

    /// `grip` is the same as that of the `place`.
    fn claimed(&self, (id, stamped): Granted, grip: Grip, place: Place) -> ClaimedId {
        let service = self.claimant.range.service.clone();
        let stamps = Arc::new(StampsOf { connection: Arc::downgrade(&self.connection), service, id, grip });
        ClaimedId::new(number(id), place, stamps, stamped)
    }
}

#[async_trait]
impl IdSource for Source {
    async fn claim(&self) -> Result<ClaimedId> {
        loop {
            let (grip, granted) = match self.begin().await? {
                Claim::Taken(id, grip) => {
                    return Ok(self.claimed(id, grip.clone(), self.connection.place(grip)));
                }
                Claim::Queued(grip, granted) => (grip, granted),
            };
            let place = self.connection.place(grip.clone());
            match self.connection.granted(place.hold().lost(), granted).await {
                Ok(id) => return Ok(self.claimed(id, grip, place)),
                // Nothing was held, so nothing is lost but the place in the queue: take another.
                Err(Error::Lost { .. }) => self.connection.online().await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_claim(&self) -> Result<ClaimedId> {
        let taken = self.connection.call().await?.take_id(self);
        let (id, grip) = taken.ok_or(Error::Exhausted { max: self.claimant.range.max_id })?;
        Ok(self.claimed(id, grip.clone(), self.connection.place(grip)))
    }
}

/// What is kept beside one held id.
struct StampsOf {
    /// Weak, since nobody holds an id by stamping with it.
    connection: std::sync::Weak<Connection>,
    service: ServiceName,
    id: u32,
    grip: Grip,
}

impl std::fmt::Debug for StampsOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StampsOf({} {})", self.service, self.id)
    }
}

#[async_trait]
impl Stamps for StampsOf {
    async fn stamp(&self, until: u64) -> Result<()> {
        let connection = self.connection.upgrade().ok_or(Error::Closed)?;
        let mut state = connection.call().await?;
        let holds = state
            .id_holder(&self.service, self.id)
            .is_some_and(|holder| (holder.lease, holder.revision) == (self.grip.lease, self.grip.revision));
        match state.ids.get_mut(&self.service).filter(|_| holds) {
            Some(pool) => {
                pool.stamped.insert(self.id, until);
                Ok(())
            }
            None => Err(Error::Lost { reason: self.grip.hold.loss().unwrap_or(LossReason::Deleted) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::Provider;
    use futures::FutureExt;

    use super::*;
    use crate::{Client, Store};

    fn allocator(client: &Client, max_id: u32) -> Arc<dyn InstanceIdAllocator> {
        let options = IdOptions::new("svc", max_id).quarantine(Duration::ZERO);
        client.instance_ids().allocator(options).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_lowest_free_id_goes_to_the_first_waiter_that_may_have_it() -> Result<()> {
        let client = Store::new().client();
        let (one, two) = (allocator(&client, 3), allocator(&client, 3));
        assert_eq!((one.acquire_id().await?.get(), two.acquire_id().await?.get()), (1, 2));
        let (low, high) = (allocator(&client, 2), allocator(&client, 3));
        let (mut first, mut second) = (low.acquire_id(), high.acquire_id());
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        two.release_id().await?;
        assert_eq!(second.now_or_never().expect("2 is not for the first waiter")?.get(), 2);
        one.release_id().await?;
        assert!(one.try_acquire_id().await.is_err(), "1 has been given to the waiter");
        assert_eq!(first.await?.get(), 1);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_dropped_just_when_it_was_granted_passes_the_id_on() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let (held, gone, next) = (allocator(&client, 2), allocator(&client, 2), allocator(&client, 2));
        held.acquire_id().await?;
        let (mut cancelled, mut waiting) = (gone.acquire_id(), next.acquire_id());
        assert!((&mut cancelled).now_or_never().is_none() && (&mut waiting).now_or_never().is_none());
        held.release_id().await?;
        drop(cancelled);
        assert_eq!(waiting.now_or_never().expect("is granted at once")?.get(), 1);
        drop(next);
        assert!(store.lock().ids.is_empty(), "nothing is kept of a service without ids");
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_outlast_the_loss_of_their_lease() -> Result<()> {
        let store = Store::new();
        let (one, other) = (store.client(), store.client());
        let (held, waiting) = (allocator(&one, 2), allocator(&one, 2));
        let elsewhere = allocator(&other, 2);
        held.acquire_id().await?;
        let mut waiters = [waiting.acquire_id(), elsewhere.acquire_id()];
        assert!(waiters.iter_mut().all(|waiter| waiter.now_or_never().is_none()));
        store.revoke_leases();
        assert_eq!(held.id(), None);
        let [first, second] = waiters;
        let got = tokio::time::timeout(Duration::from_secs(1), first).await.expect("1 is free");
        assert_eq!(got?.get(), 1);
        assert!(second.now_or_never().is_none());
        Ok(())
    }
}
