//! When what CMD started is asked to end, when it is killed, and when that is over: decisions alone, without a process.
//!
//! The end begins when what CMD relies on is lost, or when CMD itself has ended. From then on all that CMD started has the
//! grace: SIGTERM at once if something asked for an end, else after half of it; SIGKILL when it is over.

use std::time::{Duration, Instant};

/// How long a process may take to end after SIGKILL. One that waits for a disk ends only when the disk answers.
const AFTER_KILL: Duration = Duration::from_secs(1);

/// The end of CMD and of all that it started.
#[derive(Debug)]
pub(crate) struct Ending {
    begun: Instant,
    grace: Duration,
    /// Whether something other than the end of CMD asks for an end.
    asked: bool,
    sent: Sent,
}

/// The last signal that was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    Nothing,
    Term,
    Kill(Instant),
}

/// Processes that have not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Left {
    Nobody,
    /// Some, and a signal can reach them.
    Some,
    /// Some, and none of them can be reached.
    OutOfReach,
}

/// The next action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Wait until a process ends, at most so long.
    Wait(Duration),
    /// Send SIGTERM to all.
    Terminate,
    /// Send SIGKILL to all.
    Kill,
    /// Nothing is left, or nothing more can be done.
    Finished,
}

impl Ending {
    /// Begins when CMD has ended; `asked` by a signal, or by itself.
    pub(crate) fn of_command(now: Instant, grace: Duration, asked: Asked) -> Self {
        Self { begun: now, grace, asked: asked == Asked::BySignal, sent: Sent::Nothing }
    }

    /// Begins when what CMD relies on is lost, and SIGTERM was sent.
    pub(crate) fn of_loss(now: Instant, grace: Duration) -> Self {
        Self { begun: now, grace, asked: true, sent: Sent::Term }
    }

    /// Nothing has to be waited for any more, but for the grace that has begun.
    pub(crate) fn hurry(&mut self) {
        self.asked = true;
    }

    /// Returns the next step, which counts as done.
    pub(crate) fn step(&mut self, now: Instant, left: Left) -> Step {
        let elapsed = now.saturating_duration_since(self.begun);
        match self.sent {
            _ if left == Left::Nobody => Step::Finished,
            Sent::Kill(at) => {
                let rest = AFTER_KILL.saturating_sub(now.saturating_duration_since(at));
                if rest.is_zero() || left == Left::OutOfReach { Step::Finished } else { Step::Wait(rest) }
            }
            Sent::Term if elapsed >= self.grace => {
                self.sent = Sent::Kill(now);
                Step::Kill
            }
            Sent::Term => Step::Wait(self.grace.saturating_sub(elapsed)),
            Sent::Nothing if self.asked || elapsed >= self.grace / 2 => {
                self.sent = Sent::Term;
                Step::Terminate
            }
            Sent::Nothing => Step::Wait((self.grace / 2).saturating_sub(elapsed)),
        }
    }
}

/// The cause of CMD's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing that `coord` knows of.
    ByNobody,
    BySignal,
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(4);

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn loss_kills_after_the_grace() {
        let start = Instant::now();
        let mut ending = Ending::of_loss(start, GRACE);
        assert_eq!(ending.step(at(start, 1), Left::Some), Step::Wait(Duration::from_secs(3)));
        assert_eq!(ending.step(at(start, 4), Left::Some), Step::Kill);
        assert_eq!(ending.step(at(start, 4), Left::Some), Step::Wait(AFTER_KILL));
        assert_eq!(ending.step(at(start, 4), Left::Nobody), Step::Finished);
    }

    #[test]
    fn remainder_of_a_command_has_half_the_grace_before_sigterm() {
        let start = Instant::now();
        let mut ending = Ending::of_command(start, GRACE, Asked::ByNobody);
        assert_eq!(ending.step(start, Left::Some), Step::Wait(Duration::from_secs(2)));
        assert_eq!(ending.step(at(start, 2), Left::Some), Step::Terminate);
        assert_eq!(ending.step(at(start, 3), Left::Some), Step::Wait(Duration::from_secs(1)));
        assert_eq!(ending.step(at(start, 4), Left::Some), Step::Kill);

        let mut asked = Ending::of_command(start, GRACE, Asked::BySignal);
        assert_eq!(asked.step(start, Left::Some), Step::Terminate);
        let mut lost = Ending::of_command(start, GRACE, Asked::ByNobody);
        assert_eq!(lost.step(start, Left::Some), Step::Wait(Duration::from_secs(2)));
        lost.hurry();
        assert_eq!(lost.step(start, Left::Some), Step::Terminate);
    }

    #[test]
    fn processes_out_of_reach_are_waited_for_no_longer_than_the_grace() {
        let start = Instant::now();
        let mut ending = Ending::of_loss(start, GRACE);
        assert_eq!(ending.step(at(start, 1), Left::OutOfReach), Step::Wait(Duration::from_secs(3)));
        assert_eq!(ending.step(at(start, 4), Left::OutOfReach), Step::Kill);
        assert_eq!(ending.step(at(start, 4), Left::OutOfReach), Step::Finished);
    }

    #[test]
    fn process_that_survives_sigkill_is_waited_for_one_second() {
        let start = Instant::now();
        let mut ending = Ending::of_loss(start, Duration::ZERO);
        assert_eq!(ending.step(start, Left::Some), Step::Kill);
        assert_eq!(ending.step(start + AFTER_KILL, Left::Some), Step::Finished);
    }

    #[test]
    fn any_grace_can_be_asked_for() {
        let start = Instant::now();
        let mut ending = Ending::of_loss(start, Duration::MAX);
        assert_eq!(ending.step(start, Left::Some), Step::Wait(Duration::MAX));
        assert_eq!(ending.step(start, Left::Nobody), Step::Finished);
    }
}
