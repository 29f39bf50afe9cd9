//! How long an instance takes to answer ("peak EWMA"), and what is in flight to it. Read and written by every call, so it
//! takes no lock; two answers at the very same moment may count as one.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::outlier::ErrorRate;

/// A single slow answer is forgotten with this time constant, in seconds: a peak of 100 ms is gone after one.
const PEAK: f32 = 0.2;
/// The average is forgotten with this one. An instance that was 50 times slower is tried again after 40 s.
const AVERAGE: f32 = 10.0;
/// The weight of a new answer in the average, if they come close together.
const SHARE: f32 = 0.1;
/// The weight of one that confirms that the instance has become slower.
const SHARE_OF_RISE: f32 = 0.3;
/// The weight of a new answer in the average of all instances.
const SHARE_IN_POOL: f32 = 0.02;
/// Instances that answer faster than this, in microseconds, are taken for equally fast: what is left is chance, such as that one
/// was asked more and is warm for it.
const NOISE: f32 = 1e3;
/// An instance that has not answered yet gets one call at a time while another can be had: more than any
/// latency in microseconds.
const UNPROVEN: f32 = 1e12;
/// An instance whose every call fails costs so many times more.
const ERROR_PENALTY: f32 = 10.0;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

pub(crate) fn nanos(now: Instant) -> u64 {
    // Good for 500 years.
    now.saturating_duration_since(*START).as_nanos() as u64
}

/// From one of [`nanos`] to another, in seconds.
pub(crate) fn seconds(since: u64, now: u64) -> f32 {
    Duration::from_nanos(now.saturating_sub(since)).as_secs_f32()
}

/// Average and peak latency in microseconds; zero means that nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Estimate {
    average: f32,
    peak: f32,
}

impl Estimate {
    fn after(self, seconds: f32) -> Self {
        Self { average: self.average * (-seconds / AVERAGE).exp(), peak: self.peak * (-seconds / PEAK).exp() }
    }

    /// Takes in an answer that took `micros`, `seconds` after the last one, which took `last`. The average rises only with
    /// the second slow answer in a row: one alone is a hiccup, which the peak tells of.
    fn with(self, micros: f32, last: f32, seconds: f32) -> Self {
        if self == Self::default() {
            return Self { average: micros, peak: micros };
        }
        let peak = self.after(seconds).peak.max(micros);
        let confirmed = if micros > self.average { micros.min(last.max(self.average)) } else { micros };
        let smallest = if confirmed > self.average { SHARE_OF_RISE } else { SHARE };
        let share = smallest.max(1.0 - (-seconds / AVERAGE).exp());
        Self { average: self.average + share * (confirmed - self.average), peak }
    }

    fn pack(self) -> u64 {
        u64::from(self.average.to_bits()) << 32 | u64::from(self.peak.to_bits())
    }

    fn unpack(bits: u64) -> Self {
        Self { average: f32::from_bits((bits >> 32) as u32), peak: f32::from_bits(bits as u32) }
    }
}

/// The average latency of all instances of a pool together, in microseconds; zero while nobody has answered.
#[derive(Debug, Default)]
pub(crate) struct PoolLatency(AtomicU32);

impl PoolLatency {
    fn micros(&self) -> f32 {
        f32::from_bits(self.0.load(Relaxed))
    }

    fn answered(&self, micros: f32) {
        let before = self.micros();
        let now = if before == 0.0 { micros } else { before + SHARE_IN_POOL * (micros - before) };
        self.0.store(now.to_bits(), Relaxed);
    }

    /// The cost of a stream that is open. It is the same on every instance, so that streams are spread by their number,
    /// and how fast an instance answers is worth a few of them only.
    pub(crate) fn cost_of_stream(&self) -> f32 {
        self.micros().max(NOISE)
    }
}

#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Calls whose answer has not begun.
    waiting: AtomicU32,
    /// Calls whose answer has begun and not ended: streams, most of the time.
    open: AtomicU32,
    estimate: AtomicU64,
    /// The last latency that was taken in.
    last: AtomicU32,
    /// When the estimate was last written.
    stamp: AtomicU64,
    pub(crate) errors: ErrorRate,
}

