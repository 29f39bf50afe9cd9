//! Code of the user, and the answers of validators and hooks.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// What a validator or a hook may return: nothing for "good", or a `Result` whose error says why not.
pub trait Verdict {
    /// `Err` with the reason of a refusal.
    ///
    /// # Errors
    /// The reason.
    fn verdict(self) -> Result<(), String>;
}

impl Verdict for () {
    fn verdict(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> Verdict for Result<(), E> {
    fn verdict(self) -> Result<(), String> {
        self.map_err(|reason| reason.to_string())
    }
}

/// Runs code of the user; `None` if it panics, which must not end the task that follows the key.
pub(super) fn guarded<R>(code: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(code)).ok()
}

/// Asks code of the user. A panic there is a refusal.
pub(super) fn ask(question: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    guarded(question).unwrap_or_else(|| Err("panicked".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_says_why_and_a_panic_is_one() {
        assert_eq!(().verdict(), Ok(()));
        assert_eq!(Err("too small").verdict(), Err("too small".into()));
        assert_eq!(ask(|| panic!("no")), Err("panicked".into()));
    }
}
