//! A member of etcd that has lost its leader: it is there, accepts everything, and does nothing.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tokio::task::AbortHandle;
use tonic::{Status, body::Body, codegen::http};

use crate::stand_in::{Answer, serve};

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
        let asked = Arc::new(AtomicUsize::new(0));
        let (address, task) = serve(NoLeader(asked.clone())).await?;
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

#[derive(Clone)]
struct NoLeader(Arc<AtomicUsize>);

impl Answer for NoLeader {
    async fn answer(self, _: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        self.0.fetch_add(1, Relaxed);
        Err(Status::unavailable("etcdserver: no leader"))
    }
}
