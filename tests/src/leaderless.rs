//! A member of etcd that has lost its leader: it is there, accepts everything, and does nothing.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use tokio::{net::TcpListener, task::AbortHandle};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};

/// Answers every request on loopback as etcd does then. Dropping it ends it.
#[derive(Debug)]
pub struct Leaderless {
    address: String,
    asked: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Leaderless {
    /// Starts it.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let asked = Arc::new(AtomicUsize::new(0));
        let serving = Server::builder()
            .add_service(Kv(asked.clone()))
            .add_service(Lease(asked.clone()))
            .add_service(Watch(asked.clone()))
            .serve_with_incoming(TcpIncoming::from(listener));
        let task = tokio::spawn(async move { drop(serving.await) }).abort_handle();
        Ok(Self { address, asked, task })
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How many requests came.
    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

impl Drop for Leaderless {
    fn drop(&mut self) {
        self.task.abort();
    }
}

macro_rules! services {
    ($($name:ident is $path:literal),+) => {$(
        #[derive(Clone)]
        struct $name(Arc<AtomicUsize>);

        impl NamedService for $name {
            const NAME: &'static str = $path;
        }

        impl Service<http::Request<Body>> for $name {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = Ready<Result<Self::Response, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, _: http::Request<Body>) -> Self::Future {
                self.0.fetch_add(1, Relaxed);
                ready(Ok(Status::unavailable("etcdserver: no leader").into_http()))
            }
        }
    )+};
}

services! { Kv is "etcdserverpb.KV", Lease is "etcdserverpb.Lease", Watch is "etcdserverpb.Watch" }
