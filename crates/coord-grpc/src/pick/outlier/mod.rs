//! Outlier detection: ejects an instance whose calls fail while calls to others do not.

mod counts;
mod detection;

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

pub(crate) use self::counts::{ErrorRate, Window};
pub use self::detection::OutlierDetection;
use self::detection::{FailurePercentage, SuccessRate};
use super::stats::Counters;

/// Difference of a success rate to the average below which it is chance.
const SAME_RATE: f64 = 0.05;

/// Longest ejection and longest timer, which is safe to add to any instant.
pub(crate) const FAR: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Way in which an instance failed a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Error of its own, a broken call, or an answer that took too long while others came.
    Answer,
    /// Nothing has arrived from it while the call waited.
    Silence,
}

/// Consequence of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Stays in use.
    Keep,
    /// Gets no calls until then, and is then connected anew.
    Eject { until: Instant },
    /// Is connected anew at once, since there are too few others.
    Reconnect,
}

impl OutlierDetection {
    /// Returns the time without calls after the `count`th ejection in a row. `random` from 0 to 1 spreads the returns.
    fn ejection_time(&self, count: u32, random: f64) -> Duration {
        let doublings = 1_u32.checked_shl(count.min(31)).unwrap_or(u32::MAX);
        let doubled = self.base_ejection_time.saturating_mul(doublings);
        doubled.min(self.max_ejection_time).min(FAR).mul_f64(0.8 + 0.4 * random)
    }

    /// Returns whether one of `in_use` instances may be ejected if there are `known` in all.
    fn may_eject(&self, known: usize, in_use: usize) -> bool {
        let keep = 100 - usize::try_from(self.max_ejection_percent).unwrap_or(0).min(100);
        in_use > 1 && (in_use - 1).saturating_mul(100) >= known.saturating_mul(keep)
    }

    /// Returns whether a failed answer is worth a comparison with other instances, which costs more.
    pub(crate) fn suspects(&self, counters: &Counters, now: Instant) -> bool {
        self.fails_in_a_row(counters)
            || self.fails_often(counters, now)
            || counters.interval_ended.load(Relaxed)
    }

    /// Decides whether to eject one of `known` instances after a failure. Calls may go to `others` then.
    pub(crate) fn ejects<'a>(
        &self,
        counters: &Counters,
        failure: Failure,
        known: usize,
        others: impl Iterator<Item = &'a Counters> + Clone,
        now: Instant,
    ) -> bool {
        self.may_eject(known, others.clone().count() + 1)
            && (failure == Failure::Silence || self.is_outlier(counters, known, others, now))
    }

    fn is_outlier<'a>(
        &self,
        counters: &Counters,
        known: usize,
        mut others: impl Iterator<Item = &'a Counters> + Clone,
        now: Instant,
    ) -> bool {
        let interval_ended = counters.interval_ended.swap(false, Relaxed);
        let enough_hosts = self.failure_percentage.is_some_and(|rule| known >= rule.minimum_hosts);
        if self.fails_in_a_row(counters) || enough_hosts && self.fails_often(counters, now) {
            // If all fail, no single instance is at fault.
            return others.any(|other| self.is_well(other, now));
        }
        let rate = self.success_rate.filter(|_| interval_ended);
        rate.is_some_and(|rule| rule.is_low(counters, others, self.interval, now))
    }

    /// Returns whether it has enough failures in a row. On trial a single failure is enough.
    fn fails_in_a_row(&self, counters: &Counters) -> bool {
        counters.in_a_row.load(Relaxed) >= self.consecutive_failures || counters.on_trial.load(Relaxed)
    }

    fn fails_often(&self, counters: &Counters, now: Instant) -> bool {
        self.failure_percentage.is_some_and(|FailurePercentage { threshold, request_volume, .. }| {
            counters.window.counts(self.interval, now).reaches(threshold, request_volume)
        })
    }

    /// Returns whether an instance does its work, as far as is known.
    fn is_well(&self, counters: &Counters, now: Instant) -> bool {
        !counters.load.errors.was_failing(self.interval.saturating_mul(2), now)
            && !self.fails_often(counters, now)
    }
}

