//! The instances that calls may go to now, and the choice among them. Built anew whenever one comes or goes,
//! so that a choice costs the same among a thousand as among three.

use std::{
    cmp::{Ordering::Equal, Reverse},
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::time::Instant;

use crate::{
    HashKey, Policy, Tries,
    hash::Ring,
    peak_ewma::PoolLatency,
    slow_start::{Beginning, SlowStart},
    stats::Node,
};

/// An instance that is ready, and how to call it.
#[derive(Debug)]
pub(crate) struct Slot<C> {
    pub(crate) node: Arc<Node>,
    /// Which of the connections to the instance this is, one after the other.
    pub(crate) turn: u64,
    pub(crate) link: C,
    pub(crate) weight: f64,
    /// The number of the instance on the ring.
    pub(crate) member: u32,
    /// Since when calls may go to it.
    pub(crate) started: Option<Instant>,
}

/// What all pickers of a connection share, one after the other.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) ring: Arc<Ring>,
    pub(crate) rotation: Arc<AtomicUsize>,
    pub(crate) pool: Arc<PoolLatency>,
}

/// See [the module](self).
#[derive(Debug)]
pub(crate) struct Table<C> {
    policy: Policy,
    /// Those of the own zone first.
    slots: Vec<Arc<Slot<C>>>,
    local: usize,
    /// The share of calls that stays in the zone.
    stay: f64,
    /// The sums of weights up to each slot.
    weights: Vec<f64>,
    /// Which slot each instance of the ring has.
    of_member: Vec<Option<u32>>,
    shared: Shared,
    slow_start: Option<Beginning>,
}

impl<C> Default for Table<C> {
    fn default() -> Self {
        Self::new(Policy::default(), Vec::new(), (Vec::new(), 0), Shared::default(), None)
    }
}

/// A zone is left alone as long as more than this part of its instances is missing nothing: below it, the
/// others take over in proportion.
const ENOUGH_OF_A_ZONE: f64 = 0.7;

impl<C> Table<C> {
    /// `local` are the ready instances of the own zone, with the number of those that are known there.
    pub(crate) fn new(
        policy: Policy,
        elsewhere: Vec<Slot<C>>,
        (local, known_in_zone): (Vec<Slot<C>>, usize),
        shared: Shared,
        slow_start: Option<SlowStart>,
    ) -> Self {
        let in_zone = local.len();
        let slots: Vec<_> = local.into_iter().chain(elsewhere).map(Arc::new).collect();
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        let stay = match (in_zone, known_in_zone) {
            (0, _) => 0.0,
            (ready, known) => ready as f64 / (known as f64 * ENOUGH_OF_A_ZONE),
        };
        let mut weights = Vec::new();
        if policy == Policy::Weighted {
            weights.extend(slots.iter().scan(0.0, |sum, slot| {
                *sum += slot.weight;
                Some(*sum)
            }));
        }
        let mut of_member = Vec::new();
        if policy == Policy::ConsistentHash {
            for (slot, index) in slots.iter().zip(0..) {
                let member = slot.member as usize;
                of_member.resize(of_member.len().max(member + 1), None);
                of_member[member] = Some(index);
            }
        }
        let slow_start = slow_start.map(|rules| rules.among(slots.iter().filter_map(|slot| slot.started)));
        Self { policy, slots, local: in_zone, stay, weights, of_member, shared, slow_start }
    }

    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = &Arc<Slot<C>>> {
        self.slots.iter()
    }

    /// Chooses for one call; `None` only if nothing is ready.
    pub(crate) fn pick(&self, key: Option<HashKey>, now: Instant) -> Option<&Arc<Slot<C>>> {
        if self.slots.is_empty() {
            return None;
        }
        if let (Policy::ConsistentHash, Some(HashKey(key))) = (self.policy, key) {
            return self.owner(key);
        }
        let among = self.zone();
        let index = match self.policy {
            Policy::PeakEwma | Policy::ConsistentHash => {
                self.better(&among, now, |node| node.cost(&self.shared.pool, now))
            }
            Policy::LeastPending => self.better(&among, now, |node| node.crowd(now)),
            Policy::RoundRobin => self
                .untroubled(now, || among.start + self.shared.rotation.fetch_add(1, Relaxed) % among.len()),
            Policy::Weighted => self.untroubled(now, || self.by_weight(&among)),
        };
        Some(&self.slots[index])
    }

