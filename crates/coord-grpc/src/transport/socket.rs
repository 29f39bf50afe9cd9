//! Socket: a TCP stream that records reads, writes and its end, which HTTP/2 clients do not tell.

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

use futures::task::AtomicWaker;
use http::uri::Authority;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::Notify,
    time::Instant,
};

use super::address;

/// Callback for a connection that should get no more calls, with its [early close](SocketState::early_close).
/// It may be called twice.
pub(super) type OnClose = Arc<dyn Fn(Option<&'static str>) + Send + Sync>;

/// State of a socket, shared with the connection on it.
#[derive(Debug)]
pub(super) struct SocketState {
    made: Instant,
    reads: AtomicU64,
    /// Time of the last read, in microseconds since the socket was made.
    last_read: AtomicU64,
    writes: AtomicU64,
    /// Whether the other side has ended, so that it gets nothing any more.
    ended: AtomicBool,
    /// Whether a call was answered.
    pub(super) served: AtomicBool,
    has_read: Notify,
    /// Whether there was a socket.
    pub(super) open: AtomicBool,
    /// Whether the connection takes no more calls.
    pub(super) closed: AtomicBool,
    aborted: AtomicBool,
    reader: AtomicWaker,
}

impl SocketState {
    pub(super) fn new() -> Self {
        Self {
            made: Instant::now(),
            reads: AtomicU64::new(0),
            last_read: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            served: AtomicBool::new(false),
            has_read: Notify::new(),
            open: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            aborted: AtomicBool::new(false),
            reader: AtomicWaker::new(),
        }
    }

    fn read(&self) {
        let since = self.made.elapsed().as_micros();
        self.last_read.store(u64::try_from(since).unwrap_or(u64::MAX), Relaxed);
        if self.reads.fetch_add(1, Relaxed) == 0 {
            self.has_read.notify_one();
        }
    }

    /// Waits until something was read, or the socket is gone.
    pub(super) async fn first_read(&self) {
        self.has_read.notified().await;
    }

    /// Returns how many reads have brought bytes.
    pub(super) fn reads(&self) -> u64 {
        self.reads.load(Relaxed)
    }

    /// Returns the time of the last read that brought bytes.
    pub(super) fn last_read(&self) -> Instant {
        self.made + Duration::from_micros(self.last_read.load(Relaxed))
    }

    /// Returns how many writes have left this process. While the number stays, later bytes have not left.
    pub(super) fn written(&self) -> u64 {
        self.writes.load(SeqCst)
    }

    /// Makes the next read fail, and the socket close without sending what is left.
    pub(super) fn abort(&self) {
        self.aborted.store(true, SeqCst);
        self.reader.wake();
    }

    /// Returns a reason if no call was answered yet: such a connection may never have been a good one.
    pub(super) fn early_close(&self) -> Option<&'static str> {
        (!self.served.load(Relaxed)).then_some("the connection was closed right after it was made")
    }
}

/// TCP stream that records in its [`SocketState`] whatever happens.
pub(super) struct Socket {
    stream: TcpStream,
    state: Arc<SocketState>,
    closed: OnClose,
    /// Whether the next bytes are the first since the last flush.
    is_first: bool,
}

impl Socket {
    pub(super) async fn connect(
        authority: String,
        state: Arc<SocketState>,
        closed: OnClose,
    ) -> io::Result<Self> {
        let authority: Authority = authority.parse().map_err(io::Error::other)?;
        let host = authority.host().trim_matches(['[', ']']);
        let stream = address::connect(host, authority.port_u16().unwrap_or(80)).await?;
        stream.set_nodelay(true)?;
        state.open.store(true, SeqCst);
        Ok(Self { stream, state, closed, is_first: true })
    }

    /// Yields once before the first bytes leave, so that bytes of other tasks travel in the same packet.
    ///
    /// A call gives away its head before its body. Without the yield each may be a packet of its own, and wakes the
    /// server twice.
    fn yield_once(&mut self, cx: &Context<'_>) -> Poll<()> {
        if std::mem::take(&mut self.is_first) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    /// Writes, or drops the bytes if the other side has ended.
    ///
    /// A failed write alone ends nothing. The last words of the other side may be here and not read yet: they say which of
    /// the requests it has processed. The end comes after them.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        all: usize,
        send: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.yield_once(cx));
        if self.state.ended.load(SeqCst) {
            return Poll::Ready(Ok(all));
        }
        let outcome = ready!(send(Pin::new(&mut self.stream), cx));
        match &outcome {
            Ok(0) => {}
            Ok(_) => drop(self.state.writes.fetch_add(1, SeqCst)),
            Err(error) if is_end(error.kind()) => {
                self.state.ended.store(true, SeqCst);
                return Poll::Ready(Ok(all));
            }
            Err(_) => {}
        }
        Poll::Ready(outcome)
    }
}

/// Returns whether a write failed because the other side is gone, so that reading ends as well.
fn is_end(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset)
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.state.aborted.load(SeqCst) {
            // Unsent bytes must not arrive when the other side is back. The call fails only on a closed socket.
            let _ = self.stream.set_zero_linger();
        }
        self.state.closed.store(true, SeqCst);
        self.state.has_read.notify_one();
        (self.closed)(self.state.early_close());
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.state.reader.register(cx.waker());
        if self.state.aborted.load(SeqCst) {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "nothing came for too long")));
        }
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let outcome = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.state.read();
        } else if outcome.is_ready() && room > 0 {
            self.state.ended.store(true, SeqCst);
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

    /// Returns whether other tasks of this runtime run while `bytes` are written.
    async fn lets_others_run(socket: &mut Socket, bytes: &[u8]) -> bool {
        let has_run = Arc::new(AtomicBool::new(false));
        let other = has_run.clone();
        tokio::spawn(async move { other.store(true, Relaxed) });
        socket.write_all(bytes).await.expect("is open");
        has_run.load(Relaxed)
    }

    #[tokio::test]
    async fn first_write_after_a_flush_lets_other_tasks_run() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("is bound").to_string();
        let mut socket = Socket::connect(address, Arc::new(SocketState::new()), Arc::new(|_| ()))
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
        let state = Arc::new(SocketState::new());
        let mut socket = Socket::connect(address, state.clone(), Arc::new(|_| ())).await.expect("it listens");
        let (mut other, _) = listener.accept().expect("is connected");
        socket.write_all(b"head and body").await.expect("is open");
        other.read_exact(&mut [0; 4]).expect("has come");
        other.write_all(b"last words").expect("is open");
        // With bytes that were not read, this resets the connection.
        drop(other);
        let written = state.written();
        // The runtime has not looked at the socket since.
        for _ in 0..9 {
            socket.write_all(b"more").await.expect("is dropped");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(state.written() <= written + 1, "the first one may have left");
        let mut words = [0; 10];
        socket.read_exact(&mut words).await.expect("are here");
        assert_eq!(&words, b"last words");
        let end = socket.read(&mut words).await;
        assert!(end.as_ref().map_or(true, |length| *length == 0), "{end:?}");
    }
}
