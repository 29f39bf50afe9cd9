//! Calls with a stream of messages, made by hand.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use coord_grpc::Connection;
use http::{Request, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame};
use tokio::{spawn, sync::mpsc, task::JoinHandle};
use tonic::{Status, body::Body};
use tower_service::Service;

/// A body that is given its frames one by one.
pub(crate) struct Fed(mpsc::UnboundedReceiver<Bytes>);

impl HttpBody for Fed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
    }
}

/// Begins a call with a stream of messages: the means to feed it, and the body of its answer.
pub(crate) fn stream(
    connection: &Connection,
) -> (mpsc::UnboundedSender<Bytes>, JoinHandle<Result<Body, Status>>) {
    let (feed, messages) = mpsc::unbounded_channel();
    let mut request = Request::post("http://raw/a/B").body(Body::new(Fed(messages))).expect("is good");
    request.headers_mut().insert(CONTENT_TYPE, "application/grpc".parse().expect("is good"));
    let answer = Service::call(&mut connection.clone(), request);
    (feed, spawn(async move { answer.await.map(http::Response::into_body) }))
}

/// A message with so many bytes.
pub(crate) fn message(bytes: u16) -> Bytes {
    let [high, low] = bytes.to_be_bytes();
    let mut message = vec![0, 0, 0, high, low];
    message.resize(5 + usize::from(bytes), 7);
    message.into()
}
