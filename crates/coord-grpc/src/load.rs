//! What a client knows of one instance: calls in flight and how long it takes to answer. Read and written by
//! every call, so it takes no lock; two answers at the very same moment may count as one.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

/// A single slow answer is forgotten with this time constant,
const PEAK: f32 = 1.0;
/// the average with this one, in seconds. An instance that was 50 times slower is tried again after 40 s.
const AVERAGE: f32 = 10.0;
/// The weight of a new answer in the average, if they come close together.
const SHARE: f32 = 0.1;
/// Instances that answer faster than this, in microseconds, are taken for equally fast: what is left is chance, such as that one
/// was asked more and is warm for it.
const NOISE: f32 = 1e3;
/// An instance that has not answered yet gets one call at a time while another can be had: more than any
/// latency in microseconds.
const UNPROVEN: f32 = 1e12;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

fn nanos(now: Instant) -> u64 {
    // Good for 500 years.
    now.saturating_duration_since(*START).as_nanos() as u64
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

    /// Takes in an answer that took `micros`, `seconds` after the last one.
    fn with(self, micros: f32, seconds: f32) -> Self {
        if self == Self::default() {
            return Self { average: micros, peak: micros };
        }
        let share = SHARE.max(1.0 - (-seconds / AVERAGE).exp());
        let peak = self.after(seconds).peak.max(micros);
        Self { average: self.average + share * (micros - self.average), peak }
    }

    fn pack(self) -> u64 {
        u64::from(self.average.to_bits()) << 32 | u64::from(self.peak.to_bits())
    }

    fn unpack(bits: u64) -> Self {
        Self { average: f32::from_bits((bits >> 32) as u32), peak: f32::from_bits(bits as u32) }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Load {
    pending: AtomicU32,
    estimate: AtomicU64,
    /// When the estimate was last written.
    stamp: AtomicU64,
}

impl Load {
    pub(crate) fn begin(&self) {
        self.pending.fetch_add(1, Relaxed);
    }

    pub(crate) fn end(&self) {
        self.pending.fetch_sub(1, Relaxed);
    }

    pub(crate) fn pending(&self) -> u32 {
        self.pending.load(Relaxed)
    }

    /// Takes in how long an answer took. The first one is late for reasons that pass, such as a connection that is cold: it
    /// shows that the instance answers, and not how fast.
    pub(crate) fn answered(&self, took: Duration, now: Instant) {
        let is_first = Estimate::unpack(self.estimate.load(Relaxed)) == Estimate::default();
        self.took(if is_first { took.min(Duration::from_secs_f32(NOISE / 1e6)) } else { took }, now);
    }

    fn took(&self, took: Duration, now: Instant) {
        let stamp = nanos(now);
        let seconds = self.age(stamp);
        // Never zero, which means that nothing is known.
        let micros = (took.as_secs_f32() * 1e6).max(1.0);
        let estimate = Estimate::unpack(self.estimate.load(Relaxed)).with(micros, seconds);
        self.stamp.store(stamp, Relaxed);
        self.estimate.store(estimate.pack(), Relaxed);
    }

    /// Takes in that no answer came for so long: it can only make the estimate worse.
    pub(crate) fn not_answered(&self, waited: Duration, now: Instant) {
        if self.latency(now).is_none_or(|latency| waited > latency) {
            self.took(waited, now);
        }
    }

    /// Forgets how long answers took: the instance begins anew.
    pub(crate) fn reset(&self) {
        self.estimate.store(0, Relaxed);
    }

    /// How long an answer would take now, as far as is known.
    pub(crate) fn latency(&self, now: Instant) -> Option<Duration> {
        let estimate = Estimate::unpack(self.estimate.load(Relaxed));
        if estimate == Estimate::default() {
            return None;
        }
        let estimate = estimate.after(self.age(nanos(now)));
        Some(Duration::from_secs_f32(estimate.average.max(estimate.peak) / 1e6))
    }

    /// What one more call would cost.
    pub(crate) fn cost(&self, now: Instant) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "there are not so many calls in flight")]
        let pending = self.pending() as f32;
        let estimate = Estimate::unpack(self.estimate.load(Relaxed));
        if estimate == Estimate::default() {
            return UNPROVEN * pending;
        }
        let estimate = estimate.after(self.age(nanos(now)));
        estimate.average.max(estimate.peak).max(NOISE) * (pending + 1.0)
    }

    fn age(&self, now: u64) -> f32 {
        Duration::from_nanos(now.saturating_sub(self.stamp.load(Relaxed))).as_secs_f32()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: f32 = 1e3;

    fn after(answers: &[(f32, f32)]) -> Estimate {
        answers
            .iter()
            .fold(Estimate::default(), |estimate, (micros, seconds)| estimate.with(*micros, *seconds))
    }

    #[test]
    fn a_peak_counts_at_once_and_is_soon_forgotten() {
        let steady = after(&[(MS, 0.0); 50]);
        assert_eq!(steady, Estimate { average: MS, peak: MS });
        let hiccup = steady.with(200.0 * MS, 0.001);
        assert!((hiccup.peak - 200.0 * MS).abs() < 1.0, "{hiccup:?}");
        assert!(hiccup.average < 21.0 * MS, "{hiccup:?}");
        // A steady instance of 50 ms stays worse than one with a single hiccup.
        let later = hiccup.after(1.5);
        assert!(later.average.max(later.peak) < 50.0 * MS, "{later:?}");
    }

    #[test]
    fn a_slow_instance_stays_slow_for_long() {
        let slow = after(&[(50.0 * MS, 0.0); 5]);
        let later = slow.after(30.0);
        assert!(later.average > MS, "{later:?}");
        assert!(slow.after(45.0).average < MS);
        // One fast answer does not clear its name.
        assert!(slow.with(MS, 0.001).average > 40.0 * MS);
    }

    #[test]
    fn less_than_a_millisecond_makes_no_difference() {
        let (one, other, now) = (Load::default(), Load::default(), Instant::now());
        for (load, micros) in [(&one, 50), (&other, 900)] {
            (0..5).for_each(|_| load.answered(Duration::from_micros(micros), now));
        }
        assert!((one.cost(now) - other.cost(now)).abs() < 1e-3, "chance decides");
        one.begin();
        assert!(one.cost(now) > other.cost(now), "and calls in flight do");
        other.answered(Duration::from_millis(50), now);
        assert!(one.cost(now) < other.cost(now));
    }

    #[test]
    fn packing_keeps_both() {
        let estimate = Estimate { average: 1.5, peak: 2e9 };
        assert_eq!(Estimate::unpack(estimate.pack()), estimate);
    }

    #[test]
    fn an_unproven_instance_gets_one_call_at_a_time() {
        let (load, now) = (Load::default(), Instant::now());
        assert!(load.cost(now) < 1.0);
        load.begin();
        assert!(load.cost(now) > 1e9);
        load.answered(Duration::from_millis(200), now);
        load.end();
        assert!((load.cost(now) - MS).abs() < 1.0, "the first answer is late for other reasons");
        load.reset();
        load.not_answered(Duration::from_millis(2), now);
        assert!((load.cost(now) - 2.0 * MS).abs() < 1.0);
        load.begin();
        assert!((load.cost(now) - 4.0 * MS).abs() < 1.0, "calls in flight count");
        load.not_answered(Duration::from_millis(1), now);
        assert!((load.cost(now) - 4.0 * MS).abs() < 1.0, "giving up early tells nothing");
        load.not_answered(Duration::from_millis(10), now);
        assert!((load.cost(now) - 20.0 * MS).abs() < 1.0);
        load.reset();
        assert_eq!(load.latency(now), None);
    }
}
