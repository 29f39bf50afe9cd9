//! When an instance gets no calls for a while although it is registered and connected. Pure.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use crate::table::Node;

/// How an instance failed a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It said `Unavailable`, broke the call off, or took too long while it answered others.
    Answer,
    /// Nothing at all has come from it while the call waited.
    Silence,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It stays in use.
    Stay,
    /// No calls until then; then it is connected anew.
    Eject { until: Instant },
    /// Too few others: it is connected anew at once.
    Renew,
}

/// The rules, from the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// So many failures in a row.
    pub(crate) after: u32,
    /// The first cool-off, doubled with each that follows,
    pub(crate) first: Duration,
    /// up to this.
    pub(crate) longest: Duration,
    /// The part of the known instances that always stays in use, in percent.
    pub(crate) keep: u8,
}

impl Rules {
    pub(crate) const DEFAULT: Self =
        Self { after: 5, first: Duration::from_secs(1), longest: Duration::from_secs(60), keep: 33 };

    /// The time without calls after the `count`th ejection in a row; `dice` from 0 to 1 spreads the returns.
    fn cool_off(&self, count: u32, dice: f64) -> Duration {
        let doubled = self.first.saturating_mul(1_u32.checked_shl(count.min(31)).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(0.8 + 0.4 * dice)
    }

    /// Whether one of `in_use` may go when `known` are known.
    fn may_eject(&self, known: usize, in_use: usize) -> bool {
        in_use > 1 && (in_use - 1) * 100 >= known * usize::from(self.keep)
    }
}

/// What is remembered of one instance.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Record {
    /// Ejections without a good time between them.
    count: u32,
    /// When it comes, or came, back from the last one.
    back: Option<Instant>,
    last: Duration,
}

impl Record {
    /// Decides about a failure of `node`, one of `in_use` that calls may go to, of `known`.
    pub(crate) fn failed(
        &mut self,
        rules: Option<&Rules>,
        node: &Node,
        failure: Failure,
        (known, in_use): (usize, usize),
        (now, dice): (Instant, f64),
    ) -> Verdict {
        let in_a_row = node.in_a_row.load(Relaxed);
        // On trial one failure is enough.
        let enough = |rules: &Rules| in_a_row >= rules.after || node.on_trial.load(Relaxed);
        let silent = failure == Failure::Silence;
        match rules {
            Some(rules) if (silent || enough(rules)) && rules.may_eject(known, in_use) => {
                Verdict::Eject { until: self.eject(rules, now, dice) }
            }
            _ if silent => Verdict::Renew,
            _ => Verdict::Stay,
        }
    }

    fn eject(&mut self, rules: &Rules, now: Instant, dice: f64) -> Instant {
        // What was good for four times its last cool-off begins anew.
        if self.back.is_some_and(|back| now > back + self.last * 4) {
            self.count = 0;
        }
        self.last = rules.cool_off(self.count, dice);
        self.count += 1;
        let until = now + self.last;
        self.back = Some(until);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { after: 3, first: Duration::from_secs(1), longest: Duration::from_secs(10), keep: 33 };

    fn node(in_a_row: u32) -> Node {
        let node = Node::new("a".into(), "a".into());
        node.in_a_row.store(in_a_row, Relaxed);
        node
    }

    #[test]
    fn failures_in_a_row_or_silence_eject_but_never_all() {
        let now = Instant::now();
        let eject = Verdict::Eject { until: now + RULES.first };
        // Failure, in a row, on trial, known, in use.
        let table = [
            (Failure::Answer, 1, false, 3, 3, Verdict::Stay),
            (Failure::Answer, 2, false, 3, 3, Verdict::Stay),
            (Failure::Answer, 3, false, 3, 3, eject),
            (Failure::Answer, 1, true, 3, 3, eject),
            (Failure::Silence, 1, false, 3, 3, eject),
            // The last but one of three may go, the last one not.
            (Failure::Answer, 9, false, 3, 2, eject),
            (Failure::Answer, 9, false, 3, 1, Verdict::Stay),
            (Failure::Silence, 9, false, 3, 1, Verdict::Renew),
            (Failure::Silence, 9, false, 2, 2, eject),
            (Failure::Answer, 9, false, 1, 1, Verdict::Stay),
            (Failure::Silence, 9, false, 1, 1, Verdict::Renew),
            // Of ten at least four stay.
            (Failure::Silence, 1, false, 10, 5, eject),
            (Failure::Silence, 1, false, 10, 4, Verdict::Renew),
        ];
        for (failure, in_a_row, on_trial, known, in_use, expected) in table {
            let node = node(in_a_row);
            node.on_trial.store(on_trial, Relaxed);
            let verdict = Record::default().failed(Some(&RULES), &node, failure, (known, in_use), (now, 0.5));
            assert_eq!(verdict, expected, "{failure:?} {in_a_row} {on_trial} {known} {in_use}");
        }
        let without = Record::default().failed(None, &node(9), Failure::Answer, (3, 3), (now, 0.5));
        assert_eq!(without, Verdict::Stay);
        let without = Record::default().failed(None, &node(9), Failure::Silence, (3, 3), (now, 0.5));
        assert_eq!(without, Verdict::Renew);
    }

    #[test]
    fn cool_off_grows_up_to_its_limit_and_begins_anew_after_a_good_time() {
        let (mut record, mut now) = (Record::default(), Instant::now());
        let seconds = Duration::from_secs;
        for expected in [1, 2, 4, 8, 10, 10] {
            let until = record.eject(&RULES, now, 0.5);
            assert_eq!(until - now, seconds(expected));
            now = until + seconds(1);
        }
        now += seconds(41);
        assert_eq!(record.eject(&RULES, now, 0.5) - now, seconds(1));
        assert_eq!(RULES.cool_off(0, 0.0), Duration::from_millis(800));
        assert_eq!(RULES.cool_off(u32::MAX, 1.0), seconds(12));
    }
}
