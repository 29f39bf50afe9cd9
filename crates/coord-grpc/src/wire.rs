//! One connection to one instance, over a socket that tells when the first byte came, whether more did since, whether
//! anything was sent, and when it is closed. Those who carry calls tell none of these.

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
    task::{Context, Poll, ready},
    time::Duration,
};

use coord_api::{BoxError, backend::innermost};
use futures::task::AtomicWaker;
use http::{Uri, uri::Authority};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::Instant,
};
use tonic::transport::{Channel, Endpoint};

use crate::{ConnectOptions, address, calm::Calm, carrier::Carrier, http2, probe::knock};

/// A connection that is ready for calls.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) carrier: Carrier,
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

    /// Whether it takes no more calls.
    pub(crate) fn is_closed(&self) -> bool {
        self.wire.closed.load(SeqCst)
    }

    /// A call was answered over it.
    pub(crate) fn has_served(&self) {
        if !self.wire.served.load(Relaxed) {
            self.wire.served.store(true, Relaxed);
        }
    }

    /// Why it may have ended.
    pub(crate) fn suspicion(&self) -> Option<&'static str> {
        self.wire.suspicion()
    }
}

/// Called with the [suspicion](Link::suspicion) when no more calls should go over a connection; perhaps twice.
type OnClose = Arc<dyn Fn(Option<&'static str>) + Send + Sync>;

/// What is seen on the socket.
#[derive(Debug)]
pub(crate) struct Wire {
    made: Instant,
    reads: AtomicU64,
    /// When the last of them was, in microseconds since it was made.
    last_read: AtomicU64,
    writes: AtomicU64,
    /// The other side gets nothing any more.
    ended: AtomicBool,
    served: AtomicBool,
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
    fn new() -> Self {
        Self {
            made: Instant::now(),
            reads: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            served: AtomicBool::new(false),
            speaks: Notify::new(),
            open: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            severed: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        }
    }

    fn read(&self) {
        let since = self.made.elapsed().as_micros();
        self.last_read.store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
        if self.reads.fetch_add(1, Relaxed) == 0 {
            self.speaks.notify_one();
        }
    }

    /// When something came last.
    pub(crate) fn last_read(&self) -> Instant {
        self.made + Duration::from_micros(self.last_read.load(Relaxed))
    }

    /// How often something has left this process: what was given away since has not as long as this stays.
    pub(crate) fn written(&self) -> u64 {
        self.writes.load(SeqCst)
    }

    /// A connection that ends before any call was answered may never have been a good one, and nobody says so in words.
    fn suspicion(&self) -> Option<&'static str> {
        (!self.served.load(Relaxed)).then_some("the connection was closed right after it was made")
    }
}

/// Connects, and waits until the other side has said something. A server begins with its HTTP/2 settings, so
/// one that is frozen, or a network that swallows everything, is not taken for ready although the kernel has
/// accepted. `closed` is called when the connection takes no more calls, and when it has ended, however it did.
pub(crate) async fn dial(
    authority: &str,
    options: &ConnectOptions,
    calm: &Arc<Calm>,
    closed: impl Fn(Option<&'static str>) + Send + Sync + 'static,
) -> Result<Link, BoxError> {
    let (wire, closed): (_, OnClose) = (Arc::new(Wire::new()), Arc::new(closed));
    let once = Socket::connect(authority.to_owned(), wire.clone(), closed.clone());
    let connecting = async {
        let carrier = if options.is_tls() {
            Carrier::Channel(secured(once, authority, options, &wire).await?)
        } else {
            let (calm, address, leaving) = (calm.clone(), authority.to_owned(), wire.clone());
            let keep_alive = options.keep_alive.map(|asked| calm.allowed(asked));
            let leaves = move |error: &h2::Error| {
                calm.heed(error, &address);
                leaving.closed.store(true, SeqCst);
                closed(leaving.suspicion());
            };
            let http = http2::open(once.await?, &wire, keep_alive, leaves).await?;
            Carrier::Direct { http, authority: authority.parse()? }
        };
        wire.speaks.notified().await;
        if wire.reads.load(Relaxed) == 0 {
            return Err("the connection was closed before anything came".into());
        }
        if options.is_tls() {
            // A server that does not accept this client says so only after the handshake, and not in words.
            let path = options.probe.as_ref().map_or(ConnectOptions::ANY_METHOD, |probe| &probe.path);
            let answer = knock(&carrier, path).await;
            answer
                .map_err(|error| format!("closed after the TLS handshake: {}", innermost(error.as_ref())))?;
        }
        Ok(Link { carrier, wire: wire.clone() })
    };
    let limit = options.connect_timeout;
    tokio::time::timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {limit:?}").into()))
}

/// tonic's channel over the one connection.
async fn secured(
    once: impl Future<Output = io::Result<Socket>> + Send + 'static,
    authority: &str,
    options: &ConnectOptions,
    wire: &Wire,
) -> Result<Channel, BoxError> {
    let uri = Uri::builder().scheme("https").authority(authority).path_and_query("/").build()?;
    let mut once = Some(once);
    let connector = tower::service_fn(move |_| {
        // tonic would connect again by itself; here a channel is one connection.
        let once = once.take();
        async move {
            let once = once.ok_or_else(|| io::Error::other("the connection has ended"))?;
            Ok::<_, io::Error>(TokioIo::new(once.await?))
        }
    });
    let endpoint = options.apply_now(Endpoint::from(uri)).await?;
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| explain(&error, wire.open.load(SeqCst)))
}

