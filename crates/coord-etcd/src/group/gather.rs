//! When to wait a moment for requests that are about to come. No I/O.
//!
//! Who gets an answer often asks again at once: whoever was next in a queue gives the lock back, whoever gave it
//! back wants it again. The first of them would travel alone, and all others wait for its commit. So when an
//! answer sets several off, the next transaction waits for them: for a fraction of the time that a commit takes,
//! and not at all when one task locks and unlocks alone.

use std::time::{Duration, Instant};

/// How long after the last of them the next one is waited for.
const PATIENCE: Duration = Duration::from_micros(60);

/// The requests that are expected soon.
#[derive(Debug, Default)]
pub(crate) struct Gather {
    expected: usize,
    /// When an answer was given, or one of them came.
    last: Option<Instant>,
}

impl Gather {
    /// Answers were given that let `follow` requests be expected. One alone has nobody to travel with.
    pub(crate) fn answered(&mut self, follow: usize, now: Instant) {
        self.expected += if follow > 1 { follow } else { 0 };
        self.last = Some(now);
    }

    /// A request has come.
    pub(crate) fn came(&mut self, now: Instant) {
        self.expected = self.expected.saturating_sub(1);
        self.last = Some(now);
    }

    /// Whether to wait for more. Once it says no, it does until the next answer.
    pub(crate) fn waits(&mut self, now: Instant) -> bool {
        if self.last.is_none_or(|last| now.duration_since(last) > PATIENCE) {
            self.expected = 0;
        }
        self.expected > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_that_follow_are_waited_for_and_one_is_not() {
        let now = Instant::now();
        let mut gather = Gather::default();
        assert!(!gather.waits(now), "nothing was answered");
        gather.answered(1, now);
        assert!(!gather.waits(now), "one has nobody to travel with");
        gather.answered(2, now);
        assert!(gather.waits(now));
        gather.came(now);
        assert!(gather.waits(now));
        gather.came(now);
        assert!(!gather.waits(now), "all are here");
        gather.came(now);
        gather.answered(2, now);
        assert!(gather.waits(now), "one that nobody expected counts for nothing");
    }

    #[test]
    fn patience_ends_and_begins_again_with_each_that_comes() {
        let mut now = Instant::now();
        let mut gather = Gather::default();
        gather.answered(3, now);
        now += PATIENCE;
        assert!(gather.waits(now));
        gather.came(now);
        now += PATIENCE;
        assert!(gather.waits(now), "counted from the one that came");
        now += Duration::from_nanos(1);
        assert!(!gather.waits(now));
        gather.came(now);
        assert!(!gather.waits(now), "given up until the next answer");
    }
}
