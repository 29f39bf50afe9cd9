//! Outcome of a call, and whether it counts as a failure of the instance. Pure.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode, header::CONTENT_TYPE};
use tonic::Code;

/// Outcome of a call, as it counts for its instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Instance did its work.
    Success,
    /// Instance failed. Another one might have done better.
    ServersFailure,
    /// Caller asked for something impossible, or gave up. It tells nothing about the instance.
    CallersFault,
}

/// Ending of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Status of gRPC.
    Status(Code),
    /// No status: the server does not speak gRPC, or broke off.
    NoStatus,
}

impl Ending {
    /// Returns the ending in the head of a response; `None` if it comes later, in trailers.
    pub(crate) fn of_head<B: http_body::Body>(response: &Response<B>) -> Option<Self> {
        let headers = response.headers();
        if let Some(code) = code(headers) {
            return Some(Self::Status(code));
        }
        let kind = headers.get(CONTENT_TYPE).map(http::HeaderValue::as_bytes).unwrap_or_default();
        let is_grpc = response.status() == StatusCode::OK && kind.starts_with(b"application/grpc");
        (!is_grpc || response.body().is_end_stream()).then_some(Self::NoStatus)
    }

    /// Returns the ending in trailers.
    pub(crate) fn of_trailers(trailers: &HeaderMap) -> Self {
        code(trailers).map_or(Self::NoStatus, Self::Status)
    }
}

fn code(headers: &HeaderMap) -> Option<Code> {
    headers.get("grpc-status").map(|code| Code::from_bytes(code.as_bytes()))
}

/// Codes that count as failures of a server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Failures {
    /// All codes but success and the faults of callers.
    #[default]
    AllServers,
    /// Chosen codes, as bits. All others are as good as success.
    Only(u32),
}

impl Failures {
    pub(crate) fn only(codes: impl IntoIterator<Item = Code>) -> Self {
        Self::Only(codes.into_iter().fold(0, |bits, code| bits | 1 << (code as u32)))
    }

    /// Judges an ending that came after `took`, of a call that its caller gave `limit`.
    pub(crate) fn judge(self, ending: Ending, took: Duration, limit: Option<Duration>) -> Outcome {
        let Ending::Status(code) = ending else { return Outcome::ServersFailure };
        match self {
            _ if code == Code::Ok => Outcome::Success,
            Self::Only(codes) if codes & 1 << (code as u32) == 0 => Outcome::Success,
            Self::Only(_) => Outcome::ServersFailure,
            Self::AllServers => match code {
                Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Cancelled
                // Permission is a matter of the caller, and a conflict is one between callers.
                | Code::PermissionDenied
                | Code::Aborted => Outcome::CallersFault,
                // The caller's own deadline, less the time that the request travelled.
                Code::DeadlineExceeded if limit.is_some_and(|limit| took >= limit.mul_f64(0.9)) => {
                    Outcome::CallersFault
                }
                _ => Outcome::ServersFailure,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::body::Body;

    use super::*;

    fn judged(failures: Failures, code: Code) -> Outcome {
        failures.judge(Ending::Status(code), Duration::from_secs(1), None)
    }

    #[test]
    fn codes_are_success_or_the_fault_of_one_side() {
        use Code::*;
        assert_eq!(judged(Failures::AllServers, Ok), Outcome::Success);
        let callers_deadline = [
            InvalidArgument,
            NotFound,
            AlreadyExists,
            FailedPrecondition,
            OutOfRange,
            Cancelled,
            PermissionDenied,
            Aborted,
        ];
        for number in 1..=16 {
            let code = Code::from(number);
            let expected = if callers_deadline.contains(&code) {
                Outcome::CallersFault
            } else {
                Outcome::ServersFailure
            };
            assert_eq!(judged(Failures::AllServers, code), expected, "{code:?}");
        }
    }

    #[test]
    fn chosen_codes_alone_are_failures_and_the_rest_is_success() {
        let only = Failures::only([Code::Unavailable, Code::DataLoss]);
        for number in 0..=16 {
            let code = Code::from(number);
            let is_failure = [Code::Unavailable, Code::DataLoss].contains(&code);
            let expected = if is_failure { Outcome::ServersFailure } else { Outcome::Success };
            assert_eq!(judged(only, code), expected, "{code:?}");
        }
        assert_eq!(only.judge(Ending::NoStatus, Duration::ZERO, None), Outcome::ServersFailure);
    }

    #[test]
    fn deadline_that_the_caller_set_is_no_failure_of_the_server() {
        let judge = |limit| {
            let ending = Ending::Status(Code::DeadlineExceeded);
            Failures::AllServers.judge(ending, Duration::from_millis(100), limit)
        };
        assert_eq!(judge(None), Outcome::ServersFailure);
        assert_eq!(judge(Some(Duration::from_millis(105))), Outcome::CallersFault);
        assert_eq!(judge(Some(Duration::from_secs(1))), Outcome::ServersFailure, "it was a limit of its own");
    }

    #[test]
    fn heads_tell_the_ending_unless_trailers_follow() {
        let grpc = |status: Option<&str>| {
            let mut response = Response::builder().header(CONTENT_TYPE, "application/grpc+proto");
            if let Some(status) = status {
                response = response.header("grpc-status", status);
            }
            response
        };
        let more = || Body::new("more".to_owned());
        let page = Response::builder().header(CONTENT_TYPE, "text/html");
        let table = [
            (grpc(None).body(more()), None),
            (grpc(None).body(Body::empty()), Some(Ending::NoStatus)),
            (grpc(Some("13")).body(Body::empty()), Some(Ending::Status(Code::Internal))),
            (grpc(Some("0")).body(Body::empty()), Some(Ending::Status(Code::Ok))),
            (grpc(Some("x")).body(Body::empty()), Some(Ending::Status(Code::Unknown))),
            (grpc(None).status(503).body(more()), Some(Ending::NoStatus)),
            (page.body(more()), Some(Ending::NoStatus)),
            (Response::builder().body(more()), Some(Ending::NoStatus)),
        ];
        for (response, expected) in table {
            let response = response.expect("is good");
            assert_eq!(Ending::of_head(&response), expected, "{response:?}");
        }
        assert_eq!(Ending::of_trailers(&HeaderMap::new()), Ending::NoStatus);
    }
}
