//! Connection: connecting to one instance, and what is known of the connection afterwards.

use std::{
    io,
    sync::{
        Arc,
        atomic::Ordering::{Relaxed, SeqCst},
    },
};

use coord_api::{BoxError, backend::innermost};
use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint};

use super::{
    h2_client,
    http2::Http2,
    ping_backoff::PingBackoff,
    socket::{OnClose, Socket, SocketState},
};
use crate::options::ConnectOptions;

/// A connection that is ready for calls.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) http2: Http2,
    socket: Arc<SocketState>,
}

impl Connection {
    /// Returns how many reads have brought bytes. While the number stays, the instance is silent.
    pub(crate) fn reads(&self) -> u64 {
        self.socket.reads()
    }

    /// Aborts the connection and every call on it. Bytes that the kernel has not sent yet are dropped.
    pub(crate) fn abort(&self) {
        self.socket.abort();
    }

    /// Returns whether it takes no more calls.
    pub(crate) fn is_closed(&self) -> bool {
        self.socket.closed.load(SeqCst)
    }

    /// Notes that a call was answered.
    pub(crate) fn has_served(&self) {
        if !self.socket.served.load(Relaxed) {
            self.socket.served.store(true, Relaxed);
        }
    }

    /// Returns the likely reason of its end, if it ends now.
    pub(crate) fn early_close(&self) -> Option<&'static str> {
        self.socket.early_close()
    }
}

/// Connects, and waits until the other side has said something.
///
/// A server begins with its HTTP/2 settings. So a frozen server, or a network that swallows everything, is not taken for
/// ready although the kernel has accepted. `closed` is called when the connection takes no more calls, and when it ends.
pub(crate) async fn connect(
    authority: &str,
    options: &ConnectOptions,
    ping_backoff: &Arc<PingBackoff>,
    closed: impl Fn(Option<&'static str>) + Send + Sync + 'static,
) -> Result<Connection, BoxError> {
    let (socket, closed): (_, OnClose) = (Arc::new(SocketState::new()), Arc::new(closed));
    let once = Socket::connect(authority.to_owned(), socket.clone(), closed.clone());
    let connecting = async {
        let http2 = if options.is_tls() {
            Http2::Channel(secured(once, authority, options, &socket).await?)
        } else {
            let (backoff, address, leaving) = (ping_backoff.clone(), authority.to_owned(), socket.clone());
            let keep_alive = options.keep_alive.map(|asked| backoff.allowed(asked));
            let leaves = move |error: &h2::Error| {
                backoff.observe(error, &address);
                leaving.closed.store(true, SeqCst);
                closed(leaving.early_close());
            };
            let client = h2_client::open(once.await?, &socket, keep_alive, leaves).await?;
            Http2::Direct { client, authority: authority.parse()? }
        };
        socket.first_read().await;
        if socket.reads() == 0 {
            return Err("the connection was closed before anything came".into());
        }
        if options.is_tls() {
            // A server that does not accept this client says so only after the handshake, and not in words.
            let path = options.probe.as_ref().map_or(ConnectOptions::ANY_METHOD, |probe| &probe.path);
            let answer = http2.probe(path).await;
            answer
                .map_err(|error| format!("closed after the TLS handshake: {}", innermost(error.as_ref())))?;
        }
        Ok(Connection { http2, socket: socket.clone() })
    };
    let limit = options.connect_timeout;
    tokio::time::timeout(limit, connecting)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {limit:?}").into()))
}

/// Opens tonic's channel over the one connection.
async fn secured(
    once: impl Future<Output = io::Result<Socket>> + Send + 'static,
    authority: &str,
    options: &ConnectOptions,
    socket: &SocketState,
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
    connected.map_err(|error| explain(&error, socket.open.load(SeqCst)))
}

/// Explains why TLS failed: "transport error" and "received corrupt message" alone say too little.
fn explain(error: &tonic::transport::Error, in_handshake: bool) -> BoxError {
    let inner = innermost(error);
    // TLS reports its own complaints as invalid data. Everything else is the network, or a server that stops or starts.
    let is_of_tls =
        inner.downcast_ref::<io::Error>().is_none_or(|error| error.kind() == io::ErrorKind::InvalidData);
    match (in_handshake, is_of_tls) {
        (true, true) => format!("TLS handshake: {inner}").into(),
        (true, false) => format!("the connection ended while TLS was being set up: {inner}").into(),
        (false, _) => inner.to_string().into(),
    }
}
