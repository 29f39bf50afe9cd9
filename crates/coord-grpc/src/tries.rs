//! What became of one request, for callers that decide themselves when to make it again.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tonic::{Code, Status};

/// The tries of one request: put a clone into the extensions of each. Every try goes to an instance that had none of
/// the tries before, as long as such a one is ready; and the caller can see which one has it.
///
/// ```
/// use coord_grpc::Tries;
/// let tries = Tries::new();
/// let mut request = tonic::Request::new(());
/// request.extensions_mut().insert(tries.clone());
/// assert_eq!(tries.instance(), None, "is not sent yet");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tries(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// Those to be avoided, in the order in which they were tried.
    tried: Vec<String>,
    /// Whether the last of them has the request.
    given: bool,
}

impl Tries {
    /// No try yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// As if `instance` had been tried: for a stream that is opened again, the one that failed it.
    #[must_use]
    pub fn avoiding(self, instance: Option<String>) -> Self {
        self.state().tried.extend(instance);
        self
    }

    /// The instance that the last try was given to; `None` while it waits for one.
    pub fn instance(&self) -> Option<String> {
        let state = self.state();
        state.tried.last().filter(|_| state.given).cloned()
    }

    /// How many instances were tried.
    pub fn count(&self) -> usize {
        self.state().tried.len()
    }

    pub(crate) fn waits(&self) {
        self.state().given = false;
    }

    pub(crate) fn given_to(&self, instance: &str) {
        let mut state = self.state();
        // The last one stands at the end.
        state.tried.retain(|tried| tried != instance);
        state.tried.push(instance.to_owned());
        state.given = true;
    }

    /// How long ago an instance was tried, in tries: the larger the better, and never is best.
    pub(crate) fn since(&self, instance: &str) -> usize {
        let state = self.state();
        let since = state.tried.iter().rev().position(|tried| tried == instance);
        since.unwrap_or(usize::MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a call failed with no effect, so that it may be made again whatever it is. Its request has not left this
/// process, since no instance was ready or the connection had ended; or the server said that it did not process it.
pub fn is_unsent(status: &Status) -> bool {
    let source = std::error::Error::source(status);
    std::iter::successors(source, |error| error.source()).any(<dyn std::error::Error>::is::<Unsent>)
}

/// Mark of the status of a call that had no effect.
#[derive(Debug)]
struct Unsent(String);

impl fmt::Display for Unsent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unsent {}

/// An answer to a call whose request was not sent, or not processed.
pub(crate) fn unsent(message: String) -> Status {
    marked(Code::Unavailable, message)
}

/// The same when the caller's deadline ended it.
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
    fn the_last_try_is_told_once_it_was_given_away() {
        let tries = Tries::new().avoiding(Some("a".into()));
        assert_eq!((tries.instance(), tries.count()), (None, 1));
        for instance in ["b", "a", "b"] {
            tries.waits();
            assert_eq!(tries.instance(), None);
            tries.given_to(instance);
            assert_eq!(tries.instance().as_deref(), Some(instance));
        }
        assert_eq!(["a", "b", "c"].map(|id| tries.since(id)), [1, 0, usize::MAX]);
        assert_eq!(tries.count(), 2);
    }

    #[test]
    fn only_what_is_marked_was_not_sent() {
        assert!(is_unsent(&unsent("nobody is ready".into())));
        assert!(is_unsent(&too_late("nobody is ready".into())));
        assert!(!is_unsent(&Status::unavailable("nobody is ready")));
    }
}