impl Load {
    pub(crate) fn begin(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// The answer has begun.
    pub(crate) fn opened(&self) {
        self.waiting.fetch_sub(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    /// A call whose answer had begun is over.
    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// A call is over whose answer never began, after a wait of `waited`.
    pub(crate) fn given_up(&self, waited: Duration, now: Instant) {
        self.waiting.fetch_sub(1, Relaxed);
        self.not_answered(waited, now);
    }

    /// How many calls have no answer yet.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    pub(crate) fn pending(&self) -> u32 {
        self.waiting.load(Relaxed).saturating_add(self.open.load(Relaxed))
    }

    /// Takes in how long a good answer took. The first one is late for reasons that pass, such as a connection that is cold:
    /// it shows that the instance answers, and not how fast.
    pub(crate) fn answered(&self, took: Duration, pool: &PoolLatency, now: Instant) {
        let micros = micros(took);
        let is_first = self.estimate() == Estimate::default();
        if !is_first {
            pool.answered(micros);
        }
        self.took(if is_first { micros.min(NOISE) } else { micros }, now);
    }

    /// Takes in an answer that shows nothing of how fast the instance works: an error, whoever is at fault. It counts as
    /// at least the average of the instance and of its pool, since errors are often quick.
    pub(crate) fn refused(&self, took: Duration, pool: &PoolLatency, now: Instant) {
        let own = self.estimate().after(self.age(nanos(now))).average;
        self.took(micros(took).max(own).max(pool.micros()), now);
    }

    fn took(&self, micros: f32, now: Instant) {
        let stamp = nanos(now);
        let seconds = self.age(stamp);
        let last = f32::from_bits(self.last.swap(micros.to_bits(), Relaxed));
        let estimate = self.estimate().with(micros, last, seconds);
        self.stamp.store(stamp, Relaxed);
        self.estimate.store(estimate.pack(), Relaxed);
    }

    /// Takes in that no answer came for so long: it can only make the estimate worse.
    fn not_answered(&self, waited: Duration, now: Instant) {
        if self.latency(now).is_none_or(|latency| waited > latency) {
            self.took(micros(waited), now);
        }
    }

    /// Forgets how the instance answered: it begins anew.
    pub(crate) fn reset(&self) {
        self.estimate.store(0, Relaxed);
        self.last.store(0, Relaxed);
        self.errors.reset();
    }

    /// How long an answer would take now, as far as is known.
    pub(crate) fn latency(&self, now: Instant) -> Option<Duration> {
        if self.estimate() == Estimate::default() {
            return None;
        }
        let estimate = self.estimate().after(self.age(nanos(now)));
        Some(Duration::from_secs_f32(estimate.average.max(estimate.peak) / 1e6))
    }

    /// What one more call would cost, where a stream that is open costs `stream`.
    pub(crate) fn cost(&self, stream: f32, now: Instant) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "there are not so many calls in flight")]
        let (waiting, open) = (self.waiting.load(Relaxed) as f32, self.open.load(Relaxed) as f32);
        let errors = 1.0 + ERROR_PENALTY * self.errors.now(now);
        if self.estimate() == Estimate::default() {
            return UNPROVEN * waiting * errors + stream * open;
        }
        let estimate = self.estimate().after(self.age(nanos(now)));
        estimate.average.max(estimate.peak).max(NOISE) * (waiting + 1.0) * errors + stream * open
    }

    fn estimate(&self) -> Estimate {
        Estimate::unpack(self.estimate.load(Relaxed))
    }

    fn age(&self, now: u64) -> f32 {
        seconds(self.stamp.load(Relaxed), now)
    }
}

