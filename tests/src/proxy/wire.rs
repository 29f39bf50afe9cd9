//! Sockets, and bytes from one to the other.

use std::{
    fmt, fs, io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, watch},
    time::sleep_until,
};

use super::{Line, Shared};

const BUFFER: usize = 16 * 1024;

/// How many reads are on their way at once. What does not fit waits at the sender.
const ON_THE_WAY: usize = 64;

#[derive(Clone, Debug)]
pub(super) enum Address {
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    pub(super) fn listen(&self) -> io::Result<Listener> {
        match self {
            Self::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listener::Tcp)
            }
            Self::Unix(path) => {
                // What an earlier listener left; nothing there is as good.
                let _ = fs::remove_file(path);
                UnixListener::bind(path).map(Listener::Unix)
            }
        }
    }

    async fn connect(&self) -> io::Result<Wire> {
        match self {
            Self::Tcp(address) => Wire::tcp(TcpStream::connect(address).await?),
            Self::Unix(path) => UnixStream::connect(path).await.map(Wire::Unix),
        }
    }
}

pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    pub(super) async fn accept(&self) -> io::Result<Wire> {
        match self {
            Self::Tcp(listener) => Wire::tcp(listener.accept().await?.0),
            Self::Unix(listener) => listener.accept().await.map(|(stream, _)| Wire::Unix(stream)),
        }
    }
}

/// An open connection.
pub(super) enum Wire {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Wire {
    fn tcp(stream: TcpStream) -> io::Result<Self> {
        // Passes each packet on at once, as a wire does.
        stream.set_nodelay(true)?;
        Ok(Self::Tcp(stream))
    }

    /// Its other end gets a reset instead of an end.
    pub(super) fn reset_when_closed(&self) {
        if let Self::Tcp(stream) = self {
            // One that is closed already needs none.
            let _ = stream.set_zero_linger();
        }
    }

    fn split(&mut self) -> (Box<dyn AsyncRead + Send + Unpin + '_>, Box<dyn AsyncWrite + Send + Unpin + '_>) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.split();
                (Box::new(read), Box::new(write))
            }
            Self::Unix(stream) => {
                let (read, write) = stream.split();
                (Box::new(read), Box::new(write))
            }
        }
    }
}

/// Carries one connection to its end.
pub(super) async fn carry(mut client: Wire, shared: Arc<Shared>, mut broken: watch::Receiver<u64>) {
    let silence = async {
        let Some(patience) = shared.patience else { return std::future::pending().await };
        tokio::select! {
            () = shared.up.silent_for(patience) => {}
            () = shared.down.silent_for(patience) => {}
        }
    };
    let carried = async {
        tokio::select! {
            () = shared.up.passable() => {}
            _ = broken.changed() => return client.reset_when_closed(),
        }
        let Ok(mut server) = shared.target().connect().await else {
            return client.reset_when_closed();
        };
        let reset = {
            let (from_client, to_client) = client.split();
            let (from_server, to_server) = server.split();
            tokio::select! {
                _ = forward(from_client, to_server, &shared.up, Some(&shared.sent)) => false,
                _ = forward(from_server, to_client, &shared.down, None) => false,
                _ = broken.changed() => true,
            }
        };
        if reset {
            client.reset_when_closed();
            server.reset_when_closed();
        }
    };
    tokio::select! { () = carried => {} () = silence => {} }
}

async fn forward(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    line: &Line,
    count: Option<&AtomicU64>,
) -> io::Result<()> {
    let (sent, mut arriving) = mpsc::channel(ON_THE_WAY);
    let sending = async move {
        let mut buffer = vec![0; BUFFER];
        let mut last = None;
        loop {
            let packet = line.packet().min(BUFFER);
            // A reset has to travel like an end: on a silent line nobody hears of it.
            let read = from.read(&mut buffer[..packet]).await.unwrap_or(0);
            if let Some(count) = count {
                count.fetch_add(read as u64, Ordering::Relaxed);
            }
            let arrival = last.max(Some(line.arrival(read)));
            last = arrival;
            // Nothing is the end, which is carried like everything else.
            let is_open = sent.send((arrival, buffer[..read].to_vec())).await.is_ok();
            if read == 0 || !is_open {
                return io::Result::Ok(());
            }
        }
    };
    let receiving = async {
        while let Some((arrival, bytes)) = arriving.recv().await {
            if let Some(arrival) = arrival {
                sleep_until(arrival).await;
            }
            line.passable().await;
            if bytes.is_empty() {
                break;
            }
            to.write_all(&bytes).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(sending, receiving).map(|_| ())
}
