//! The carrier of the calls of one connection: HTTP/2 of our own, or tonic's channel where there is TLS.

use coord_api::BoxError;
use http::{
    HeaderValue, Request, Response, Uri,
    header::USER_AGENT,
    request::Parts as Head,
    uri::{Authority, Parts, Scheme},
};
use tonic::{body::Body, transport::Channel};
use tower_service::Service;

use crate::{http2::Http2, kept::Kept};

const AGENT: &str = concat!("coord/", env!("CARGO_PKG_VERSION"));

/// A connection as its calls see it; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Carrier {
    /// A call is a stream of the connection from its beginning. tonic's channel puts two queues and two tasks before it.
    Direct { http: Http2, authority: Authority },
    /// TLS is configured in tonic's terms, so tonic makes it.
    Channel(Channel),
}

/// A call that got no answer.
pub(crate) struct Failed {
    pub(crate) error: BoxError,
    pub(crate) fate: Fate,
}

/// What is known of a request that got no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It never left this process, and its connection takes no more calls.
    Unsent,
    /// The server said that it had not seen it when it ended the connection.
    GoneAway,
    /// The server said that it did not begin with it.
    Refused,
    /// Its own body ended it.
    OfCaller,
    /// It may have been executed.
    Unknown,
}

impl Fate {
    /// What the error of a stream tells: a GOAWAY is one of those streams only that the server will never process.
    pub(crate) fn of(error: &h2::Error) -> Self {
        match error.reason() {
            Some(_) if error.is_go_away() && error.is_remote() => Self::GoneAway,
            Some(h2::Reason::REFUSED_STREAM) if error.is_reset() && error.is_remote() => Self::Refused,
            _ => Self::Unknown,
        }
    }

    /// Whether the server has certainly not processed it.
    pub(crate) fn had_no_effect(self) -> bool {
        matches!(self, Self::Unsent | Self::GoneAway | Self::Refused)
    }
}

impl Failed {
    pub(crate) fn unsent(error: impl Into<BoxError>) -> Self {
        Self { error: error.into(), fate: Fate::Unsent }
    }

    fn unknown(error: impl Into<BoxError>) -> Self {
        Self { error: error.into(), fate: Fate::Unknown }
    }
}

impl Carrier {
    /// Makes one call.
    pub(crate) async fn send(&self, head: Head, body: &Kept) -> Result<Response<Body>, Failed> {
        match self {
            Self::Direct { http, authority } => {
                let answer = http.call(addressed(head, authority)?, body.lend()).await?;
                Ok(answer.map(Body::new))
            }
            Self::Channel(channel) => through(channel.clone(), head, body).await,
        }
    }
}

async fn through(mut channel: Channel, head: Head, body: &Kept) -> Result<Response<Body>, Failed> {
    std::future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(Failed::unsent)?;
    let request = Request::from_parts(head, Body::new(body.lend()));
    channel.call(request).await.map_err(|error| {
        let fate = fate_through(&error, body.is_asked());
        Failed { error: error.into(), fate }
    })
}

/// The fate of a request that was given to tonic's channel. hyper tells of a GOAWAY also those whose stream it had just
/// opened, below the last one or not. Their bodies were not asked for anything yet, and nobody knows about them.
fn fate_through(error: &tonic::transport::Error, is_asked: bool) -> Fate {
    let is_unsent = |error: &(dyn std::error::Error + 'static)| {
        error.is::<tonic::ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    };
    if !is_asked && chain(error).any(is_unsent) {
        return Fate::Unsent;
    }
    match chain(error).find_map(|error| error.downcast_ref()).map_or(Fate::Unknown, Fate::of) {
        Fate::GoneAway if !is_asked => Fate::Unknown,
        fate => fate,
    }
}

/// An error and all that is behind it.
pub(crate) fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The head with what HTTP/2 wants to know of its target, and with who asks.
fn addressed(head: Head, authority: &Authority) -> Result<Request<()>, Failed> {
    let mut parts = Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query = head.uri.path_and_query().cloned();
    let mut request = Request::from_parts(head, ());
    *request.uri_mut() = Uri::from_parts(parts).map_err(Failed::unknown)?;
    request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_for_another_reason_tells_nothing() {
        // Those of the other side are made by connections only, which other tests do.
        for reason in [h2::Reason::REFUSED_STREAM, h2::Reason::NO_ERROR, h2::Reason::CANCEL] {
            assert_eq!(Fate::of(&reason.into()), Fate::Unknown, "{reason:?}");
        }
    }
}
