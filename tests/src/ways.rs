//! A way to etcd that tells over which connection each request came.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tonic::{
    Status,
    body::Body,
    codegen::http,
    transport::{Channel, Endpoint, server::TcpConnectInfo},
};

use crate::{
    late::pass,
    stand_in::{Answer, Serving, serve},
};

/// Passes requests of clients on to an etcd. Dropping it ends it.
#[derive(Debug)]
pub struct Ways {
    serving: Serving,
    seen: Seen,
}

#[derive(Clone, Debug)]
struct Seen {
    etcd: Channel,
    /// How many requests about keys came from where.
    requests: Arc<Mutex<BTreeMap<SocketAddr, usize>>>,
}

/// A runtime of one thread, as another one of the same process.
///
/// # Panics
/// If the system has none to give.
pub fn other_runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("can be made")
}

impl Ways {
    /// Starts passing everything on to the etcd at `endpoint`, an `http` URL.
    ///
    /// # Errors
    /// When no port can be opened.
    ///
    /// # Panics
    /// If `endpoint` is no URL.
    pub async fn start(endpoint: &str) -> io::Result<Self> {
        let etcd = Endpoint::from_shared(endpoint.to_owned()).expect("is a URL").connect_lazy();
        let seen = Seen { etcd, requests: Arc::default() };
        Ok(Self { serving: serve(seen.clone()).await?, seen })
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.serving.address
    }

    /// How many requests about keys came over which connection since this was asked last.
    ///
    /// # Panics
    /// If counting them did.
    pub fn taken(&self) -> BTreeMap<SocketAddr, usize> {
        std::mem::take(&mut self.seen.requests.lock().expect("counting does not panic"))
    }
}

impl Answer for Seen {
    async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        if request.uri().path().starts_with("/etcdserverpb.KV/") {
            let from = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
            let from = from.ok_or_else(|| Status::internal("a request without a connection"))?;
            *self.requests.lock().expect("counting does not panic").entry(from).or_default() += 1;
        }
        pass(self.etcd.clone(), request).await.map_err(|error| Status::unavailable(error.to_string()))
    }
}
