//! Sender of a request's body into its HTTP/2 stream, under the flow control of the server.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as HttpBody;
use tonic::Status;

use super::request_body::Reader;

/// Future that sends a body. It ends when the stream has everything or takes no more; the answer then has the reason. It
/// fails only if the body does.
pub(crate) struct BodySender {
    stream: SendStream<Bytes>,
    body: Reader,
    /// Frame that waits for capacity, and whether it is the last one.
    held: Option<(Bytes, bool)>,
}

impl BodySender {
    pub(crate) fn new(stream: SendStream<Bytes>, body: Reader) -> Self {
        Self { stream, body, held: None }
    }

    /// Sends the held frame. Returns `true` if it was the last one, or the stream takes no more.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        if self.held.is_none() {
            return Poll::Ready(false);
        }
        while self.stream.capacity() == 0 {
            let Some(Ok(_)) = ready!(self.stream.poll_capacity(cx)) else { return Poll::Ready(true) };
        }
        let (data, is_last) = self.held.take().expect("is there");
        Poll::Ready(self.stream.send_data(data, is_last).is_err() || is_last)
    }
}

impl Future for BodySender {
    type Output = Result<(), Status>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            if self.stream.poll_reset(cx).is_ready() || ready!(self.poll_held(cx)) {
                return Poll::Ready(Ok(()));
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => frame,
                Some(Err(status)) => {
                    self.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(status));
                }
                None => {
                    // Fails if the stream is over; the answer tells that as well.
                    let _ = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(Ok(()));
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    if !data.is_empty() {
                        // As little as possible: no other stream of the connection gets the reserved capacity.
                        self.stream.reserve_capacity(1);
                        self.held = Some((data, self.body.is_end_stream()));
                    } else if self.body.is_end_stream() {
                        let _ = self.stream.send_data(data, true);
                        return Poll::Ready(Ok(()));
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let _ = self.stream.send_trailers(trailers);
                        return Poll::Ready(Ok(()));
                    }
                }
            }
        }
    }
}
