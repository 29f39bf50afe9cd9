//! Attempts of one request, for callers that retry by their own rules.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard},
};

use coord_api::backend::lock;
use tonic::{Code, Status};

/// Attempts of one request: put a clone into the extensions of each.
///
/// Every attempt goes to an instance that had none of the earlier ones, while such an instance is ready. The caller can see
/// which instance has the request.
///
/// ```
/// use coord_grpc::Attempts;
/// let attempts = Attempts::new();
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(attempts.clone());
/// assert_eq!(attempts.instance(), None, "is not sent yet");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Attempts(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Instances to be avoided, in the order in which they were tried.
    tried: Vec<String>,
    /// Whether the last instance has the request.
    given: bool,
}

impl Attempts {
    /// Returns an empty list of attempts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds `instance` as if it had been tried: for a stream that is opened again, the instance that failed it.
    #[must_use]
    pub fn avoiding(self, instance: Option<String>) -> Self {
        self.state().tried.extend(instance);
        self
    }

    /// Returns the instance of the last attempt; `None` while the attempt waits for one.
    pub fn instance(&self) -> Option<String> {
        let state = self.state();
        state.tried.last().filter(|_| state.given).cloned()
    }

    /// Returns how many instances were tried.
    pub fn count(&self) -> usize {
        self.state().tried.len()
    }

    pub(crate) fn waits(&self) {
        self.state().given = false;
    }

    pub(crate) fn given_to(&self, instance: &str) {
        let mut state = self.state();
        // The latest instance stands at the end.
        state.tried.retain(|tried| tried != instance);
        state.tried.push(instance.to_owned());
        state.given = true;
    }

    /// Returns how many attempts ago an instance was tried; `usize::MAX` if never.
    pub(crate) fn since(&self, instance: &str) -> usize {
        let state = self.state();
        let since = state.tried.iter().rev().position(|tried| tried == instance);
        since.unwrap_or(usize::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

/// Returns whether a call failed without effect, so that a retry is safe even if the call is not idempotent.
///
/// Either the request has not left this process, or the server said that it did not process it.
pub fn is_unsent(status: &Status) -> bool {
    let source = std::error::Error::source(status);
    std::iter::successors(source, |error| error.source()).any(<dyn std::error::Error>::is::<Unsent>)
}

/// Source of a status that marks a call without effect.
#[derive(Debug)]
struct Unsent(String);

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsent {}

/// Returns the status of a call whose request was not sent, or not processed.
pub(crate) fn unsent(message: String) -> Status {
    marked(Code::Unavailable, message)
}

/// Returns the status of a call that was not sent before the caller's deadline.
pub(crate) fn too_late(message: String) -> Status {
    marked(Code::DeadlineExceeded, message)
}

fn marked(code: Code, message: String) -> Status {
    let mut status = Status::new(code, message.clone());
    status.set_source(Arc::new(Unsent(message)));
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_attempt_is_known_once_it_was_given_to_an_instance() {
        let attempts = Attempts::new().avoiding(Some("a".into()));
        assert_eq!((attempts.instance(), attempts.count()), (None, 1));
        for instance in ["b", "a", "b"] {
            attempts.waits();
            assert_eq!(attempts.instance(), None);
            attempts.given_to(instance);
            assert_eq!(attempts.instance().as_deref(), Some(instance));
        }
        assert_eq!(["a", "b", "c"].map(|id| attempts.since(id)), [1, 0, usize::MAX]);
        assert_eq!(attempts.count(), 2);
    }

    #[test]
    fn marked_status_alone_is_unsent() {
        assert!(is_unsent(&unsent("nobody is ready".into())));
        assert!(is_unsent(&too_late("nobody is ready".into())));
        assert!(!is_unsent(&Status::unavailable("nobody is ready")));
    }
}
