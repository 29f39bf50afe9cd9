//! The pauses between attempts at the same thing.

use std::{fmt, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// Exponential backoff with jitter, without end. Each pause is the last one doubled, up to the longest, and up to as much
/// again at random.
pub struct Backoff {
    shortest: Duration,
    longest: Duration,
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// Begins with the shortest pause.
    pub fn new(shortest: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::default()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times();
        Self { shortest, longest, pauses: builder.build() }
    }

    /// Returns the next pause.
    pub fn pause(&mut self) -> Duration {
        self.pauses.next().unwrap_or(self.longest)
    }

    /// Begins anew, after a success.
    pub fn reset(&mut self) {
        *self = Self::new(self.shortest, self.longest);
    }
}

impl fmt::Debug for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Backoff({:?}..={:?})", self.shortest, self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_millis(20);
    const LONGEST: Duration = Duration::from_millis(500);

    #[test]
    fn pauses_grow_to_their_limit_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(SHORTEST, LONGEST);
        assert!((SHORTEST..=SHORTEST * 2).contains(&backoff.pause()));
        let later: Vec<_> = (0..100).map(|_| backoff.pause()).collect();
        assert!(later.iter().all(|pause| *pause <= LONGEST * 2), "{later:?}");
        assert!(later[10..].iter().all(|pause| *pause >= LONGEST), "{later:?}");
        backoff.reset();
        assert!(backoff.pause() <= SHORTEST * 2);
    }
}
