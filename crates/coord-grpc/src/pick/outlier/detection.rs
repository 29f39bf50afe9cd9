//! Options of outlier detection, by their names in Envoy and gRPC (A50).

use std::time::Duration;

use coord_api::{Error, Result};

/// Outlier detection: an instance whose calls fail while calls to others do not gets no calls for a while.
///
/// Failures are:
/// - answers with a code that speaks against the server,
/// - answers that are no gRPC, and calls that broke off,
/// - exceeded [`try_timeout`](crate::ConnectOptions::try_timeout)s.
///
/// Faults of the caller count neither way: `InvalidArgument`, `NotFound`, `AlreadyExists`, `FailedPrecondition`,
/// `OutOfRange`, `Cancelled`, `PermissionDenied`, `Aborted`, and `DeadlineExceeded` after the caller's own timeout.
///
/// Three rules look for outliers: failures in a row, the percentage of failures, and the success rate compared with other
/// instances. An instance is left in use, whatever it answers, while no other does better.
///
/// ```
/// use std::time::Duration;
/// use coord_grpc::{ConnectOptions, OutlierDetection};
/// let detection = OutlierDetection::new()
///     .consecutive_failures(3)
///     .failure_percentage_threshold(30)
///     .max_ejection_percent(50);
/// let options = ConnectOptions::new().outlier_detection(detection);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use]
pub struct OutlierDetection {
    pub(crate) consecutive_failures: u32,
    pub(crate) failure_percentage: Option<FailurePercentage>,
    pub(crate) success_rate: Option<SuccessRate>,
    pub(crate) interval: Duration,
    pub(crate) base_ejection_time: Duration,
    pub(crate) max_ejection_time: Duration,
    /// Percentage in a wider type, so that a bad value is kept until it is refused.
    pub(crate) max_ejection_percent: i16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FailurePercentage {
    pub(crate) threshold: u8,
    pub(crate) minimum_hosts: usize,
    pub(crate) request_volume: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SuccessRate {
    /// Factor in thousandths.
    pub(crate) stdev_factor: u32,
    pub(crate) minimum_hosts: usize,
    pub(crate) request_volume: u32,
}

impl FailurePercentage {
    const DEFAULT: Self = Self { threshold: 50, minimum_hosts: 2, request_volume: 20 };
}

impl SuccessRate {
    const DEFAULT: Self = Self { stdev_factor: 1900, minimum_hosts: 5, request_volume: 100 };
}

impl Default for OutlierDetection {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            failure_percentage: Some(FailurePercentage::DEFAULT),
            success_rate: Some(SuccessRate::DEFAULT),
            interval: Self::INTERVAL,
            base_ejection_time: Duration::from_secs(1),
            max_ejection_time: Duration::from_secs(6),
            max_ejection_percent: 67,
        }
    }
}

impl OutlierDetection {
    pub(crate) const INTERVAL: Duration = Duration::from_secs(10);

    /// Returns the defaults. An instance is ejected after one of these, within 10 s:
    /// - five failures in a row,
    /// - failures of half of at least 20 calls, among two instances or more,
    /// - a success rate 1.9 standard deviations below the average of five instances or more, with 100 calls each.
    ///
    /// It is ejected for 1 s, and for up to 6 s if it goes on. At most 67 % of the instances are ejected.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ejects an instance after so many failures without a success between them.
    pub fn consecutive_failures(mut self, failures: u32) -> Self {
        self.consecutive_failures = failures;
        self
    }

    /// Ejects an instance of whose calls so many percent failed, 1 to 100.
    pub fn failure_percentage_threshold(mut self, percent: u8) -> Self {
        self.percentage().threshold = percent;
        self
    }

    /// Sets how many instances there must be before the percentage of failures counts.
    pub fn failure_percentage_minimum_hosts(mut self, instances: usize) -> Self {
        self.percentage().minimum_hosts = instances;
        self
    }

    /// Sets how many calls an instance must have had before the percentage of its failures counts.
    pub fn failure_percentage_request_volume(mut self, calls: u32) -> Self {
        self.percentage().request_volume = calls;
        self
    }

    /// Turns the percentage of failures off.
    pub fn without_failure_percentage(mut self) -> Self {
        self.failure_percentage = None;
        self
    }

    /// Ejects an instance whose success rate is below the average by more than so many thousandths of the standard
    /// deviation, and by at least 5 %.
    pub fn success_rate_stdev_factor(mut self, thousandths: u32) -> Self {
        self.rate().stdev_factor = thousandths;
        self
    }

    /// Sets how many instances must have enough calls before success rates are compared.
    pub fn success_rate_minimum_hosts(mut self, instances: usize) -> Self {
        self.rate().minimum_hosts = instances;
        self
    }

