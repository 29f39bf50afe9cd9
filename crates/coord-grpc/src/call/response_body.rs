//! Response body: keeps its call counted as in flight until the end, and ends with the caller's deadline.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Status, body::Body};

use super::Attempt;
use crate::outcome::Ending;

/// Answer of a body that is polled.
type OneFrame = Option<Result<Frame<<Body as HttpBody>::Data>, Status>>;

/// Wraps the body of a response, so that it ends its attempt.
pub(super) fn counted(body: Body, attempt: Attempt) -> Body {
    if body.is_end_stream() {
        return body;
    }
    let late = attempt.deadline.map(|deadline| Box::pin(sleep_until(deadline.at)));
    Body::new(CountedBody { body, attempt: Some(attempt), late })
}

struct CountedBody {
    body: Body,
    attempt: Option<Attempt>,
    /// Timer of the caller's deadline, while the call goes on.
    late: Option<Pin<Box<Sleep>>>,
}

impl CountedBody {
    /// Polls the next frame, or an error once the caller's deadline has passed.
    fn poll_in_time(&mut self, cx: &mut Context<'_>) -> Poll<OneFrame> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let (Some(attempt), Some(deadline)) =
            (&self.attempt, self.attempt.as_ref().and_then(|it| it.deadline))
        else {
            return frame;
        };
        let is_late = match &frame {
            Poll::Pending => self.late.as_mut().is_some_and(|late| late.as_mut().poll(cx).is_ready()),
            // Where the server is faster than the caller, there is something to read at any moment.
            Poll::Ready(Some(Ok(frame))) => frame.is_data() && deadline.is_over(Instant::now()),
            Poll::Ready(_) => false,
        };
        if is_late {
            let status = attempt.cut_off(deadline);
            // Dropping the body resets the stream, so the server stops.
            (self.body, self.attempt) = (Body::empty(), None);
            return Poll::Ready(Some(Err(status)));
        }
        match frame {
            Poll::Ready(Some(Ok(frame))) => {
                let frame = frame.into_trailers().map(|mut trailers| {
                    deadline.correct(&mut trailers, Instant::now());
                    Frame::trailers(trailers)
                });
                Poll::Ready(Some(Ok(frame.unwrap_or_else(|frame| frame))))
            }
            other => other,
        }
    }
}

impl HttpBody for CountedBody {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OneFrame> {
        let Poll::Ready(mut frame) = self.poll_in_time(cx) else { return Poll::Pending };
        if let (Some(Err(status)), Some(attempt)) = (&mut frame, &self.attempt) {
            *status = attempt.coded(std::mem::replace(status, Status::ok("")));
        }
        let end = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().map(Ending::of_trailers),
            Some(Err(_)) | None => Some(Ending::NoStatus),
        };
        if let (Some(ending), Some(attempt)) = (end, self.attempt.as_ref()) {
            attempt.judge(ending);
            (self.attempt, self.late) = (None, None);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
