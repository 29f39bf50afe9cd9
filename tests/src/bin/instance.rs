//! A process of its own that serves gRPC's health service, for tests that kill it.
//!
//! `instance PORT`: serves on loopback (0: any port), prints the port, and ends with its standard input.

use tokio::{
    io::{AsyncReadExt, stdin},
    net::TcpListener,
};
use tonic::transport::{Server, server::TcpIncoming};

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let port: u16 = std::env::args().nth(1).unwrap_or_default().parse()?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?;
    println!("{}", listener.local_addr()?.port());
    let (_reporter, health) = tonic_health::server::health_reporter();
    let serving = Server::builder().add_service(health).serve_with_incoming(TcpIncoming::from(listener));
    let (mut input, mut read) = (stdin(), Vec::new());
    tokio::select! {
        served = serving => Ok(served?),
        ended = input.read_to_end(&mut read) => Ok(ended.map(|_| ())?),
    }
}
