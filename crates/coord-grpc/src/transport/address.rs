//! Addresses of a host name: connects to one of them, as "happy eyeballs" (RFC 8305) does.

use std::{io, net::SocketAddr, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::{
    net::{TcpStream, lookup_host},
    time::sleep,
};

/// Time for which one address is tried alone, from RFC 8305. A dead address may never answer.
const HEAD_START: Duration = Duration::from_millis(250);

/// Connects to one of the addresses of `host`.
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    any(lookup_host((host, port)).await?.collect()).await
}

/// Returns the first connection that is established.
///
/// Each address is tried when the previous one has failed or had its head start. No attempt is given up for the next one.
/// The order is random, so that an address that accepts and then stays silent is not always the first.
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

    /// Returns an address that swallows everything, until the returned sockets are dropped.
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
    async fn dead_address_does_not_delay_the_others_for_long() {
        let ((dead, _keep), (other_dead, _keep_too)) = (dead().await, dead().await);
        let (alive, _listener) = alive().await;
        // With each of them first now and then.
        for _ in 0..8 {
            let stream = any(vec![dead, refusing(), other_dead, alive]).await.expect("one of them listens");
            assert_eq!(stream.peer_addr().expect("is connected"), alive);
        }
    }

    #[tokio::test]
    async fn order_of_addresses_is_random() {
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
    async fn addresses_that_refuse_give_an_error() {
        let error = any(vec![refusing(), refusing()]).await.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(any(Vec::new()).await.expect_err("is none").kind(), io::ErrorKind::NotFound);
    }
}
