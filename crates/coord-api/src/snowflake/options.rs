//! How numbers are built, and where their time comes from.

use std::{
    fmt,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{Error, Result};

/// 2020-01-01T00:00:00Z in milliseconds since 1970.
pub(super) const EPOCH: u64 = 1_577_836_800_000;

/// How a [`Snowflake`](crate::Snowflake) builds its numbers. By default 41 bits of milliseconds since 2020, 10 bits of worker and 12
/// bits of sequence: until 2089, for 1023 workers of up to 4096 numbers a millisecond each.
///
/// All who make numbers that must differ need the same bits and epoch.
#[derive(Clone)]
pub struct SnowflakeOptions {
    pub(super) time_bits: u32,
    pub(super) worker_bits: u32,
    pub(super) sequence_bits: u32,
    epoch: SystemTime,
    pub(super) clock_step: Duration,
    clock: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Default for SnowflakeOptions {
    fn default() -> Self {
        Self {
            time_bits: 41,
            worker_bits: 10,
            sequence_bits: 12,
            epoch: UNIX_EPOCH + Duration::from_millis(EPOCH),
            clock_step: Duration::from_secs(1),
            clock: Arc::new(SystemTime::now),
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
    /// Sets how many bits are for the time, the worker and the sequence: from the highest to the lowest, at least one
    /// each and at most 63 together, so that numbers are positive where 64 bits are signed.
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

    /// Sets where the time comes from, for tests; the system's clock by default.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The epoch in milliseconds since 1970, if numbers can be made with this worker.
    pub(super) fn check(&self, worker: NonZeroU32) -> Result<u64> {
        let bits = [("time", self.time_bits), ("worker", self.worker_bits), ("sequence", self.sequence_bits)];
        if let Some((name, _)) = bits.iter().find(|(_, bits)| !(1..=61).contains(bits)) {
            return Err(Error::invalid("bits", format!("{name} needs 1 to 61 bits")));
        }
        let sum: u32 = bits.iter().map(|(_, bits)| bits).sum();
        if sum > 63 {
            return Err(Error::invalid("bits", format!("{sum} bits do not fit into 63")));
        }
        if u64::from(worker.get()) >> self.worker_bits != 0 {
            let reason = format!("{} for the worker are too few for the id {worker}", self.worker_bits);
            return Err(Error::invalid("bits", reason));
        }
        let Ok(epoch) = self.epoch.duration_since(UNIX_EPOCH) else {
            return Err(Error::invalid("epoch", "is before 1970"));
        };
        // A time that does not fit is far in the future.
        let epoch = u64::try_from(epoch.as_millis()).unwrap_or(u64::MAX);
        match self.now().checked_sub(epoch) {
            None => Err(Error::invalid("epoch", "is later than now")),
            Some(now) if now >> self.time_bits != 0 => {
                let reason = format!("is so long ago that {} bits of milliseconds are over", self.time_bits);
                Err(Error::invalid("epoch", reason))
            }
            Some(_) => Ok(epoch),
        }
    }

    /// In milliseconds since 1970; 0 for a clock that is wrong by so much.
    pub(super) fn now(&self) -> u64 {
        (self.clock)().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}
