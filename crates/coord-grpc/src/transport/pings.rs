//! Keep-alive: pings on a connection with calls in flight on which nothing arrives.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use h2::{Ping, PingPong};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::socket::SocketState;
use crate::options::KeepAlive;

/// Sender of pings after a time of silence. No timer runs while no call is in flight.
pub(crate) struct Pings {
    sender: PingPong,
    keep_alive: KeepAlive,
    socket: Arc<SocketState>,
    state: State,
}

enum State {
    Idle,
    /// Waiting for the end of a silence.
    Silent(Pin<Box<Sleep>>),
    /// Waiting for the answer to a ping, with its timeout.
    Sent(Pin<Box<Sleep>>),
}

impl Pings {
    pub(crate) fn new(sender: PingPong, keep_alive: KeepAlive, socket: Arc<SocketState>) -> Self {
        Self { sender, keep_alive, socket, state: State::Idle }
    }

    /// Becomes ready when a ping was not answered in time. Poll it before the connection, which sends the pings.
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
                State::Sent(timeout) => match self.sender.poll_pong(cx) {
                    Poll::Ready(Ok(_)) => self.state = State::Idle,
                    Poll::Ready(Err(_)) => return Poll::Pending,
                    Poll::Pending => return timeout.as_mut().poll(cx),
                },
            }
        }
    }

    /// Returns when a ping is due; `None` if no clock gets there.
    fn due(&self) -> Option<Instant> {
        self.socket.last_read().checked_add(self.keep_alive.interval)
    }
}
