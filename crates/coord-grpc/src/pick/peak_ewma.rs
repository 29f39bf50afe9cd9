//! Load of an instance: its latency as a peak EWMA (exponentially weighted moving average), and its calls in flight.
//!
//! Every call reads and writes it, so it takes no lock. Two answers at the very same moment may count as one.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::outlier::ErrorRate;

/// Time constant with which a single slow answer is forgotten, in seconds. A peak of 100 ms is gone after one second.
const PEAK: f32 = 0.2;
/// Time constant with which the average is forgotten. An instance that was 50 times slower is tried again after 40 s.
const AVERAGE: f32 = 10.0;
/// Weight of a new answer in the average, if answers come close together.
const SHARE: f32 = 0.1;
/// Weight of an answer that confirms that the instance has become slower.
const SHARE_OF_RISE: f32 = 0.3;
/// Weight of a new answer in the average of all instances.
const SHARE_IN_POOL: f32 = 0.02;
/// Latency in microseconds below which instances are taken for equally fast. Smaller differences are chance, such as a
/// warmer instance.
const NOISE: f32 = 1e3;
/// Cost of an instance that has not answered yet, above any latency in microseconds. It gets one call at a time while there
/// are other instances.
const UNPROVEN: f32 = 1e12;
/// Factor by which an instance costs more whose every call fails.
const ERROR_PENALTY: f32 = 10.0;

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Returns the nanoseconds since the start of the process.
pub(crate) fn nanos(now: Instant) -> u64 {
    // Good for 500 years.
    now.saturating_duration_since(*START).as_nanos() as u64
}

/// Returns the seconds between two values of [`nanos`].
pub(crate) fn seconds(since: u64, now: u64) -> f32 {
    Duration::from_nanos(now.saturating_sub(since)).as_secs_f32()
}

/// Average and peak latency in microseconds. Zero means that nothing is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct PeakEwma {
    average: f32,
    peak: f32,
}

impl PeakEwma {
    /// Returns the estimate after a time without answers.
    fn after(self, seconds: f32) -> Self {
        Self { average: self.average * (-seconds / AVERAGE).exp(), peak: self.peak * (-seconds / PEAK).exp() }
    }

    /// Takes in an answer that took `micros`, `seconds` after the last one, which took `last`.
    ///
    /// The average rises only with the second slow answer in a row. A single slow answer is a hiccup, which the peak shows.
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

/// Average latency of all instances of a pool together, in microseconds; zero while no instance has answered.
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

    /// Returns the cost of an open stream. It is equal on every instance, so that streams are spread by their number. The speed
    /// of an instance is worth only a few streams.
    pub(crate) fn cost_of_stream(&self) -> f32 {
        self.micros().max(NOISE)
    }
}

/// Load of one instance; see [the module](self).
#[derive(Debug, Default)]
pub(crate) struct Load {
    /// Calls whose answer has not begun.
    waiting: AtomicU32,
    /// Calls whose answer has begun and not ended: streams, most of the time.
    open: AtomicU32,
    ewma: AtomicU64,
    /// Last latency that was taken in.
    last: AtomicU32,
    /// Time of the last answer.
    stamp: AtomicU64,
    pub(crate) errors: ErrorRate,
}

impl Load {
    /// Takes in that a call was sent.
    pub(crate) fn begin(&self) {
        self.waiting.fetch_add(1, Relaxed);
    }

    /// Takes in that an answer has begun.
    pub(crate) fn opened(&self) {
        self.waiting.fetch_sub(1, Relaxed);
        self.open.fetch_add(1, Relaxed);
    }

    /// Takes in that an answer has ended.
    pub(crate) fn closed(&self) {
        self.open.fetch_sub(1, Relaxed);
    }

    /// Takes in that a call ended without an answer, after a wait of `waited`.
    pub(crate) fn given_up(&self, waited: Duration, now: Instant) {
        self.waiting.fetch_sub(1, Relaxed);
        self.not_answered(waited, now);
    }

    /// Returns the number of calls without an answer yet.
    pub(crate) fn waiting(&self) -> u32 {
        self.waiting.load(Relaxed)
    }

    /// Returns the number of calls in flight.
    pub(crate) fn pending(&self) -> u32 {
        self.waiting.load(Relaxed).saturating_add(self.open.load(Relaxed))
    }

    /// Takes in how long a good answer took.
    ///
    /// The first answer is late for reasons that pass, such as a cold connection. It shows that the instance answers, and not
    /// how fast.
    pub(crate) fn answered(&self, took: Duration, pool_latency: &PoolLatency, now: Instant) {
        let micros = micros(took);
        let is_first = self.ewma() == PeakEwma::default();
        if !is_first {
            pool_latency.answered(micros);
        }
        self.took(if is_first { micros.min(NOISE) } else { micros }, now);
    }

    /// Takes in an error, which does not show how fast the instance works.
    ///
    /// Errors are often quick. So an error counts as at least the average of the instance and of its pool.
    pub(crate) fn refused(&self, took: Duration, pool_latency: &PoolLatency, now: Instant) {
        let own = self.ewma().after(self.age(nanos(now))).average;
        self.took(micros(took).max(own).max(pool_latency.micros()), now);
    }

    fn took(&self, micros: f32, now: Instant) {
        let stamp = nanos(now);
        let seconds = self.age(stamp);
        let last = f32::from_bits(self.last.swap(micros.to_bits(), Relaxed));
        let ewma = self.ewma().with(micros, last, seconds);
        self.stamp.store(stamp, Relaxed);
        self.ewma.store(ewma.pack(), Relaxed);
    }

    /// Takes in that no answer came for so long, which can only make the estimate worse.
    fn not_answered(&self, waited: Duration, now: Instant) {
        if self.latency(now).is_none_or(|latency| waited > latency) {
            self.took(micros(waited), now);
        }
    }

    /// Forgets how the instance has answered.
    pub(crate) fn reset(&self) {
        self.ewma.store(0, Relaxed);
        self.last.store(0, Relaxed);
        self.errors.reset();
    }

    /// Returns how long an answer would take now, as far as is known.
    pub(crate) fn latency(&self, now: Instant) -> Option<Duration> {
        if self.ewma() == PeakEwma::default() {
            return None;
        }
        let ewma = self.ewma().after(self.age(nanos(now)));
        Some(Duration::from_secs_f32(ewma.average.max(ewma.peak) / 1e6))
    }

    /// Returns the cost of one more call, if an open stream costs `stream`.
    pub(crate) fn cost(&self, stream: f32, now: Instant) -> f32 {
        #[expect(clippy::cast_precision_loss, reason = "there are not so many calls in flight")]
        let (waiting, open) = (self.waiting.load(Relaxed) as f32, self.open.load(Relaxed) as f32);
        let errors = 1.0 + ERROR_PENALTY * self.errors.now(now);
        if self.ewma() == PeakEwma::default() {
            return UNPROVEN * waiting * errors + stream * open;
        }
        let ewma = self.ewma().after(self.age(nanos(now)));
        ewma.average.max(ewma.peak).max(NOISE) * (waiting + 1.0) * errors + stream * open
    }

    fn ewma(&self) -> PeakEwma {
        PeakEwma::unpack(self.ewma.load(Relaxed))
    }

    fn age(&self, now: u64) -> f32 {
        seconds(self.stamp.load(Relaxed), now)
    }
}

/// Returns the time in microseconds, at least one: zero means that nothing is known.
fn micros(took: Duration) -> f32 {
    (took.as_secs_f32() * 1e6).max(1.0)
}

#[cfg(test)]
mod tests;
