use std::{collections::BTreeMap, time::Duration};

use coord_api::ServiceInfo;

use super::*;

fn ready(id: &str, ring_index: u32, weight: f64) -> Ready<()> {
    let stats = Arc::new(InstanceStats::new(id.into(), id.into()));
    Ready { stats, generation: 0, connection: (), weight, ring_index, started: None }
}

fn picker(policy: Policy, ids: &[&str]) -> Picker<()> {
    let ready = ids.iter().zip(0..).map(|(id, ring_index)| ready(id, ring_index, f64::from(ring_index + 1)));
    let ring = Arc::new(Ring::new(ids.iter().copied()));
    Picker::new(policy, ready.collect(), (Vec::new(), 0), Shared { ring, ..Shared::default() }, None)
}

fn chosen(picker: &Picker<()>, calls: u32) -> BTreeMap<String, u32> {
    let mut shares = BTreeMap::new();
    for _ in 0..calls {
        let ready = picker.pick(None, Instant::now()).expect("some are ready");
        *shares.entry(ready.stats.id.clone()).or_insert(0) += 1;
    }
    shares
}

fn share(shares: &BTreeMap<String, u32>, id: &str) -> u32 {
    shares.get(id).copied().unwrap_or_default()
}

fn answers(picker: &Picker<()>, ready: usize, millis: u64) {
    // The first answer tells little, and a slow one that stands alone is a hiccup.
    for _ in 0..3 {
        let stats = &picker.ready[ready].stats;
        stats.load.answered(Duration::from_millis(millis), &picker.shared.pool_latency, Instant::now());
    }
}

#[test]
fn every_policy_works_with_no_instance_and_with_one() {
    for policy in
        [Policy::PeakEwma, Policy::LeastPending, Policy::RoundRobin, Policy::Weighted, Policy::ConsistentHash]
    {
        assert!(picker(policy, &[]).pick(None, Instant::now()).is_none(), "{policy:?}");
        assert!(picker(policy, &[]).pick(Some(HashKey::new("k")), Instant::now()).is_none());
        assert_eq!(chosen(&picker(policy, &["a"]), 10), BTreeMap::from([("a".into(), 10)]), "{policy:?}");
        picker(policy, &["a"]).pick(Some(HashKey::new("k")), Instant::now()).expect("one is ready");
    }
}

#[test]
fn latency_and_calls_in_flight_decide() {
    let ewma = picker(Policy::PeakEwma, &["fast", "slow", "other"]);
    for (ready, millis) in [(0, 1), (1, 50), (2, 1)] {
        answers(&ewma, ready, millis);
    }
    let shares = chosen(&ewma, 1000);
    assert_eq!(share(&shares, "slow"), 0, "{shares:?}");
    assert!(share(&shares, "fast").min(share(&shares, "other")) > 200, "{shares:?}");

    let pending = picker(Policy::LeastPending, &["idle", "busy"]);
    pending.ready[1].stats.load.begin();
    answers(&pending, 0, 1000);
    assert_eq!(share(&chosen(&pending, 100), "busy"), 0);
}

#[test]
fn round_robin_is_exact_and_weights_are_fair() {
    assert_eq!(chosen(&picker(Policy::RoundRobin, &["a", "b", "c"]), 300).into_values().max(), Some(100));
    // Weights 1, 2, 3.
    let shares = chosen(&picker(Policy::Weighted, &["a", "b", "c"]), 6000);
    for (id, expected) in [("a", 1000), ("b", 2000), ("c", 3000)] {
        assert!(share(&shares, id).abs_diff(expected) < 250, "{shares:?}");
    }
}

#[test]
fn instance_on_trial_gets_one_call() {
    for policy in [Policy::RoundRobin, Policy::Weighted] {
        let picker = picker(policy, &["a", "b"]);
        let stats = &picker.ready[0].stats;
        stats.on_trial.store(true, Relaxed);
        assert!(share(&chosen(&picker, 100), "a") > 0, "{policy:?}");
        stats.load.begin();
        // Four dice in a row may show it all the same.
        assert!(share(&chosen(&picker, 100), "a") < 20, "{policy:?}");
    }
}

