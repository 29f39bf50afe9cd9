//! A member of etcd that has lost its leader: it is there, accepts everything, and does nothing.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tonic::{Status, body::Body, codegen::http};

use crate::stand_in::{Answer, Serving, serve};

/// Answers every request on loopback as etcd does then. Dropping it ends it.
#[derive(Debug)]
pub struct Leaderless {
    serving: Serving,
    asked: Arc<AtomicUsize>,
}

impl Leaderless {
    /// Starts it.
    ///
    /// # Errors
    /// When no port can be opened.
    pub async fn start() -> io::Result<Self> {
        let asked = Arc::new(AtomicUsize::new(0));
        let serving = serve(NoLeader(asked.clone())).await?;
        Ok(Self { serving, asked })
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.serving.address
    }

    /// How many requests came.
    pub fn asked(&self) -> usize {
        self.asked.load(Relaxed)
    }
}

#[derive(Clone)]
struct NoLeader(Arc<AtomicUsize>);

impl Answer for NoLeader {
    async fn answer(self, _: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        self.0.fetch_add(1, Relaxed);
        Err(Status::unavailable("etcdserver: no leader"))
    }
}
