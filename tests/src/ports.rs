//! Ports on loopback that nobody else gets in between.

use std::{io, net::Ipv4Addr};

use anyhow::{Context, Result};

/// Below the ports that systems give to outgoing connections: a client that dials a dead server on one of
/// those can be given the very same port and connect to itself, or keep the server from coming back.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A port that is free now; whoever starts something on it must expect that somebody was faster.
pub(crate) fn free_port() -> Result<u16> {
    bound().map(|(port, _)| port).context("no free port on loopback between 20000 and 32000")
}

/// A listener on a port that stays free for it after it was closed for a while.
pub(crate) fn listener() -> io::Result<tokio::net::TcpListener> {
    let (_, listener) = bound()?;
    listener.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(listener)
}

fn bound() -> io::Result<(u16, std::net::TcpListener)> {
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for _ in 0..100 {
        let port = fastrand::u16(PORTS);
        match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => return Ok((port, listener)),
            Err(error) => last = error,
        }
    }
    Err(last)
}
