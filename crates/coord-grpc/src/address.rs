//! Which of the addresses of a name is connected to.

use std::{io, net::SocketAddr, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, lookup_host},
    time::sleep,
};

/// How long one address is tried alone, as RFC 8305 has it: one that is dead may never say so.
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to one of the addresses of `host`.
pub(crate) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    any(lookup_host((host, port)).await?.collect()).await
}

/// The first connection that comes about. Each address is tried when the one before has failed, or had its head start;
/// none is given up for the next one. They come in any order: one that takes connections and then says nothing must not
/// be the first one always.
async fn any(mut addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    fastrand::shuffle(&mut addresses);
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    let mut next = addresses.into_iter();
    let mut trying = FuturesUnordered::new();
    loop {
        trying.extend(next.next().map(TcpStream::connect));
        tokio::select! {
            Some(outcome) = trying.next() => match outcome {
                Ok(stream) => return Ok(stream),
                Err(error) => failure = error,
            },
            () = sleep(HEAD_START), if next.len() > 0 => {}
            else => return Err(failure),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket};

    use super::*;

    /// An address that swallows whatever is sent to it, until what is returned is dropped.
    async fn dead() -> (SocketAddr, (TcpListener, TcpStream)) {
        let socket = TcpSocket::new_v4().expect("there are sockets");
        socket.bind(([127, 0, 0, 1], 0).into()).expect("loopback has free ports");
        let listener = socket.listen(0).expect("is bound");
        let address = listener.local_addr().expect("is bound");
        // Nobody accepts it, and there is room for one.
        let waiting = TcpStream::connect(address).await.expect("there is room");
        (address, (listener, waiting))
    }

    async fn alive() -> (SocketAddr, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        (listener.local_addr().expect("is bound"), listener)
    }

    fn refusing() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        listener.local_addr().expect("is bound")
    }

    #[tokio::test]
    async fn an_address_that_is_dead_does_not_keep_the_others() {
        let ((dead, _keep), (other_dead, _keep_too)) = (dead().await, dead().await);
        let (alive, _listener) = alive().await;
        // With each of them first now and then.
        for _ in 0..8 {
            let stream = any(vec![dead, refusing(), other_dead, alive]).await.expect("one of them listens");
            assert_eq!(stream.peer_addr().expect("is connected"), alive);
        }
    }

    #[tokio::test]
    async fn it_is_not_always_the_same_one() {
        let (one, other) = (alive().await, alive().await);
        for wanted in [one.0, other.0] {
            let mut chosen = None;
            while chosen != Some(wanted) {
                let stream = any(vec![one.0, other.0]).await.expect("both listen");
                chosen = stream.peer_addr().ok();
            }
        }
    }

    #[tokio::test]
    async fn without_an_address_that_listens_there_is_an_error() {
        let error = any(vec![refusing(), refusing()]).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(any(Vec::new()).await.expect_err("is none").kind(), io::ErrorKind::NotFound);
    }
}
