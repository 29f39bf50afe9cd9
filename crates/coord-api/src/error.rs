//! Error type of coord, whose variants tell the caller's next move.

use std::{fmt, time::Duration};

use crate::{LossReason, Version, names::ShownPath};

/// A result with coord's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A boxed cause, so that no backend's error type shows in a signature.
pub type BoxError = Box<dyn std::error::Error + Send + Sync + 'static>;

/// Error of any operation, named after what the caller can do about it.
///
/// Contention and absence are not errors: a lock that is held is `Ok(None)` from `try_acquire`, a key that
/// does not exist is `Ok(None)` from `get`. The cause, where there is one, is in
/// [`source()`](std::error::Error::source) and is not repeated in the message. No variant ever carries a
/// value that a user stored, a password or a key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument can not be used. Nothing was sent and nothing was changed: correct the argument.
    #[error("invalid {field}: {reason}")]
    InvalidArgument {
        /// The argument or the field of it that is wrong, for example `"ttl"`.
        field: &'static str,
        /// Reason, with the limit that it breaks.
        reason: String,
    },

    /// A conditional write found another version. Nothing was written: read again and decide anew.
    #[error("{key} is at version {actual}, not at {expected}: read it again and decide anew")]
    Conflict {
        /// The key whose version differs.
        key: String,
        /// The version that the write asked for.
        expected: Version,
        /// The version that the store has.
        actual: Version,
    },

    /// Another process is registered under this instance id: give each instance an id of its own.
    #[error("instance {id} of service {service} is already registered by {owner}")]
    AlreadyRegistered {
        /// The service's name.
        service: String,
        /// The instance id that is taken.
        id: String,
        /// Owner, as that process described itself.
        owner: String,
    },

    /// Every id of the range is taken: wait with `acquire_id`, or raise `max_id`.
    #[error("every id from 1 to {} is taken: wait for one, or raise max_id (now {max})", max.saturating_sub(1))]
    Exhausted {
        /// The exclusive upper bound of the range.
        max: u32,
    },

    /// The clock is so far behind earlier numbers that no larger one can be made: mend the clock that is
    /// wrong, or wait. With a `mark` they were made by an earlier holder of the id: then another id will do
    /// as well.
    #[error("the clock is {by:?} behind the numbers that were made before{}", ShownMark(mark.as_deref()))]
    ClockWentBack {
        /// How far.
        by: Duration,
        /// The key in the store that says up to when an earlier holder of the id made numbers, in milliseconds since
        /// 1970. `None` if this clock itself went back.
        mark: Option<String>,
    },

    /// A lock, an id or a registration is gone, and someone else may have it now: stop the work that relied
    /// on it, then acquire anew. A caller that only waited gets no such error: it waits on.
    #[error("no longer held: {reason}")]
    Lost {
        /// How it was lost.
        reason: LossReason,
    },

    /// A stored value is not of the expected type. The value is left as it is: mend the value or the type.
    #[error("{key} at version {version} does not have the expected form at {}", ShownPath(path))]
    Decode {
        /// The key of the value.
        key: String,
        /// The version that could not be decoded.
        version: Version,
        /// Where in the JSON the first difference is, for example `pools[2].size`.
        path: String,
        /// The decoder's own words, without the value.
        #[source]
        source: BoxError,
    },

    /// A required thing does not exist: write it, or say what to use in its place.
    #[error("{what} does not exist")]
    Missing {
        /// Missing thing, for example `config key limits`.
        what: String,
    },

    /// Something is larger than the store takes. Nothing was written: store less, or store a reference.
    #[error("{field} has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Part that is too large.
        field: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The largest size in bytes.
        limit: usize,
    },

    /// The store knows who asks and refuses: give the user a role that covers the namespace.
    #[error("{operation}: the user has no permission for this namespace, a role has to grant it")]
    PermissionDenied {
        /// Operation that was tried.
        operation: &'static str,
        /// The store's answer.
        #[source]
        source: BoxError,
    },

    /// The store does not accept the credentials: correct them. Where they come from a file or a provider, what is
    /// there is tried again by itself.
    #[error("{operation}: the credentials were not accepted, user name or password have to be corrected")]
    Unauthenticated {
        /// Operation that was tried.
        operation: &'static str,
        /// The store's answer.
        #[source]
        source: BoxError,
    },

    /// No trusted connection to the store can be made: mend what `hint` names. Nothing was sent. It is tried again by
    /// itself, with the files as they are then. Once there was a connection, one that only breaks off while TLS is being
    /// set up is [`Unavailable`](Self::Unavailable).
    #[error("no trusted connection to {what}: {hint}")]
    Tls {
        /// Unreachable peer, for example `etcd`.
        what: String,
        /// Reason and remedy.
        hint: String,
        /// The words of the TLS library, where there are some.
        #[source]
        source: BoxError,
    },

    /// The store takes no more writes until someone frees space: do what `hint` says. Nothing was written.
    /// Locks, ids and registrations stay held, and can be renewed and given back.
    #[error("no space left in {what}: {hint}")]
    NoSpace {
        /// Full store, for example `etcd`.
        what: String,
        /// Remedy.
        hint: &'static str,
        /// The store's answer.
        #[source]
        source: BoxError,
    },

    /// The store (or every instance of a service) can not be reached now. Nothing was changed: try later.
    #[error("{what} is unavailable")]
    Unavailable {
        /// Unreachable peer, for example `etcd` or a service's name.
        what: String,
        /// The transport's own words, where there are some.
        #[source]
        source: Option<BoxError>,
    },

    /// No answer came in time. A write may or may not take effect: read before writing again.
    #[error("{operation} got no answer within {after:?}")]
    Timeout {
        /// Operation that was tried.
        operation: &'static str,
        /// How long it was waited for.
        after: Duration,
    },

    /// The provider was closed: connect anew if the process goes on.
    #[error("the provider is closed")]
    Closed,

    /// The store answered with something that coord has no better name for. Please report it.
    #[error("{operation} failed in the store")]
    Backend {
        /// Operation that was tried.
        operation: &'static str,
        /// The store's answer.
        #[source]
        source: BoxError,
    },
}

