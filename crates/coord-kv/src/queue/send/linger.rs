//! Linger: when to wait a moment for requests that are about to come. No I/O.
//!
//! A caller that gets an answer often asks again at once. The next holder in a queue gives the lock back, and
//! the caller that gave it back wants it again. The first of these requests would travel alone, and all
//! others wait for its commit. So when an answer sets several off, the next transaction waits for them. The
//! wait is a fraction of the time that a commit takes, the shorter the fewer of them come. There is none when
//! one task locks and unlocks alone.

use std::time::{Duration, Instant};

/// Shortest time that the next request is waited for after the last one. A thread is kept busy by it.
const SHORTEST: Duration = Duration::from_micros(15);
/// Longest time that the next request is waited for after the last one. A thread is kept busy by it.
const LONGEST: Duration = Duration::from_micros(240);

/// Requests that are expected soon.
#[derive(Debug)]
pub(crate) struct Linger {
    expected: usize,
    /// Number of requests that have come since none was expected.
    came: usize,
    patience: Duration,
    /// Moment at which an answer was given, or a request came.
    last: Option<Instant>,
}

impl Default for Linger {
    fn default() -> Self {
        Self { expected: 0, came: 0, patience: LONGEST / 4, last: None }
    }
}

impl Linger {
    /// Takes note of answers that let `follow` requests be expected. A single request has nobody to travel
    /// with.
    pub(crate) fn answered(&mut self, follow: usize, now: Instant) {
        self.expected += if follow > 1 { follow } else { 0 };
        self.last = Some(now);
    }

    /// Takes note of a request that has come.
    pub(crate) fn came(&mut self, now: Instant) {
        if self.expected > 0 {
            self.expected -= 1;
            self.came += 1;
            if self.expected == 0 {
                self.end();
            }
        }
        self.last = Some(now);
    }

    /// Returns whether to wait for more. Once it returns `false`, it does until the next answer.
    pub(crate) fn waits(&mut self, now: Instant) -> bool {
        let is_over = self.last.is_none_or(|last| now.duration_since(last) > self.patience);
        if self.expected > 0 && is_over {
            self.end();
        }
        self.expected > 0
    }

    /// Ends the wait for requests that are still expected, and adapts the next one to how many came.
    fn end(&mut self) {
        let most_came = self.came > self.expected;
        let patience = if most_came { self.patience * 2 } else { self.patience / 2 };
        *self = Self { expected: 0, came: 0, patience: patience.clamp(SHORTEST, LONGEST), ..*self };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_that_follow_are_waited_for_and_one_is_not() {
        let now = Instant::now();
        let mut linger = Linger::default();
        assert!(!linger.waits(now), "nothing was answered");
        linger.answered(1, now);
        assert!(!linger.waits(now), "one has nobody to travel with");
        linger.answered(2, now);
        assert!(linger.waits(now));
        linger.came(now);
        assert!(linger.waits(now));
        linger.came(now);
        assert!(!linger.waits(now), "all are here");
        linger.came(now);
        linger.answered(2, now);
        assert!(linger.waits(now), "one that nobody expected counts for nothing");
    }

    #[test]
    fn patience_ends_and_begins_again_with_each_that_comes() {
        let mut now = Instant::now();
        let mut linger = Linger::default();
        let patience = linger.patience;
        linger.answered(3, now);
        now += patience;
        assert!(linger.waits(now));
        linger.came(now);
        now += patience;
        assert!(linger.waits(now), "counted from the one that came");
        now += Duration::from_nanos(1);
        assert!(!linger.waits(now));
        linger.came(now);
        assert!(!linger.waits(now), "given up until the next answer");
    }

    #[test]
    fn patience_grows_while_most_come_and_shrinks_while_they_do_not() {
        let mut now = Instant::now();
        let mut linger = Linger::default();
        let mut answered = |come: usize| {
            linger.answered(4, now);
            for _ in 0..come {
                linger.came(now);
            }
            now += LONGEST * 2;
            assert!(!linger.waits(now));
            linger.patience
        };
        for _ in 0..10 {
            answered(4);
        }
        assert_eq!(answered(3), LONGEST, "one that is missing is waited for again");
        assert_eq!(answered(2), LONGEST / 2);
        for _ in 0..10 {
            answered(0);
        }
        assert_eq!(answered(0), SHORTEST);
        assert_eq!(answered(4), SHORTEST * 2);
    }
}
