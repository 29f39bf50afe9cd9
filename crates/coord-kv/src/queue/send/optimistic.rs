//! Optimistic requests: whether queues are taken to be empty. No I/O.
//!
//! Most locks are free when they are asked for. The condition that a queue is empty costs the store less than
//! a read of it, whose answer it has to fetch and send. But if a single one of many queues is not empty,
//! nothing is written, and the request was for nothing. So after a wrong guess the next ones are left out,
//! twice as many each time (exponential backoff).

/// Largest number of guesses that are left out: wrong guesses cost one request in as many.
const LONGEST: u32 = 64;

/// Guesses that queues are empty, and the pause after a wrong one.
#[derive(Debug, Default)]
pub(crate) struct OptimisticEmpty {
    /// Number of guesses that were left out after the last wrong one.
    pause: u32,
    /// Number of these that are still to be left out.
    left: u32,
}

impl OptimisticEmpty {
    /// Returns whether to guess now.
    pub(crate) fn may_guess(&mut self) -> bool {
        let may = self.left == 0;
        self.left = self.left.saturating_sub(1);
        may
    }

    /// Takes note of whether a guess was right.
    pub(crate) fn was(&mut self, right: bool) {
        self.pause = if right { 0 } else { (self.pause * 2).clamp(1, LONGEST) };
        self.left = self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn right_guesses_are_made_again_and_wrong_ones_ever_more_seldom() {
        let mut optimistic = OptimisticEmpty::default();
        for _ in 0..3 {
            assert!(optimistic.may_guess());
            optimistic.was(true);
        }
        for pause in [1, 2, 4, 8, 16, 32, 64, 64] {
            assert!(optimistic.may_guess());
            optimistic.was(false);
            for _ in 0..pause {
                assert!(!optimistic.may_guess());
            }
        }
        assert!(optimistic.may_guess());
        optimistic.was(true);
        assert!(optimistic.may_guess(), "one that is right makes up for all before");
    }
}
