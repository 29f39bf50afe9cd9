//! Repetition of clean-up: until it is done, or its object is over by itself. An error never ends it.
//!
//! A role may be edited, a disk be full or the store be away just when something is given back. Nothing here
//! could know whether an error passes, and anything that is not cleaned up bars others. So all clean-up goes
//! through [`Rpc::clean_up`].

use std::time::Duration;

use coord_api::{Connectivity, Error};

use crate::{
    request::{Rpc, timer},
    store::{Failure, is_transient},
};

/// Shortest pause between two attempts.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest pause after an error that passes by itself.
const LONGEST: Duration = Duration::from_secs(1);
/// The longest pause after a refusal.
const LONGEST_REFUSED: Duration = Duration::from_secs(5);

/// Pauses that grow, jittered.
#[derive(Debug)]
struct Pauses {
    next: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { next: SHORTEST }
    }

    /// Returns the pause after `error`.
    fn after(&mut self, error: &Error) -> Duration {
        let longest = if is_transient(error) { LONGEST } else { LONGEST_REFUSED };
        let pause = self.next.min(longest);
        self.next = (self.next * 2).min(LONGEST_REFUSED);
        pause.mul_f64(fastrand::f64().mul_add(0.5, 0.5))
    }
}

impl Rpc {
    /// Repeats `step` until it is done, which `true` says, or `over` resolves. `what` is for people.
    ///
    /// May be dropped: with it the clean-up ends.
    pub(crate) async fn clean_up<F>(
        &self,
        what: &str,
        over: impl Future<Output = ()>,
        step: impl FnMut() -> F,
    ) -> bool
    where
        F: Future<Output = Result<(), Failure>>,
    {
        tokio::select! {
            biased;
            () = over => false,
            () = self.until_done(what, step) => true,
        }
    }

    /// Repeats `step` until it is done, and returns what came of it. `what` is for people.
    ///
    /// May be dropped: with it the clean-up ends.
    pub(crate) async fn until_done<T, F>(&self, what: &str, mut step: impl FnMut() -> F) -> T
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (mut pauses, mut connectivity, mut is_told) = (Pauses::new(), self.connectivity.clone(), false);
        loop {
            let failed = match step().await {
                Ok(done) => return done,
                Err(failure) => failure.error,
            };
            if is_transient(&failed) {
                tracing::debug!(what, error = %failed, "clean-up goes on");
            } else if !std::mem::replace(&mut is_told, true) {
                tracing::warn!(what, error = %failed, "clean-up was refused and is tried again until it is done");
            }
            tokio::select! {
                () = timer::sleep(pauses.after(&failed)) => {}
                () = heard_again(&mut connectivity) => {
                    // Waiting clean-ups do not all begin at once.
                    timer::sleep(SHORTEST.mul_f64(fastrand::f64())).await;
                }
            }
        }
    }
}

/// Waits until the store is heard after it was not. May be dropped and called again.
pub(crate) async fn heard_again(connectivity: &mut Connectivity) {
    while !connectivity.changed().await.is_fresh() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_limit_and_are_never_without_end() {
        let refused = || Error::PermissionDenied { operation: "test", source: "no".into() };
        let away = || Error::Unavailable { what: "etcd".into(), source: None };
        let mut pauses = Pauses::new();
        assert!(pauses.after(&refused()) <= SHORTEST);
        let later: Vec<_> = (0..100).map(|_| pauses.after(&refused())).collect();
        assert!(later[10..].iter().all(|pause| (LONGEST_REFUSED / 2..=LONGEST_REFUSED).contains(pause)));
        assert!((0..100).all(|_| pauses.after(&away()) <= LONGEST), "the store may be back at any time");
    }
}
