//! The bodies of one call: the request's can be had back while nobody has looked into it, and tells its end with its
//! last message; the response's keeps its call counted until its end.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
};

use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::{Status, body::Body};

use crate::{call::Attempt, outcome::Ending};

/// The same body of a request, but it looks one step ahead, so that its end is known with the last message. Else the
/// end is a frame of its own, and after a message of 256 bytes or more a packet of its own, which wakes the server
/// once more.
pub(crate) fn ending_early(body: Body) -> Body {
    if body.is_end_stream() { body } else { Body::new(EndingEarly { body, next: None }) }
}

/// What a body answers when it is polled.
type OneFrame = Option<Result<Frame<<Body as HttpBody>::Data>, Status>>;

struct EndingEarly {
    body: Body,
    /// What was seen ahead; `Some(None)` is the end.
    next: Option<OneFrame>,
}

impl HttpBody for EndingEarly {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OneFrame> {
        let frame = match self.next.take() {
            Some(frame) => frame,
            None => ready!(Pin::new(&mut self.body).poll_frame(cx)),
        };
        self.next = match &frame {
            None => Some(None),
            Some(Err(_)) => None,
            Some(Ok(_)) => match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(next) => Some(next),
                Poll::Pending => None,
            },
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.next {
            Some(next) => next.is_none(),
            None => self.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        if self.next.is_none() { self.body.size_hint() } else { SizeHint::default() }
    }
}

/// Both ends of a request's body: what is sent, and the means to take it back.
pub(crate) fn lend(body: Body) -> (Body, Lender) {
    let (is_end_stream, size_hint) = (body.is_end_stream(), body.size_hint());
    let kept = Arc::new(Mutex::new(Some(body)));
    let lent = Lent { kept: kept.clone(), begun: None, is_end_stream, size_hint };
    (Body::new(lent), Lender(kept))
}

pub(crate) struct Lender(Arc<Mutex<Option<Body>>>);

impl Lender {
    /// The body, if nothing of it was asked for.
    pub(crate) fn take_back(self) -> Option<Body> {
        take(&self.0)
    }
}

fn take(kept: &Mutex<Option<Body>>) -> Option<Body> {
    kept.lock().unwrap_or_else(PoisonError::into_inner).take()
}

struct Lent {
    kept: Arc<Mutex<Option<Body>>>,
    /// The body, once something of it was asked for.
    begun: Option<Body>,
    /// As they were before that.
    is_end_stream: bool,
    size_hint: SizeHint,
}

impl HttpBody for Lent {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OneFrame> {
        if self.begun.is_none() {
            self.begun = take(&self.kept);
        }
        match &mut self.begun {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => Poll::Ready(Some(Err(Status::cancelled("the call was given to another instance")))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.as_ref().map_or(self.is_end_stream, HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.begun.as_ref().map_or(self.size_hint, HttpBody::size_hint)
    }
}

/// A response's body with its call.
pub(crate) fn counted(body: Body, attempt: Attempt) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::new(Counted { body, attempt: Some(attempt) })
}

struct Counted {
    body: Body,
    attempt: Option<Attempt>,
}

impl HttpBody for Counted {
    type Data = <Body as HttpBody>::Data;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OneFrame> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(Err(status)), Some(attempt)) = (&mut frame, &self.attempt) {
            *status = attempt.coded(std::mem::replace(status, Status::ok("")));
        }
        let end = match &frame {
            Some(Ok(frame)) => frame.trailers_ref().map(Ending::of_trailers),
            Some(Err(_)) | None => Some(Ending::NoStatus),
        };
        if let (Some(ending), Some(attempt)) = (end, self.attempt.as_ref()) {
            attempt.judge(ending);
            self.attempt = None;
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn text() -> Body {
        Body::new(Several(vec!["text"]))
    }

    /// A body that has these frames, of which an empty one is not there yet.
    struct Several(Vec<&'static str>);

    impl HttpBody for Several {
        type Data = <Body as HttpBody>::Data;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<OneFrame> {
            if self.0.is_empty() {
                return Poll::Ready(None);
            }
            match self.0.remove(0) {
                "" => Poll::Pending,
                "error" => Poll::Ready(Some(Err(Status::internal("broken")))),
                text => Poll::Ready(Some(Ok(Frame::data(text.into())))),
            }
        }
    }

    async fn read(body: &mut Body) -> Option<String> {
        let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?.ok()?;
        Some(String::from_utf8_lossy(&frame.into_data().ok()?).into_owned())
    }

    #[tokio::test]
    async fn a_body_comes_back_until_it_is_read() {
        let (lent, lender) = lend(text());
        drop(lent);
        let mut back = lender.take_back().expect("nobody has read");
        assert_eq!(read(&mut back).await.as_deref(), Some("text"));

        let (mut lent, lender) = lend(text());
        assert_eq!(read(&mut lent).await.as_deref(), Some("text"));
        assert!(lender.take_back().is_none());

        let (mut lent, lender) = lend(text());
        assert!(lender.take_back().is_some());
        assert_eq!(read(&mut lent).await, None, "is an error");
    }

    /// What comes of polling a body, each with whether it said that it was at its end.
    fn polled(body: &mut Body) -> (Poll<Option<String>>, bool) {
        let polled = Pin::new(&mut *body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
        let text = |frame: Frame<hyper::body::Bytes>| {
            String::from_utf8_lossy(&frame.into_data().expect("is data")).into_owned()
        };
        let polled = polled.map(|frame| frame.map(|frame| frame.map_or_else(|_| "error".into(), text)));
        (polled, body.is_end_stream())
    }

    #[test]
    fn the_end_is_told_with_the_last_message() {
        let ready = |text: &str| Poll::Ready(Some(text.to_owned()));
        let mut one = ending_early(Body::new(Several(vec!["one"])));
        assert!(!one.is_end_stream());
        assert_eq!(polled(&mut one), (ready("one"), true));
        assert_eq!(polled(&mut one), (Poll::Ready(None), true));
        assert_eq!(polled(&mut one), (Poll::Ready(None), true));

        let mut several = ending_early(Body::new(Several(vec!["one", "two", "", "three"])));
        assert_eq!(polled(&mut several), (ready("one"), false));
        assert_eq!(polled(&mut several), (ready("two"), false), "the next is not there yet");
        assert_eq!(polled(&mut several), (ready("three"), true));

        let mut broken = ending_early(Body::new(Several(vec!["one", "error"])));
        assert_eq!(polled(&mut broken), (ready("one"), false));
        assert_eq!(polled(&mut broken).0, ready("error"));

        let mut late = ending_early(Body::new(Several(vec!["", "one"])));
        assert_eq!(polled(&mut late), (Poll::Pending, false));
        assert_eq!(polled(&mut late), (ready("one"), true));
        assert!(ending_early(Body::empty()).is_end_stream());
    }
}
