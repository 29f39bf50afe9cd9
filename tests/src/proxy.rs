//! A network between one client and a server that can be cut: nothing arrives, and nobody is told.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// Forwards connections on loopback to a server. Dropping it closes them.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    cut: watch::Sender<bool>,
    task: AbortHandle,
}

impl Proxy {
    /// Starts forwarding to `target`, a `host:port`.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start(target: String) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?.to_string();
        let (cut, is_cut) = watch::channel(false);
        let task = tokio::spawn(accept(listener, target, is_cut)).abort_handle();
        Ok(Self { address, cut, task })
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on nothing passes, in both directions; open connections stay open.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// Lets everything pass again, also what was sent meanwhile.
    pub fn restore(&self) {
        self.cut.send_replace(false);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, target: String, cut: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (target, mut cut) = (target.clone(), cut.clone());
        connections.spawn(async move {
            passable(&mut cut).await;
            let Ok(server) = TcpStream::connect(target).await else { return };
            // Passes each packet on at once, as a wire does.
            if client.set_nodelay(true).and(server.set_nodelay(true)).is_err() {
                return;
            }
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::select! {
                _ = forward(from_client, to_server, cut.clone()) => {}
                _ = forward(from_server, to_client, cut) => {}
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn forward(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut cut: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        passable(&mut cut).await;
        if read == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..read]).await?;
    }
}

async fn passable(cut: &mut watch::Receiver<bool>) {
    // An error means that the proxy is gone, and this task with it.
    let _ = cut.wait_for(|cut| !cut).await;
}
