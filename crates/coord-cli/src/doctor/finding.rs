//! What was found, and what to do about it. No I/O.

use coord_api::Error;
use serde_json::{Value, json};

use crate::exit::with_causes;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// It works, but not as well as it could.
    Warning,
    /// Something of coord does not work.
    Problem,
    /// It could not be looked at.
    Skipped,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) check: &'static str,
    pub(crate) level: Level,
    pub(crate) said: String,
    pub(crate) advice: Option<String>,
}

impl Finding {
    pub(crate) fn ok(check: &'static str, said: impl Into<String>) -> Self {
        Self { check, level: Level::Ok, said: said.into(), advice: None }
    }

    pub(crate) fn new(
        level: Level,
        check: &'static str,
        said: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { check, level, said: said.into(), advice: Some(advice.into()) }
    }

    /// As it is documented.
    pub(crate) fn json(&self) -> Value {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Problem => "problem",
            Level::Skipped => "skipped",
        };
        json!({ "check": self.check, "level": level, "said": self.said, "advice": self.advice })
    }
}

/// Why there is no connection.
pub(super) fn of_connection(error: &Error, url: &str) -> Finding {
    let said = with_causes(error);
    let advice = match error {
        Error::Unauthenticated { .. } => {
            "check --username and --password-file or COORD_PASSWORD; `etcdctl user list` shows the users"
                .to_owned()
        }
        Error::Tls { hint, .. } => {
            format!("{hint}; see --ca-file, --server-name, and --cert-file with --key-file")
        }
        Error::Unavailable { .. } | Error::Timeout { .. } => format!(
            "is etcd at {url}? Try `etcdctl --endpoints HOST:PORT endpoint health`; see --url, firewalls, and --tls if \
             etcd speaks TLS only"
        ),
        Error::InvalidArgument { .. } => "correct the option".into(),
        _ => "please report it".into(),
    };
    Finding::new(Level::Problem, "connection", said, advice)
}

/// Why something in an area of the namespace does not work.
pub(super) fn of_area(area: &'static str, error: &Error) -> Finding {
    let advice = match error {
        Error::PermissionDenied { .. } => {
            "the user needs read and write: `etcdctl role grant-permission ROLE --prefix=true readwrite /NAMESPACE/`, \
             or on each root of the layout and on /NAMESPACE/internal/"
                .to_owned()
        }
        Error::Unauthenticated { .. } => "check --username and --password-file or COORD_PASSWORD".into(),
        Error::Tls { hint, .. } => {
            format!("{hint}; see --ca-file, --server-name, and --cert-file with --key-file")
        }
        Error::Unavailable { .. } | Error::Timeout { .. } => {
            "has etcd lost its quorum? Try `etcdctl endpoint status --cluster`".into()
        }
        Error::NoSpace { .. } => {
            "etcd refuses writes: compact, defragment, then `etcdctl alarm disarm`; or raise --quota-backend-bytes"
                .into()
        }
        _ => "please report it".into(),
    };
    Finding::new(Level::Problem, area, with_causes(error), advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_has_its_advice() {
        let refused = Error::Unavailable { what: "etcd".into(), source: Some("connection refused".into()) };
        let certificate = Error::Tls {
            what: "etcd".into(),
            hint: "its certificate was signed by an unknown authority".into(),
            source: "invalid peer certificate: UnknownIssuer".into(),
        };
        let password =
            Error::Unauthenticated { operation: "connect", source: "authentication failed".into() };
        for (error, words) in
            [(refused, "is etcd at"), (certificate, "--ca-file"), (password, "--password-file")]
        {
            let finding = of_connection(&error, "etcd://h:1");
            assert_eq!(finding.level, Level::Problem);
            assert!(finding.advice.as_ref().is_some_and(|advice| advice.contains(words)), "{finding:?}");
        }
        let denied = Error::PermissionDenied { operation: "get", source: "permission denied".into() };
        let full = Error::NoSpace { what: "etcd".into(), hint: "free some", source: "space exceeded".into() };
        for (error, words) in [(denied, "grant-permission"), (full, "defragment")] {
            let finding = of_area("locks", &error);
            assert!(finding.advice.as_ref().is_some_and(|advice| advice.contains(words)), "{finding:?}");
        }
    }
}
