//! The ids of one service, which know their lowest free one without looking at the taken ones.
//!
//! As with locks, a waiter takes its place before it waits. A freed id rests, and then goes straight to the first
//! waiter that may have it, so no one who comes later can snatch it.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, hash_map},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coord_api::{
    IdHolder, Owner, ServiceName,
    backend::{Delivered, IdRange, time_of_day},
};
use tokio::{sync::oneshot, time::Instant};

use super::{Source, number};
use crate::store::{Grip, Item, State};

/// Up to when a holder whose clock is that of this machine may have stamped data: each stamps one TTL ahead.
fn latest(ttl: Duration) -> u64 {
    let since = time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default();
    let latest = since.saturating_add(ttl).saturating_add(Duration::from_secs(1));
    u64::try_from(latest.as_millis()).unwrap_or(u64::MAX)
}

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
    told: Delivered,
}

/// Who asks.
#[derive(Clone)]
pub(super) struct Claimant {
    pub(super) owner: Arc<Owner>,
    pub(super) range: Arc<IdRange>,
}

struct Waiter {
    grip: Grip,
    claimant: Claimant,
    grant: oneshot::Sender<Granted>,
}

/// An id that was taken.
pub(super) struct Granted {
    pub(super) id: u32,
    /// Up to when data may have been stamped with it.
    pub(super) stamped: Option<u64>,
    pub(super) told: Delivered,
}

impl Pool {
    /// Stores up to when data may have been stamped with an id; a later time stays.
    pub(super) fn stamp(&mut self, id: u32, until: u64) {
        let stamped = self.stamped.entry(id).or_default();
        *stamped = until.max(*stamped);
    }

    /// Stores up to when data was stamped with an id.
    pub(super) fn settle(&mut self, id: u32, until: u64) {
        self.stamped.insert(id, until);
    }

    /// Forgets up to when data may have been stamped with an id; `false` if that was not known.
    pub(super) fn unstamp(&mut self, id: u32) -> bool {
        self.stamped.remove(&id).is_some()
    }

    pub(crate) fn taken(&self) -> impl Iterator<Item = u32> {
        self.taken.keys().chain(self.resting.keys()).copied()
    }

    /// The id that `range` gets: that which its identity had last, or else the lowest free one; rather one with which data
    /// may have been stamped only up to `latest` than one whose earlier holder had a clock that was ahead.
    fn best_free(&self, range: &IdRange, latest: u64) -> Option<u32> {
        let own = range.identity.as_ref().and_then(|identity| {
            let (&id, _) = self.last.iter().find(|(_, last)| *last == identity)?;
            let rests_for_it = self.resting.get(&id).is_some_and(|(_, of)| of.as_ref() == Some(identity));
            (id < range.max_id && (rests_for_it || self.freed.contains(&id))).then_some(id)
        });
        own.or_else(|| {
            let is_good = |id: &u32| self.stamped.get(id).is_none_or(|until| *until <= latest);
            let freed = || self.freed.iter().copied().take_while(|id| *id < range.max_id);
            let fresh = Some(self.highest + 1).filter(|id| *id < range.max_id);
            freed().find(is_good).or(fresh).or_else(|| freed().next())
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
        let told = Delivered::default();
        self.taken.insert(id, Taken { grip, claimant, since: SystemTime::now(), told: told.clone() });
        Granted { id, stamped: self.stamped.get(&id).copied(), told }
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
    pub(super) fn take_id(&mut self, source: &Source) -> Option<(Granted, Grip)> {
        let range = &source.claimant.range;
        let free = match self.ids.get(&range.service) {
            Some(pool) => pool.best_free(range, latest(source.ttl.as_duration()))?,
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
    pub(super) fn wait_for_id(&mut self, source: &Source) -> (Grip, oneshot::Receiver<Granted>) {
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

    /// Lets an id rest whose holder may believe in it until `believed`, if it has not heard.
    pub(crate) fn free_id(&mut self, service: ServiceName, id: u32, believed: Option<Instant>) {
        let Some(pool) = self.ids.get_mut(&service) else { return };
        let Some(Taken { claimant, told, .. }) = pool.taken.remove(&id) else { return };
        let now = Instant::now();
        let rest = if told.is_delivered() { claimant.range.quarantine } else { Duration::ZERO };
        let until = believed.unwrap_or(now).max(now + rest);
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

    /// Forgets up to when data may have been stamped with an id; `false` if that was not known.
    pub(crate) fn unstamp_id(&mut self, service: &ServiceName, id: u32) -> bool {
        let known = self.ids.get_mut(service).is_some_and(|pool| pool.unstamp(id));
        if known {
            self.next_revision();
        }
        known
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

    pub(super) fn id_holders(&self, service: &ServiceName) -> Vec<IdHolder> {
        let taken = self.ids.get(service).into_iter().flat_map(|pool| &pool.taken);
        taken
            .map(|(id, Taken { claimant, since, .. })| {
                let (owner, identity) = ((*claimant.owner).clone(), claimant.range.identity.clone());
                IdHolder::new(number(*id), Some(owner), identity, Some(*since))
            })
            .collect()
    }
}
