//! A network between one client and a server in which things go wrong: see [`Fault`].

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::server::free_port;

/// What is wrong with a network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Nothing arrives, and nobody is told; open connections stay open.
    Blackhole,
    /// Nothing of the client's arrives.
    StallUp,
    /// Nothing of the server's arrives: requests are executed, and not answered.
    StallDown,
    /// As with a server that was killed: connections are reset, and new ones refused.
    Refuse,
    /// New connections are accepted and closed at once; open ones are reset.
    Hangup,
}

impl Fault {
    fn stops(self, way: Way) -> bool {
        match self {
            Self::None => false,
            Self::StallUp => way == Way::Up,
            Self::StallDown => way == Way::Down,
            Self::Blackhole | Self::Refuse | Self::Hangup => true,
        }
    }

    fn resets(self) -> bool {
        matches!(self, Self::Refuse | Self::Hangup)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Up,
    Down,
}

/// Forwards connections on loopback to a server. Dropping it closes them.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    fault: watch::Sender<Fault>,
    seen: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Proxy {
    /// Starts forwarding to `target`, a `host:port`.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start(target: String) -> io::Result<Self> {
        // One that the system gives to nobody while it is closed.
        let port = free_port().map_err(io::Error::other)?;
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let address = listener.local_addr()?.to_string();
        let (fault, is_faulty) = watch::channel(Fault::None);
        let seen = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(run(listener, address.clone(), target, is_faulty, seen.clone()));
        Ok(Self { address, fault, seen, task: task.abort_handle() })
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on this is wrong. What was held back passes when it is over, unless its connection was reset.
    pub fn fault(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    /// From now on nothing passes, in both directions; open connections stay open.
    pub fn cut(&self) {
        self.fault(Fault::Blackhole);
    }

    /// Lets everything pass again, also what was sent meanwhile.
    pub fn restore(&self) {
        self.fault(Fault::None);
    }

    /// How many bytes the client has sent so far.
    pub fn sent(&self) -> usize {
        self.seen.load(Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(
    mut listener: TcpListener,
    address: String,
    target: String,
    mut fault: watch::Receiver<Fault>,
    seen: Arc<AtomicUsize>,
) {
    loop {
        let mut connections = JoinSet::new();
        let mut refuses = fault.clone();
        tokio::select! {
            () = accept(&listener, &mut connections, &target, &fault, &seen) => return,
            Ok(_) = refuses.wait_for(|fault| *fault == Fault::Refuse) => {}
        }
        drop(listener);
        connections.shutdown().await;
        // An error means that the proxy is gone, and this task with it.
        let _ = fault.wait_for(|fault| *fault != Fault::Refuse).await;
        listener = loop {
            match TcpListener::bind(&address).await {
                Ok(listener) => break listener,
                Err(_) => sleep(Duration::from_millis(20)).await,
            }
        };
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &mut JoinSet<()>,
    target: &str,
    fault: &watch::Receiver<Fault>,
    seen: &Arc<AtomicUsize>,
) {
    while let Ok((client, _)) = listener.accept().await {
        let (target, fault, seen) = (target.to_owned(), fault.clone(), seen.clone());
        connections.spawn(async move {
            let mut reset = fault.clone();
            tokio::select! {
                _ = connect(client, target, fault, seen) => {}
                Ok(_) = reset.wait_for(|fault| fault.resets()) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn connect(
    client: TcpStream,
    target: String,
    mut fault: watch::Receiver<Fault>,
    seen: Arc<AtomicUsize>,
) -> io::Result<()> {
    // A connection that ends here ends with a reset, so that nothing is left of it.
    client.set_zero_linger()?;
    passable(&mut fault, Way::Up).await;
    let server = TcpStream::connect(target).await?;
    // Passes each packet on at once, as a wire does.
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        ended = forward(from_client, to_server, Way::Up, fault.clone(), Some(seen)) => ended,
        ended = forward(from_server, to_client, Way::Down, fault, None) => ended,
    }
}

async fn forward(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    way: Way,
    mut fault: watch::Receiver<Fault>,
    seen: Option<Arc<AtomicUsize>>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if let Some(seen) = &seen {
            seen.fetch_add(read, Relaxed);
        }
        passable(&mut fault, way).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn passable(fault: &mut watch::Receiver<Fault>, way: Way) {
    // An error means that the proxy is gone, and this task with it.
    let _ = fault.wait_for(|fault| !fault.stops(way)).await;
}
