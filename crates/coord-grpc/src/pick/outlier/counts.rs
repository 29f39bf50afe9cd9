//! Error rate of one instance, as a moving average and as counts of an interval.
//!
//! Every call reads and writes them, so they take no lock. Two outcomes at the very same moment may count as one.

use std::{
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::super::peak_ewma::{nanos, seconds};

/// Time constant with which failures are forgotten, in seconds.
const MEMORY: f32 = 1.0;
/// Weight of one outcome.
const SHARE: f32 = 0.3;
/// Rate below which it counts as zero. An instance with its share of rare errors is as good as the others.
const NOISE: f32 = 0.05;
/// Rate of an instance of which nothing is known yet.
const UNKNOWN: f32 = -1.0;

/// Moving average of the part of recent calls that failed, from 0 to 1.
#[derive(Debug)]
pub(crate) struct ErrorRate {
    rate: AtomicU32,
    /// Time of the last outcome.
    stamp: AtomicU64,
}

impl Default for ErrorRate {
    fn default() -> Self {
        Self { rate: AtomicU32::new(UNKNOWN.to_bits()), stamp: AtomicU64::new(0) }
    }
}

impl ErrorRate {
    pub(crate) fn succeeded(&self, now: Instant) {
        // Most of the time the rate is zero, and is not written.
        if self.rate.load(Relaxed) != 0 {
            self.write(self.now(now) * (1.0 - SHARE), now);
        }
    }

    pub(crate) fn failed(&self, now: Instant) {
        let before = self.now(now);
        // If the first outcome is a failure, nothing speaks for the instance.
        let rate = if self.rate() < 0.0 { 1.0 } else { before + SHARE * (1.0 - before) };
        self.write(rate, now);
    }

    pub(crate) fn reset(&self) {
        self.rate.store(UNKNOWN.to_bits(), Relaxed);
    }

    /// Returns the rate as it counts now, without failures of long ago.
    pub(crate) fn now(&self, now: Instant) -> f32 {
        let rate = self.rate();
        if rate <= 0.0 {
            return 0.0;
        }
        let rate = rate * (-seconds(self.stamp.load(Relaxed), nanos(now)) / MEMORY).exp();
        if rate < NOISE { 0.0 } else { rate }
    }

    /// Returns whether more calls fail than succeed, as far as is known now.
    pub(crate) fn is_failing(&self, now: Instant) -> bool {
        self.now(now) >= 0.5
    }

    /// Returns whether more calls failed than succeeded when there last were calls, if that was within `memory`.
    pub(crate) fn was_failing(&self, memory: Duration, now: Instant) -> bool {
        self.rate() >= 0.5 && seconds(self.stamp.load(Relaxed), nanos(now)) <= memory.as_secs_f32()
    }

    fn rate(&self) -> f32 {
        f32::from_bits(self.rate.load(Relaxed))
    }

    fn write(&self, rate: f32, now: Instant) {
        self.stamp.store(nanos(now), Relaxed);
        self.rate.store(rate.to_bits(), Relaxed);
    }
}

/// Numbers of calls and failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) calls: u32,
    pub(crate) failures: u32,
}

impl Counts {
    fn pack(self) -> u64 {
        u64::from(self.calls) << 32 | u64::from(self.failures)
    }

    fn unpack(bits: u64) -> Self {
        Self { calls: (bits >> 32) as u32, failures: bits as u32 }
    }

    /// Returns whether at least `percent` of at least `volume` calls failed.
    pub(crate) fn reaches(self, percent: u8, volume: u32) -> bool {
        self.calls >= volume.max(1)
            && u64::from(self.failures) * 100 >= u64::from(self.calls) * u64::from(percent)
    }
}

/// Counts of the running interval and of the previous one.
#[derive(Debug, Default)]
pub(crate) struct Window {
    began: AtomicU64,
    running: AtomicU64,
    before: AtomicU64,
}

