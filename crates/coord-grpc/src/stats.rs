//! What is counted of one instance for as long as its address is known.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    outlier::Window,
    peak_ewma::{Load, PoolLatency},
};

/// An instance as its calls know it.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) authority: String,
    /// These stay when the instance gets another id.
    stats: Arc<Stats>,
}

impl Node {
    pub(crate) fn new(id: String, authority: String) -> Self {
        Self { id, authority, stats: Arc::default() }
    }

    /// The same process under another id.
    pub(crate) fn renamed(&self, id: String) -> Self {
        Self { id, authority: self.authority.clone(), stats: self.stats.clone() }
    }
}

impl Deref for Node {
    type Target = Stats;

    fn deref(&self) -> &Stats {
        &self.stats
    }
}

/// Counters and estimates; see [the module](self).
#[derive(Debug, Default)]
pub(crate) struct Stats {
    pub(crate) load: Load,
    /// Failures since the last success.
    pub(crate) in_a_row: AtomicU32,
    /// It is back after an ejection and has not answered yet.
    pub(crate) on_trial: AtomicBool,
    pub(crate) window: Window,
    /// An interval has ended whose success rate was not looked at.
    pub(crate) interval_ended: AtomicBool,
    pub(crate) calls: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) ejections: AtomicU64,
}

impl Stats {
    /// A call ended well. `interval` is that of the outlier detection.
    pub(crate) fn succeeded(&self, interval: Duration, now: Instant) {
        self.load.errors.succeeded(now);
        self.count(0, interval, now);
        if self.in_a_row.load(Relaxed) > 0 || self.on_trial.load(Relaxed) {
            self.in_a_row.store(0, Relaxed);
            self.on_trial.store(false, Relaxed);
        }
    }

    /// A call failed, and it is the instance's fault.
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

    /// It is back after an ejection: all that was known counts no more, and one call at a time shows how it is.
    pub(crate) fn put_on_trial(&self) {
        self.load.reset();
        self.window.reset();
        self.on_trial.store(true, Relaxed);
    }

    /// One call at a time until the first answer. A stream that was begun is answered, however long it stays open.
    pub(crate) fn is_busy_on_trial(&self) -> bool {
        self.on_trial.load(Relaxed) && self.load.waiting() > 0
    }

    /// What one more call would cost: an instance whose calls fail comes after all others, however quick it is.
    pub(crate) fn cost(&self, pool: &PoolLatency, now: Instant) -> (bool, f32) {
        (self.load.errors.is_failing(now), self.load.cost(pool.cost_of_stream(), now))
    }

    /// The same where calls in flight alone count.
    pub(crate) fn crowd(&self, now: Instant) -> (bool, u32) {
        (self.load.errors.is_failing(now) || self.is_busy_on_trial(), self.load.pending())
    }
}
