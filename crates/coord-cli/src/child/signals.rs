//! The signals that end `coord` or are passed on.

use std::{io, thread};

use rustix::process::Signal;
use signal_hook::{
    iterator::{Handle, SignalsInfo, exfiltrator::origin::WithOrigin},
    low_level::siginfo::{Cause, Origin},
};
use tokio::sync::mpsc;

const ALL: [Signal; 6] = [Signal::INT, Signal::TERM, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2];

/// Listens to signals: from the moment it exists, none of them ends this process by itself.
#[derive(Debug)]
pub(crate) struct Signals {
    heard: mpsc::Receiver<Heard>,
    /// Ends the thread that waits for signals.
    handle: Handle,
}

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) signal: Signal,
    pub(crate) from: Sender,
}

/// Sender of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// A process, which named this one or its group.
    Process,
    /// The system: for a key such as Ctrl-C the whole group in front of the terminal gets the signal.
    System,
}

impl Signals {
    /// Listens to all but those that this process was started to ignore, as `nohup` does with the hang-up: then the
    /// command ignores them as well.
    pub(crate) fn listen() -> io::Result<Self> {
        let ignored = ignored();
        let numbers = ALL.map(Signal::as_raw).into_iter().filter(|number| !is_in(ignored, *number));
        let mut signals = SignalsInfo::<WithOrigin>::new(numbers)?;
        let handle = signals.handle();
        let (sender, heard) = mpsc::channel(ALL.len());
        thread::Builder::new().name("coord-signals".into()).spawn(move || {
            for origin in &mut signals {
                if let Some(heard) = Heard::of(&origin)
                    && sender.blocking_send(heard).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self { heard, handle })
    }

    /// Waits for the next one.
    ///
    /// # Cancel safety
    /// None is lost when this is dropped.
    pub(crate) async fn next(&mut self) -> Heard {
        match self.heard.recv().await {
            Some(heard) => heard,
            // The thread goes on until this is dropped.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.handle.close();
    }
}

impl Heard {
    fn of(origin: &Origin) -> Option<Self> {
        let signal = ALL.into_iter().find(|signal| signal.as_raw() == origin.signal)?;
        let from = if matches!(origin.cause, Cause::Sent(_)) { Sender::Process } else { Sender::System };
        Some(Self { signal, from })
    }

    /// Whether this is a key at a terminal, which the whole group in front of it has got.
    pub(crate) fn is_key(self) -> bool {
        self.from == Sender::System && [Signal::INT, Signal::QUIT].contains(&self.signal)
    }

    /// Whether the signal asks for an end.
    pub(crate) fn asks_to_end(self) -> bool {
        ![Signal::USR1, Signal::USR2].contains(&self.signal)
    }
}

/// Returns a bit for each signal that this process was started to ignore, the first for signal 1.
pub(super) fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default()
}

/// Tells whether a mask of signals has a number.
pub(super) fn is_in(mask: u64, number: i32) -> bool {
    mask & (1 << (number - 1)) != 0
}
