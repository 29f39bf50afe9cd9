//! A way to etcd on which every grant of a lease fails at once, and may have had an effect.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use tonic::{
    Status,
    body::Body,
    codegen::http,
    transport::{Channel, Endpoint},
};

use crate::{
    late::pass,
    stand_in::{Answer, Serving, serve},
};

/// Passes all other requests of clients on to an etcd, and counts. Dropping it ends it.
#[derive(Debug)]
pub struct Hasty {
    serving: Serving,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    grants: AtomicUsize,
    revocations: AtomicUsize,
}

impl Hasty {
    /// Starts passing requests on to the etcd at `endpoint`, an `http` URL.
    ///
    /// # Errors
    /// When no port can be opened.
    ///
    /// # Panics
    /// If `endpoint` is no URL.
    pub async fn start(endpoint: &str) -> io::Result<Self> {
        let etcd = Endpoint::from_shared(endpoint.to_owned()).expect("is a URL").connect_lazy();
        let counts = Arc::<Counts>::default();
        let serving = serve(Way { etcd, counts: counts.clone() }).await?;
        Ok(Self { serving, counts })
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.serving.address
    }

    /// How many leases were asked for.
    pub fn grants(&self) -> usize {
        self.counts.grants.load(Relaxed)
    }

    /// How many were given back that may have been granted.
    pub fn revocations(&self) -> usize {
        self.counts.revocations.load(Relaxed)
    }
}

#[derive(Clone)]
struct Way {
    etcd: Channel,
    counts: Arc<Counts>,
}

impl Answer for Way {
    async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        if request.uri().path().ends_with("/LeaseGrant") {
            self.counts.grants.fetch_add(1, Relaxed);
            return Err(Status::unavailable("etcdserver: request timed out"));
        }
        if request.uri().path().ends_with("/LeaseRevoke") {
            self.counts.revocations.fetch_add(1, Relaxed);
        }
        pass(self.etcd, request).await.map_err(|error| Status::unavailable(error.to_string()))
    }
}
