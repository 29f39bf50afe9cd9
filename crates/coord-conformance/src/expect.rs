//! Assertions about errors that say what came instead.

use std::fmt::Debug;

use coord_api::{Error, LossReason, Result, Version};

/// The reason of an [`Error::Lost`].
#[track_caller]
pub(crate) fn expect_lost<T: Debug>(result: Result<T>) -> LossReason {
    match result {
        Err(Error::Lost { reason }) => reason,
        other => panic!("expected Lost, got {other:?}"),
    }
}

/// An [`Error::Closed`].
#[track_caller]
pub(crate) fn expect_closed<T: Debug>(result: Result<T>) {
    match result {
        Err(Error::Closed) => {}
        other => panic!("expected Closed, got {other:?}"),
    }
}

/// An [`Error::InvalidArgument`] of `field` with a reason.
#[track_caller]
pub(crate) fn expect_invalid<T: Debug>(expected: &str, what: &str, result: Result<T>) {
    match result {
        Err(Error::InvalidArgument { field, reason }) => {
            assert_eq!(field, expected, "{what:?}");
            assert!(!reason.is_empty(), "{what:?} is refused without a reason");
        }
        other => panic!("expected {what:?} to be an invalid {expected}, got {other:?}"),
    }
}

/// An [`Error::TooLarge`] of `field`.
#[track_caller]
pub(crate) fn expect_too_large<T: Debug>(expected: &str, result: Result<T>) {
    match result {
        Err(Error::TooLarge { field, size, limit }) => {
            assert_eq!(field, expected);
            assert!(size > limit, "{size} bytes are within {limit}");
        }
        other => panic!("expected a {expected} that is TooLarge, got {other:?}"),
    }
}

/// What a call answers while the store is out of reach.
#[track_caller]
pub(crate) fn expect_unreachable<T: Debug>(result: Result<T>) {
    match result {
        Err(error @ (Error::Unavailable { .. } | Error::Timeout { .. })) => {
            assert!(error.is_retryable(), "{error:?}");
        }
        other => panic!("expected Unavailable or Timeout, got {other:?}"),
    }
}

/// An [`Error::Conflict`] of `key`.
#[track_caller]
pub(crate) fn expect_conflict<T: Debug>(key: &str, expected: Version, actual: Version, result: Result<T>) {
    match result {
        Err(Error::Conflict { key: found, expected: asked, actual: there }) => {
            assert_eq!((found.as_str(), asked, there), (key, expected, actual));
        }
        other => panic!("expected a Conflict of {key}, got {other:?}"),
    }
}

/// The key and path of an [`Error::Decode`].
#[track_caller]
pub(crate) fn expect_decode<T: Debug>(result: Result<T>) -> (String, String) {
    match result {
        Err(Error::Decode { key, path, .. }) => (key, path),
        other => panic!("expected Decode, got {other:?}"),
    }
}
