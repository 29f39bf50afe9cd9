//! Statistics of one instance, kept for as long as its address is known.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::{
    outlier::Window,
    peak_ewma::{Load, PoolLatency},
};

/// Id and address of an instance, with its counters.
#[derive(Debug)]
pub(crate) struct InstanceStats {
    pub(crate) id: String,
    pub(crate) authority: String,
    /// Counters, which stay when the instance gets another id.
    counters: Arc<Counters>,
}

impl InstanceStats {
    pub(crate) fn new(id: String, authority: String) -> Self {
        Self { id, authority, counters: Arc::default() }
    }

    /// Returns the same process under another id.
    pub(crate) fn renamed(&self, id: String) -> Self {
        Self { id, authority: self.authority.clone(), counters: self.counters.clone() }
    }
}

impl Deref for InstanceStats {
    type Target = Counters;

    fn deref(&self) -> &Counters {
        &self.counters
    }
}

/// Counters and estimates of one instance.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) load: Load,
    /// Failures since the last success.
    pub(crate) in_a_row: AtomicU32,
    /// Whether it is back after an ejection and has not answered yet.
    pub(crate) on_trial: AtomicBool,
    pub(crate) window: Window,
    /// Whether an interval has ended whose success rate was not looked at.
    pub(crate) interval_ended: AtomicBool,
    pub(crate) calls: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) ejections: AtomicU64,
}

impl Counters {
    /// Counts a success. `interval` is the interval of the outlier detection.
    pub(crate) fn succeeded(&self, interval: Duration, now: Instant) {
        self.load.errors.succeeded(now);
        self.count(0, interval, now);
        if self.in_a_row.load(Relaxed) > 0 || self.on_trial.load(Relaxed) {
            self.in_a_row.store(0, Relaxed);
            self.on_trial.store(false, Relaxed);
        }
    }

    /// Counts a failure of the instance.
    pub(crate) fn failed(&self, interval: Duration, now: Instant) {
        self.load.errors.failed(now);
        self.count(1, interval, now);
        self.failures.fetch_add(1, Relaxed);
        self.in_a_row.fetch_add(1, Relaxed);
    }

    fn count(&self, failures: u32, interval: Duration, now: Instant) {
        if self.window.count(failures, interval, now) {
            self.interval_ended.store(true, Relaxed);
        }
    }

    /// Starts the trial after an ejection: forgets what was known, and allows one call at a time.
    pub(crate) fn put_on_trial(&self) {
        self.load.reset();
        self.window.reset();
        self.on_trial.store(true, Relaxed);
    }

    /// Returns whether it is on trial and has its one call. A stream that has begun is answered, however long it stays open.
    pub(crate) fn is_busy_on_trial(&self) -> bool {
        self.on_trial.load(Relaxed) && self.load.waiting() > 0
    }

    /// Returns the cost of one more call. An instance whose calls fail comes after all others, however quick it is.
    pub(crate) fn cost(&self, pool_latency: &PoolLatency, now: Instant) -> (bool, f32) {
        (self.load.errors.is_failing(now), self.load.cost(pool_latency.cost_of_stream(), now))
    }

    /// Returns the cost of one more call by the calls in flight alone.
    pub(crate) fn pending_rank(&self, now: Instant) -> (bool, u32) {
        (self.load.errors.is_failing(now) || self.is_busy_on_trial(), self.load.pending())
    }
}
