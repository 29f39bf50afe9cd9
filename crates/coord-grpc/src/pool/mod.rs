//! Pool: every instance in use and the state of its connection. It decides which instance to connect and when, and which
//! instances calls may go to.
//!
//! Pure: a connection is whatever `C` is. The [balancer](Balancer) and the calls tell what happens.

mod balancer;
mod candidates;
mod dial;
mod instance;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use coord_api::ServiceInfo;
use tokio::time::Instant;
use tower::discover::Change;

pub(crate) use self::{
    balancer::{Balancer, Counts, PickHint},
    instance::{Instance, Phase, Serving},
};
use self::{
    candidates::{Candidates, normal_address},
    dial::Dial,
};
use crate::{
    options::ConnectOptions,
    pick::{
        OutlierDetection, Policy,
        outlier::{Decision, Failure},
        peak_ewma::PoolLatency,
        picker::{Picker, Ready, Shared},
        ring::Ring,
        slow_start::SlowStart,
    },
};

/// Options of a pool, out of those of a connection.
#[derive(Clone, Debug)]
struct PoolOptions {
    policy: Policy,
    zone: Option<String>,
    only: BTreeMap<String, String>,
    subset: Option<usize>,
    outlier_detection: Option<OutlierDetection>,
    longest_pause: Duration,
    /// Name that the health service of each instance is asked for, if it is asked.
    health_check: Option<String>,
    slow_start: Option<SlowStart>,
}

impl From<&ConnectOptions> for PoolOptions {
    fn from(options: &ConnectOptions) -> Self {
        let ConnectOptions {
            policy,
            zone,
            only,
            subset,
            outlier_detection,
            longest_pause,
            health_check,
            slow_start,
            ..
        } = options.clone();
        Self { policy, zone, only, subset, outlier_detection, longest_pause, health_check, slow_start }
    }
}

impl PoolOptions {
    /// Returns the health of an instance whose health service has not answered.
    fn health(&self) -> Serving {
        if self.health_check.is_some() { Serving::Unknown } else { Serving::Yes }
    }

    /// Returns whether an instance has the metadata that is asked for.
    fn matches(&self, info: &ServiceInfo) -> bool {
        self.only.iter().all(|(key, value)| info.metadata.get(key) == Some(value))
    }

    /// Returns whether an instance is in the own zone.
    fn is_local(&self, info: &ServiceInfo) -> bool {
        self.zone.is_some() && info.zone() == self.zone.as_deref()
    }
}

/// Pool of instances; see [the module](self).
#[derive(Debug)]
pub(crate) struct Pool<C> {
    options: PoolOptions,
    candidates: Candidates,
    instances: BTreeMap<String, Instance<C>>,
    shared: Shared,
    generations: u64,
    /// Number of connections that are being opened.
    dials: usize,
    /// Error of the last connection that could not be made.
    last_error: Option<String>,
}

impl<C: Clone> Pool<C> {
    fn new(options: PoolOptions) -> Self {
        Self {
            options,
            candidates: Candidates::new(),
            instances: BTreeMap::new(),
            // Clients that start together do not begin with the same instance.
            shared: Shared { rotation: Arc::new(fastrand::usize(..1 << 20).into()), ..Shared::default() },
            generations: 0,
            dials: 0,
            last_error: None,
        }
    }

    /// Applies changes of the list.
    fn apply(&mut self, changes: impl IntoIterator<Item = Change<String, ServiceInfo>>, now: Instant) {
        for change in changes {
            self.candidates.apply(&self.options, change);
        }
        let chosen = self.candidates.chosen(&self.options);
        let mut left: BTreeMap<_, _> = std::mem::take(&mut self.instances);
        let stay: Vec<_> = chosen.iter().filter_map(|id| left.remove_entry(id)).collect();
        self.instances.extend(stay);
        // A process that comes under another id keeps its connection.
        let mut left: BTreeMap<_, _> =
            left.into_values().map(|instance| (normal_address(&instance.info), instance)).collect();
        for id in chosen {
            let info = self.candidates.info(&id).clone();
            match self.instances.get_mut(&id) {
                // New metadata alone must not cut a connection.
                Some(instance) if normal_address(&instance.info) == normal_address(&info) => {
                    instance.info = info;
                    instance.start(now);
                }
                _ => {
                    let instance = match left.remove(&normal_address(&info)) {
                        Some(instance) => {
                            let stats = Arc::new(instance.stats.renamed(id.clone()));
                            Instance { stats, info, ..instance }
                        }
                        None => self.new_instance(id.clone(), info, now),
                    };
                    self.instances.insert(id, instance);
                }
            }
        }
        if self.options.policy == Policy::ConsistentHash {
            self.shared.ring = Arc::new(Ring::new(self.instances.keys().map(String::as_str)));
        }
    }

    fn new_instance(&mut self, id: String, info: ServiceInfo, now: Instant) -> Instance<C> {
        self.generations += 1;
        Instance::new(id, info, self.generations, self.options.health(), now)
    }

    /// Takes in an answer of an instance's health service. Returns whether it changes anything.
    fn set_health(&mut self, id: &str, generation: u64, health: Serving, now: Instant) -> bool {
        let Some(instance) = find_mut(&mut self.instances, id, generation) else { return false };
        if instance.health == health {
            return false;
        }
        let address = &instance.stats.authority;
        match health {
            Serving::Yes => tracing::info!(id, address, "an instance says that it serves"),
            Serving::No => tracing::warn!(id, address, "an instance says that it does not serve"),
            Serving::Unknown => tracing::debug!(id, address, "an instance no longer says whether it serves"),
        }
        instance.health = health;
        instance.start(now);
        true
    }