    /// Sets how many calls an instance must have had before its success rate is compared.
    pub fn success_rate_request_volume(mut self, calls: u32) -> Self {
        self.rate().request_volume = calls;
        self
    }

    /// Turns the comparison of success rates off.
    pub fn without_success_rate(mut self) -> Self {
        self.success_rate = None;
        self
    }

    /// Sets the interval over which calls are counted: the running interval and the previous one count.
    pub fn interval(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Sets the time without calls after a first ejection. It doubles with each that follows, and varies by a fifth.
    pub fn base_ejection_time(mut self, time: Duration) -> Self {
        self.base_ejection_time = time;
        self
    }

    /// Sets the longest time without calls. An instance that is well again waits for so long until it gets calls.
    pub fn max_ejection_time(mut self, time: Duration) -> Self {
        self.max_ejection_time = time;
        self
    }

    /// Sets how many of the instances may be ejected at a time, in percent. At least one stays in use. If the others go
    /// away, can not be reached or do not serve, ejected instances come back at once.
    pub fn max_ejection_percent(mut self, percent: u8) -> Self {
        self.max_ejection_percent = percent.into();
        self
    }

    fn percentage(&mut self) -> &mut FailurePercentage {
        self.failure_percentage.get_or_insert(FailurePercentage::DEFAULT)
    }

    fn rate(&mut self) -> &mut SuccessRate {
        self.success_rate.get_or_insert(SuccessRate::DEFAULT)
    }

    pub(crate) fn check(&self) -> Result<()> {
        let positive = |field, is_zero| {
            if is_zero { Err(Error::invalid(field, "is 0, it needs to be 1 or more")) } else { Ok(()) }
        };
        positive("consecutive_failures", self.consecutive_failures == 0)?;
        if let Some(percentage) = &self.failure_percentage {
            if !(1..=100).contains(&percentage.threshold) {
                let reason = format!("{} is not within 1 and 100 percent", percentage.threshold);
                return Err(Error::invalid("failure_percentage_threshold", reason));
            }
            positive("failure_percentage_minimum_hosts", percentage.minimum_hosts == 0)?;
            positive("failure_percentage_request_volume", percentage.request_volume == 0)?;
        }
        if let Some(rate) = &self.success_rate {
            positive("success_rate_stdev_factor", rate.stdev_factor == 0)?;
            positive("success_rate_minimum_hosts", rate.minimum_hosts == 0)?;
            positive("success_rate_request_volume", rate.request_volume == 0)?;
        }
        let times = [("interval", self.interval), ("base_ejection_time", self.base_ejection_time)];
        for (field, time) in times {
            if time.is_zero() {
                return Err(Error::invalid(field, "is 0"));
            }
        }
        if self.max_ejection_time < self.base_ejection_time {
            let (longest, first) = (self.max_ejection_time, self.base_ejection_time);
            let reason = format!("{longest:?} is below base_ejection_time, {first:?}");
            return Err(Error::invalid("max_ejection_time", reason));
        }
        if !(0..=100).contains(&self.max_ejection_percent) {
            let reason = format!("{} is not within 0 and 100 percent", self.max_ejection_percent);
            return Err(Error::invalid("max_ejection_percent", reason));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_values_are_refused_by_the_name_of_their_option() {
        let (good, zero) = (OutlierDetection::new, Duration::ZERO);
        let table = [
            (good().consecutive_failures(0), "invalid consecutive_failures: is 0"),
            (good().failure_percentage_threshold(0), "invalid failure_percentage_threshold: 0 is not"),
            (good().failure_percentage_threshold(101), "invalid failure_percentage_threshold: 101 is not"),
            (good().failure_percentage_minimum_hosts(0), "invalid failure_percentage_minimum_hosts: is 0"),
            (good().failure_percentage_request_volume(0), "invalid failure_percentage_request_volume: is 0"),
            (good().success_rate_stdev_factor(0), "invalid success_rate_stdev_factor: is 0"),
            (good().success_rate_minimum_hosts(0), "invalid success_rate_minimum_hosts: is 0"),
            (good().success_rate_request_volume(0), "invalid success_rate_request_volume: is 0"),
            (good().interval(zero), "invalid interval: is 0"),
            (good().base_ejection_time(zero), "invalid base_ejection_time: is 0"),
            (good().max_ejection_time(Duration::from_millis(999)), "invalid max_ejection_time: 999ms is"),
            (good().max_ejection_percent(101), "invalid max_ejection_percent: 101 is not"),
        ];
        for (options, expected) in table {
            let error = options.check().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        good().without_failure_percentage().without_success_rate().check().expect("is good");
        good().base_ejection_time(Duration::MAX).max_ejection_time(Duration::MAX).check().expect("is good");
    }
}
