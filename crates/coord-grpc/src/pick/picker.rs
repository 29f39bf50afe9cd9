//! Picker: the instances that calls may go to now, and the choice among them ("power of two choices").
//!
//! It is immutable, and built anew whenever an instance comes or goes. So a choice costs the same among a thousand as among
//! three.

use std::{
    cmp::{Ordering::Equal, Reverse},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use super::{
    peak_ewma::PoolLatency,
    policy::{HashKey, Policy},
    ring::Ring,
    slow_start::{SlowStart, StartTimes},
    stats::InstanceStats,
};
use crate::attempts::Attempts;

/// Instance that is ready, and its connection.
#[derive(Debug)]
pub(crate) struct Ready<C> {
    pub(crate) stats: Arc<InstanceStats>,
    /// Number of the connection, to tell it from earlier connections to the instance.
    pub(crate) generation: u64,
    pub(crate) connection: C,
    pub(crate) weight: f64,
    /// Number of the instance on the ring.
    pub(crate) ring_index: u32,
    /// Time from which calls may go to it.
    pub(crate) started: Option<Instant>,
}

/// State that all successive pickers of a pool share.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) ring: Arc<Ring>,
    pub(crate) rotation: Arc<AtomicUsize>,
    pub(crate) pool_latency: Arc<PoolLatency>,
}

/// Picker of a pool; see [the module](self).
#[derive(Debug)]
pub(crate) struct Picker<C> {
    policy: Policy,
    /// Ready instances, those in the own zone first.
    ready: Vec<Arc<Ready<C>>>,
    local: usize,
    /// Share of calls that stays in the zone.
    stay: f64,
    /// Sum of the weights up to each ready instance.
    weights: Vec<f64>,
    /// Index in `ready` for each number on the ring.
    by_ring_index: Vec<Option<u32>>,
    shared: Shared,
    slow_start: Option<StartTimes>,
}

impl<C> Default for Picker<C> {
    fn default() -> Self {
        Self::new(Policy::default(), Vec::new(), (Vec::new(), 0), Shared::default(), None)
    }
}

/// Part of the zone's instances that is enough for all calls. Below it, other zones take over in proportion.
const ENOUGH_OF_A_ZONE: f64 = 0.7;

impl<C> Picker<C> {
    /// Builds a picker. `local` are the ready instances of the own zone, with the number of all instances there.
    pub(crate) fn new(
        policy: Policy,
        elsewhere: Vec<Ready<C>>,
        (local, known_in_zone): (Vec<Ready<C>>, usize),
        shared: Shared,
        slow_start: Option<SlowStart>,
    ) -> Self {
        let in_zone = local.len();
        let ready: Vec<_> = local.into_iter().chain(elsewhere).map(Arc::new).collect();
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        let stay = match (in_zone, known_in_zone) {
            (0, _) => 0.0,
            (ready, known) => ready as f64 / (known as f64 * ENOUGH_OF_A_ZONE),
        };
        let mut weights = Vec::new();
        if policy == Policy::Weighted {
            weights.extend(ready.iter().scan(0.0, |sum, ready| {
                *sum += ready.weight;
                Some(*sum)
            }));
        }
        let mut by_ring_index = Vec::new();
        if policy == Policy::ConsistentHash {
            for (ready, index) in ready.iter().zip(0..) {
                let ring_index = ready.ring_index as usize;
                by_ring_index.resize(by_ring_index.len().max(ring_index + 1), None);
                by_ring_index[ring_index] = Some(index);
            }
        }
        let slow_start = slow_start.map(|rules| rules.among(ready.iter().filter_map(|ready| ready.started)));
        Self { policy, ready, local: in_zone, stay, weights, by_ring_index, shared, slow_start }
    }

    pub(crate) fn len(&self) -> usize {
        self.ready.len()
    }

    pub(crate) fn ready(&self) -> impl Iterator<Item = &Arc<Ready<C>>> {
        self.ready.iter()
    }

