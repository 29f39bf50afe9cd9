//! The body of a request, of which so much is kept that it can be sent again. The frames are shared with the
//! connection, not copied.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame};
use tonic::{Status, body::Body};

/// The most frames that are kept, however small they are.
const FRAMES: usize = 1024;

/// What a body answers when it is polled.
type OneFrame = Option<Result<Frame<Bytes>, Status>>;

/// The body of one call, read by one try after the other.
#[derive(Clone)]
pub(crate) struct Kept(Arc<Mutex<State>>);

struct State {
    source: Body,
    /// The frame seen ahead; `Some(None)` is the end.
    ahead: Option<OneFrame>,
    /// The frames that were read so far, as long as all of them are kept.
    frames: Vec<Bytes>,
    /// How much more may be kept; `None` once a frame was read that is not.
    room: Option<usize>,
    /// The try that may read.
    turn: u64,
    /// Whether that one has asked for anything.
    is_asked: bool,
}

impl Kept {
    /// Keeps up to `limit` bytes.
    pub(crate) fn new(source: Body, limit: usize) -> Self {
        let state =
            State { source, ahead: None, frames: Vec::new(), room: Some(limit), turn: 0, is_asked: false };
        Self(Arc::new(Mutex::new(state)))
    }

    /// The body from its beginning, for the next try; whoever had it before gets no more of it.
    pub(crate) fn lend(&self) -> Reader {
        let mut state = self.state();
        state.turn += 1;
        state.is_asked = false;
        Reader { kept: self.clone(), turn: state.turn, next: 0 }
    }

    /// Whether everything that was read is kept.
    pub(crate) fn is_whole(&self) -> bool {
        self.state().room.is_some()
    }

    /// Whether the latest try has asked for anything.
    pub(crate) fn is_asked(&self) -> bool {
        self.state().is_asked
    }

    /// Keeps nothing any more: the call is answered.
    pub(crate) fn release(&self) {
        self.state().release();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The next frame of the source. It looks one step ahead, so that the end is known with the last message. Else
    /// the end is a frame of its own, and after a message of 256 bytes or more a packet of its own, which wakes the
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
        let left = data.and_then(|data| self.room?.checked_sub(data.len()));
        match (data, left) {
            (Some(data), Some(left)) if self.frames.len() < FRAMES => {
                self.frames.push(data.clone());
                self.room = Some(left);
            }
            _ => self.release(),
        }
    }

    fn release(&mut self) {
        self.frames = Vec::new();
        self.room = None;
    }

    fn is_at_end(&self) -> bool {
        match &self.ahead {
            Some(next) => next.is_none(),
            None => self.source.is_end_stream(),
        }
    }
}

/// The body as one try reads it.
pub(crate) struct Reader {
    kept: Kept,
    turn: u64,
    next: usize,
}

impl HttpBody for Reader {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<OneFrame> {
        let kept = self.kept.clone();
        let mut state = kept.state();
        if state.turn != self.turn {
            return Poll::Ready(Some(Err(Status::cancelled("the call was given to another instance"))));
        }
        state.is_asked = true;
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
        let state = self.kept.state();
        self.next >= state.frames.len() && state.is_at_end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A body that has these frames, of which an empty one is not there yet.
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

    fn kept(frames: &[&'static str], limit: usize) -> Kept {
        Kept::new(Body::new(Several(frames.to_vec())), limit)
    }

    /// What comes of polling a body, each with whether it said that it was at its end.
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
    fn end_is_told_with_the_last_message() {
        let mut one = kept(&["one"], 99).lend();
        assert!(!one.is_end_stream());
        assert_eq!(polled(&mut one), (ready("one"), true));
        assert_eq!(polled(&mut one), (Poll::Ready(None), true));
        assert_eq!(polled(&mut one), (Poll::Ready(None), true));

        let mut several = kept(&["one", "two", "", "three"], 99).lend();
        assert_eq!(polled(&mut several), (ready("one"), false));
        assert_eq!(polled(&mut several), (ready("two"), false), "the next is not there yet");
        assert_eq!(polled(&mut several), (ready("three"), true));

        let mut broken = kept(&["one", "error"], 99).lend();
        assert_eq!(polled(&mut broken), (ready("one"), false));
        assert_eq!(polled(&mut broken).0, ready("error"));

        let mut late = kept(&["", "one"], 99).lend();
        assert_eq!(polled(&mut late), (Poll::Pending, false));
        assert_eq!(polled(&mut late), (ready("one"), true));
        assert!(Kept::new(Body::empty(), 99).lend().is_end_stream());
    }

    #[test]
    fn what_is_kept_is_read_again_and_goes_on() {
        for limit in [6, 9, 99] {
            let kept = kept(&["one", "two", "", "three", ""], limit);
            let mut first = kept.lend();
            assert_eq!(polled(&mut first).0, ready("one"));
            assert_eq!(polled(&mut first).0, ready("two"));
            assert!(kept.is_whole() && kept.is_asked());
            let mut second = kept.lend();
            assert!(!kept.is_asked());
            assert_eq!(polled(&mut second), (ready("one"), false));
            assert_eq!(polled(&mut first).0, ready("error"), "it was given to the second");
            assert_eq!(polled(&mut second), (ready("two"), false));
            assert_eq!(polled(&mut second), (ready("three"), false));
            assert_eq!(kept.is_whole(), limit == 99);
            assert_eq!(polled(&mut second), (Poll::Ready(None), true));
        }
    }

    #[test]
    fn last_message_of_the_second_try_tells_the_end() {
        let kept = kept(&["one", "two"], 99);
        let mut first = kept.lend();
        assert_eq!((polled(&mut first), polled(&mut first)), ((ready("one"), false), (ready("two"), true)));
        let mut second = kept.lend();
        assert_eq!((polled(&mut second), polled(&mut second)), ((ready("one"), false), (ready("two"), true)));
        assert_eq!(polled(&mut second), (Poll::Ready(None), true));
    }

    #[test]
    fn no_more_is_kept_than_may_be() {
        let nothing = kept(&["one"], 0);
        assert!(nothing.is_whole(), "nothing was read");
        assert_eq!(polled(&mut nothing.lend()).0, ready("one"));
        assert!(!nothing.is_whole());

        let many = kept(&vec!["x"; FRAMES + 1], usize::MAX);
        let mut body = many.lend();
        for _ in 0..FRAMES {
            assert_eq!(polled(&mut body).0, ready("x"));
            assert!(many.is_whole());
        }
        assert_eq!(polled(&mut body), (ready("x"), true));
        assert!(!many.is_whole() && many.state().frames.is_empty());

        let answered = kept(&["one", "two"], 99);
        let mut body = answered.lend();
        assert_eq!(polled(&mut body), (ready("one"), false));
        answered.release();
        assert!(!answered.is_whole() && answered.state().frames.is_empty());
        assert_eq!(polled(&mut body), (ready("two"), true));

        let broken = kept(&["error"], 99);
        assert_eq!(polled(&mut broken.lend()).0, ready("error"));
        assert!(!broken.is_whole());
    }
}
