//! What carries the calls of one connection: hyper itself, or tonic's channel where there is TLS.

use std::{sync::Arc, time::Duration};

use coord_api::BoxError;
use futures::TryFutureExt;
use http::{
    HeaderMap, HeaderValue, Request, Response, Uri,
    header::USER_AGENT,
    uri::{Authority, Parts, Scheme},
};
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};
use tonic::{TimeoutExpired, body::Body, transport::Channel};
use tower_service::Service;

use crate::{ConnectOptions, body::lend, calm::Calm, options::KeepAlive};

const AGENT: &str = concat!("coord/", env!("CARGO_PKG_VERSION"));

/// A connection as its calls see it; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) enum Carrier {
    /// A call goes to the task that writes the connection. tonic's channel puts another queue and another task before it.
    Direct { sender: SendRequest<Body>, authority: Authority },
    /// TLS is configured in tonic's terms, so tonic makes it.
    Channel(Channel),
}

/// A call that got no answer.
pub(crate) struct Failed {
    pub(crate) error: BoxError,
    /// The request, if it has certainly not left this process.
    pub(crate) unsent: Option<Box<Request<Body>>>,
}

impl Failed {
    fn sent(error: impl Into<BoxError>) -> Self {
        Self { error: error.into(), unsent: None }
    }
}

impl Carrier {
    /// Begins to speak HTTP/2; the server may not have answered yet. The connection ends with its last call once all clones
    /// are dropped.
    pub(crate) async fn direct(
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        authority: &str,
        options: &ConnectOptions,
        calm: &Arc<Calm>,
    ) -> Result<Self, BoxError> {
        let mut http = Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new());
        if let Some(KeepAlive { interval, timeout }) = options.keep_alive {
            http.keep_alive_interval(calm.at_least(interval)).keep_alive_timeout(timeout);
        }
        let (sender, connection) = http.handshake(TokioIo::new(stream)).await?;
        let (calm, address) = (calm.clone(), authority.to_owned());
        // Whatever ends it is told to its calls as well.
        tokio::spawn(connection.unwrap_or_else(move |error| {
            tracing::debug!(%error, "a connection has ended");
            calm.heed(&error, &address);
        }));
        Ok(Self::Direct { sender, authority: authority.parse()? })
    }

    /// Makes one call. A `grpc-timeout` among its headers is kept here as well.
    pub(crate) async fn send(&self, request: Request<Body>) -> Result<Response<Body>, Failed> {
        match self {
            Self::Direct { sender, authority } => {
                let limit = limit(request.headers());
                let answer = direct(sender.clone(), addressed(request, authority)?);
                match limit {
                    None => answer.await,
                    Some(limit) => timeout(limit, answer)
                        .await
                        .unwrap_or_else(|_elapsed| Err(Failed::sent(TimeoutExpired(())))),
                }
            }
            Self::Channel(channel) => through(channel.clone(), request).await,
        }
    }
}

async fn direct(mut sender: SendRequest<Body>, request: Request<Body>) -> Result<Response<Body>, Failed> {
    match sender.try_send_request(request).await {
        Ok(response) => Ok(response.map(Body::new)),
        Err(mut failure) => {
            let unsent = failure.take_message().map(Box::new);
            Err(Failed { error: failure.into_error().into(), unsent })
        }
    }
}

/// tonic's channel does not give requests back, so the body is lent, and the head, which is small, is copied.
async fn through(mut channel: Channel, mut request: Request<Body>) -> Result<Response<Body>, Failed> {
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    let (body, lender) = lend(std::mem::take(request.body_mut()));
    *request.body_mut() = body;
    let answer = async {
        std::future::poll_fn(|cx| channel.poll_ready(cx)).await.map_err(|error| (error, true))?;
        channel.call(request).await.map_err(|error| {
            let unsent = is_unsent(&error);
            (error, unsent)
        })
    };
    answer.await.map_err(|(error, unsent)| {
        let body = if unsent { lender.take_back() } else { None };
        let unsent = body.map(|body| {
            let mut request = Request::new(body);
            (*request.method_mut(), *request.uri_mut(), *request.headers_mut()) = (method, uri, headers);
            Box::new(request)
        });
        Failed { error: error.into(), unsent }
    })
}

/// Whether there was no connection, or it ended while the request still waited for it.
fn is_unsent(error: &tonic::transport::Error) -> bool {
    chain(error).any(|error| {
        error.is::<tonic::ConnectError>()
            || error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled)
    })
}

/// An error and all that is behind it.
pub(crate) fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The request with what HTTP/2 wants to know of its target, and with who asks.
fn addressed(mut request: Request<Body>, authority: &Authority) -> Result<Request<Body>, Failed> {
    let mut parts = Parts::default();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = Some(authority.clone());
    parts.path_and_query = request.uri().path_and_query().cloned();
    *request.uri_mut() = Uri::from_parts(parts).map_err(Failed::sent)?;
    request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
    Ok(request)
}

/// How long the caller waits, as gRPC writes it: up to eight digits and a unit.
pub(crate) fn limit(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u32 = Some(number).filter(|number| number.len() <= 8)?.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit * number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_callers_limit_is_read_as_grpc_writes_it() {
        let table = [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("4S", Some(Duration::from_secs(4))),
            ("82m", Some(Duration::from_millis(82))),
            ("5000u", Some(Duration::from_millis(5))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("123456789n", None),
            ("82", None),
            ("m", None),
            ("", None),
            ("1ß", None),
            ("-1S", None),
        ];
        for (text, expected) in table {
            let value = HeaderValue::from_bytes(text.as_bytes()).expect("is a value");
            let headers = [(http::HeaderName::from_static("grpc-timeout"), value)].into_iter().collect();
            assert_eq!(limit(&headers), expected, "{text}");
        }
        assert_eq!(limit(&HeaderMap::new()), None);
    }
}
