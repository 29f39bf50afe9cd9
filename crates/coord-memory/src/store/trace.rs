//! Trace of the last requests, for people who look for the cause of a simulation that failed.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{Store, state::State};

/// The last requests, with what became of them.
pub(super) struct Trace {
    begun: Instant,
    most: usize,
    lines: VecDeque<String>,
}

impl State {
    /// Returns whether anybody wants a trace.
    pub(crate) fn is_traced(&self) -> bool {
        self.trace.is_some()
    }

    /// Adds a line to the trace, if there is one.
    pub(crate) fn note(&mut self, now: Instant, line: impl FnOnce() -> String) {
        let Some(trace) = &mut self.trace else { return };
        let at = now.saturating_duration_since(trace.begun);
        trace.lines.push_back(format!("{at:?} r{} {}", self.revision, line()));
        if trace.lines.len() > trace.most {
            trace.lines.pop_front();
        }
    }
}

/// The trace, which is no part of what is promised: it has stored values in it.
impl Store {
    #[doc(hidden)]
    pub fn trace_requests(&self, most: usize) {
        let begun = Instant::now();
        self.lock_now().trace = Some(Trace { begun, most, lines: VecDeque::new() });
    }

    #[doc(hidden)]
    pub fn note(&self, line: impl FnOnce() -> String) {
        self.lock_now().note(Instant::now(), line);
    }

    #[doc(hidden)]
    pub fn traced(&self) -> Vec<String> {
        self.lock_now().trace.as_ref().map_or_else(Vec::new, |trace| trace.lines.iter().cloned().collect())
    }
}