    /// As [`pick`](Self::pick), but not one that had a try of this request, if there is another; else the one whose
    /// try is the longest ago.
    pub(crate) fn pick_again(
        &self,
        key: Option<HashKey>,
        now: Instant,
        tries: &Tries,
    ) -> Option<&Arc<Slot<C>>> {
        let first = self.pick(key, now)?;
        if tries.since(&first.node.id) == usize::MAX {
            return Some(first);
        }
        let rank = |slot: &Slot<C>| {
            let cost = slot.node.cost(&self.shared.pool, now);
            (Reverse(tries.since(&slot.node.id)), slot.node.is_busy_on_trial(), cost)
        };
        let ranked = self.slots.iter().map(|slot| (rank(slot), slot));
        ranked.min_by(|(one, _), (other, _)| one.partial_cmp(other).unwrap_or(Equal)).map(|(_, slot)| slot)
    }

    /// The instance that a key belongs to. While that one is on trial and has a call, the next one on the ring stands in.
    fn owner(&self, key: u64) -> Option<&Arc<Slot<C>>> {
        let slot = |member: u32| {
            let index = (*self.of_member.get(member as usize)?)?;
            self.slots.get(index as usize)
        };
        let untroubled = |member| slot(member).filter(|slot| !slot.node.is_busy_on_trial());
        let ring = &self.shared.ring;
        ring.find(key, untroubled).or_else(|| ring.find(key, slot))
    }

    /// The slots of the own zone, or the others if the zone has too few.
    fn zone(&self) -> Range<usize> {
        let (local, all) = (self.local, self.slots.len());
        match local {
            0 => 0..all,
            _ if local == all || self.stay >= 1.0 || fastrand::f64() < self.stay => 0..local,
            _ => local..all,
        }
    }

    /// The better of two random ones, or the other one in place of an instance that has just started.
    fn better<T: PartialOrd>(&self, among: &Range<usize>, now: Instant, cost: impl Fn(&Node) -> T) -> usize {
        let one = fastrand::usize(among.clone());
        if among.len() == 1 {
            return one;
        }
        let other = fastrand::usize(among.start..among.end - 1);
        let other = if other < one { other } else { other + 1 };
        let is_other = cost(&self.slots[other].node) < cost(&self.slots[one].node);
        let (better, worse) = if is_other { (other, one) } else { (one, other) };
        if self.waits(better, now) && !self.slots[worse].node.load.errors.is_failing(now) {
            worse
        } else {
            better
        }
    }

    /// Whether a call is not for this instance yet: by chance, the more often the shorter ago it has started.
    fn waits(&self, slot: usize, now: Instant) -> bool {
        let Some(beginning) = &self.slow_start else { return false };
        let started = self.slots[slot].started;
        started.is_some_and(|started| fastrand::f64() >= beginning.share(started, now))
    }

    fn by_weight(&self, among: &Range<usize>) -> usize {
        let before = if among.start == 0 { 0.0 } else { self.weights[among.start - 1] };
        let point = before + fastrand::f64() * (self.weights[among.end - 1] - before);
        let found = self.weights[among.clone()].partition_point(|sum| *sum <= point);
        among.start + found.min(among.len() - 1)
    }

