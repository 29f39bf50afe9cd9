//! What stands in for an etcd: clients speak to it as to one, and it answers as it likes.

use std::{
    convert::Infallible,
    io,
    task::{Context, Poll},
};

use futures::future::BoxFuture;
use tokio::{net::TcpListener, task::AbortHandle};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
    transport::{Server, server::TcpIncoming},
};

/// How it answers.
pub(crate) trait Answer: Clone + Send + Sync + 'static {
    fn answer(
        self,
        request: http::Request<Body>,
    ) -> impl Future<Output = Result<http::Response<Body>, Status>> + Send;
}

/// It listens on a port of loopback until this is dropped.
#[derive(Debug)]
pub(crate) struct Serving {
    /// `host:port`.
    pub(crate) address: String,
    task: AbortHandle,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Begins to serve.
pub(crate) async fn serve(answer: impl Answer) -> io::Result<Serving> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let serving = Server::builder()
        .add_service(Kv(answer.clone()))
        .add_service(Lease(answer.clone()))
        .add_service(Watch(answer))
        .serve_with_incoming(TcpIncoming::from(listener));
    let task = tokio::spawn(async move { drop(serving.await) }).abort_handle();
    Ok(Serving { address, task })
}

macro_rules! services {
    ($($name:ident is $path:literal),+) => {$(
        #[derive(Clone)]
        struct $name<A>(A);

        impl<A> NamedService for $name<A> {
            const NAME: &'static str = $path;
        }

        impl<A: Answer> Service<http::Request<Body>> for $name<A> {
            type Response = http::Response<Body>;
            type Error = Infallible;
            type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

            fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
                Poll::Ready(Ok(()))
            }

            fn call(&mut self, request: http::Request<Body>) -> Self::Future {
                let answer = self.0.clone();
                Box::pin(async move { Ok(answer.answer(request).await.unwrap_or_else(Status::into_http)) })
            }
        }
    )+};
}

services! { Kv is "etcdserverpb.KV", Lease is "etcdserverpb.Lease", Watch is "etcdserverpb.Watch" }
