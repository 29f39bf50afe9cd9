//! HTTP/2 client over one socket, on the crate h2.
//!
//! A call knows its own stream here, and so the outcome: whether a GOAWAY includes the stream, and whether any byte has left
//! since. A general client hides both.

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

use super::{
    body_sender::BodySender,
    http2::{SendError, SendErrorKind},
    pings::Pings,
    request_body::Reader,
    socket::SocketState,
};
use crate::options::KeepAlive;

/// Flow-control window: bytes that a server may send on one stream before they are read.
const STREAM_WINDOW: u32 = 2 << 20;
/// Flow-control window of all streams together.
const CONNECTION_WINDOW: u32 = 5 << 20;
/// Bytes of one call that may wait for the socket.
const SEND_BUFFER: usize = 1 << 20;
const HEADERS: u32 = 16 << 10;
/// Streams that are opened before the server has said how many it takes.
const FIRST_STREAMS: usize = 100;
/// Streams that may break a rule of the protocol before the connection is taken for hostile.
const BROKEN_STREAMS: usize = 1024;

/// Client of one connection, cheap to clone. Once all clones are dropped, the connection ends with its last call.
#[derive(Clone, Debug)]
pub(crate) struct H2Client {
    sender: SendRequest<Bytes>,
    socket: Arc<SocketState>,
    runtime: Handle,
    // Dropped after the sender.
    senders: Arc<Senders>,
}

/// State that the connection's task and its calls share.
#[derive(Debug, Default)]
struct Shared {
    /// Number of calls in flight.
    in_flight: AtomicUsize,
    /// Notified when the last clone of the client is dropped.
    no_senders: Notify,
    /// Whether a ping was not answered.
    is_silent: AtomicBool,
}

/// Guard that all clones of a client share; dropping the last one notifies the connection's task.
#[derive(Debug)]
struct Senders(Arc<Shared>);

impl Drop for Senders {
    fn drop(&mut self) {
        self.0.no_senders.notify_one();
    }
}

/// Guard of a call in flight.
struct InFlight(Arc<Senders>);

impl InFlight {
    fn new(senders: &Arc<Senders>) -> Self {
        senders.0.in_flight.fetch_add(1, Relaxed);
        Self(senders.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// Starts an HTTP/2 connection, without waiting for the server. `leaves` is called when the server wants no more streams, or
/// the connection has ended.
pub(super) async fn open(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    socket: &Arc<SocketState>,
    keep_alive: Option<KeepAlive>,
    leaves: impl FnOnce(&h2::Error) + Send + 'static,
) -> Result<H2Client, BoxError> {
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
        Pings::new(pings, keep_alive, socket.clone())
    });
    let runtime = Handle::current();
    runtime.spawn(drive(connection, sender.clone(), pings, shared.clone(), leaves));
    Ok(H2Client { sender, socket: socket.clone(), runtime, senders: Arc::new(Senders(shared)) })
}

/// Drives the connection until it ends.
async fn drive<S: AsyncRead + AsyncWrite + Unpin>(
    mut connection: Connection<S, Bytes>,
    sender: SendRequest<Bytes>,
    mut pings: Option<Pings>,
    shared: Arc<Shared>,
    leaves: impl FnOnce(&h2::Error),
) {
    // Polling a sender shows at once that the server wants no more streams.
    let mut watch = Some((sender, leaves));
    let mut no_senders = pin!(shared.no_senders.notified());
    let ended = std::future::poll_fn(|cx| {
        if watch.is_some() && no_senders.as_mut().poll(cx).is_ready() {
            watch = None;
        }
        if let Some(pings) = &mut pings
            && pings.poll(shared.in_flight.load(Relaxed) > 0, cx).is_ready()
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

impl H2Client {
    /// Makes one call.
    pub(crate) async fn call(
        &self,
        head: Request<()>,
        body: Reader,
    ) -> Result<Response<IncomingBody>, SendError> {
        let in_flight = InFlight::new(&self.senders);
        let written = self.socket.written();
        let mut sender = self.sender.clone();
        // A clone that has opened no stream yet is ready at once, or never again.
        std::future::poll_fn(|cx| sender.poll_ready(cx)).await.map_err(SendError::unsent)?;
        let is_empty = body.is_end_stream();
        let (mut response, stream) = sender.send_request(head, is_empty).map_err(|error| {
            let is_over = error.is_go_away() || error.is_io();
            let kind = if is_over { SendErrorKind::Unsent } else { SendErrorKind::Unknown };
            SendError { error: error.into(), kind }
        })?;
        drop(sender);
        let mut sending = (!is_empty).then(|| BodySender::new(stream, body));
        let answer = std::future::poll_fn(|cx| {
            if let Some(Poll::Ready(sent)) = sending.as_mut().map(|body_sender| body_sender.poll_unpin(cx)) {
                sending = None;
                if let Err(status) = sent {
                    return Poll::Ready(Err(SendError {
                        error: status.into(),
                        kind: SendErrorKind::CallerBody,
                    }));
                }
            }
            response.poll_unpin(cx).map_err(|error| self.failed(error, written))
        });
        let response = answer.await?;
        let body_sender =
            sending.map(|body_sender| AbortOnDrop(self.runtime.spawn(body_sender.map(drop)).abort_handle()));
        Ok(response.map(|stream| IncomingBody {
            stream,
            data_ended: false,
            _body_sender: body_sender,
            _in_flight: in_flight,
        }))
    }

    /// Classifies the error of a call. In h2, streams above the last one of a GOAWAY get the GOAWAY as their error. Streams
    /// below get the error of the connection, if it breaks.
    fn failed(&self, error: h2::Error, written: u64) -> SendError {
        let kind = match SendErrorKind::of(&error) {
            // After the end of the socket was seen, it takes no bytes.
            SendErrorKind::Unknown if error.is_io() && self.socket.written() == written => {
                SendErrorKind::Unsent
            }
            kind => kind,
        };
        if error.is_io() && self.senders.0.is_silent.load(SeqCst) {
            return SendError { error: "a keep-alive ping was not answered in time".into(), kind };
        }
        SendError { error: error.into(), kind }
    }
}

/// Task that is aborted when this is dropped: the rest of a request's body ends with the answer.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Body of an answer. Dropping it before its end resets the stream.
pub(crate) struct IncomingBody {
    stream: RecvStream,
    data_ended: bool,
    _body_sender: Option<AbortOnDrop>,
    _in_flight: InFlight,
}

impl HttpBody for IncomingBody {
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
            // The server has sent everything, and does not want the rest of the request.
            Err(error) if error.reason() == Some(Reason::NO_ERROR) && error.is_reset() => Poll::Ready(None),
            Err(error) => Poll::Ready(Some(Err(status(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }
}

/// Returns a status whose code is to be read from its source.
fn status(error: h2::Error) -> Status {
    let mut status = Status::unknown(error.to_string());
    status.set_source(Arc::new(error));
    status
}
