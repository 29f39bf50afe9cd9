//! Conversion of the answers of etcd and its client to coord's errors. Nothing else looks at codes or
//! messages.

use std::{error::Error as _, time::Duration};

use coord_api::{BoxError, Error, LossReason};
use coord_grpc::is_unsent;
use coord_kv::store::{Effect, Failure, RevisionError};
use tonic::Code;

use crate::transport::{auth::NoCredentials, tls};

/// Advice for the case that no member can be reached.
pub(crate) const WHAT_TO_DO: &str = "check the endpoints, and that etcd runs and can be reached from here";

/// Advice for the case that etcd has raised its alarm about space.
const FREE_SPACE: &str = "it has reached its quota; compact and defragment it, or raise --quota-backend-bytes, and then \
                          run `etcdctl alarm disarm`";

/// Returns the failure of a request that no member was ready for.
pub(crate) fn not_sent() -> Failure {
    refused(unavailable(WHAT_TO_DO.into()))
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
    if let Some(error) = status.source().filter(|error| error.is::<NoCredentials>()) {
        let what = "the password for etcd".into();
        return refused(Error::Unavailable { what, source: Some(error.to_string().into()) });
    }
    if is_unsent(status) {
        return refused(not_connected(message));
    }
    let source = || -> BoxError { Box::new(status.clone()) };
    let by_words = WORDS.iter().find(|(words, _)| message.contains(words)).map(|(_, meaning)| *meaning);
    let meaning = by_words.unwrap_or_else(|| by_code(status));
    match meaning {
        Meaning::NotAllowed => refused(Error::PermissionDenied { operation, source: source() }),
        Meaning::NotAccepted => refused(Error::Unauthenticated { operation, source: source() }),
        Meaning::LeaseGone => lease_gone(),
        Meaning::Full => refused(Error::NoSpace { what: "etcd".into(), hint: FREE_SPACE, source: source() }),
        Meaning::NotNow => refused(unavailable(source())),
        Meaning::NoAnswer => unreachable_server(source()),
        Meaning::Late => Failure::timeout(operation, limit),
        Meaning::Compacted => {
            let source = Box::new(RevisionError::Compacted(source()));
            refused(Error::Backend { operation, source })
        }
        Meaning::Future => {
            let source = Box::new(RevisionError::Future(source()));
            refused(Error::Backend { operation, source })
        }
        Meaning::Other => refused(Error::Backend { operation, source: source() }),
        Meaning::Strange => {
            Failure { error: Error::Backend { operation, source: source() }, effect: Effect::Unknown }
        }
    }
}

/// Meaning of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Another user, or another role.
    NotAllowed,
    /// Other credentials, or another token.
    NotAccepted,
    LeaseGone,
    Full,
    /// The request was not begun. Another member may do it, or this one later.
    NotNow,
    /// The request may have been done.
    NoAnswer,
    /// No answer, after all the time of the request.
    Late,
    /// Revision that is not kept any more.
    Compacted,
    /// Revision that is not there yet.
    Future,
    /// Refusal for a reason that nobody foresaw.
    Other,
    /// Failure that is perhaps not only a refusal.
    Strange,
}

/// Words of etcd's messages. etcd uses few codes for many things, and not the same ones in each version; its
/// words have stayed. Whatever may be said after a write was handed on is `NoAnswer`.
const WORDS: &[(&str, Meaning)] = &[
    ("permission denied", Meaning::NotAllowed),
    // A wrong password, an unknown user, and no user where one is needed have the code of a bad argument.
    ("authentication failed", Meaning::NotAccepted),
    ("user name is empty", Meaning::NotAccepted),
    ("invalid auth token", Meaning::NotAccepted),
    ("revision of auth store is old", Meaning::NotAccepted),
    ("lease not found", Meaning::LeaseGone),
    ("database space exceeded", Meaning::Full),
    ("required revision has been compacted", Meaning::Compacted),
    ("required revision is a future revision", Meaning::Future),
    ("no leader", Meaning::NotNow),
    ("not leader", Meaning::NotNow),
    // The log has become longer than what is applied of it: refused before it is longer still.
    ("too many requests", Meaning::NotNow),
    // By a member without a leader, before anyone saw it.
    ("raft proposal dropped", Meaning::NotNow),
    // By a cluster that has not agreed on its version yet.
    ("not capable", Meaning::NotNow),
    ("not supported for learner", Meaning::NotNow),
    ("leader changed", Meaning::NoAnswer),
    // Also "possibly due to previous leader failure", and "… to connection lost".
    ("request timed out", Meaning::NoAnswer),
    ("server stopped", Meaning::NoAnswer),
    ("unhealthy cluster", Meaning::NoAnswer),
    // By a member that is being removed or shut down. It may have handed on what it was asked before.
    ("raft: stopped", Meaning::NoAnswer),
    ("permanently removed from the cluster", Meaning::NoAnswer),
    ("ID removed", Meaning::NoAnswer),
    ("mvcc: closed", Meaning::NoAnswer),
    ("server has been stopped", Meaning::NoAnswer),
    // In either spelling, by its release.
    ("request cancel", Meaning::NoAnswer),
    ("not a primary lessor", Meaning::NoAnswer),
    // The library's own timer.
    ("Timeout expired", Meaning::Late),
];

