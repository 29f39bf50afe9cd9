use super::*;

const MS: f32 = 1e3;

fn after(answers: &[(f32, f32)]) -> PeakEwma {
    let first = (PeakEwma::default(), 0.0);
    let (ewma, _) = answers
        .iter()
        .fold(first, |(ewma, last), (micros, seconds)| (ewma.with(*micros, last, *seconds), *micros));
    ewma
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn answers(load: &Load, times: usize, took: Duration, now: Instant) {
    let pool_latency = PoolLatency::default();
    (0..times).for_each(|_| load.answered(took, &pool_latency, now));
}

#[test]
fn peak_counts_at_once_and_is_forgotten_after_a_second() {
    let steady = after(&[(MS, 0.0); 50]);
    assert_eq!(steady, PeakEwma { average: MS, peak: MS });
    let hiccup = steady.with(100.0 * MS, MS, 0.001);
    assert!((hiccup.peak - 100.0 * MS).abs() < 1.0, "{hiccup:?}");
    assert_eq!(hiccup.average.to_bits(), MS.to_bits(), "one alone is no habit");
    let later = hiccup.after(1.0);
    assert!(later.average.max(later.peak) <= MS, "{later:?}");
    // Also if it came after a long silence.
    assert!(steady.with(100.0 * MS, MS, 60.0).average <= MS);
}

#[test]
fn slow_instance_stays_slow_for_long() {
    let slow = after(&[(50.0 * MS, 0.0); 5]);
    let later = slow.after(30.0);
    assert!(later.average > MS, "{later:?}");
    assert!(slow.after(45.0).average < MS);
    // A single fast answer does not clear its name.
    assert!(slow.with(MS, 50.0 * MS, 0.001).average > 40.0 * MS);
    // An instance that becomes slow is known to be so from the second slow answer on.
    let slower = after(&[(MS, 0.0), (50.0 * MS, 0.0), (50.0 * MS, 0.0)]);
    assert!(slower.average > 5.0 * MS, "{slower:?}");
}

#[test]
fn less_than_a_millisecond_makes_no_difference() {
    let (one, other, now) = (Load::default(), Load::default(), Instant::now());
    for (load, micros) in [(&one, 50), (&other, 900)] {
        answers(load, 5, Duration::from_micros(micros), now);
    }
    let cost = |load: &Load| load.cost(NOISE, now);
    assert!((cost(&one) - cost(&other)).abs() < 1e-3, "chance decides");
    one.begin();
    assert!(cost(&one) > cost(&other), "and calls in flight do");
    answers(&other, 1, millis(50), now);
    assert!(cost(&one) < cost(&other));
}

#[test]
fn packing_keeps_both() {
    let ewma = PeakEwma { average: 1.5, peak: 2e9 };
    assert_eq!(PeakEwma::unpack(ewma.pack()), ewma);
}

#[test]
fn unproven_instance_gets_one_call_at_a_time() {
    let (load, now) = (Load::default(), Instant::now());
    let cost = || load.cost(NOISE, now);
    assert!(cost() < 1.0);
    load.begin();
    assert!(cost() > 1e9);
    answers(&load, 1, millis(200), now);
    load.opened();
    load.closed();
    assert!((cost() - MS).abs() < 1.0, "the first answer is late for other reasons");
    load.reset();
    load.not_answered(millis(2), now);
    assert!((cost() - 2.0 * MS).abs() < 1.0);
    load.begin();
    assert!((cost() - 4.0 * MS).abs() < 1.0, "calls in flight count");
    load.not_answered(millis(1), now);
    assert!((cost() - 4.0 * MS).abs() < 1.0, "giving up early tells nothing");
    load.not_answered(millis(10), now);
    assert!((cost() - 20.0 * MS).abs() < 1.0);
    load.reset();
    assert_eq!(load.latency(now), None);
}

#[test]
fn error_is_never_fast() {
    let (pool_latency, now) = (PoolLatency::default(), Instant::now());
    let (good, bad) = (Load::default(), Load::default());
    (0..100).for_each(|_| good.answered(millis(20), &pool_latency, now));
    // As its first answer, and after good ones.
    bad.refused(Duration::ZERO, &pool_latency, now);
    assert!(bad.latency(now) >= Some(millis(19)), "{:?}", bad.latency(now));
    (0..100).for_each(|_| bad.answered(millis(50), &pool_latency, now));
    let before = bad.latency(now).expect("is known");
    (0..100).for_each(|_| bad.refused(Duration::ZERO, &pool_latency, now));
    let after = bad.latency(now).expect("is known");
    assert!(after + millis(1) >= before, "{before:?}, then {after:?}");
    // A slow one is as slow as any other.
    bad.refused(millis(500), &pool_latency, now);
    assert!(bad.latency(now) >= Some(millis(499)));
}

#[test]
fn error_costs_until_it_is_forgotten() {
    let (load, pool_latency, now) = (Load::default(), PoolLatency::default(), Instant::now());
    (0..9).for_each(|_| load.answered(millis(1), &pool_latency, now));
    let before = load.cost(NOISE, now);
    load.refused(Duration::ZERO, &pool_latency, now);
    load.errors.failed(now);
    assert!(load.cost(NOISE, now) > before * 2.0);
    let later = now + Duration::from_secs(3);
    assert!(load.cost(NOISE, later) <= before);
}

#[test]
fn streams_outweigh_a_peak_that_is_a_second_old() {
    let (pool_latency, now) = (PoolLatency::default(), Instant::now());
    let both = [Load::default(), Load::default()];
    for load in &both {
        (0..50).for_each(|_| load.answered(millis(1), &pool_latency, now));
    }
    both[0].answered(millis(100), &pool_latency, now);
    let spread = |now: Instant| {
        for _ in 0..100 {
            let cost = |load: &Load| load.cost(pool_latency.cost_of_stream(), now);
            let load = &both[usize::from(cost(&both[1]) < cost(&both[0]))];
            load.begin();
            load.opened();
        }
        let open = [0, 1].map(|load: usize| both[load].open.swap(0, Relaxed));
        open[0]
    };
    let later = now + Duration::from_secs(1);
    assert!((45..=55).contains(&spread(later)), "after one slow answer");
    // A stall that several calls have met.
    (0..4).for_each(|_| both[0].answered(millis(100), &pool_latency, now));
    assert!((30..=55).contains(&spread(later)), "after several");
}