    /// Chooses an instance for one call. Returns `None` only if no instance is ready.
    pub(crate) fn pick(&self, key: Option<HashKey>, now: Instant) -> Option<&Arc<Ready<C>>> {
        if self.ready.is_empty() {
            return None;
        }
        if let (Policy::ConsistentHash, Some(HashKey(key))) = (self.policy, key) {
            return self.owner(key);
        }
        let among = self.zone_range();
        let index = match self.policy {
            Policy::PeakEwma | Policy::ConsistentHash => {
                self.better_of_two(&among, now, |stats| stats.cost(&self.shared.pool_latency, now))
            }
            Policy::LeastPending => self.better_of_two(&among, now, |stats| stats.pending_rank(now)),
            Policy::RoundRobin => self.choose_usable(now, || {
                among.start + self.shared.rotation.fetch_add(1, Relaxed) % among.len()
            }),
            Policy::Weighted => self.choose_usable(now, || self.by_weight(&among)),
        };
        Some(&self.ready[index])
    }

    /// Chooses as [`pick`](Self::pick), but an instance that had no attempt of this request, if there is one.
    ///
    /// Else it is the instance whose attempt is the longest ago.
    pub(crate) fn pick_again(
        &self,
        key: Option<HashKey>,
        now: Instant,
        attempts: &Attempts,
    ) -> Option<&Arc<Ready<C>>> {
        let first = self.pick(key, now)?;
        if attempts.since(&first.stats.id) == usize::MAX {
            return Some(first);
        }
        let rank = |ready: &Ready<C>| {
            let cost = ready.stats.cost(&self.shared.pool_latency, now);
            (Reverse(attempts.since(&ready.stats.id)), ready.stats.is_busy_on_trial(), cost)
        };
        let ranked = self.ready.iter().map(|ready| (rank(ready), ready));
        ranked.min_by(|(one, _), (other, _)| one.partial_cmp(other).unwrap_or(Equal)).map(|(_, ready)| ready)
    }

    /// Returns the instance that a key belongs to. While it is on trial and has a call, the next on the ring stands in.
    fn owner(&self, key: u64) -> Option<&Arc<Ready<C>>> {
        let ready = |ring_index: u32| {
            let index = (*self.by_ring_index.get(ring_index as usize)?)?;
            self.ready.get(index as usize)
        };
        let choose_usable = |ring_index| ready(ring_index).filter(|ready| !ready.stats.is_busy_on_trial());
        let ring = &self.shared.ring;
        ring.find(key, choose_usable).or_else(|| ring.find(key, ready))
    }

    /// Returns the range of the own zone in `ready`, or by chance of the others if the zone has too few.
    fn zone_range(&self) -> Range<usize> {
        let (local, all) = (self.local, self.ready.len());
        match local {
            0 => 0..all,
            _ if local == all || self.stay >= 1.0 || fastrand::f64() < self.stay => 0..local,
            _ => local..all,
        }
    }

    /// Returns the better of two random instances. If it has just started, it may be the worse one.
    fn better_of_two<T: PartialOrd>(
        &self,
        among: &Range<usize>,
        now: Instant,
        cost: impl Fn(&InstanceStats) -> T,
    ) -> usize {
        let one = fastrand::usize(among.clone());
        if among.len() == 1 {
            return one;
        }
        let other = fastrand::usize(among.start..among.end - 1);
        let other = if other < one { other } else { other + 1 };
        let is_other = cost(&self.ready[other].stats) < cost(&self.ready[one].stats);
        let (better_of_two, worse) = if is_other { (other, one) } else { (one, other) };
        if self.is_held_back(better_of_two, now) && !self.ready[worse].stats.load.errors.is_failing(now) {
            worse
        } else {
            better_of_two
        }
    }

    /// Returns whether the slow start holds this call back from an instance, by chance.
    fn is_held_back(&self, ready: usize, now: Instant) -> bool {
        let Some(start_times) = &self.slow_start else { return false };
        let started = self.ready[ready].started;
        started.is_some_and(|started| fastrand::f64() >= start_times.share(started, now))
    }

    fn by_weight(&self, among: &Range<usize>) -> usize {
        let before = if among.start == 0 { 0.0 } else { self.weights[among.start - 1] };
        let point = before + fastrand::f64() * (self.weights[among.end - 1] - before);
        let found = self.weights[among.clone()].partition_point(|sum| *sum <= point);
        among.start + found.min(among.len() - 1)
    }

    /// Chooses again, up to three times, while the instance is on trial with a call or in its slow start.
    fn choose_usable(&self, now: Instant, choose: impl Fn() -> usize) -> usize {
        let mut chosen = choose();
        for _ in 0..3 {
            if !self.ready[chosen].stats.is_busy_on_trial() && !self.is_held_back(chosen, now) {
                break;
            }
            chosen = choose();
        }
        chosen
    }
}

#[cfg(test)]
mod tests;