    /// Returns the connections, each with the id and the generation of its instance.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (&str, u64, &C)> {
        self.instances.iter().filter_map(|(id, instance)| match &instance.phase {
            Phase::Ready(connection) => Some((id.as_str(), instance.generation, connection)),
            _ => None,
        })
    }

    /// Explains why no instance was ready within `waited`.
    fn unavailable_reason(&self, waited: Duration) -> String {
        let (known, unmatched) = (self.instances.len(), self.candidates.unmatched());
        let unmarked = self.instances.values().filter(|instance| instance.info.is_serving()).count();
        let connected = self.instances.values().filter(|instance| matches!(instance.phase, Phase::Ready(_)));
        let asked = connected.filter(|instance| instance.serving() == Serving::No).count();
        let of_last = self.last_error.as_ref().map_or_else(String::new, |last| format!(": {last}"));
        match known {
            0 if unmatched == 0 => format!("no instance was registered within {waited:?}"),
            0 => {
                let only = self.options.only.iter().map(|(key, value)| format!("{key}={value}"));
                let only: Vec<_> = only.collect();
                format!("of {unmatched} instances none has the metadata {}", only.join(", "))
            }
            _ if unmarked == 0 => format!("all {known} instances are marked as not serving"),
            _ if asked == known => format!("all {known} instances say that they are not serving"),
            _ if asked > 0 => {
                format!(
                    "none of {known} instances was ready within {waited:?}, {asked} say that they are not serving{of_last}"
                )
            }
            _ => format!("none of {known} instances was ready within {waited:?}{of_last}"),
        }
    }

    /// Returns the average latency of the pool.
    fn pool_latency(&self) -> Arc<PoolLatency> {
        self.shared.pool_latency.clone()
    }

    /// Takes in a failed call. Returns whether calls go on to the instance.
    fn failed(&mut self, id: &str, generation: u64, failure: Failure, now: Instant) -> Decision {
        let known = self.instances.len();
        let Some(failing) =
            find(&self.instances, id, generation).map(|(_, it)| it).filter(|it| it.is_ready())
        else {
            return Decision::Keep;
        };
        let others = self
            .instances
            .values()
            .filter(|instance| instance.is_ready() && instance.generation != generation);
        let others = others.map(|instance| &**instance.stats);
        let rules = self.options.outlier_detection.as_ref();
        let outlier = rules.filter(|rules| rules.ejects(&failing.stats, failure, known, others, now));
        let Some(failing) = find_mut(&mut self.instances, id, generation) else { return Decision::Keep };
        let decision = match outlier {
            Some(rules) => {
                Decision::Eject { until: failing.ejection_history.eject(rules, now, fastrand::f64()) }
            }
            None if failure == Failure::Silence => Decision::Reconnect,
            None => Decision::Keep,
        };
        self.generations += 1;
        match decision {
            Decision::Keep => return decision,
            Decision::Reconnect => failing.phase = Phase::Due(now),
            Decision::Eject { until } => {
                failing.phase = Phase::Due(until);
                failing.ejected = Some(until);
                failing.stats.ejections.fetch_add(1, Relaxed);
                failing.stats.in_a_row.store(0, Relaxed);
                tracing::warn!(
                    id, address = failing.stats.authority, ?failure, cool_off = ?until - now,
                    "an instance is ejected"
                );
            }
        }
        failing.generation = self.generations;
        decision
    }

    /// Returns how many instances are in use, ready or not.
    fn known(&self) -> usize {
        self.instances.len()
    }

    pub(crate) fn instances(&self) -> impl Iterator<Item = &Instance<C>> {
        self.instances.values()
    }

    /// Builds the picker of the instances that are ready now.
    fn picker(&self) -> Picker<C> {
        let (mut local, mut elsewhere, mut known_in_zone) = (Vec::new(), Vec::new(), 0);
        for (instance, ring_index) in self.instances.values().zip(0..) {
            let is_local = self.options.is_local(&instance.info);
            known_in_zone += usize::from(is_local);
            if let Phase::Ready(connection) = &instance.phase
                && instance.is_ready()
            {
                let (stats, weight) = (instance.stats.clone(), instance.info.weight());
                let (generation, connection, started) =
                    (instance.generation, connection.clone(), instance.started);
                let ready = Ready { stats, generation, connection, weight, ring_index, started };
                if is_local { local.push(ready) } else { elsewhere.push(ready) }
            }
        }
        let slow_start = self.options.slow_start;
        Picker::new(self.options.policy, elsewhere, (local, known_in_zone), self.shared.clone(), slow_start)
    }
}

/// Returns the instance, if its connection still has that generation. Events of earlier connections are late.
fn find_mut<'a, C>(
    instances: &'a mut BTreeMap<String, Instance<C>>,
    id: &str,
    generation: u64,
) -> Option<&'a mut Instance<C>> {
    let id = find(instances, id, generation)?.0.clone();
    instances.get_mut(&id)
}

/// As [`find_mut`], with the instance's id, which may have changed since the connection was made.
fn find<'a, C>(
    instances: &'a BTreeMap<String, Instance<C>>,
    id: &str,
    generation: u64,
) -> Option<(&'a String, &'a Instance<C>)> {
    let is_it = |(_, instance): &(&String, &Instance<C>)| instance.generation == generation;
    instances.get_key_value(id).filter(is_it).or_else(|| instances.iter().find(is_it))
}
