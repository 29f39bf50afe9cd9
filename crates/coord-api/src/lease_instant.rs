//! Clock of leases, which is suspend-aware: it goes on while the machine is suspended, as the store's clock does.
//!
//! The monotonic clock of Linux, by which timers and [`Instant`]s go, stands still meanwhile.

use std::{ops::Add, time::Duration};

use tokio::time::Instant;

/// Instant by the clock of leases, for backends: when a request was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseInstant(Instant);

impl LeaseInstant {
    /// Returns the present instant.
    pub fn now() -> Self {
        Instant::now().into()
    }

    /// Returns the time since `earlier`; zero if `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> Duration {
        self.0.saturating_duration_since(earlier.0)
    }
}

impl Add<Duration> for LeaseInstant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

/// Converts an instant of just now by the clock of timers.
impl From<Instant> for LeaseInstant {
    fn from(instant: Instant) -> Self {
        Self(instant + suspended())
    }
}

/// Returns for how long the machine was suspended since it was started. It is rounded up, so that two values are equal if no
/// suspension was in between.
#[cfg(target_os = "linux")]
fn suspended() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    /// Granularity in nanoseconds.
    const GRAIN: u64 = 100_000_000;
    let time = |clock| Duration::try_from(clock_gettime(clock)).unwrap_or_default();
    // In this order: time that passes in between makes it smaller. Without suspension there is nothing to round up.
    let (all, awake) = (time(ClockId::Boottime), time(ClockId::Monotonic));
    // Centuries fit.
    let grains = (all.saturating_sub(awake).as_nanos() as u64).div_ceil(GRAIN);
    Duration::from_nanos(grains * GRAIN) + pretended()
}

/// Returns zero: other systems do not tell.
#[cfg(not(target_os = "linux"))]
fn suspended() -> Duration {
    pretended()
}

#[cfg(not(test))]
const fn pretended() -> Duration {
    Duration::ZERO
}

#[cfg(test)]
pub(crate) use tests::pretended;

#[cfg(test)]
pub(crate) mod tests {
    use std::cell::Cell;

    use super::*;

    thread_local! {
        static PRETENDED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    }

    pub(crate) fn pretended() -> Duration {
        PRETENDED.get()
    }

    /// Pretends that the machine was suspended for so long, which no timer of this thread sees.
    pub(crate) fn suspend(time: Duration) {
        PRETENDED.set(PRETENDED.get() + time);
    }

    #[test]
    fn time_passes_while_the_machine_is_suspended() {
        let before = LeaseInstant::now();
        suspend(Duration::from_secs(3600));
        let after = LeaseInstant::now();
        let passed = after.since(before);
        assert!(passed >= Duration::from_secs(3600) && passed < Duration::from_secs(3700), "{passed:?}");
        assert_eq!(before.since(after), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn instants_are_equal_while_no_time_passes() {
        let now = LeaseInstant::now();
        for _ in 0..10_000 {
            assert_eq!(LeaseInstant::now(), now);
        }
    }
}