/// Never zero, which means that nothing is known.
fn micros(took: Duration) -> f32 {
    (took.as_secs_f32() * 1e6).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f32 = 1e3;

    fn after(answers: &[(f32, f32)]) -> Estimate {
        let first = (Estimate::default(), 0.0);
        let (estimate, _) = answers.iter().fold(first, |(estimate, last), (micros, seconds)| {
            (estimate.with(*micros, last, *seconds), *micros)
        });
        estimate
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn answers(load: &Load, times: usize, took: Duration, now: Instant) {
        let pool = PoolLatency::default();
        (0..times).for_each(|_| load.answered(took, &pool, now));
    }

    #[test]
    fn a_peak_counts_at_once_and_is_forgotten_after_a_second() {
        let steady = after(&[(MS, 0.0); 50]);
        assert_eq!(steady, Estimate { average: MS, peak: MS });
        let hiccup = steady.with(100.0 * MS, MS, 0.001);
        assert!((hiccup.peak - 100.0 * MS).abs() < 1.0, "{hiccup:?}");
        assert_eq!(hiccup.average.to_bits(), MS.to_bits(), "one alone is no habit");
        let later = hiccup.after(1.0);
        assert!(later.average.max(later.peak) <= MS, "{later:?}");
        // Also if it came after a long silence.
        assert!(steady.with(100.0 * MS, MS, 60.0).average <= MS);
    }

    #[test]
    fn a_slow_instance_stays_slow_for_long() {
        let slow = after(&[(50.0 * MS, 0.0); 5]);
        let later = slow.after(30.0);
        assert!(later.average > MS, "{later:?}");
        assert!(slow.after(45.0).average < MS);
        // One fast answer does not clear its name.
        assert!(slow.with(MS, 50.0 * MS, 0.001).average > 40.0 * MS);
        // One that becomes slow is known to be so from the second slow answer on.
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
        let estimate = Estimate { average: 1.5, peak: 2e9 };
        assert_eq!(Estimate::unpack(estimate.pack()), estimate);
    }

    #[test]
    fn an_unproven_instance_gets_one_call_at_a_time() {
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
    fn an_error_is_never_fast() {
        let (pool, now) = (PoolLatency::default(), Instant::now());
        let (good, bad) = (Load::default(), Load::default());
        (0..100).for_each(|_| good.answered(millis(20), &pool, now));
        // As its first answer, and after good ones.
        bad.refused(Duration::ZERO, &pool, now);
        assert!(bad.latency(now) >= Some(millis(19)), "{:?}", bad.latency(now));
        (0..100).for_each(|_| bad.answered(millis(50), &pool, now));
        let before = bad.latency(now).expect("is known");
        (0..100).for_each(|_| bad.refused(Duration::ZERO, &pool, now));
        let after = bad.latency(now).expect("is known");
        assert!(after + millis(1) >= before, "{before:?}, then {after:?}");
        // A slow one is as slow as any other.
        bad.refused(millis(500), &pool, now);
        assert!(bad.latency(now) >= Some(millis(499)));
    }

    #[test]
    fn an_error_costs_until_it_is_forgotten() {
        let (load, pool, now) = (Load::default(), PoolLatency::default(), Instant::now());
        (0..9).for_each(|_| load.answered(millis(1), &pool, now));
        let before = load.cost(NOISE, now);
        load.refused(Duration::ZERO, &pool, now);
        load.errors.failed(now);
        assert!(load.cost(NOISE, now) > before * 2.0);
        let later = now + Duration::from_secs(3);
        assert!(load.cost(NOISE, later) <= before);
    }

    #[test]
    fn streams_outweigh_a_peak_that_is_a_second_old() {
        let (pool, now) = (PoolLatency::default(), Instant::now());
        let both = [Load::default(), Load::default()];
        for load in &both {
            (0..50).for_each(|_| load.answered(millis(1), &pool, now));
        }
        both[0].answered(millis(100), &pool, now);
        let spread = |now: Instant| {
            for _ in 0..100 {
                let cost = |load: &Load| load.cost(pool.cost_of_stream(), now);
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
        (0..4).for_each(|_| both[0].answered(millis(100), &pool, now));
        assert!((30..=55).contains(&spread(later)), "after several");
    }
}