/// "transport error" tells nobody anything, and "received corrupt message" not what it is about.
fn explain(error: &tonic::transport::Error, in_handshake: bool) -> BoxError {
    let inner = innermost(error);
    // What TLS itself has against the other side is data that is not valid. All else is the network, or a server that
    // is on its way down or up.
    let is_of_tls =
        inner.downcast_ref::<io::Error>().is_none_or(|error| error.kind() == io::ErrorKind::InvalidData);
    match (in_handshake, is_of_tls) {
        (true, true) => format!("TLS handshake: {inner}").into(),
        (true, false) => format!("the connection ended while TLS was being set up: {inner}").into(),
        (false, _) => inner.to_string().into(),
    }
}

struct Socket {
    stream: TcpStream,
    wire: Arc<Wire>,
    closed: OnClose,
    /// The next bytes are the first since the last ones left.
    is_first: bool,
}

impl Socket {
    async fn connect(authority: String, wire: Arc<Wire>, closed: OnClose) -> io::Result<Self> {
        let authority: Authority = authority.parse().map_err(io::Error::other)?;
        let host = authority.host().trim_matches(['[', ']']);
        let stream = address::connect(host, authority.port_u16().unwrap_or(80)).await?;
        stream.set_nodelay(true)?;
        wire.open.store(true, SeqCst);
        Ok(Self { stream, wire, closed, is_first: true })
    }

    /// Lets all others have their turn before the first bytes leave, so that what they are about to send travels along.
    /// A call gives away its head before its body: without this each may be a packet of its own, and wakes the server
    /// twice.
    fn after_others(&mut self, cx: &Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Writes, unless the other side has ended: then nothing leaves any more, and what was to be sent is dropped. A failed
    /// write alone ends nothing, since the other side's last words may be here and not read yet: they say which of the
    /// requests it has processed. The end comes after them.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        all: usize,
        send: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.after_others(cx));
        if self.wire.ended.load(SeqCst) {
            return Poll::Ready(Ok(all));
        }
        let outcome = ready!(send(Pin::new(&mut self.stream), cx));
        match &outcome {
            Ok(0) => {}
            Ok(_) => drop(self.wire.writes.fetch_add(1, SeqCst)),
            Err(error) if is_end(error.kind()) => {
                self.wire.ended.store(true, SeqCst);
                return Poll::Ready(Ok(all));
            }
            Err(_) => {}
        }
        Poll::Ready(outcome)
    }
}

/// Whether a write failed since the other side is gone, so that reading ends as well.
fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.wire.severed.load(SeqCst) {
            // What is still to be sent must not arrive when the other side is back; fails only on a closed socket.
            let _ = self.stream.set_zero_linger();
        }
        self.wire.closed.store(true, SeqCst);
        self.wire.speaks.notify_one();
        (self.closed)(self.wire.suspicion());
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
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.wire.read();
        } else if outcome.is_ready() && room > 0 {
            self.wire.ended.store(true, SeqCst);
        }
        outcome
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes.len(), |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all = bytes.iter().map(|bytes| bytes.len()).sum();
        self.poll_send(cx, all, |stream, cx| stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.is_first = true;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Whether other tasks of this runtime run while `bytes` are written.
    async fn lets_others_run(socket: &mut Socket, bytes: &[u8]) -> bool {
        let has_run = Arc::new(AtomicBool::new(false));
        let other = has_run.clone();
        tokio::spawn(async move { other.store(true, Relaxed) });
        socket.write_all(bytes).await.expect("is open");
        has_run.load(Relaxed)
    }

    #[tokio::test]
    async fn others_have_their_turn_before_the_first_bytes_leave() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("is bound").to_string();
        let mut socket = Socket::connect(address, Arc::new(Wire::new()), Arc::new(|_| ()))
            .await
            .expect("somebody listens");
        for _ in 0..2 {
            assert!(lets_others_run(&mut socket, b"head").await);
            assert!(!lets_others_run(&mut socket, b"body").await, "they had it already");
            socket.flush().await.expect("is open");
        }
    }

    #[tokio::test]
    async fn last_words_are_read_after_writes_have_failed() {
        use std::io::{Read, Write};

        use tokio::io::AsyncReadExt;

        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("is bound").to_string();
        let wire = Arc::new(Wire::new());
        let mut socket = Socket::connect(address, wire.clone(), Arc::new(|_| ())).await.expect("it listens");
        let (mut other, _) = listener.accept().expect("is connected");
        socket.write_all(b"head and body").await.expect("is open");
        other.read_exact(&mut [0; 4]).expect("has come");
        other.write_all(b"last words").expect("is open");
        // With bytes that were not read, this resets the connection.
        drop(other);
        let written = wire.written();
        // The runtime has not looked at the socket since.
        for _ in 0..9 {
            socket.write_all(b"more").await.expect("is dropped");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(wire.written() <= written + 1, "the first one may have left");
        let mut words = [0; 10];
        socket.read_exact(&mut words).await.expect("are here");
        assert_eq!(&words, b"last words");
        let end = socket.read(&mut words).await;
        assert!(end.as_ref().map_or(true, |length| *length == 0), "{end:?}");
    }
}
