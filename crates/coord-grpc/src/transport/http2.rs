//! HTTP/2 sender of one connection: coord's own client, or tonic's channel where there is TLS.
//!
//! Each request is a stream of the connection, multiplexed with the others.

use coord_api::BoxError;
use http::{
    HeaderValue, Method, Request, Response, Uri, Version,
    header::{CONTENT_TYPE, USER_AGENT},
    request::Parts as Head,
    uri::{Authority, Parts, Scheme},
};
use tonic::{body::Body, transport::Channel};
use tower_service::Service;

use super::{h2_client::H2Client, request_body::RecoverableBody};

const AGENT: &str = concat!("coord/", env!("CARGO_PKG_VERSION"));

/// Message without fields: not compressed, and zero bytes long.
///
/// Some servers would wait for a message if there were none, such as those in Go that read HTTP/2 themselves.
const EMPTY_MESSAGE: &str = "\0\0\0\0\0";

/// Sender of one connection, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Http2 {
    /// Client of coord: a call is a stream from its beginning. tonic's channel puts two queues and two tasks before it.
    Direct { client: H2Client, authority: Authority },
    /// Channel of tonic, for TLS, which is configured in tonic's terms.
    Channel(Channel),
}

/// Error of a request that got no answer.
pub(crate) struct SendError {
    pub(crate) error: BoxError,
    pub(crate) kind: SendErrorKind,
}

/// Knowledge about a request that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendErrorKind {
    /// Request never left this process, and its connection takes no more calls.
    Unsent,
    /// GOAWAY: the server ended the connection, and said that it had not seen the request.
    GoneAway,
    /// `REFUSED_STREAM`: the server said that it did not begin with the request.
    Refused,
    /// Body of the request failed.
    CallerBody,
    /// Request may have been executed.
    Unknown,
}

impl SendErrorKind {
    /// Classifies the error of a stream. Only streams that the server will never process get a GOAWAY as their error.
    pub(crate) fn of(error: &h2::Error) -> Self {
        match error.reason() {
            Some(_) if error.is_go_away() && error.is_remote() => Self::GoneAway,
            Some(h2::Reason::REFUSED_STREAM) if error.is_reset() && error.is_remote() => Self::Refused,
            _ => Self::Unknown,
        }
    }

    /// Returns whether the server has certainly not processed the request.
    pub(crate) fn had_no_effect(self) -> bool {
        matches!(self, Self::Unsent | Self::GoneAway | Self::Refused)
    }
}

impl SendError {
    pub(crate) fn unsent(error: impl Into<BoxError>) -> Self {
        Self { error: error.into(), kind: SendErrorKind::Unsent }
    }

    fn unknown(error: impl Into<BoxError>) -> Self {
        Self { error: error.into(), kind: SendErrorKind::Unknown }
    }
}

impl Http2 {
    /// Makes one call.
    pub(crate) async fn send(&self, head: Head, body: &RecoverableBody) -> Result<Response<Body>, SendError> {
        match self {
            Self::Direct { client, authority } => {
                let answer = client.call(addressed(head, authority)?, body.reader()).await?;
                Ok(answer.map(Body::new))
            }
            Self::Channel(channel) => send_through(channel.clone(), head, body).await,
        }
    }

    /// Probes the instance: sends an empty message to the method `path`. Any answer is a good one.
    pub(crate) async fn probe(&self, path: &str) -> Result<(), BoxError> {
        let mut request = Request::new(Body::new(EMPTY_MESSAGE.to_owned()));
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        *request.uri_mut() = Uri::try_from(path).expect("the options were checked");
        request.headers_mut().insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
        let (head, body) = request.into_parts();
        self.send(head, &RecoverableBody::new(body, 0)).await.map(drop).map_err(|failed| failed.error)
    }
}

async fn send_through(
    mut channel: Channel,
    head: Head,
    body: &RecoverableBody,
) -> Result<Response<Body>, SendError> {
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(SendError::unsent)?;
    let request = Request::from_parts(head, Body::new(body.reader()));
    channel.call(request).await.map_err(|error| {
        let kind = kind_through(&error, body.was_polled());
        SendError { error: error.into(), kind }
    })
}

/// Classifies the error of a request that was given to tonic's channel.
///
/// hyper reports a GOAWAY also to a stream that it had just opened, whether the server has seen it or not. Nothing was read
/// of such a request's body, so the outcome is unknown.
fn kind_through(error: &tonic::transport::Error, was_polled: bool) -> SendErrorKind {
    let is_unsent = |error: &(dyn std::error::Error + 'static)| {
        error.is::<tonic::ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    };
    if !was_polled && error_chain(error).any(is_unsent) {
        return SendErrorKind::Unsent;
    }
    match error_chain(error)
        .find_map(|error| error.downcast_ref())
        .map_or(SendErrorKind::Unknown, SendErrorKind::of)
    {
        SendErrorKind::GoneAway if !was_polled => SendErrorKind::Unknown,
        kind => kind,
    }
}

/// Returns an error and all its sources.
pub(crate) fn error_chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// Adds the target, as HTTP/2 wants it, and the user agent.
fn addressed(head: Head, authority: &Authority) -> Result<Request<()>, SendError> {
    let mut parts = Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query = head.uri.path_and_query().cloned();
    let mut request = Request::from_parts(head, ());
    *request.uri_mut() = Uri::from_parts(parts).map_err(SendError::unknown)?;
    request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_of_our_own_is_of_unknown_kind() {
        // Errors from the other side are made by connections only; the tests in `tests/calls` cover them.
        for reason in [h2::Reason::REFUSED_STREAM, h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
            assert_eq!(SendErrorKind::of(&reason.into()), SendErrorKind::Unknown, "{reason:?}");
        }
    }
}