impl Window {
    /// Counts a success or a failure. Returns whether an interval has ended with it.
    pub(crate) fn count(&self, failures: u32, interval: Duration, now: Instant) -> bool {
        let (now, began) = (nanos(now), self.began.load(Relaxed));
        let intervals = now.saturating_sub(began) / nanos_of(interval);
        let ended = intervals > 0 && self.began.compare_exchange(began, now, Relaxed, Relaxed).is_ok();
        if ended {
            let last = self.running.swap(0, Relaxed);
            // Older intervals say nothing any more.
            self.before.store(if intervals == 1 { last } else { 0 }, Relaxed);
        }
        self.running.fetch_add(Counts { calls: 1, failures }.pack(), Relaxed);
        ended
    }

    pub(crate) fn counts(&self, interval: Duration, now: Instant) -> Counts {
        let intervals = nanos(now).saturating_sub(self.began.load(Relaxed)) / nanos_of(interval);
        let part = |of: &AtomicU64, is_recent: bool| {
            if is_recent { Counts::unpack(of.load(Relaxed)) } else { Counts::default() }
        };
        let (running, before) = (part(&self.running, intervals < 2), part(&self.before, intervals < 1));
        Counts {
            calls: running.calls.saturating_add(before.calls),
            failures: running.failures.saturating_add(before.failures),
        }
    }

    pub(crate) fn reset(&self) {
        self.running.store(0, Relaxed);
        self.before.store(0, Relaxed);
    }
}

fn nanos_of(interval: Duration) -> u64 {
    u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);

    #[test]
    fn rate_rises_with_failures_and_falls_with_time_and_success() {
        let (rate, now) = (ErrorRate::default(), Instant::now());
        assert!(rate.now(now) == 0.0 && !rate.is_failing(now));
        rate.failed(now);
        assert!(rate.is_failing(now), "nothing speaks for it");
        (0..9).for_each(|_| rate.succeeded(now));
        assert!(!rate.is_failing(now));
        rate.failed(now);
        assert!(!rate.is_failing(now), "once is chance");
        rate.failed(now);
        assert!(rate.is_failing(now));
        let later = now + Duration::from_secs(4);
        assert!(rate.now(later) == 0.0 && rate.was_failing(INTERVAL, later));
        assert!(!rate.was_failing(INTERVAL, now + INTERVAL * 2));
        rate.reset();
        assert!(!rate.was_failing(INTERVAL, now));
    }

    #[test]
    fn window_counts_the_running_interval_and_the_one_before() {
        let (window, begun) = (Window::default(), Instant::now());
        let at = |seconds| begun + Duration::from_secs(seconds);
        let counts = |seconds| {
            let Counts { calls, failures } = window.counts(INTERVAL, at(seconds));
            (calls, failures)
        };
        // It begins with the first call.
        window.count(1, INTERVAL, at(100));
        assert!(!window.count(0, INTERVAL, at(109)));
        assert_eq!(counts(109), (2, 1));
        assert!(window.count(1, INTERVAL, at(110)));
        assert_eq!(counts(110), (3, 2));
        assert!(window.count(0, INTERVAL, at(120)));
        assert_eq!(counts(121), (2, 1), "the oldest is forgotten");
        assert_eq!(counts(131), (1, 0));
        assert_eq!(counts(145), (0, 0));
        assert!(window.count(0, INTERVAL, at(160)));
        assert_eq!(counts(160), (1, 0), "after a silence");
    }

    #[test]
    fn percentage_needs_a_volume() {
        let counts = |calls, failures| Counts { calls, failures };
        assert!(!counts(0, 0).reaches(0, 0));
        assert!(!counts(9, 9).reaches(50, 10));
        assert!(counts(10, 5).reaches(50, 10));
        assert!(!counts(10, 4).reaches(50, 10));
        assert!(counts(u32::MAX, u32::MAX).reaches(100, 10));
    }
}
