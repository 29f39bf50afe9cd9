//! What etcd and its client answer, as coord's errors. Nothing else looks at codes or messages.

use std::{error::Error as _, time::Duration};

use coord_api::{BoxError, Error, LossReason};
use coord_grpc::is_unsent;
use tonic::Code;

/// When no member can be reached.
const WHAT_TO_DO: &str = "check the endpoints, and that etcd runs and can be reached from here";

/// Whether a request may have taken effect although it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The server refused it, or it was never sent.
    None,
    /// Nobody knows: the answer was lost.
    Unknown,
}

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) effect: Effect,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        failure.error
    }
}

impl Failure {
    /// The client is gone, and the request was not sent.
    pub(crate) fn closed() -> Self {
        Self { error: Error::Closed, effect: Effect::None }
    }

    /// The request was not sent, since no member was ready for it.
    pub(crate) fn not_sent() -> Self {
        refused(unavailable(WHAT_TO_DO.into()))
    }

    /// The same failure for another request that shared its fate.
    pub(crate) fn again(&self) -> Self {
        let error = match &self.error {
            Error::Timeout { operation, after } => Error::Timeout { operation, after: *after },
            Error::Closed => Error::Closed,
            other => unavailable(other.to_string().into()),
        };
        Self { error, effect: self.effect }
    }

    /// The request was not answered in time.
    pub(crate) fn timeout(operation: &'static str, after: Duration) -> Self {
        Self { error: Error::Timeout { operation, after }, effect: Effect::Unknown }
    }
}

/// Classifies what the client library answered to `operation`, which was given `limit`.
pub(crate) fn classify(operation: &'static str, limit: Duration, error: etcd_client::Error) -> Failure {
    use etcd_client::Error as E;
    match error {
        E::GRpcStatus(status) => classify_status(operation, limit, &status),
        E::TransportError(error) => unreachable_server(error.into()),
        E::LeaseKeepAliveError(message) if message.contains("not found") => lease_gone(),
        // The streams of the client library end with these.
        E::LeaseKeepAliveError(message) | E::WatchError(message) => unreachable_server(message.into()),
        other => refused(Error::Backend { operation, source: Box::new(other) }),
    }
}

fn classify_status(operation: &'static str, limit: Duration, status: &tonic::Status) -> Failure {
    let message = status.message();
    if is_unsent(status) {
        return refused(unavailable(format!("{message}: {WHAT_TO_DO}").into()));
    }
    let source = || -> BoxError { Box::new(status.clone()) };
    match status.code() {
        Code::PermissionDenied => refused(Error::PermissionDenied { operation, source: source() }),
        Code::Unauthenticated => refused(Error::Unauthenticated { operation, source: source() }),
        // etcd says so for a wrong password, an unknown user, and no user where one is needed.
        Code::InvalidArgument
            if message.contains("authentication failed") || message.contains("user name is empty") =>
        {
            refused(Error::Unauthenticated { operation, source: source() })
        }
        Code::NotFound if message.contains("lease not found") => lease_gone(),
        Code::ResourceExhausted if message.contains("space exceeded") => {
            refused(Error::Full { operation, source: source() })
        }
        Code::ResourceExhausted if message.contains("too many requests") => refused(unavailable(source())),
        Code::DeadlineExceeded => Failure::timeout(operation, limit),
        // The client library's own timer says it in this way.
        Code::Cancelled if message.contains("Timeout expired") => Failure::timeout(operation, limit),
        Code::Unavailable if message.contains("no leader") || message.contains("not leader") => {
            refused(unavailable(source()))
        }
        Code::Unavailable | Code::Cancelled => unreachable_server(source()),
        Code::Unknown | Code::Internal if is_transport(status) => unreachable_server(source()),
        _ => refused(Error::Backend { operation, source: source() }),
    }
}

fn is_transport(status: &tonic::Status) -> bool {
    let message = status.message();
    status.source().is_some()
        || ["h2 protocol", "transport", "connection"].iter().any(|w| message.contains(w))
}

fn unavailable(source: BoxError) -> Error {
    Error::Unavailable { what: "etcd".into(), source: Some(source) }
}

fn refused(error: Error) -> Failure {
    Failure { error, effect: Effect::None }
}

fn unreachable_server(source: BoxError) -> Failure {
    Failure { error: unavailable(source), effect: Effect::Unknown }
}

fn lease_gone() -> Failure {
    refused(Error::Lost { reason: LossReason::Revoked })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[test]
    fn every_known_answer_has_its_error() {
        let table = [
            (Code::PermissionDenied, "etcdserver: permission denied", "no permission", Effect::None),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                "credentials were not accepted",
                Effect::None,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                "credentials were not accepted",
                Effect::None,
            ),
            (
                Code::InvalidArgument,
                "etcdserver: user name is empty",
                "credentials were not accepted",
                Effect::None,
            ),
            (Code::NotFound, "etcdserver: requested lease not found", "no longer held", Effect::None),
            (Code::DeadlineExceeded, "", "got no answer within 5s", Effect::Unknown),
            (Code::Cancelled, "Timeout expired", "got no answer within 5s", Effect::Unknown),
            (Code::Unavailable, "etcdserver: request timed out", "etcd is unavailable", Effect::Unknown),
            (Code::Unavailable, "etcdserver: no leader", "etcd is unavailable", Effect::None),
            // Nothing but the balancer's own mark says that a request was not sent.
            (Code::Unavailable, "tcp connect error", "etcd is unavailable", Effect::Unknown),
            (Code::Unknown, "h2 protocol error: broken pipe", "etcd is unavailable", Effect::Unknown),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                "the store is full",
                Effect::None,
            ),
            (Code::ResourceExhausted, "etcdserver: too many requests", "etcd is unavailable", Effect::None),
        ];
        for (code, message, expected, effect) in table {
            let answer = etcd_client::Error::GRpcStatus(tonic::Status::new(code, message));
            let failure = classify("get", LIMIT, answer);
            assert!(failure.error.to_string().contains(expected), "{code:?} {message}: {}", failure.error);
            assert_eq!(failure.effect, effect, "{code:?} {message}");
        }
    }

    #[test]
    fn a_keep_alive_for_a_lease_that_is_gone_is_a_loss() {
        let answer = etcd_client::Error::LeaseKeepAliveError("lease not found".into());
        let failure = classify("renew", LIMIT, answer);
        assert!(matches!(failure.error, Error::Lost { reason: LossReason::Revoked }));
    }
}
