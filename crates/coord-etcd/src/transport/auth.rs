//! The token of a user of etcd: got when the client connects, got anew when etcd refuses it, and put on every
//! request.
//!
//! A single task per client authenticates: many requests whose token is refused at the same time cost one
//! authentication. Authentication is expensive for etcd. A request waits for the new token, and is sent once
//! more with it: a request whose token was refused had no effect. Streams are opened once more by their
//! owners, for whom the new token is there by then.

use std::{
    fmt,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use coord_api::{BoxError, backend::Backoff};
use etcd_client::{AuthClient, Channel};
use futures::{StreamExt, TryStreamExt, future::BoxFuture, stream};
use http::{HeaderMap, HeaderValue, Request, Response, request::Parts};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use tokio::{sync::watch, task::AbortHandle};
use tonic::{Code, Status, body::Body};
use tower_service::Service;

use super::credentials::Source;

/// Requests that can not be sent twice, since their bodies are conversations.
const STREAMS: [&str; 2] = ["/etcdserverpb.Watch/Watch", "/etcdserverpb.Lease/LeaseKeepAlive"];

/// Shortest pause between attempts to authenticate. An attempt costs etcd a tenth of a second of one core.
const SHORTEST: Duration = Duration::from_millis(100);
/// The longest pause. A secret that comes late should still come in time for the shortest TTL.
const LONGEST: Duration = Duration::from_secs(1);

/// The token of one client. The task that gets it ends with this.
pub(crate) struct Auth {
    state: Arc<watch::Sender<State>>,
    task: AbortHandle,
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Auth").finish_non_exhaustive()
    }
}

impl Drop for Auth {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
enum State {
    /// There is no token that is not refused; the task authenticates.
    Wanted { refused: u64 },
    /// Requests carry this.
    Valid(Token),
    /// The last attempt failed; after a pause comes the next.
    Failed { refused: u64, status: Status },
}

#[derive(Clone)]
struct Token {
    /// `None` where etcd has no authentication, or not yet.
    header: Option<HeaderValue>,
    generation: u64,
}

impl Auth {
    /// Starts the task, which authenticates through `channel`. Must run on the background runtime.
    pub(crate) fn start(source: Source, channel: Channel, limit: Duration) -> Arc<Self> {
        let state = Arc::new(watch::Sender::new(State::Wanted { refused: 0 }));
        let task = tokio::spawn(keep(state.clone(), Authenticator { source, channel, limit }));
        Arc::new(Self { state, task: task.abort_handle() })
    }

    /// Puts the token on all that goes through `channel`.
    pub(crate) fn on(self: &Arc<Self>, channel: Channel) -> Channel {
        Channel::Custom(tower::util::BoxCloneSyncService::new(WithToken { channel, auth: self.clone() }))
    }

    /// Waits for the first attempt.
    ///
    /// # Errors
    /// Why it failed. Others follow by themselves.
    pub(crate) async fn first(&self) -> Result<(), Status> {
        self.token().await.map(drop)
    }

    /// Returns a number that is another one whenever the token is.
    pub(crate) fn generation(&self) -> u64 {
        match &*self.state.borrow() {
            State::Valid(token) => token.generation,
            State::Wanted { refused } | State::Failed { refused, .. } => *refused,
        }
    }

    /// Returns the token, or why there is none now; waits while it is asked for.
    async fn token(&self) -> Result<Token, Status> {
        let mut state = self.state.subscribe();
        let known = state.wait_for(|state| !matches!(state, State::Wanted { .. })).await;
        match &*known.expect("the sender is a part of `self`") {
            State::Valid(token) => Ok(token.clone()),
            State::Failed { status, .. } => Err(status.clone()),
            State::Wanted { .. } => unreachable!("is waited for"),
        }
    }

    /// Notes that etcd refused a token, unless it is another one by now.
    fn refused(&self, generation: u64) {
        self.state.send_if_modified(|state| {
            let is_current = matches!(state, State::Valid(token) if token.generation == generation);
            if is_current {
                *state = State::Wanted { refused: generation };
            }
            is_current
        });
    }
}

/// Authenticates whenever there is no token that is not refused.
async fn keep(state: Arc<watch::Sender<State>>, mut authenticator: Authenticator) {
    let mut changes = state.subscribe();
    let mut backoff = Backoff::new(SHORTEST, LONGEST);
    loop {
        let refused = match *changes.borrow_and_update() {
            State::Wanted { refused } | State::Failed { refused, .. } => Some(refused),
            State::Valid(_) => None,
        };
        let Some(refused) = refused else {
            // Fails only when the sender is gone, which is a part of this.
            let _ = changes.changed().await;
            continue;
        };
        match authenticator.authenticate().await {
            Ok(header) => {
                if refused > 0 {
                    tracing::debug!("authenticated with etcd anew");
                }
                backoff.reset();
                state.send_replace(State::Valid(Token { header, generation: refused + 1 }));
            }
            Err(status) => {
                tracing::warn!(error = status.message(), "not authenticated with etcd, trying again");
                state.send_replace(State::Failed { refused, status });
                tokio::time::sleep(backoff.pause()).await;
            }
        }
    }
}

struct Authenticator {
    source: Source,
    channel: Channel,
    limit: Duration,
}

impl Authenticator {
    /// Authenticates once, with the credentials as they are now.
    async fn authenticate(&mut self) -> Result<Option<HeaderValue>, Status> {
        let attempt = async {
            let credentials = self.source.ask().await.map_err(no_credentials)?;
            let (user, password) = (credentials.username().to_owned(), credentials.password().to_owned());
            let answer = self.client().await?.authenticate(user, password).await.map_err(status);
            match answer {
                Ok(answer) => {
                    let mut header = HeaderValue::from_str(answer.token())
                        .map_err(|_| Status::internal("etcd gave a token that is no header"))?;
                    header.set_sensitive(true);
                    Ok(Some(header))
                }
                Err(status) if status.message().contains("authentication is not enabled") => {
                    tracing::warn!("a user is configured, but etcd has authentication disabled");
                    Ok(None)
                }
                Err(status) => Err(status),
            }
        };
        let outcome = tokio::time::timeout(self.limit, attempt).await;
        outcome.unwrap_or_else(|_| Err(Status::deadline_exceeded("authentication got no answer in time")))
    }