impl SuccessRate {
    fn is_low<'a>(
        &self,
        counters: &Counters,
        others: impl Iterator<Item = &'a Counters>,
        interval: Duration,
        now: Instant,
    ) -> bool {
        let rate = |counters: &Counters| {
            let counts = counters.window.counts(interval, now);
            (counts.calls >= self.request_volume)
                .then(|| 1.0 - f64::from(counts.failures) / f64::from(counts.calls))
        };
        let Some(own) = rate(counters) else { return false };
        let rates: Vec<_> = others.filter_map(rate).chain([own]).collect();
        if rates.len() < self.minimum_hosts {
            return false;
        }
        #[expect(clippy::cast_precision_loss, reason = "there are not so many instances")]
        let count = rates.len() as f64;
        let mean = rates.iter().sum::<f64>() / count;
        let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / count;
        let allowed = variance.sqrt() * f64::from(self.stdev_factor) / 1000.0;
        own < mean - allowed.max(SAME_RATE)
    }
}

/// History of the ejections of one instance.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EjectionHistory {
    /// Number of ejections without a good time between them.
    count: u32,
    /// End of the last ejection.
    back: Option<Instant>,
    last: Duration,
}

impl EjectionHistory {
    /// Takes in an ejection, and returns its end.
    pub(crate) fn eject(&mut self, rules: &OutlierDetection, now: Instant, random: f64) -> Instant {
        // After four times its last ejection without another, an instance begins anew.
        if self.back.is_some_and(|back| now.saturating_duration_since(back) > self.last.saturating_mul(4)) {
            self.count = 0;
        }
        self.last = rules.ejection_time(self.count, random);
        self.count = self.count.saturating_add(1);
        let until = now + self.last;
        self.back = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> OutlierDetection {
        OutlierDetection::new()
            .consecutive_failures(3)
            .base_ejection_time(Duration::from_secs(1))
            .max_ejection_time(Duration::from_secs(10))
    }

    /// Returns an instance with so many good calls, followed by so many failures.
    fn after(good: u32, failures: u32, now: Instant) -> Counters {
        let counters = Counters::default();
        (0..good).for_each(|_| counters.succeeded(OutlierDetection::INTERVAL, now));
        (0..failures).for_each(|_| counters.failed(OutlierDetection::INTERVAL, now));
        counters.interval_ended.store(false, Relaxed);
        counters
    }

    /// Returns an instance whose calls fail in turn, so many of ten, never three in a row unless all fail.
    fn mixed(failures: u32, calls: u32, now: Instant) -> Counters {
        let counters = Counters::default();
        for call in 0..calls {
            if call * failures % 10 < failures {
                counters.failed(OutlierDetection::INTERVAL, now);
            } else {
                counters.succeeded(OutlierDetection::INTERVAL, now);
            }
        }
        counters.interval_ended.store(false, Relaxed);
        counters
    }

    fn ejects(
        rules: &OutlierDetection,
        one: &Counters,
        failure: Failure,
        known: usize,
        others: &[Counters],
    ) -> bool {
        rules.ejects(one, failure, known, others.iter(), Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_or_silence_eject_but_never_all() {
        use Failure::{Answer, Silence};
        let now = Instant::now();
        // Failure, in a row, known, others in use.
        let table = [
            (Answer, 1, 3, 2, false),
            (Answer, 2, 3, 2, false),
            (Answer, 3, 3, 2, true),
            (Silence, 1, 3, 2, true),
            // The last but one of three may go, the last one not.
            (Answer, 9, 3, 1, true),
            (Answer, 9, 3, 0, false),
            (Silence, 9, 3, 0, false),
            (Silence, 9, 2, 1, true),
            (Answer, 9, 1, 0, false),
            // Of ten at least four stay.
            (Silence, 1, 10, 4, true),
            (Silence, 1, 10, 3, false),
        ];
        for (failure, in_a_row, known, others, expected) in table {
            let others: Vec<_> = (0..others).map(|_| after(1, 0, now)).collect();
            let decision = ejects(&rules(), &after(5, in_a_row, now), failure, known, &others);
            assert_eq!(decision, expected, "{failure:?} {in_a_row} {known} {}", others.len());
        }
        let on_trial = after(0, 1, now);
        on_trial.on_trial.store(true, Relaxed);
        assert!(ejects(&rules(), &on_trial, Answer, 2, &[after(1, 0, now)]));
        let none = rules().max_ejection_percent(0);
        assert!(!ejects(&none, &after(0, 9, now), Answer, 2, &[after(1, 0, now)]));
        let all = rules().max_ejection_percent(100);
        assert!(ejects(&all, &after(0, 9, now), Answer, 9, &[after(1, 0, now)]));
        assert!(!ejects(&all, &after(0, 9, now), Answer, 9, &[]));
    }

    #[tokio::test(start_paused = true)]
    async fn instances_that_all_fail_are_no_outliers() {
        let now = Instant::now();
        let failing = || after(0, 9, now);
        assert!(!ejects(&rules(), &failing(), Failure::Answer, 3, &[failing(), failing()]));
        assert!(ejects(&rules(), &failing(), Failure::Answer, 3, &[failing(), after(9, 0, now)]));
        assert!(ejects(&rules(), &failing(), Failure::Answer, 2, &[Counters::default()]), "is not known");
        // A silent instance is of no use in any case.
        assert!(ejects(&rules(), &failing(), Failure::Silence, 2, &[failing()]));
        // So it was long ago.
        let stale = failing();
        tokio::time::advance(OutlierDetection::INTERVAL * 3).await;
        assert!(ejects(&rules(), &after(0, 9, Instant::now()), Failure::Answer, 2, &[stale]));
    }

    #[tokio::test(start_paused = true)]
    async fn percentage_of_failures_ejects_with_enough_calls_and_hosts() {
        let now = Instant::now();
        let rules = rules().consecutive_failures(100).without_success_rate();
        let others = || [mixed(1, 100, now), mixed(1, 100, now)];
        let one =
            |failures, calls| ejects(&rules, &mixed(failures, calls, now), Failure::Answer, 3, &others());
        assert!(one(6, 100));
        assert!(!one(4, 100), "below the threshold");
        assert!(!one(6, 15), "too few calls");
        let all_alike = [mixed(6, 100, now), mixed(6, 100, now)];
        assert!(!ejects(&rules, &mixed(6, 100, now), Failure::Answer, 3, &all_alike));
        let five = rules.clone().failure_percentage_minimum_hosts(5);
        assert!(!ejects(&five, &mixed(6, 100, now), Failure::Answer, 3, &others()));
        let without = rules.clone().without_failure_percentage();
        assert!(!ejects(&without, &mixed(6, 100, now), Failure::Answer, 3, &others()));
        let flaky = mixed(6, 100, now);
        tokio::time::advance(OutlierDetection::INTERVAL * 3).await;
        assert!(!ejects(&rules, &flaky, Failure::Answer, 3, &others()), "that was long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn success_rate_far_below_the_others_ejects() {
        let now = Instant::now();
        let rules = rules().consecutive_failures(1000);
        let low = |failures, others: u32| {
            let counters = mixed(failures, 200, now);
            // It is looked at when an interval has ended.
            counters.interval_ended.store(true, Relaxed);
            let others: Vec<_> = (0..others).map(|_| mixed(0, 200, now)).collect();
            ejects(&rules, &counters, Failure::Answer, others.len() + 1, &others)
        };
        assert!(low(3, 4));
        assert!(!low(0, 4));
        assert!(!low(3, 3), "too few to compare with");
        let in_between = mixed(3, 200, now);
        let others: Vec<_> = (0..4).map(|_| mixed(0, 200, now)).collect();
        assert!(!ejects(&rules, &in_between, Failure::Answer, 5, &others), "the interval is not over");
    }

    #[test]
    fn ejection_time_grows_and_begins_anew_after_a_good_time() {
        let (mut history, mut now) = (EjectionHistory::default(), Instant::now());
        let seconds = Duration::from_secs;
        for expected in [1, 2, 4, 8, 10, 10] {
            let until = history.eject(&rules(), now, 0.5);
            assert_eq!(until - now, seconds(expected));
            now = until + seconds(1);
        }
        now += seconds(41);
        assert_eq!(history.eject(&rules(), now, 0.5) - now, seconds(1));
        assert_eq!(rules().ejection_time(0, 0.0), Duration::from_millis(800));
        assert_eq!(rules().ejection_time(u32::MAX, 1.0), seconds(12));
        let endless = rules().base_ejection_time(Duration::MAX).max_ejection_time(Duration::MAX);
        assert!(history.eject(&endless, now, 1.0) > now + seconds(1_000_000));
        assert!(history.eject(&endless, now, 1.0) > now + seconds(1_000_000));
    }
}
