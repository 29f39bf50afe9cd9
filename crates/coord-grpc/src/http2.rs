//! HTTP/2 over one socket. A call knows its own stream here, and so what became of it: whether the server has seen it
//! when it says that it will see no more, and whether anything has left this process since it was given away.

use std::{
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicUsize,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use coord_api::BoxError;
use futures::FutureExt;
use h2::{
    Reason, RecvStream,
    client::{Builder, Connection, SendRequest},
};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::Notify,
    task::AbortHandle,
};
use tonic::Status;

use crate::{
    carrier::{Failed, Fate},
    kept::Reader,
    options::KeepAlive,
    pings::Pings,
    pump::Pump,
    wire::Wire,
};

/// How much a server may send before it is read, on one stream and on all of them.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;
/// How much of one call waits for the socket.
const SEND_BUFFER: usize = 1 << 20;
const HEADERS: u32 = 16 << 10;
/// How many streams are opened before the server has said how many it takes.
const FIRST_STREAMS: usize = 100;
/// How many streams may break one of the protocol's rules before the connection is taken for hostile.
const BROKEN_STREAMS: usize = 1024;

/// One connection as its calls see it; cheap to clone. It ends with its last call once all clones are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Http2 {
    sender: SendRequest<Bytes>,
    wire: Arc<Wire>,
    runtime: Handle,
    /// Dropped after the sender.
    user: Arc<User>,
}

/// What the connection's task and its calls tell each other.
#[derive(Debug, Default)]
struct Shared {
    /// The calls in flight.
    open: AtomicUsize,
    /// Nobody makes calls any more.
    left: Notify,
    /// A ping was not answered.
    is_silent: AtomicBool,
}

/// Those who make calls, all of them together.
#[derive(Debug)]
struct User(Arc<Shared>);

impl Drop for User {
    fn drop(&mut self) {
        self.0.left.notify_one();
    }
}

/// A call in flight.
struct Open(Arc<User>);

impl Open {
    fn new(user: &Arc<User>) -> Self {
        user.0.open.fetch_add(1, Relaxed);
        Self(user.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Relaxed);
    }
}

/// Begins to speak HTTP/2; the server may not have answered yet. `leaves` is called when the server wants no more streams
/// or the connection has ended.
pub(crate) async fn open(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    wire: &Arc<Wire>,
    keep_alive: Option<KeepAlive>,
    leaves: impl FnOnce(&h2::Error) + Send + 'static,
) -> Result<Http2, BoxError> {
    let handshake = Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(HEADERS)
        .initial_max_send_streams(FIRST_STREAMS)
        .max_local_error_reset_streams(Some(BROKEN_STREAMS))
        .enable_push(false)
        .handshake::<_, Bytes>(stream);
    let (sender, mut connection) = handshake.await?;
    let shared = Arc::<Shared>::default();
    let pings = keep_alive.map(|keep_alive| {
        let pings = connection.ping_pong().expect("is taken once");
        Pings::new(pings, keep_alive, wire.clone())
    });
    let runtime = Handle::current();
    runtime.spawn(drive(connection, sender.clone(), pings, shared.clone(), leaves));
    Ok(Http2 { sender, wire: wire.clone(), runtime, user: Arc::new(User(shared)) })
}

/// Keeps the connection going until it ends.
async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<S, Bytes>,
    sender: SendRequest<Bytes>,
    mut pings: Option<Pings>,
    shared: Arc<Shared>,
    leaves: impl FnOnce(&h2::Error),
) {
    // With them it is seen at once that the server wants no more streams.
    let mut watch = Some((sender, leaves));
    let mut left = pin!(shared.left.notified());
    let ended = std::future::poll_fn(|cx| {
        if watch.is_some() && left.as_mut().poll(cx).is_ready() {
            watch = None;
        }
        if let Some(pings) = &mut pings
            && pings.poll(shared.open.load(Relaxed) > 0, cx).is_ready()
        {
            shared.is_silent.store(true, SeqCst);
            return Poll::Ready(Ok(()));
        }
        let ended = connection.poll_unpin(cx);
        if let Some((sender, _)) = &mut watch
            && let Poll::Ready(Err(error)) = sender.poll_ready(cx)
            && let Some((_, leaves)) = watch.take()
        {
            leaves(&error);
        }
        ended
    });
    if let Err(error) = ended.await {
        tracing::debug!(%error, "a connection has ended");
    }
}

impl Http2 {
    /// Makes one call.
    pub(crate) async fn call(&self, head: Request<()>, body: Reader) -> Result<Response<Incoming>, Failed> {
        let open = Open::new(&self.user);
        let written = self.wire.written();
        let mut sender = self.sender.clone();
        // One that has opened no stream yet is ready at once, or never again.
        std::future::poll_fn(|cx| sender.poll_ready(cx)).await.map_err(Failed::unsent)?;
        let is_empty = body.is_end_stream();
        let (mut response, stream) = sender.send_request(head, is_empty).map_err(|error| {
            let is_over = error.is_go_away() || error.is_io();
            let fate = if is_over { Fate::Unsent } else { Fate::Unknown };
            Failed { error: error.into(), fate }
        })?;
        drop(sender);
        let mut pumping = (!is_empty).then(|| Pump::new(stream, body));
        let answer = std::future::poll_fn(|cx| {
            if let Some(Poll::Ready(sent)) = pumping.as_mut().map(|pump| pump.poll_unpin(cx)) {
                pumping = None;
                if let Err(status) = sent {
                    return Poll::Ready(Err(Failed { error: status.into(), fate: Fate::OfCaller }));
                }
            }
            response.poll_unpin(cx).map_err(|error| self.failed(error, written))
        });
        let response = answer.await?;
        let pump = pumping.map(|pump| Aborted(self.runtime.spawn(pump.map(drop)).abort_handle()));
        Ok(response.map(|stream| Incoming { stream, data_ended: false, _pump: pump, _open: open }))
    }

    /// Why a call got no answer. Streams get the error of a GOAWAY only if they are above its last one, as h2 has it; those
    /// below get the error of the connection, if that breaks.
    fn failed(&self, error: h2::Error, written: u64) -> Failed {
        let fate = match Fate::of(&error) {
            // The socket takes nothing after its end was seen.
            Fate::Unknown if error.is_io() && self.wire.written() == written => Fate::Unsent,
            fate => fate,
        };
        if error.is_io() && self.user.0.is_silent.load(SeqCst) {
            return Failed { error: "a keep-alive ping was not answered in time".into(), fate };
        }
        Failed { error: error.into(), fate }
    }
}

/// The rest of a request's body, which ends with the answer.
struct Aborted(AbortHandle);

impl Drop for Aborted {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The body of an answer. Whoever drops it before its end resets the stream.
pub(crate) struct Incoming {
    stream: RecvStream,
    data_ended: bool,
    _pump: Option<Aborted>,
    _open: Open,
}

impl HttpBody for Incoming {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // Fails only if the stream is over.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(Some(Err(status(error)))),
                None => self.data_ended = true,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
            // The server has said all, and does not want the rest of the request.
            Err(error) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(status(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// A status without a code, which only its cause has.
fn status(error: h2::Error) -> Status {
    let mut status = Status::unknown(error.to_string());
    status.set_source(Arc::new(error));
    status
}
