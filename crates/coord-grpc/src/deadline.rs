//! Deadline of a call, from its `grpc-timeout`, and the time for which it waits for an instance.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tonic::{Code, Status};

const TIMEOUT: &str = "grpc-timeout";
const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

/// Deadline that the caller set for the whole call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// Timeout that the caller gave.
    pub(crate) given: Duration,
}

impl Deadline {
    /// Reads the header `grpc-timeout`. A time that no clock reaches is no deadline.
    pub(crate) fn of(headers: &HeaderMap, begun: Instant) -> Option<Self> {
        let given = read(headers.get(TIMEOUT)?.to_str().ok()?)?;
        Some(Self { at: begun.checked_add(given)?, given })
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        now >= self.at
    }

    /// Writes the remaining time into the request's headers.
    pub(crate) fn tell(&self, headers: &mut HeaderMap, now: Instant) {
        headers.insert(TIMEOUT, written(self.at.saturating_duration_since(now)));
    }

    /// Corrects the status of a call that its deadline ended: tonic's servers call it cancelled.
    pub(crate) fn correct(&self, ending: &mut HeaderMap, now: Instant) {
        let is_cancelled =
            ending.get(STATUS).is_some_and(|code| Code::from_bytes(code.as_bytes()) == Code::Cancelled);
        let says_late = || {
            let message = ending.get(MESSAGE).and_then(|message| message.to_str().ok());
            message.is_some_and(|message| message.starts_with("Timeout"))
        };
        if is_cancelled && (self.is_over(now) || says_late()) {
            ending.insert(STATUS, HeaderValue::from(Code::DeadlineExceeded as i32));
        }
    }

    /// Returns the status of a call that exceeded this deadline.
    pub(crate) fn exceeded(&self, whom: &str) -> Status {
        Status::deadline_exceeded(format!("{whom} did not answer within the caller's {:?}", self.given))
    }
}

/// Limit for a wait: a timeout of the options and the caller's deadline.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WaitLimit {
    /// End of the timeout; `None` if no clock reaches it.
    wait: Option<Instant>,
    pub(crate) deadline: Option<Deadline>,
}

impl WaitLimit {
    pub(crate) fn new(begun: Instant, wait: Duration, deadline: Option<Deadline>) -> Self {
        Self { wait: begun.checked_add(wait), deadline }
    }

    /// Returns the sooner of the two.
    pub(crate) fn end(&self) -> Option<Instant> {
        let deadline = self.deadline.map(|deadline| deadline.at);
        self.wait.into_iter().chain(deadline).min()
    }

    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.end().is_some_and(|end| now >= end)
    }

    /// Returns the caller's deadline, if it comes first.
    pub(crate) fn callers_deadline(&self) -> Option<Deadline> {
        self.deadline.filter(|deadline| self.wait.is_none_or(|wait| deadline.at <= wait))
    }
}

/// Parses up to eight digits and a unit.
fn read(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&number.len()) && number.bytes().all(|digit| digit.is_ascii_digit());
    let number: u32 = Some(number).filter(|_| is_number)?.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit.saturating_mul(number))
}

/// Formats a time in the finest unit for which eight digits are enough.
fn written(time: Duration) -> HeaderValue {
    const UNITS: [(u128, &str); 6] = [
        (1, "n"),
        (1_000, "u"),
        (1_000_000, "m"),
        (1_000_000_000, "S"),
        (60_000_000_000, "M"),
        (3_600_000_000_000, "H"),
    ];
    const MOST: u128 = 99_999_999;
    let nanos = time.as_nanos();
    let fits = UNITS.into_iter().find(|(unit, _)| nanos / unit <= MOST);
    let (unit, name) = fits.unwrap_or(UNITS[5]);
    let text = format!("{}{name}", (nanos / unit).min(MOST));
    HeaderValue::try_from(text).expect("digits and a letter are a value")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let table = [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("4S", Some(Duration::from_secs(4))),
            ("82m", Some(Duration::from_millis(82))),
            ("5000u", Some(Duration::from_millis(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("123456789n", None),
            ("82", None),
            ("m", None),
            ("", None),
            ("1ß", None),
            ("-1S", None),
            ("+1S", None),
            ("1 S", None),
        ];
        for (text, expected) in table {
            let value = HeaderValue::from_bytes(text.as_bytes()).expect("is a value");
            let headers = [(http::HeaderName::from_static(TIMEOUT), value)].into_iter().collect();
            let deadline = Deadline::of(&headers, Instant::now());
            assert_eq!(deadline.map(|deadline| deadline.given), expected, "{text}");
        }
        assert_eq!(Deadline::of(&HeaderMap::new(), Instant::now()), None);
    }

    #[test]
    fn timeouts_are_written_so_that_they_are_read_again() {
        let table = [
            (Duration::ZERO, "0n"),
            (Duration::from_millis(99), "99000000n"),
            (Duration::from_millis(200), "200000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(100_000), "100000S"),
            (Duration::from_secs(6_000_000_000), "99999999M"),
            (Duration::MAX, "99999999H"),
        ];
        for (time, expected) in table {
            let text = written(time);
            let expected = if expected == "99999999M" { "1666666H" } else { expected };
            assert_eq!(text, expected, "{time:?}");
            assert!(read(text.to_str().expect("is text")).expect("is read") <= time, "{time:?}");
        }
    }

    #[test]
    fn sooner_of_wait_and_deadline_ends_a_call() {
        let (begun, second) = (Instant::now(), Duration::from_secs(1));
        let deadline = |given| Some(Deadline { at: begun + given, given });
        let table = [
            (second, None, Some(second), false),
            (second, deadline(second * 2), Some(second), false),
            (second * 2, deadline(second), Some(second), true),
            (Duration::MAX, deadline(second), Some(second), true),
            (Duration::MAX, None, None, false),
        ];
        for (wait, deadline, end, is_callers) in table {
            let limit = WaitLimit::new(begun, wait, deadline);
            assert_eq!(limit.end(), end.map(|end| begun + end), "{wait:?} {deadline:?}");
            assert_eq!(limit.callers_deadline().is_some(), is_callers, "{wait:?} {deadline:?}");
            assert_eq!(limit.is_over(begun + second), end.is_some(), "{wait:?} {deadline:?}");
        }
    }

    #[test]
    fn late_call_that_was_cancelled_exceeded_its_deadline() {
        let deadline =
            Deadline { at: Instant::now() + Duration::from_secs(1), given: Duration::from_secs(1) };
        let table = [
            ("1", "Timeout expired", false, "4"),
            ("1", "Timeout%20expired", false, "4"),
            ("1", "by the user", false, "1"),
            ("1", "by the user", true, "4"),
            ("14", "Timeout expired", true, "14"),
            ("0", "", true, "0"),
        ];
        for (code, message, is_late, expected) in table {
            let mut headers = HeaderMap::new();
            headers.insert(STATUS, code.parse().expect("is good"));
            headers.insert(MESSAGE, message.parse().expect("is good"));
            let now = if is_late { deadline.at } else { Instant::now() };
            deadline.correct(&mut headers, now);
            assert_eq!(headers[STATUS], expected, "{code} {message} {is_late}");
        }
    }
}
