//! The signals that end `coord` or are passed on.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
};

use rustix::process::Signal;
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

const ALL: [Signal; 6] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// From the moment it exists, none of these signals ends this process by itself.
#[derive(Debug)]
pub(crate) struct Signals(Vec<(Signal, Stream)>);

impl Signals {
    /// Listens to all but those that this process was started to ignore, as `nohup` does with the hang-up: then the
    /// command ignores them as well.
    pub(crate) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let heard = ALL.into_iter().filter(|heard| ignored & (1 << (heard.as_raw() - 1)) == 0);
        let streams = heard.map(|heard| Ok((heard, signal(SignalKind::from_raw(heard.as_raw()))?)));
        streams.collect::<io::Result<_>>().map(Self)
    }

    /// Waits for the next one.
    ///
    /// # Cancel safety
    /// None is lost when this is dropped.
    pub(crate) async fn next(&mut self) -> Signal {
        poll_fn(|cx| self.poll(cx)).await
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Signal> {
        for (heard, stream) in &mut self.0 {
            if stream.poll_recv(cx).is_ready() {
                return Poll::Ready(*heard);
            }
        }
        Poll::Pending
    }
}

/// A bit for each signal that is ignored, the first for signal 1.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}
