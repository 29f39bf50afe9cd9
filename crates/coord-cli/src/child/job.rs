//! Ctrl-Z and `fg`: when CMD stops, `coord` stops as well, so that a shell sees its job stopped.
//!
//! A signal to stop does not stop `coord` by itself. A CMD that ignores it would go on without a lock that is
//! renewed, and so would a process that CMD has started.

use std::io;

use rustix::process::{Signal, getpid, kill_process};
use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use super::signals::{ignored, is_in};

/// The signals of job control, and the news that a child has changed.
#[derive(Debug)]
pub(super) struct Job {
    child: Stream,
    resumed: Stream,
    stop: Option<Stream>,
    stop_reading: Option<Stream>,
    stop_writing: Option<Stream>,
    /// Whether a signal to stop has come since the last one to continue.
    asked: bool,
}

/// A change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A child has ended, was stopped or was continued.
    Child,
    /// A signal to stop.
    Stop(Signal),
    /// This process was continued.
    Resumed,
}

impl Job {
    /// Listens. From here on a signal to stop does not stop this process.
    pub(super) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let stop = |wanted: Signal| {
            let kind = SignalKind::from_raw(wanted.as_raw());
            if is_in(ignored, wanted.as_raw()) { Ok(None) } else { signal(kind).map(Some) }
        };
        Ok(Self {
            child: signal(SignalKind::child())?,
            resumed: signal(SignalKind::from_raw(Signal::CONT.as_raw()))?,
            stop: stop(Signal::TSTP)?,
            stop_reading: stop(Signal::TTIN)?,
            stop_writing: stop(Signal::TTOU)?,
            asked: false,
        })
    }

    /// Waits for the next change.
    ///
    /// # Cancel safety
    /// None is lost when this is dropped.
    pub(super) async fn changed(&mut self) -> Change {
        let change = tokio::select! {
            biased;
            _ = self.resumed.recv() => Change::Resumed,
            () = next(&mut self.stop) => Change::Stop(Signal::TSTP),
            () = next(&mut self.stop_reading) => Change::Stop(Signal::TTIN),
            () = next(&mut self.stop_writing) => Change::Stop(Signal::TTOU),
            _ = self.child.recv() => Change::Child,
        };
        match change {
            Change::Resumed => self.asked = false,
            Change::Stop(_) => self.asked = true,
            Change::Child => {}
        }
        change
    }

    /// Tells whether this process was asked to stop and has not.
    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    /// Forgets that this process was asked to stop.
    pub(super) fn stay(&mut self) {
        self.asked = false;
    }

    /// Stops this process if it was asked to stop, now that CMD has stopped with all that it has started. It returns when
    /// this process was continued.
    pub(super) fn follow(&mut self) {
        if std::mem::take(&mut self.asked) {
            let _ = kill_process(getpid(), Signal::STOP);
        }
    }
}

async fn next(stream: &mut Option<Stream>) {
    match stream {
        Some(stream) => {
            stream.recv().await;
        }
        None => std::future::pending().await,
    }
}
