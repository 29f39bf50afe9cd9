//! Request body that is buffered up to a limit, so that another attempt can send it again (replay). The frames are shared
//! with the connection, not copied.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use coord_api::backend::lock;
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body};

/// Largest number of buffered frames, however small they are.
const FRAMES: usize = 1024;

/// Answer of a body that is polled.
type OneFrame = Option<Result<Frame<Bytes>, Status>>;

/// Body of one call, read by one attempt after the other.
#[derive(Clone)]
pub(crate) struct RecoverableBody(Arc<Mutex<State>>);

struct State {
    source: Body,
    /// Frame that was read ahead; `Some(None)` is the end.
    ahead: Option<OneFrame>,
    /// Frames that were read so far, as long as all of them are kept.
    frames: Vec<Bytes>,
    /// Bytes that may still be kept; `None` once a frame was read and not kept.
    budget: Option<usize>,
    /// Number of the attempt that may read.
    attempt: u64,
    /// Whether the latest attempt has polled the body.
    was_polled: bool,
}

impl RecoverableBody {
    /// Wraps a body of which up to `limit` bytes are kept.
    pub(crate) fn new(source: Body, limit: usize) -> Self {
        let state = State {
            source,
            ahead: None,
            frames: Vec::new(),
            budget: Some(limit),
            attempt: 0,
            was_polled: false,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Returns the body from its beginning, for the next attempt. Readers of earlier attempts get no more of it.
    pub(crate) fn reader(&self) -> Reader {
        let mut state = self.state();
        state.attempt += 1;
        state.was_polled = false;
        Reader { body: self.clone(), attempt: state.attempt, next: 0 }
    }

    /// Returns whether everything that was read is kept, so that another attempt is possible.
    pub(crate) fn is_recoverable(&self) -> bool {
        self.state().budget.is_some()
    }

    /// Returns whether the latest attempt has polled the body.
    pub(crate) fn was_polled(&self) -> bool {
        self.state().was_polled
    }

    /// Drops the buffer, once the call is answered.
    pub(crate) fn release(&self) {
        self.state().release();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }
}

impl State {
    /// Polls the next frame of the source, and reads one frame ahead, so that the end is known with the last message.
    ///
    /// Else the end is a frame of its own. After a message of 256 bytes or more it is a packet of its own, which wakes the
    /// server once more.
    fn poll_source(&mut self, cx: &mut Context<'_>) -> Poll<OneFrame> {
        let frame = match self.ahead.take() {
            Some(frame) => frame,
            None => ready!(Pin::new(&mut self.source).poll_frame(cx)),
        };
        self.ahead = match &frame {
            None => Some(None),
            Some(Err(_)) => None,
            Some(Ok(_)) => match Pin::new(&mut self.source).poll_frame(cx) {
                Poll::Ready(next) => Some(next),
                Poll::Pending => None,
            },
        };
        Poll::Ready(frame)
    }

    fn keep(&mut self, frame: &OneFrame) {
        let data = match frame {
            None => return,
            Some(frame) => frame.as_ref().ok().and_then(Frame::data_ref),
        };
        let left = data.and_then(|data| self.budget?.checked_sub(data.len()));
        match (data, left) {
            (Some(data), Some(left)) if self.frames.len() < FRAMES => {
                self.frames.push(data.clone());
                self.budget = Some(left);
            }
            _ => self.release(),
        }
    }

    fn release(&mut self) {
        self.frames = Vec::new();
        self.budget = None;
    }

    fn is_at_end(&self) -> bool {
        match &self.ahead {
            Some(next) => next.is_none(),
            None => self.source.is_end_stream(),
        }
    }
}

/// Body as one attempt reads it.
pub(crate) struct Reader {
    body: RecoverableBody,
    attempt: u64,
    next: usize,
}

impl HttpBody for Reader {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OneFrame> {
        let body = self.body.clone();
        let mut state = body.state();
        if state.attempt != self.attempt {
            return Poll::Ready(Some(Err(Status::cancelled("the call was given to another instance"))));
        }
        state.was_polled = true;
        if let Some(data) = state.frames.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(data.clone()))));
        }
        let frame = ready!(state.poll_source(cx));
        state.keep(&frame);
        self.next = state.frames.len();
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let state = self.body.state();
        self.next >= state.frames.len() && state.is_at_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Body with these frames. An empty frame stands for one that is not there yet.
    struct Several(Vec<&'static str>);

    impl HttpBody for Several {
        type Data = Bytes;
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

    fn recoverable(frames: &[&'static str], limit: usize) -> RecoverableBody {
        RecoverableBody::new(Body::new(Several(frames.to_vec())), limit)
    }

    /// Polls a body, and returns the frame, and whether the body is then at its end.
    fn polled(body: &mut Reader) -> (Poll<Option<String>>, bool) {
        let polled = Pin::new(&mut *body).poll_frame(&mut Context::from_waker(std::task::Waker::noop()));
        let text =
            |frame: Frame<Bytes>| String::from_utf8_lossy(&frame.into_data().expect("is data")).into_owned();
        let polled = polled.map(|frame| frame.map(|frame| frame.map_or_else(|_| "error".into(), text)));
        (polled, body.is_end_stream())
    }

    fn ready(text: &str) -> Poll<Option<String>> {
        Poll::Ready(Some(text.to_owned()))
    }

    #[test]
    fn last_message_tells_the_end() {
        let mut one = recoverable(&["one"], 99).reader();
        assert!(!one.is_end_stream());
        assert_eq!(polled(&mut one), (ready("one"), true));
        assert_eq!(polled(&mut one), (Poll::Ready(None), true));
        assert_eq!(polled(&mut one), (Poll::Ready(None), true));

        let mut several = recoverable(&["one", "two", "", "three"], 99).reader();
        assert_eq!(polled(&mut several), (ready("one"), false));
        assert_eq!(polled(&mut several), (ready("two"), false), "the next is not there yet");
        assert_eq!(polled(&mut several), (ready("three"), true));

        let mut broken = recoverable(&["one", "error"], 99).reader();
        assert_eq!(polled(&mut broken), (ready("one"), false));
        assert_eq!(polled(&mut broken).0, ready("error"));

        let mut late = recoverable(&["", "one"], 99).reader();
        assert_eq!(polled(&mut late), (Poll::Pending, false));
        assert_eq!(polled(&mut late), (ready("one"), true));
        assert!(RecoverableBody::new(Body::empty(), 99).reader().is_end_stream());
    }

    #[test]
    fn second_reader_gets_buffered_frames_and_then_the_rest() {
        for limit in [6, 9, 99] {
            let body = recoverable(&["one", "two", "", "three", ""], limit);
            let mut first = body.reader();
            assert_eq!(polled(&mut first).0, ready("one"));
            assert_eq!(polled(&mut first).0, ready("two"));
            assert!(body.is_recoverable() && body.was_polled());
            let mut second = body.reader();
            assert!(!body.was_polled());
            assert_eq!(polled(&mut second), (ready("one"), false));
            assert_eq!(polled(&mut first).0, ready("error"), "it was given to the second");
            assert_eq!(polled(&mut second), (ready("two"), false));
            assert_eq!(polled(&mut second), (ready("three"), false));
            assert_eq!(body.is_recoverable(), limit == 99);
            assert_eq!(polled(&mut second), (Poll::Ready(None), true));
        }
    }

    #[test]
    fn last_message_of_a_second_reader_tells_the_end() {
        let body = recoverable(&["one", "two"], 99);
        let mut first = body.reader();
        assert_eq!((polled(&mut first), polled(&mut first)), ((ready("one"), false), (ready("two"), true)));
        let mut second = body.reader();
        assert_eq!((polled(&mut second), polled(&mut second)), ((ready("one"), false), (ready("two"), true)));
        assert_eq!(polled(&mut second), (Poll::Ready(None), true));
    }

    #[test]
    fn buffer_keeps_its_limits() {
        let nothing = recoverable(&["one"], 0);
        assert!(nothing.is_recoverable(), "nothing was read");
        assert_eq!(polled(&mut nothing.reader()).0, ready("one"));
        assert!(!nothing.is_recoverable());

        let many = recoverable(&vec!["x"; FRAMES + 1], usize::MAX);
        let mut body = many.reader();
        for _ in 0..FRAMES {
            assert_eq!(polled(&mut body).0, ready("x"));
            assert!(many.is_recoverable());
        }
        assert_eq!(polled(&mut body), (ready("x"), true));
        assert!(!many.is_recoverable() && many.state().frames.is_empty());

        let answered = recoverable(&["one", "two"], 99);
        let mut body = answered.reader();
        assert_eq!(polled(&mut body), (ready("one"), false));
        answered.release();
        assert!(!answered.is_recoverable() && answered.state().frames.is_empty());
        assert_eq!(polled(&mut body), (ready("two"), true));

        let broken = recoverable(&["error"], 99);
        assert_eq!(polled(&mut broken.reader()).0, ready("error"));
        assert!(!broken.is_recoverable());
    }
}
