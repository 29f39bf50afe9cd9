//! Results of validators and hooks, and panics of user code.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Result of a validator or a hook: `()` for "good", or a `Result` whose error has the reason of a refusal.
pub trait CheckResult {
    /// Converts to a `Result`.
    ///
    /// # Errors
    /// Reason of the refusal.
    fn check_result(self) -> Result<(), String>;
}

impl CheckResult for () {
    fn check_result(self) -> Result<(), String> {
        Ok(())
    }
}

impl<E: fmt::Display> CheckResult for Result<(), E> {
    fn check_result(self) -> Result<(), String> {
        self.map_err(|reason| reason.to_string())
    }
}

/// Runs user code. Returns `None` if it panics, which must not end the task that follows the key.
pub(super) fn guarded<R>(code: impl FnOnce() -> R) -> Option<R> {
    catch_unwind(AssertUnwindSafe(code)).ok()
}

/// Runs a check of the user. A panic is a refusal.
pub(super) fn run_check(check: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    guarded(check).unwrap_or_else(|| Err("panicked".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_of_a_check_is_a_refusal() {
        assert_eq!(().check_result(), Ok(()));
        assert_eq!(Err("too small").check_result(), Err("too small".into()));
        assert_eq!(run_check(|| panic!("no")), Err("panicked".into()));
    }
}
