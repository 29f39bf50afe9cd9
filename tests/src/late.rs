//! A way to etcd on which some requests are kept back, and arrive when their client has long given them up.

use std::{io, sync::Arc, time::Duration};

use http_body_util::{BodyExt, Full};
use tokio::sync::watch;
use tonic::{
    Status,
    body::Body,
    codegen::{Bytes, Service, http},
    transport::{Channel, Endpoint},
};

use crate::stand_in::{Answer, Serving, serve};

/// Passes requests of clients on to an etcd. Dropping it ends it.
#[derive(Debug)]
pub struct Late {
    serving: Serving,
    way: Arc<Way>,
}

#[derive(Debug)]
struct Way {
    etcd: Channel,
    kept: watch::Sender<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// How many writes pass before some are kept.
    pass: usize,
    /// How many are to be kept then.
    keep: usize,
    requests: Vec<http::Request<Bytes>>,
}

impl Late {
    /// Starts passing everything on to the etcd at `endpoint`, an `http` URL.
    ///
    /// # Errors
    /// When no port can be opened.
    ///
    /// # Panics
    /// If `endpoint` is no URL.
    pub async fn start(endpoint: &str) -> io::Result<Self> {
        let etcd = Endpoint::from_shared(endpoint.to_owned()).expect("is a URL").connect_lazy();
        let way = Arc::new(Way { etcd, kept: watch::Sender::new(Kept::default()) });
        let serving = serve(way.clone()).await?;
        Ok(Self { serving, way })
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.serving.address
    }

    /// From now on the next write, a transaction or a deletion, is kept back, and not answered. Those after it pass.
    pub fn keep_the_next(&self) {
        self.keep(0, 1);
    }

    /// From now on so many writes pass, and so many after them are kept back and not answered.
    pub fn keep(&self, pass: usize, keep: usize) {
        self.way.kept.send_replace(Kept { pass, keep, requests: Vec::new() });
    }

    /// Waits until all those that are to be kept back are.
    ///
    /// # Panics
    /// If they do not come within a minute.
    pub async fn has_kept(&self) {
        let mut kept = self.way.kept.subscribe();
        let all = kept.wait_for(|kept| kept.keep == 0 && !kept.requests.is_empty());
        let all = tokio::time::timeout(Duration::from_secs(60), all).await;
        drop(all.expect("writes come").expect("the sender is a part of this"));
    }

    /// Lets what was kept back arrive, and waits until etcd has answered it.
    ///
    /// # Panics
    /// If nothing was kept back, or etcd does not answer.
    pub async fn let_it_arrive(&self) {
        let kept = self.way.kept.send_replace(Kept::default());
        assert!(!kept.requests.is_empty(), "nothing is kept back");
        for late in kept.requests {
            let answer = pass(self.way.etcd.clone(), late.map(body_of)).await.expect("etcd answers");
            let answer = answer.into_body().collect().await.expect("the answer is whole");
            let status = answer.trailers().and_then(|trailers| trailers.get("grpc-status"));
            assert!(status.is_some_and(|status| status == "0"), "{status:?}");
        }
    }
}

/// Makes a request of the etcd behind.
pub(crate) async fn pass(
    mut etcd: Channel,
    request: http::Request<Body>,
) -> Result<http::Response<Body>, tonic::transport::Error> {
    std::future::poll_fn(|cx| etcd.poll_ready(cx)).await?;
    etcd.call(request).await
}

impl Way {
    /// Whether a write is to be kept.
    fn keeps(&self, write: &http::Request<Bytes>) -> bool {
        self.kept.send_if_modified(|kept| {
            let passes = kept.pass > 0 || kept.keep == 0;
            kept.pass = kept.pass.saturating_sub(1);
            if !passes {
                kept.keep -= 1;
                kept.requests.push(write.clone());
            }
            !passes
        })
    }
}

impl Answer for Arc<Way> {
    async fn answer(self, request: http::Request<Body>) -> Result<http::Response<Body>, Status> {
        let mut request = request;
        if is_write(request.uri().path()) {
            // As a whole, so that it outlives its client.
            let (parts, body) = request.into_parts();
            let whole = http::Request::from_parts(parts, body.collect().await?.to_bytes());
            if self.keeps(&whole) {
                return std::future::pending().await;
            }
            request = whole.map(body_of);
        }
        pass(self.etcd.clone(), request).await.map_err(|error| Status::unavailable(error.to_string()))
    }
}

fn is_write(method: &str) -> bool {
    ["/Txn", "/DeleteRange"].iter().any(|write| method.ends_with(write))
}

fn body_of(bytes: Bytes) -> Body {
    Body::new(Full::new(bytes))
}
