//! How numbers are built, and where their time comes from.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{clock::Clock, millis};
use crate::{Error, Result, timer::is_machine_clock};

/// 2020-01-01T00:00:00Z in milliseconds since 1970.
pub(super) const EPOCH: u64 = 1_577_836_800_000;

/// How a [`Snowflake`](crate::Snowflake) builds its numbers. By default 41 bits of milliseconds since 2020,
/// 10 bits of worker and 12 bits of sequence. So it lasts until 2089, for 1023 workers of up to 4096 numbers
/// a millisecond each.
///
/// All who make numbers that must differ need the same bits and epoch.
#[derive(Clone)]
pub struct SnowflakeOptions {
    pub(super) time_bits: u32,
    pub(super) worker_bits: u32,
    pub(super) sequence_bits: u32,
    epoch: SystemTime,
    pub(super) clock_step: Duration,
    clock: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
}

impl Default for SnowflakeOptions {
    fn default() -> Self {
        Self {
            time_bits: 41,
            worker_bits: 10,
            sequence_bits: 12,
            epoch: UNIX_EPOCH + Duration::from_millis(EPOCH),
            clock_step: Duration::from_secs(1),
            clock: None,
        }
    }
}

impl fmt::Debug for SnowflakeOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnowflakeOptions")
            .field("bits", &(self.time_bits, self.worker_bits, self.sequence_bits))
            .field("epoch", &self.epoch)
            .field("clock_step", &self.clock_step)
            .finish_non_exhaustive()
    }
}

impl SnowflakeOptions {
    /// Sets how many bits are for the time, the worker and the sequence, from the highest to the lowest. Each
    /// has at least one, and all have at most 63, so that numbers are positive where 64 bits are signed. The
    /// largest id that the allocator may get has to fit into those of the worker.
    #[must_use]
    pub fn bits(mut self, time: u32, worker: u32, sequence: u32) -> Self {
        (self.time_bits, self.worker_bits, self.sequence_bits) = (time, worker, sequence);
        self
    }

    /// Sets the moment from which milliseconds are counted; not before 1970.
    #[must_use]
    pub fn epoch(mut self, epoch: SystemTime) -> Self {
        self.epoch = epoch;
        self
    }

    /// Sets how far the clock may go back to be waited for; 1 s by default. After a larger step there are errors until
    /// it has caught up.
    #[must_use]
    pub fn clock_step(mut self, step: Duration) -> Self {
        self.clock_step = step;
        self
    }

    /// Sets where the time comes from, for tests. By default it is the system's clock, and where a test pauses tokio's
    /// clock, the time of day goes as that does.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Some(Arc::new(clock));
        self
    }

    /// The clock of a generator that starts here.
    pub(super) fn chosen_clock(&self) -> Clock {
        match &self.clock {
            Some(clock) => Clock::Own(clock.clone()),
            None if is_machine_clock() => Clock::System,
            None => Clock::OfTimers,
        }
    }

    /// The epoch in milliseconds since 1970, if numbers can be made `now` with all workers below `bound`.
    pub(super) fn check(&self, bound: u32, now: u64) -> Result<u64> {
        let bits = [("time", self.time_bits), ("worker", self.worker_bits), ("sequence", self.sequence_bits)];
        if let Some((name, _)) = bits.iter().find(|(_, bits)| !(1..=61).contains(bits)) {
            return Err(Error::invalid("bits", format!("{name} needs 1 to 61 bits")));
        }
        let sum: u32 = bits.iter().map(|(_, bits)| bits).sum();
        if sum > 63 {
            return Err(Error::invalid("bits", format!("{sum} bits do not fit into 63")));
        }
        let last = bound.saturating_sub(1);
        if u64::from(last) >> self.worker_bits != 0 {
            let bits = self.worker_bits;
            let reason =
                format!("{bits} for the worker are too few for the ids of this allocator, up to {last}");
            return Err(Error::invalid("bits", reason));
        }
        let Ok(epoch) = self.epoch.duration_since(UNIX_EPOCH) else {
            return Err(Error::invalid("epoch", "is before 1970"));
        };
        let epoch = millis(epoch);
        match now.checked_sub(epoch) {
            None => Err(Error::invalid("epoch", "is later than now")),
            Some(now) if now >> self.time_bits != 0 => {
                let reason = format!("is so long ago that {} bits of milliseconds are over", self.time_bits);
                Err(Error::invalid("epoch", reason))
            }
            Some(_) => Ok(epoch),
        }
    }
}