    async fn client(&self) -> Result<AuthClient, Status> {
        // Without credentials of its own this sends nothing.
        let client = etcd_client::Client::from_channel(self.channel.clone(), None).await.map_err(status)?;
        Ok(client.auth_client())
    }
}

fn status(error: etcd_client::Error) -> Status {
    match error {
        etcd_client::Error::GRpcStatus(status) => status,
        other => Status::unknown(other.to_string()),
    }
}

/// The credentials are not known now, so nothing was sent.
#[derive(Debug)]
pub(crate) struct NoCredentials(BoxError);

impl fmt::Display for NoCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for NoCredentials {}

fn no_credentials(error: BoxError) -> Status {
    let mut status = Status::unavailable(format!("the password is not known: {error}"));
    status.set_source(Arc::new(NoCredentials(error)));
    status
}

/// Returns whether etcd refused the token. Either it expired, or the password or the store of users changed
/// since, or authentication was enabled after the token was asked for.
fn is_refusal(headers: &HeaderMap) -> bool {
    Status::from_header_map(headers).is_some_and(|status| match status.code() {
        Code::Unauthenticated => true,
        Code::InvalidArgument => ["revision of auth store is old", "user name is empty"]
            .iter()
            .any(|m| status.message().contains(m)),
        _ => false,
    })
}

/// Returns the answer to one request, and whether etcd refused the token. A refusal has no message, so its
/// status is in the head, or in trailers that come next where etcd serves TLS.
async fn with_verdict(answer: Response<Body>) -> (Response<Body>, bool) {
    let (head, mut body) = answer.into_parts();
    if is_refusal(&head.headers) {
        return (Response::from_parts(head, body), true);
    }
    let first = body.frame().await;
    let refused = matches!(&first, Some(Ok(frame)) if frame.trailers_ref().is_some_and(is_refusal));
    let frames = stream::iter(first).chain(BodyStream::new(body));
    (Response::from_parts(head, Body::new(StreamBody::new(frames))), refused)
}

/// A channel whose requests carry the token.
#[derive(Clone)]
struct WithToken {
    channel: Channel,
    auth: Arc<Auth>,
}

type Answer = Result<Response<Body>, BoxError>;

impl Service<Request<Body>> for WithToken {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Answer>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone that is ready is used, and a fresh clone left in its place.
        let fresh = self.channel.clone();
        let channel = std::mem::replace(&mut self.channel, fresh);
        let auth = self.auth.clone();
        if STREAMS.contains(&request.uri().path()) {
            Box::pin(open(channel, auth, request))
        } else {
            Box::pin(ask(channel, auth, request))
        }
    }
}

/// Opens a stream. If its token is refused, now or at its end, the next one to open it will find another.
async fn open(mut channel: Channel, auth: Arc<Auth>, mut request: Request<Body>) -> Answer {
    let token = auth.token().await?;
    put(&mut request, &token);
    let answer = channel.call(request).await?;
    if is_refusal(answer.headers()) {
        auth.refused(token.generation);
        auth.token().await?;
        return Ok(answer);
    }
    Ok(answer.map(|body| {
        Body::new(StreamBody::new(BodyStream::new(body).inspect_ok(move |frame| {
            if frame.trailers_ref().is_some_and(is_refusal) {
                auth.refused(token.generation);
            }
        })))
    }))
}

/// Sends a request, and once more if its token is refused.
async fn ask(mut channel: Channel, auth: Arc<Auth>, request: Request<Body>) -> Answer {
    let token = auth.token().await?;
    let (parts, body) = request.into_parts();
    let message = body.collect().await?.to_bytes();
    let request = |parts: Parts, token: &Token| {
        let mut request = Request::from_parts(parts, Body::new(Full::new(message.clone())));
        put(&mut request, token);
        request
    };
    let (answer, refused) = with_verdict(channel.call(request(parts.clone(), &token)).await?).await;
    if !refused {
        return Ok(answer);
    }
    auth.refused(token.generation);
    let token = auth.token().await?;
    poll_fn(|cx| channel.poll_ready(cx)).await?;
    channel.call(request(parts, &token)).await
}

fn put(request: &mut Request<Body>, token: &Token) {
    if let Some(header) = &token.header {
        request.headers_mut().insert("token", header.clone());
    }
}
