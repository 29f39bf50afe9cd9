//! What validators and hooks answer.

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

/// Asks code of the user. A panic there is a refusal: it must not end the task that follows the key.
pub(super) fn ask(question: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(question)).unwrap_or_else(|_| Err("panicked".into()))
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