#[test]
fn failing_instance_comes_last_and_trial_of_a_key_is_one_call() {
    let failing = |picker: &Picker<()>| {
        let stats = &picker.ready[0].stats;
        (0..3).for_each(|_| stats.failed(Duration::from_secs(10), Instant::now()));
        // Calls wait for the others, and it would answer at once.
        picker.ready[1..].iter().for_each(|ready| (0..50).for_each(|_| ready.stats.load.begin()));
    };
    for policy in [Policy::PeakEwma, Policy::LeastPending] {
        let picker = picker(policy, &["bad", "b", "c"]);
        failing(&picker);
        assert_eq!(share(&chosen(&picker, 100), "bad"), 0, "{policy:?}");
    }
    let picker = picker(Policy::ConsistentHash, &["a", "b"]);
    let owner = |picker: &Picker<()>| {
        let ready = picker.pick(Some(HashKey::new("k")), Instant::now()).expect("some are ready");
        ready.stats.clone()
    };
    let stats = owner(&picker);
    stats.on_trial.store(true, Relaxed);
    assert_eq!(owner(&picker).id, stats.id);
    stats.load.begin();
    assert_ne!(owner(&picker).id, stats.id);
}

#[test]
fn repeated_request_goes_to_an_instance_that_had_none() {
    let picker = picker(Policy::PeakEwma, &["a", "b", "c"]);
    let attempts = Attempts::new();
    let mut went = Vec::new();
    for _ in 0..9 {
        let ready = picker.pick_again(None, Instant::now(), &attempts).expect("some are ready");
        attempts.given_to(&ready.stats.id);
        went.push(ready.stats.id.clone());
    }
    let first: std::collections::BTreeSet<_> = went[..3].iter().collect();
    assert_eq!(first.len(), 3, "{went:?}");
    assert_eq!((&went[3..6], &went[6..]), (&went[..3], &went[..3]), "then in generation");
}

#[test]
fn zone_comes_first_and_spills_over_when_it_is_weak() {
    let cases = [("all are ready", 2, 2, 1000), ("one of three is", 1, 3, 476), ("none is", 0, 2, 0)];
    for policy in [Policy::PeakEwma, Policy::RoundRobin, Policy::Weighted] {
        for (case, count, known, expected) in cases {
            let local = (0..count).map(|n| ready("local", n, 1.0)).collect();
            let far = (0..3).map(|n| ready("far", n, 5.0)).collect();
            let picker = Picker::new(policy, far, (local, known), Shared::default(), None);
            let shares = chosen(&picker, 1000);
            assert!(share(&shares, "local").abs_diff(expected) < 100, "{policy:?}, {case}: {shares:?}");
        }
    }
}

#[test]
fn instance_that_has_just_started_gets_its_share_gradually() {
    let window = Duration::from_secs(10);
    for policy in [Policy::PeakEwma, Policy::LeastPending, Policy::RoundRobin, Policy::Weighted] {
        let now = Instant::now();
        let started =
            |id: &str, ring_index, ago| Ready { started: Some(now - ago), ..ready(id, ring_index, 1.0) };
        let ready = |new: Duration| {
            let old = window * 2;
            vec![started("old", 0, old), started("older", 1, old), started("new", 2, new)]
        };
        let share_after = |new: Duration| {
            let slow_start = Some(SlowStart { window, ..SlowStart::DEFAULT });
            let picker = Picker::new(policy, ready(new), (Vec::new(), 0), Shared::default(), slow_start);
            let chosen = (0..3000).filter(|_| {
                let ready = picker.pick(None, now).expect("some are ready");
                ready.stats.id == "new"
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
    let ready = (0..3).zip(["a", "b", "c"]).map(|(ring_index, id)| ready(id, ring_index, weight(1e308)));
    let picker = Picker::new(Policy::Weighted, ready.collect(), (Vec::new(), 0), Shared::default(), None);
    let shares = chosen(&picker, 3000);
    assert!(["a", "b", "c"].iter().all(|id| share(&shares, id).abs_diff(1000) < 150), "{shares:?}");
}

#[test]
fn key_keeps_its_instance() {
    let picker = picker(Policy::ConsistentHash, &["a", "b", "c"]);
    let owner = |key: &str| {
        let ready = picker.pick(Some(HashKey::new(key)), Instant::now()).expect("some are ready");
        ready.stats.id.clone()
    };
    let mut seen = BTreeMap::new();
    for n in 0..100 {
        let key = format!("user-{n}");
        assert_eq!(owner(&key), owner(&key));
        *seen.entry(owner(&key)).or_insert(0) += 1;
    }
    assert_eq!(seen.len(), 3, "{seen:?}");
}
