//! Slow start, as in Envoy and gRPC: a new instance gets its share of the calls gradually.

use std::time::Duration;

use tokio::time::Instant;

/// Rules for the growing share of a new instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlowStart {
    /// Time after which it has the whole share.
    pub(crate) window: Duration,
    /// Aggression in thousandths, so that options can be compared. At 1000 the share grows evenly; above, faster at first.
    pub(crate) aggression: u32,
    /// First share, in percent.
    pub(crate) min_weight_percent: u8,
}

impl SlowStart {
    pub(crate) const DEFAULT: Self =
        Self { window: Duration::from_secs(30), aggression: 1000, min_weight_percent: 10 };

    /// Returns the part of its whole share that an instance of this age gets.
    fn share(&self, age: Duration) -> f64 {
        if age >= self.window {
            return 1.0;
        }
        let time = age.as_secs_f64() / self.window.as_secs_f64();
        let least = f64::from(self.min_weight_percent) / 100.0;
        time.powf(1000.0 / f64::from(self.aggression.max(1))).clamp(least, 1.0)
    }

    /// Returns the rules for instances that started at these times.
    pub(crate) fn among(self, started: impl Iterator<Item = Instant>) -> StartTimes {
        StartTimes { rules: self, oldest: started.min() }
    }
}

/// Start times of the instances of a picker.
#[derive(Debug)]
pub(crate) struct StartTimes {
    rules: SlowStart,
    oldest: Option<Instant>,
}

impl StartTimes {
    /// Returns the share of an instance, relative to the oldest instance. If all are new, all are alike.
    pub(crate) fn share(&self, started: Instant, now: Instant) -> f64 {
        let share = |started: Instant| self.rules.share(now.saturating_duration_since(started));
        let own = share(started);
        if own >= 1.0 { 1.0 } else { own / self.oldest.map_or(1.0, share) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: f64, expected: f64) {
        assert!((found - expected).abs() < 1e-6, "{found} instead of {expected}");
    }

    #[test]
    fn share_grows_over_the_window() {
        let rules = SlowStart { window: Duration::from_secs(10), ..SlowStart::DEFAULT };
        let after = |rules: SlowStart, seconds| rules.share(Duration::from_secs(seconds));
        for (seconds, expected) in [(0, 0.1), (1, 0.1), (5, 0.5), (9, 0.9), (10, 1.0), (1_000_000, 1.0)] {
            close(after(rules, seconds), expected);
        }
        close(after(SlowStart { aggression: 2000, ..rules }, 4), 0.4_f64.sqrt());
        close(after(SlowStart { aggression: 500, ..rules }, 5), 0.25);
        close(after(SlowStart { min_weight_percent: 50, ..rules }, 4), 0.5);
        close(after(SlowStart { window: Duration::MAX, ..rules }, 4), 0.1);
    }

    #[test]
    fn instances_that_start_together_are_alike() {
        let (rules, now) =
            (SlowStart { window: Duration::from_secs(10), ..SlowStart::DEFAULT }, Instant::now());
        let later = now + Duration::from_secs(5);
        let all_new = rules.among([now, now].into_iter());
        close(all_new.share(now, now), 1.0);
        let one_new = rules.among([now, later].into_iter());
        close(one_new.share(later, later), 0.2);
        close(one_new.share(later, later + Duration::from_secs(5)), 0.5);
    }
}
