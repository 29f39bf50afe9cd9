//! Pings of a connection with calls in flight from which nothing comes.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::{options::KeepAlive, wire::Wire};

/// Pings after a time of silence. No timer runs while no call is in flight.
pub(crate) struct Pings {
    sender: PingPong,
    keep_alive: KeepAlive,
    wire: Arc<Wire>,
    state: State,
}

enum State {
    Idle,
    /// Nothing was to be heard when this began.
    Silent(Pin<Box<Sleep>>),
    /// The answer has until then.
    Sent(Pin<Box<Sleep>>),
}

impl Pings {
    pub(crate) fn new(sender: PingPong, keep_alive: KeepAlive, wire: Arc<Wire>) -> Self {
        Self { sender, keep_alive, wire, state: State::Idle }
    }

    /// Ready when a ping was not answered in time. To be polled before the connection, which sends them.
    pub(crate) fn poll(&mut self, in_use: bool, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.state {
                State::Idle => {
                    let Some(at) = self.due().filter(|_| in_use) else { return Poll::Pending };
                    self.state = State::Silent(Box::pin(sleep_until(at)));
                }
                State::Silent(silence) => {
                    ready!(silence.as_mut().poll(cx));
                    let has_spoken = self.due().is_none_or(|at| at > Instant::now());
                    if has_spoken || !in_use || self.sender.send_ping(Ping::opaque()).is_err() {
                        self.state = State::Idle;
                        if !has_spoken {
                            return Poll::Pending;
                        }
                    } else {
                        self.state = State::Sent(Box::pin(sleep(self.keep_alive.timeout)));
                    }
                }
                State::Sent(patience) => match self.sender.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => self.state = State::Idle,
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return patience.as_mut().poll(cx),
                },
            }
        }
    }

    /// When the silence is long enough, if any clock gets there.
    fn due(&self) -> Option<Instant> {
        self.wire.last_read().checked_add(self.keep_alive.interval)
    }
}
