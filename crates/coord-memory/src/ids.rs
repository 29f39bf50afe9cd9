//! Instance ids: a pool per service, which knows its lowest free id without looking at the taken ones.
//!
//! As with locks, a waiter takes its place before it waits. A freed id goes straight to the first waiter
//! that may have it, so no one who comes later can snatch it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, hash_map},
    num::NonZeroU32,
    sync::Arc,
};

use async_trait::async_trait;
use coord_api::{
    Error, Result, ServiceName, Ttl,
    backend::{ClaimedId, IdSource, Place},
};
use tokio::sync::oneshot;

use crate::{
    connection::Connection,
    store::{Grip, Item, State},
};

/// The ids of one service.
#[derive(Default)]
pub(crate) struct Pool {
    taken: BTreeMap<u32, Grip>,
    /// Free ids below or at `highest`.
    freed: BTreeSet<u32>,
    /// The highest id that was ever taken.
    highest: u32,
    waiting: VecDeque<Waiter>,
}

struct Waiter {
    grip: Grip,
    max_id: u32,
    grant: oneshot::Sender<u32>,
}

impl Pool {
    pub(crate) fn taken(&self) -> impl Iterator<Item = u32> {
        self.taken.keys().copied()
    }

    /// The lowest free id below `max_id`.
    fn lowest_free(&self, max_id: u32) -> Option<u32> {
        let lowest = self.freed.first().copied().unwrap_or(self.highest + 1);
        (lowest < max_id).then_some(lowest)
    }

    fn put(&mut self, id: u32, grip: Grip) {
        self.freed.remove(&id);
        self.highest = self.highest.max(id);
        self.taken.insert(id, grip);
    }

    fn is_unused(&self) -> bool {
        self.taken.is_empty() && self.waiting.is_empty()
    }
}

impl State {
    /// Takes the lowest free id. No waiter could have it: it would have been given to that waiter before.
    fn take_id(&mut self, source: &Source) -> Option<(u32, Grip)> {
        let free = match self.ids.get(&source.service) {
            Some(pool) => pool.lowest_free(source.max_id)?,
            None => 1,
        };
        let item = Item::Id(source.service.clone(), free);
        let grip = self.take(source.connection.id(), source.ttl, item);
        let pool = self.ids.entry(source.service.clone()).or_default();
        pool.put(free, grip.clone());
        Some((free, grip))
    }

    /// Takes a place in the queue of waiters.
    fn wait_for_id(&mut self, source: &Source) -> (Grip, oneshot::Receiver<u32>) {
        let item = Item::IdWaiter(source.service.clone());
        let grip = self.take(source.connection.id(), source.ttl, item);
        let (grant, granted) = oneshot::channel();
        let pool = self.ids.entry(source.service.clone()).or_default();
        pool.waiting.push_back(Waiter { grip: grip.clone(), max_id: source.max_id, grant });
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

    /// Frees an id, which goes to the first waiter that may have it.
    pub(crate) fn free_id(&mut self, service: ServiceName, id: u32) {
        let hash_map::Entry::Occupied(mut entry) = self.ids.entry(service) else {
            return;
        };
        let service = entry.key().clone();
        let pool = entry.get_mut();
        pool.taken.remove(&id);
        let first = pool.waiting.iter().position(|waiter| id < waiter.max_id);
        if let Some(waiter) = first.and_then(|at| pool.waiting.remove(at)) {
            let lease = self.leases.get_mut(&waiter.grip.lease);
            if let Some(place) = lease.and_then(|lease| lease.places.get_mut(&waiter.grip.revision)) {
                *place = Item::Id(service, id);
            }
            pool.put(id, waiter.grip);
            // A waiter that has just given up frees its place as well, and the next one gets the id.
            let _ = waiter.grant.send(id);
            return;
        }
        pool.freed.insert(id);
        if pool.is_unused() {
            entry.remove();
        }
    }

    /// Who has an id.
    pub(crate) fn id_holder(&self, service: &ServiceName, id: u32) -> Option<&Grip> {
        self.ids.get(service)?.taken.get(&id)
    }
}

/// Where one allocator's ids come from.
#[derive(Debug)]
pub(crate) struct Source {
    pub(crate) connection: Arc<Connection>,
    pub(crate) service: ServiceName,
    /// The bound of this allocator; another one of the same service may have another.
    pub(crate) max_id: u32,
    pub(crate) ttl: Ttl,
}

/// What comes of asking for an id.
enum Claim {
    Taken(u32, Grip),
    Queued(Grip, oneshot::Receiver<u32>),
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

    fn claimed(id: u32, place: Place) -> ClaimedId {
        ClaimedId::new(NonZeroU32::new(id).expect("ids begin with 1"), place)
    }
}

#[async_trait]
impl IdSource for Source {
    async fn claim(&self) -> Result<ClaimedId> {
        loop {
            let (grip, granted) = match self.begin().await? {
                Claim::Taken(id, grip) => return Ok(Self::claimed(id, self.connection.place(grip))),
                Claim::Queued(grip, granted) => (grip, granted),
            };
            let place = self.connection.place(grip);
            match self.connection.granted(place.hold().lost(), granted).await {
                Ok(id) => return Ok(Self::claimed(id, place)),
                // Nothing was held, so nothing is lost but the place in the queue: take another.
                Err(Error::Lost { .. }) => self.connection.online().await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_claim(&self) -> Result<ClaimedId> {
        let taken = self.connection.call().await?.take_id(self);
        let (id, grip) = taken.ok_or(Error::Exhausted { max: self.max_id })?;
        Ok(Self::claimed(id, self.connection.place(grip)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::{InstanceIdAllocator, Provider};
    use futures::FutureExt;

    use super::*;
    use crate::{Client, Store};

    fn allocator(client: &Client, max_id: u32) -> Arc<dyn InstanceIdAllocator> {
        client.instance_id_allocator("svc", max_id).unwrap()
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