fn by_code(status: &tonic::Status) -> Meaning {
    match status.code() {
        Code::PermissionDenied => Meaning::NotAllowed,
        Code::Unauthenticated => Meaning::NotAccepted,
        Code::DeadlineExceeded => Meaning::Late,
        Code::Unavailable | Code::Cancelled => Meaning::NoAnswer,
        Code::Unknown | Code::Internal if is_transport(status) => Meaning::NoAnswer,
        Code::Unknown | Code::Internal | Code::DataLoss => Meaning::Strange,
        _ => Meaning::Other,
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

/// Returns the error for the balancer's words on why no member is ready.
fn not_connected(words: &str) -> Error {
    match tls::hint(words) {
        Some(hint) => Error::Tls { what: "etcd".into(), hint, source: words.into() },
        None => unavailable(format!("{words}: {WHAT_TO_DO}").into()),
    }
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
        use Effect::{None, Unknown};
        let (denied, credentials) = ("no permission", "credentials were not accepted");
        let (away, late, other) = ("etcd is unavailable", "got no answer within 5s", "failed in the store");
        let full = "no space left in etcd: it has reached its quota; compact";
        let table = [
            (Code::PermissionDenied, "etcdserver: permission denied", denied, None),
            (Code::Unauthenticated, "etcdserver: invalid auth token", credentials, None),
            // Lock and election services lose the code.
            (Code::Unknown, "etcdserver: invalid auth token", credentials, None),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                credentials,
                None,
            ),
            (Code::InvalidArgument, "etcdserver: user name is empty", credentials, None),
            (Code::InvalidArgument, "etcdserver: revision of auth store is old", credentials, None),
            (Code::NotFound, "etcdserver: requested lease not found", "no longer held", None),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded", full, None),
            (Code::DeadlineExceeded, "", late, Unknown),
            (Code::Cancelled, "Timeout expired", late, Unknown),
            (Code::Unavailable, "etcdserver: no leader", away, None),
            (Code::FailedPrecondition, "etcdserver: not leader", away, None),
            (Code::ResourceExhausted, "etcdserver: too many requests", away, None),
            (Code::Unknown, "raft proposal dropped", away, None),
            (Code::Unavailable, "etcdserver: not capable", away, None),
            (Code::Unavailable, "etcdserver: rpc not supported for learner", away, None),
            (Code::FailedPrecondition, "etcdserver: rpc not supported for learner", away, None),
            (Code::Unavailable, "etcdserver: leader changed", away, Unknown),
            (Code::Unavailable, "etcdserver: request timed out", away, Unknown),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to previous leader failure",
                away,
                Unknown,
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out, possibly due to connection lost",
                away,
                Unknown,
            ),
            (Code::Unavailable, "etcdserver: server stopped", away, Unknown),
            (Code::Unavailable, "etcdserver: unhealthy cluster", away, Unknown),
            (Code::Unknown, "raft: stopped", away, Unknown),
            (Code::Unknown, "etcdserver: server stopped", away, Unknown),
            (Code::Unknown, "the member has been permanently removed from the cluster", away, Unknown),
            (Code::Unknown, "membership: ID removed", away, Unknown),
            (Code::Unknown, "mvcc: closed", away, Unknown),
            (Code::Unknown, "grpc: the server has been stopped", away, Unknown),
            (Code::Unknown, "etcdserver: request cancelled", away, Unknown),
            (Code::Unknown, "etcdserver: request canceled", away, Unknown),
            (Code::Unknown, "not a primary lessor", away, Unknown),
            // Nothing but the balancer's own mark says that a request was not sent.
            (Code::Unavailable, "tcp connect error", away, Unknown),
            (Code::Unavailable, "etcd at h:1: connection closed", away, Unknown),
            (Code::Unknown, "h2 protocol error: broken pipe", away, Unknown),
            (Code::Internal, "h2 protocol error: error reading a body from connection", away, Unknown),
            (Code::Cancelled, "", away, Unknown),
            (Code::InvalidArgument, "etcdserver: request is too large", other, None),
            (Code::OutOfRange, "etcdserver: mvcc: required revision has been compacted", other, None),
            (Code::DataLoss, "etcdserver: corrupt cluster", other, Unknown),
            (Code::Unknown, "etcdserver: something new", other, Unknown),
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
