//! Numbers in the keys of entries, which are used again. No I/O.

use std::collections::BTreeSet;

/// Numbers on one lease in one queue. A number below `next` that is not free is in use, or never used again.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    next: u64,
    free: BTreeSet<u64>,
}

impl Numbers {
    /// Takes the smallest number that is free.
    pub(super) fn take(&mut self) -> u64 {
        self.free.pop_first().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Takes a number back, to be used again.
    pub(super) fn give_back(&mut self, number: u64) {
        self.free.insert(number);
        while self.next > 0 && self.free.last() == Some(&(self.next - 1)) {
            self.free.pop_last();
            self.next -= 1;
        }
    }

    /// Returns whether no number is in use and all may be used again.
    pub(super) fn is_unused(&self) -> bool {
        self.next == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_free_number_is_used_again() {
        let mut numbers = Numbers::default();
        assert_eq!([(); 4].map(|()| numbers.take()), [0, 1, 2, 3]);
        numbers.give_back(2);
        numbers.give_back(1);
        assert_eq!([(); 3].map(|()| numbers.take()), [1, 2, 4]);
        for number in [4, 0, 2, 1] {
            numbers.give_back(number);
            assert!(!numbers.is_unused(), "3 is in use");
        }
        numbers.give_back(3);
        assert!(numbers.is_unused() && numbers.free.is_empty());
    }

    #[test]
    fn numbers_that_are_not_used_again_cost_nothing() {
        let mut numbers = Numbers::default();
        for number in 0..100_000 {
            assert_eq!(numbers.take(), number, "never given back");
        }
        let last = numbers.take();
        numbers.give_back(last);
        assert!(numbers.free.is_empty() && !numbers.is_unused());
        assert_eq!(numbers.take(), last);
    }
}
