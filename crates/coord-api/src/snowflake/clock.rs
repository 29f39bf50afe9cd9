//! Where the time of numbers comes from, and whether it goes on.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::time::Instant;

use super::millis;
use crate::timer::time_of_day;

/// The longest time by the timers after which a clock is looked at again.
const LOOK: Duration = Duration::from_secs(1);

/// How long timers may go on while the clock stands still.
const LIMIT: Duration = Duration::from_secs(2);

/// A clock in milliseconds since 1970.
#[derive(Clone)]
pub(super) enum Clock {
    /// The system's.
    System,
    /// The one by which timers go, where that is not the machine's: a test pauses or moves it.
    OfTimers,
    /// Clock of the user.
    Own(Arc<dyn Fn() -> SystemTime + Send + Sync>),
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::System => "System",
            Self::OfTimers => "OfTimers",
            Self::Own(_) => "Own",
        })
    }
}

impl Clock {
    /// The time; 0 for a clock that is before 1970.
    pub(super) fn now(&self) -> u64 {
        let time = match self {
            Self::System => SystemTime::now(),
            Self::OfTimers => time_of_day(),
            Self::Own(clock) => clock(),
        };
        time.duration_since(UNIX_EPOCH).map_or(0, millis)
    }
}

/// Whether a clock stands still while timers go on. Then waiting for it would never end, or end at once again and again.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    /// Since when it is looked for, by the timers and by the clock.
    since: Option<(Instant, u64)>,
}

impl Standstill {
    /// Looks again, at the clock's present time. A clock that went back is looked at anew from there.
    pub(super) fn is_seen(&mut self, now: u64) -> bool {
        let here = Instant::now();
        let (begun, clock) = *self.since.get_or_insert((here, now));
        let Some(by_clock) = now.checked_sub(clock) else {
            self.since = Some((here, now));
            return false;
        };
        let by_timer = here.saturating_duration_since(begun);
        by_timer >= LIMIT && by_clock < millis(by_timer) / 2
    }
}

/// Returns how long to wait for a clock that is so many milliseconds behind.
pub(super) fn pause(ahead: u64) -> Duration {
    Duration::from_millis(ahead).min(LOOK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn clock_that_goes_half_as_fast_as_timers_is_no_standstill() {
        let look = async |millis: &[u64]| {
            let mut standstill = Standstill::default();
            let mut seen = Vec::new();
            for now in millis {
                seen.push(standstill.is_seen(*now));
                tokio::time::sleep(LOOK).await;
            }
            seen
        };
        assert_eq!(look(&[7, 7, 7, 7]).await, [false, false, true, true]);
        assert_eq!(look(&[0, 1000, 2000, 3000]).await, [false; 4]);
        assert_eq!(look(&[0, 500, 1000, 1500]).await, [false; 4]);
        assert_eq!(look(&[9_000, 8_000, 8_000, 8_000]).await, [false, false, false, true]);
        assert_eq!(look(&[0, u64::MAX, u64::MAX]).await, [false; 3]);
    }
}
