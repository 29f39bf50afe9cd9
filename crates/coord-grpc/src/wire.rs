//! One connection to one instance: tonic's channel over a socket that tells when the first byte came, whether
//! more did since, and when it is closed. tonic tells none of these.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Relaxed, SeqCst},
        },
    },
    task::{Context, Poll},
};

use coord_api::{BoxError, backend::innermost};
use futures::task::AtomicWaker;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
};
use tonic::transport::{Channel, Endpoint};

use crate::{ConnectOptions, probe::knock};

/// A connection that is ready for calls.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) channel: Channel,
    wire: Arc<Wire>,
}

impl Link {
    /// How often something has come from the instance: as long as this stays, it is silent.
    pub(crate) fn reads(&self) -> u64 {
        self.wire.reads.load(Relaxed)
    }

    /// Ends the connection and all that is on it, also what the system has not sent yet.
    pub(crate) fn sever(&self) {
        self.wire.severed.store(true, SeqCst);
        self.wire.reader.wake();
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.wire.closed.load(SeqCst)
    }
}

type OnClose = Box<dyn FnOnce() + Send>;

/// What is seen on the socket.
#[derive(Debug, Default)]
struct Wire {
    reads: AtomicU64,
    speaks: Notify,
    /// There was a socket,
    open: AtomicBool,
    /// and it is no more.
    closed: AtomicBool,
    /// It is given up.
    severed: AtomicBool,
    reader: AtomicWaker,
}

impl Wire {
    fn read(&self) {
        if self.reads.fetch_add(1, Relaxed) == 0 {
            self.speaks.notify_one();
        }
    }
}

/// Connects, and waits until the other side has said something. A server begins with its HTTP/2 settings, so
/// one that is frozen, or a network that swallows everything, is not taken for ready although the kernel has
/// accepted. `closed` is called when the connection has ended, however it did.
pub(crate) async fn dial(
    authority: &str,
    options: &ConnectOptions,
    closed: impl FnOnce() + Send + 'static,
) -> Result<Link, BoxError> {
    let uri = Uri::builder().scheme(options.scheme()).authority(authority).path_and_query("/").build()?;
    let wire = Arc::new(Wire::default());
    let mut once = Some((wire.clone(), Box::new(closed) as OnClose));
    let connector = tower::service_fn(move |uri: Uri| {
        // tonic would connect again by itself; here a channel is one connection.
        let once = once.take();
        async move {
            let (wire, closed) = once.ok_or_else(|| io::Error::other("the connection has ended"))?;
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
            stream.set_nodelay(true)?;
            wire.open.store(true, SeqCst);
            Ok::<_, io::Error>(TokioIo::new(Socket { stream, wire, closed: Some(closed) }))
        }
    });
    let connecting = async {
        let endpoint = options.apply_now(Endpoint::from(uri)).await?;
        let connected = endpoint.connect_with_connector(connector).await;
        let channel =
            connected.map_err(|error| explain(&error, options.is_tls() && wire.open.load(SeqCst)))?;
        wire.speaks.notified().await;
        if wire.reads.load(Relaxed) == 0 {
            return Err("the connection was closed before anything came".into());
        }
        if options.is_tls() {
            // A server that does not accept this client says so only after the handshake, and not in words.
            let path = options.probe.as_ref().map_or(ConnectOptions::ANY_METHOD, |probe| &probe.path);
            let answer = knock(channel.clone(), path).await;
            answer.map_err(|error| format!("closed after the TLS handshake: {}", innermost(&error)))?;
        }
        Ok(Link { channel, wire: wire.clone() })
    };
    let limit = options.connect_timeout;
    tokio::time::timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {limit:?}").into()))
}

/// "transport error" tells nobody anything, and "received corrupt message" not what it is about.
fn explain(error: &tonic::transport::Error, in_handshake: bool) -> BoxError {
    let inner = innermost(error);
    if in_handshake { format!("TLS handshake: {inner}").into() } else { inner.to_string().into() }
}

struct Socket {
    stream: TcpStream,
    wire: Arc<Wire>,
    closed: Option<OnClose>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.wire.severed.load(SeqCst) {
            // What is still to be sent must not arrive when the other side is back; fails only on a closed socket.
            let _ = self.stream.set_zero_linger();
        }
        self.wire.closed.store(true, SeqCst);
        self.wire.speaks.notify_one();
        if let Some(closed) = self.closed.take() {
            closed();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.wire.reader.register(cx.waker());
        if self.wire.severed.load(SeqCst) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long")));
        }
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.wire.read();
        }
        outcome
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