/// Whose clock is wrong, and what to do about it.
struct ShownMark<'a>(Option<&'a str>);

impl fmt::Display for ShownMark<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(mark) = self.0 else { return f.write_str(": mend it, or wait") };
        let key = ShownPath(mark);
        write!(
            f,
            " with this id: the clock of an earlier holder was ahead, as {key} tells, or this one is wrong: mend it, take \
             another id, or delete that key while nobody holds the id"
        )
    }
}

impl Error {
    /// Returns whether the call may succeed later without the caller mending anything.
    ///
    /// True for [`Unavailable`](Self::Unavailable), [`Exhausted`](Self::Exhausted),
    /// [`ClockWentBack`](Self::ClockWentBack) and [`Timeout`](Self::Timeout); after a `Timeout` of an unconditional write,
    /// read first. Also for [`Tls`](Self::Tls), since certificates are often renewed by machines.
    ///
    /// ```
    /// use coord_api::Error;
    /// assert!(Error::Unavailable { what: "etcd".into(), source: None }.is_retryable());
    /// assert!(!Error::Closed.is_retryable());
    /// ```
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            Self::Unavailable { .. }
                | Self::Tls { .. }
                | Self::Timeout { .. }
                | Self::Exhausted { .. }
                | Self::ClockWentBack { .. }
        )
    }

    /// Returns a copy of this error, for another caller that shares its outcome; for backends.
    ///
    /// A cause is kept as its words, since errors can not be cloned.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        let words = |source: &BoxError| -> BoxError { source.to_string().into() };
        match self {
            Self::InvalidArgument { field, reason } => Self::invalid(field, reason.as_str()),
            Self::Conflict { key, expected, actual } => {
                Self::Conflict { key: key.clone(), expected: *expected, actual: *actual }
            }
            Self::AlreadyRegistered { service, id, owner } => {
                Self::AlreadyRegistered { service: service.clone(), id: id.clone(), owner: owner.clone() }
            }
            Self::Exhausted { max } => Self::Exhausted { max: *max },
            Self::ClockWentBack { by, mark } => Self::ClockWentBack { by: *by, mark: mark.clone() },
            Self::Lost { reason } => Self::Lost { reason: *reason },
            Self::Decode { key, version, path, source } => {
                let (key, version, path) = (key.clone(), *version, path.clone());
                Self::Decode { key, version, path, source: words(source) }
            }
            Self::Missing { what } => Self::Missing { what: what.clone() },
            Self::TooLarge { field, size, limit } => Self::TooLarge { field, size: *size, limit: *limit },
            Self::PermissionDenied { operation, source } => {
                Self::PermissionDenied { operation, source: words(source) }
            }
            Self::Unauthenticated { operation, source } => {
                Self::Unauthenticated { operation, source: words(source) }
            }
            Self::Tls { what, hint, source } => {
                Self::Tls { what: what.clone(), hint: hint.clone(), source: words(source) }
            }
            Self::NoSpace { what, hint, source } => {
                Self::NoSpace { what: what.clone(), hint, source: words(source) }
            }
            Self::Unavailable { what, source } => {
                Self::Unavailable { what: what.clone(), source: source.as_ref().map(words) }
            }
            Self::Timeout { operation, after } => Self::Timeout { operation, after: *after },
            Self::Closed => Self::Closed,
            Self::Backend { operation, source } => Self::Backend { operation, source: words(source) },
        }
    }

    /// Returns an [`InvalidArgument`](Self::InvalidArgument) in one line, for backends.
    pub fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::InvalidArgument { field, reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn messages_name_the_field_and_do_not_repeat_the_source() {
        let error = Error::Unavailable { what: "etcd".into(), source: Some("connection refused".into()) };
        assert_eq!(error.to_string(), "etcd is unavailable");
        assert_eq!(error.source().expect("has a source").to_string(), "connection refused");
        assert_eq!(Error::invalid("ttl", "0ns is below 1s").to_string(), "invalid ttl: 0ns is below 1s");
        assert_eq!(
            Error::Exhausted { max: 1 }.to_string(),
            "every id from 1 to 0 is taken: wait for one, or raise max_id (now 1)"
        );
    }

    #[test]
    fn duplicate_has_the_same_words_and_those_of_its_source() {
        let source = || -> BoxError { "refused".into() };
        let errors = [
            Error::invalid("ttl", "is 0"),
            Error::Conflict { key: "a".into(), expected: Version::new(1), actual: Version::new(2) },
            Error::AlreadyRegistered { service: "s".into(), id: "1".into(), owner: "o".into() },
            Error::Exhausted { max: 8 },
            Error::ClockWentBack { by: Duration::from_secs(1), mark: Some("k".into()) },
            Error::Lost { reason: LossReason::Revoked },
            Error::Decode { key: "a".into(), version: Version::new(1), path: "b".into(), source: source() },
            Error::Missing { what: "a".into() },
            Error::TooLarge { field: "value", size: 2, limit: 1 },
            Error::PermissionDenied { operation: "get", source: source() },
            Error::Unauthenticated { operation: "get", source: source() },
            Error::Tls { what: "etcd".into(), hint: "h".into(), source: source() },
            Error::NoSpace { what: "etcd".into(), hint: "h", source: source() },
            Error::Unavailable { what: "etcd".into(), source: Some(source()) },
            Error::Timeout { operation: "get", after: Duration::from_secs(1) },
            Error::Closed,
            Error::Backend { operation: "get", source: source() },
        ];
        let words = |error: &Error| (error.to_string(), error.source().map(ToString::to_string));
        for error in errors {
            assert_eq!(words(&error), words(&error.duplicate()));
            assert_eq!(std::mem::discriminant(&error), std::mem::discriminant(&error.duplicate()));
        }
    }

    #[test]
    fn passing_conditions_are_retryable() {
        assert!(Error::Exhausted { max: 2 }.is_retryable());
        assert!(!Error::Lost { reason: LossReason::Expired }.is_retryable());
        assert!(!Error::invalid("name", "is empty").is_retryable());
    }

    #[test]
    fn error_is_small_enough_to_return_by_value() {
        assert!(size_of::<Error>() <= 96, "{}", size_of::<Error>());
    }
}
