//! How the command ends: its exit codes, and what it says when it fails.

use std::{error::Error as _, fmt, io, process::ExitStatus};

use coord_api::Error;

/// The codes that `coord` itself ends with; whatever a command that it runs ends with is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit(pub(crate) u8);

impl Exit {
    pub(crate) const OK: Self = Self(0);
    /// Something failed that has no code of its own; `doctor` found a problem.
    pub(crate) const FAILED: Self = Self(1);
    /// An argument can not be used. clap ends with the same.
    pub(crate) const USAGE: Self = Self(2);
    /// What was asked for does not exist.
    pub(crate) const ABSENT: Self = Self(3);
    /// Somebody else was first: another version, another owner.
    pub(crate) const CONFLICT: Self = Self(4);
    /// Credentials or certificates were not accepted, or the user may not do this.
    pub(crate) const DENIED: Self = Self(5);
    /// etcd can not be reached, did not answer in time, or takes no writes.
    pub(crate) const UNAVAILABLE: Self = Self(69);
    /// The lock or id was not free (in time): nothing was run.
    pub(crate) const NOT_ACQUIRED: Self = Self(75);
    /// The lock or id was lost while the command ran.
    pub(crate) const LOST: Self = Self(76);
    /// The command is there but can not be run.
    pub(crate) const NOT_RUNNABLE: Self = Self(126);
    /// The command was not found.
    pub(crate) const NOT_FOUND: Self = Self(127);

    /// As shells tell the end by a signal.
    pub(crate) fn of_signal(signal: i32) -> Self {
        // There are 64 signals.
        Self(u8::try_from(128 + signal).unwrap_or(u8::MAX))
    }

    /// What a command ended with.
    pub(crate) fn of_status(status: ExitStatus) -> Self {
        use std::os::unix::process::ExitStatusExt;
        match (status.code(), status.signal()) {
            (Some(code), _) => Self(u8::try_from(code & 0xff).expect("was cut to a byte")),
            (None, Some(signal)) => Self::of_signal(signal),
            (None, None) => Self::FAILED,
        }
    }
}

/// Printed by `--help`, so that the list is where people look first.
pub(crate) const HELP: &str = "\
Exit codes:
  0    done
  1    failed; `doctor` found a problem
  2    an argument can not be used
  3    what was asked for does not exist
  4    somebody else was first: another version, another owner
  5    credentials or certificates not accepted, or no permission
  69   etcd can not be reached, did not answer in time, or is full
  75   etcd says that the lock or id was not free, or another one leads (in time); CMD was not run
  76   the lock, id or leadership was lost while CMD ran; CMD was stopped
  126  CMD can not be run
  127  CMD was not found
  128+N  ended by signal N
  Otherwise the exit code of CMD is passed on.";

/// Why the command ends without having done what was asked.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// A word for programs.
    pub(crate) kind: &'static str,
    /// For people.
    pub(crate) message: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, kind: &'static str, message: impl Into<String>) -> Self {
        Self { exit, kind, message: message.into() }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::USAGE, "invalid_argument", message)
    }

    pub(crate) fn absent(message: impl Into<String>) -> Self {
        Self::new(Exit::ABSENT, "absent", message)
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::FAILED, "failed", message)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let (exit, kind) = match &error {
            Error::InvalidArgument { .. } => (Exit::USAGE, "invalid_argument"),
            Error::TooLarge { .. } => (Exit::USAGE, "too_large"),
            Error::Missing { .. } => (Exit::ABSENT, "absent"),
            Error::Conflict { .. } => (Exit::CONFLICT, "conflict"),
            Error::AlreadyRegistered { .. } => (Exit::CONFLICT, "already_registered"),
            Error::PermissionDenied { .. } => (Exit::DENIED, "permission_denied"),
            Error::Unauthenticated { .. } => (Exit::DENIED, "unauthenticated"),
            Error::Unavailable { .. } => (Exit::UNAVAILABLE, "unavailable"),
            Error::Timeout { .. } => (Exit::UNAVAILABLE, "timeout"),
            Error::NoSpace { .. } => (Exit::UNAVAILABLE, "no_space"),
            Error::Tls { .. } => (Exit::DENIED, "tls"),
            Error::Exhausted { .. } => (Exit::NOT_ACQUIRED, "exhausted"),
            // `LOST` is for a command that was stopped, and this one was not: it has ended or was never run.
            Error::Lost { .. } => (Exit::UNAVAILABLE, "lost"),
            Error::Decode { .. } => (Exit::FAILED, "decode"),
            _ => (Exit::FAILED, "failed"),
        };
        Self { exit, kind, message: with_causes(&error) }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// An error with its causes; the same words are not said twice.
pub(crate) fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_the_documented_codes() {
        let table = [
            (Error::invalid("ttl", "0ns is below 1s"), Exit::USAGE),
            (Error::Missing { what: "version 7".into() }, Exit::ABSENT),
            (Error::Unavailable { what: "etcd".into(), source: Some("refused".into()) }, Exit::UNAVAILABLE),
            (Error::PermissionDenied { operation: "get", source: "denied".into() }, Exit::DENIED),
            (Error::Exhausted { max: 3 }, Exit::NOT_ACQUIRED),
            (Error::Closed, Exit::FAILED),
            (Error::Lost { reason: coord_api::LossReason::Expired }, Exit::UNAVAILABLE),
        ];
        for (error, exit) in table {
            assert_eq!(Failure::from(error).exit, exit);
        }
        for code in [0, 1, 2, 3, 4, 5, 69, 75, 76, 126, 127] {
            assert!(HELP.lines().any(|line| line.trim().starts_with(&format!("{code} "))), "{code}");
        }
    }

    #[test]
    fn causes_follow_once() {
        let error = Error::Unavailable { what: "etcd".into(), source: Some("connection refused".into()) };
        assert_eq!(Failure::from(error).message, "etcd is unavailable: connection refused");
    }
}