    /// Another choice if the first is an instance on trial that has a call already, or one that has just started.
    fn untroubled(&self, now: Instant, choose: impl Fn() -> usize) -> usize {
        let mut chosen = choose();
        for _ in 0..3 {
            if !self.slots[chosen].node.is_busy_on_trial() && !self.waits(chosen, now) {
                break;
            }
            chosen = choose();
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use coord_api::ServiceInfo;

    use super::*;

    fn slot(id: &str, member: u32, weight: f64) -> Slot<()> {
        let node = Arc::new(Node::new(id.into(), id.into()));
        Slot { node, turn: 0, link: (), weight, member, started: None }
    }

    fn table(policy: Policy, ids: &[&str]) -> Table<()> {
        let slots = ids.iter().zip(0..).map(|(id, member)| slot(id, member, f64::from(member + 1)));
        let ring = Arc::new(Ring::new(ids.iter().copied()));
        Table::new(policy, slots.collect(), (Vec::new(), 0), Shared { ring, ..Shared::default() }, None)
    }

    fn chosen(table: &Table<()>, calls: u32) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::new();
        for _ in 0..calls {
            let slot = table.pick(None, Instant::now()).expect("some are ready");
            *shares.entry(slot.node.id.clone()).or_insert(0) += 1;
        }
        shares
    }

    fn share(shares: &BTreeMap<String, u32>, id: &str) -> u32 {
        shares.get(id).copied().unwrap_or_default()
    }

    fn answers(table: &Table<()>, slot: usize, millis: u64) {
        // The first answer tells little, and a slow one that stands alone is a hiccup.
        for _ in 0..3 {
            let node = &table.slots[slot].node;
            node.load.answered(Duration::from_millis(millis), &table.shared.pool, Instant::now());
        }
    }

    #[test]
    fn every_policy_does_with_none_and_one() {
        for policy in [
            Policy::PeakEwma,
            Policy::LeastPending,
            Policy::RoundRobin,
            Policy::Weighted,
            Policy::ConsistentHash,
        ] {
            assert!(table(policy, &[]).pick(None, Instant::now()).is_none(), "{policy:?}");
            assert!(table(policy, &[]).pick(Some(HashKey::new("k")), Instant::now()).is_none());
            assert_eq!(chosen(&table(policy, &["a"]), 10), BTreeMap::from([("a".into(), 10)]), "{policy:?}");
            table(policy, &["a"]).pick(Some(HashKey::new("k")), Instant::now()).expect("one is ready");
        }
    }

    #[test]
    fn latency_and_calls_in_flight_decide() {
        let ewma = table(Policy::PeakEwma, &["fast", "slow", "other"]);
        for (slot, millis) in [(0, 1), (1, 50), (2, 1)] {
            answers(&ewma, slot, millis);
        }
        let shares = chosen(&ewma, 1000);
        assert_eq!(share(&shares, "slow"), 0, "{shares:?}");
        assert!(share(&shares, "fast").min(share(&shares, "other")) > 200, "{shares:?}");

        let pending = table(Policy::LeastPending, &["idle", "busy"]);
        pending.slots[1].node.load.begin();
        answers(&pending, 0, 1000);
        assert_eq!(share(&chosen(&pending, 100), "busy"), 0);
    }

    #[test]
    fn turns_and_weights_are_exact_and_fair() {
        assert_eq!(chosen(&table(Policy::RoundRobin, &["a", "b", "c"]), 300).into_values().max(), Some(100));
        // Weights 1, 2, 3.
        let shares = chosen(&table(Policy::Weighted, &["a", "b", "c"]), 6000);
        for (id, expected) in [("a", 1000), ("b", 2000), ("c", 3000)] {
            assert!(share(&shares, id).abs_diff(expected) < 250, "{shares:?}");
        }
    }

    #[test]
    fn an_instance_on_trial_gets_one_call() {
        for policy in [Policy::RoundRobin, Policy::Weighted] {
            let table = table(policy, &["a", "b"]);
            let node = &table.slots[0].node;
            node.on_trial.store(true, Relaxed);
            assert!(share(&chosen(&table, 100), "a") > 0, "{policy:?}");
            node.load.begin();
            // Four dice in a row may show it all the same.
            assert!(share(&chosen(&table, 100), "a") < 20, "{policy:?}");
        }
    }

    #[test]
    fn failing_instance_comes_last_and_one_call_tries_a_key() {
        let failing = |table: &Table<()>| {
            let node = &table.slots[0].node;
            (0..3).for_each(|_| node.failed(Duration::from_secs(10), Instant::now()));
            // Calls wait for the others, and it would answer at once.
            table.slots[1..].iter().for_each(|slot| (0..50).for_each(|_| slot.node.load.begin()));
        };
        for policy in [Policy::PeakEwma, Policy::LeastPending] {
            let table = table(policy, &["bad", "b", "c"]);
            failing(&table);
            assert_eq!(share(&chosen(&table, 100), "bad"), 0, "{policy:?}");
        }
        let table = table(Policy::ConsistentHash, &["a", "b"]);
        let owner = |table: &Table<()>| {
            let slot = table.pick(Some(HashKey::new("k")), Instant::now()).expect("some are ready");
            slot.node.clone()
        };
        let node = owner(&table);
        node.on_trial.store(true, Relaxed);
        assert_eq!(owner(&table).id, node.id);
        node.load.begin();
        assert_ne!(owner(&table).id, node.id);
    }

    #[test]
    fn a_request_that_is_made_again_goes_where_it_was_not() {
        let table = table(Policy::PeakEwma, &["a", "b", "c"]);
        let tries = Tries::new();
        let mut went = Vec::new();
        for _ in 0..9 {
            let slot = table.pick_again(None, Instant::now(), &tries).expect("some are ready");
            tries.given_to(&slot.node.id);
            went.push(slot.node.id.clone());
        }
        let first: std::collections::BTreeSet<_> = went[..3].iter().collect();
        assert_eq!(first.len(), 3, "{went:?}");
        assert_eq!((&went[3..6], &went[6..]), (&went[..3], &went[..3]), "then in turn");
    }

    #[test]
    fn a_zone_comes_first_and_spills_over_when_it_is_weak() {
        let cases = [("all are ready", 2, 2, 1000), ("one of three is", 1, 3, 476), ("none is", 0, 2, 0)];
        for policy in [Policy::PeakEwma, Policy::RoundRobin, Policy::Weighted] {
            for (case, ready, known, expected) in cases {
                let local = (0..ready).map(|n| slot("local", n, 1.0)).collect();
                let far = (0..3).map(|n| slot("far", n, 5.0)).collect();
                let table = Table::new(policy, far, (local, known), Shared::default(), None);
                let shares = chosen(&table, 1000);
                assert!(share(&shares, "local").abs_diff(expected) < 100, "{policy:?}, {case}: {shares:?}");
            }
        }
    }

    #[test]
    fn instance_that_has_just_started_gets_its_share_gradually() {
        let window = Duration::from_secs(10);
        for policy in [Policy::PeakEwma, Policy::LeastPending, Policy::RoundRobin, Policy::Weighted] {
            let now = Instant::now();
            let started = |id: &str, member, ago| Slot { started: Some(now - ago), ..slot(id, member, 1.0) };
            let slots = |new: Duration| {
                let old = window * 2;
                vec![started("old", 0, old), started("older", 1, old), started("new", 2, new)]
            };
            let share_after = |new: Duration| {
                let slow_start = Some(SlowStart { window, ..SlowStart::DEFAULT });
                let table = Table::new(policy, slots(new), (Vec::new(), 0), Shared::default(), slow_start);
                let chosen = (0..3000).filter(|_| {
                    let slot = table.pick(None, now).expect("some are ready");
                    slot.node.id == "new"
                });
                chosen.count()
            };
            assert!(share_after(Duration::ZERO) < 300, "{policy:?}: {}", share_after(Duration::ZERO));
            let half = share_after(window / 2);
            assert!((250..=750).contains(&half), "{policy:?}: {half}");
            assert!(share_after(window).abs_diff(1000) < 150, "{policy:?}: {}", share_after(window));
        }
    }

    #[test]
    fn weights_of_any_size_keep_their_proportion() {
        let weight = |weight: f64| ServiceInfo::new("a", "1", "h", 1).with_weight(weight).weight();
        let slots = (0..3).zip(["a", "b", "c"]).map(|(member, id)| slot(id, member, weight(1e308)));
        let table = Table::new(Policy::Weighted, slots.collect(), (Vec::new(), 0), Shared::default(), None);
        let shares = chosen(&table, 3000);
        assert!(["a", "b", "c"].iter().all(|id| share(&shares, id).abs_diff(1000) < 150), "{shares:?}");
    }

    #[test]
    fn a_key_keeps_its_instance() {
        let table = table(Policy::ConsistentHash, &["a", "b", "c"]);
        let owner = |key: &str| {
            let slot = table.pick(Some(HashKey::new(key)), Instant::now()).expect("some are ready");
            slot.node.id.clone()
        };
        let mut seen = BTreeMap::new();
        for n in 0..100 {
            let key = format!("user-{n}");
            assert_eq!(owner(&key), owner(&key));
            *seen.entry(owner(&key)).or_insert(0) += 1;
        }
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
}
