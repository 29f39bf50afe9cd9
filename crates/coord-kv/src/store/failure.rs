//! Failed requests: what to tell the caller, and whether the request may have taken effect.

use std::{fmt, time::Duration};

use coord_api::{BoxError, Error};

/// Whether a request may have taken effect although it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The store refused it, or it was never sent.
    None,
    /// The effect is unknown: the answer was lost. The request may also take effect later.
    Unknown,
}

/// A failed request.
#[derive(Debug)]
pub struct Failure {
    /// The error for the caller.
    pub error: Error,
    /// Whether the request may have taken effect.
    pub effect: Effect,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    /// Returns the failure of a client that is gone: the request was not sent.
    pub(crate) fn closed() -> Self {
        Self { error: Error::Closed, effect: Effect::None }
    }

    /// Returns the same failure for another request that shared its fate.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { error: self.error.duplicate(), effect: self.effect }
    }

    /// Returns the failure of a request that was not answered in time.
    pub fn timeout(operation: &'static str, after: Duration) -> Self {
        Self { error: Error::Timeout { operation, after }, effect: Effect::Unknown }
    }

    /// Returns the error with all that caused it, for traces.
    pub(crate) fn reason(&self) -> impl fmt::Display {
        Reason(&self.error)
    }

    /// Returns whether the store has compacted the revision that was asked for.
    pub(crate) fn is_compacted(&self) -> bool {
        matches!(self.revision_error(), Some(RevisionError::Compacted(_)))
    }

    /// Returns whether the store has not got so far as the revision that was asked for.
    pub(crate) fn is_future(&self) -> bool {
        matches!(self.revision_error(), Some(RevisionError::Future(_)))
    }

    fn revision_error(&self) -> Option<&RevisionError> {
        match &self.error {
            Error::Backend { source, .. } => source.downcast_ref(),
            _ => None,
        }
    }
}

/// An error with its sources, in one line.
struct Reason<'a>(&'a Error);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)?;
        let mut source = std::error::Error::source(self.0);
        while let Some(error) = source {
            write!(f, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

/// Reason why a read at a revision is refused: the source of a [`Backend`](Error::Backend) error, with the
/// store's own words.
#[derive(Debug)]
pub enum RevisionError {
    /// The store does not keep that revision any more.
    Compacted(BoxError),
    /// The store has not got so far.
    Future(BoxError),
}

impl fmt::Display for RevisionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Compacted(words) | Self::Future(words)) = self;
        words.fmt(f)
    }
}

impl std::error::Error for RevisionError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        let (Self::Compacted(words) | Self::Future(words)) = self;
        words.source()
    }
}

/// Returns whether an error is worth waiting out: until the way to the store is back, or new credentials are,
/// or space.
pub(crate) fn is_transient(error: &Error) -> bool {
    error.is_retryable() || matches!(error, Error::Unauthenticated { .. } | Error::NoSpace { .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_names_every_source() {
        let inner = Error::Unavailable { what: "member".into(), source: Some("connection refused".into()) };
        let error = Error::Unavailable { what: "etcd".into(), source: Some(inner.into()) };
        let reason = Failure { error, effect: Effect::None }.reason().to_string();
        assert_eq!(reason, "etcd is unavailable: member is unavailable: connection refused");
    }

    #[test]
    fn refused_revision_is_known_by_its_source_and_keeps_the_words() {
        let failure = |source: BoxError| Failure {
            error: Error::Backend { operation: "test", source },
            effect: Effect::None,
        };
        let compacted = failure(Box::new(RevisionError::Compacted("has been compacted".into())));
        assert!(compacted.is_compacted() && !compacted.is_future());
        assert!(compacted.error.to_string().contains("failed in the store"));
        let future = failure(Box::new(RevisionError::Future("is a future one".into())));
        assert!(future.is_future() && !future.is_compacted());
        assert!(!failure("has been compacted".into()).is_compacted(), "words alone mean nothing");
    }
}
