//! The resume point of one watch: the revision that it needs next, whatever happens to the stream. No I/O.

/// The progress of one watch, which begins with what comes from now on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResumePoint {
    /// The first revision that was not delivered; `None` before the server said where "now" is.
    next: Option<i64>,
    /// Whether the consumers know that the watch has started.
    started: bool,
}

/// Meaning of an answer of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The watch has begun, for the first time.
    Started,
    /// The answer has changes to deliver.
    Changes,
    /// The answer has nothing to tell.
    Nothing,
    /// Changes were missed, or will be: the consumer has to read the state anew.
    Gap,
    /// The member that answers has not seen the delivered changes yet. Either it is behind the others, or the
    /// store has another history.
    Behind,
}

impl ResumePoint {
    /// Returns whether every change from a moment in the past on will be delivered.
    pub(crate) fn has_started(&self) -> bool {
        self.started
    }

    /// Returns the revision to ask for; `None` for "now".
    pub(crate) fn next(&self) -> Option<i64> {
        self.next
    }

    /// Returns the revision up to which everything was delivered, or was there before the watch; 0 before it
    /// started.
    pub(crate) fn delivered_to(&self) -> i64 {
        self.next.map_or(0, |next| next - 1)
    }

    /// Takes an answer: whether it says that the watch was created or cancelled, and the store's revision.
    pub(crate) fn step(&mut self, created: bool, canceled: bool, revision: i64) -> Step {
        if canceled {
            return Step::Gap;
        }
        if !created {
            return Step::Changes;
        }
        match self.next {
            Some(_) if self.is_ahead_of(revision) => return Step::Behind,
            Some(_) => {}
            None => self.next = Some(revision + 1),
        }
        if std::mem::replace(&mut self.started, true) { Step::Nothing } else { Step::Started }
    }

    /// Returns whether more was delivered than a store at `revision` has. If that is the store's own
    /// revision, a watch would wait in silence for a future one.
    fn is_ahead_of(&self, revision: i64) -> bool {
        self.next.is_some_and(|next| revision + 1 < next)
    }

    /// Takes note that everything up to `revision` was delivered.
    pub(crate) fn delivered(&mut self, revision: i64) {
        self.next = self.next.max(Some(revision + 1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_now_and_resumes_after_what_was_delivered() {
        let mut progress = ResumePoint::default();
        assert_eq!(progress.next(), None);
        assert!(!progress.has_started());
        assert_eq!(progress.step(true, false, 7), Step::Started);
        assert!(progress.has_started());
        assert_eq!(progress.next(), Some(8));
        assert_eq!(progress.step(false, false, 9), Step::Changes);
        progress.delivered(9);
        progress.delivered(8);
        assert_eq!(progress.next(), Some(10), "never goes back");
        assert_eq!(progress.step(true, false, 20), Step::Nothing, "the stream was reopened");
        assert_eq!(progress.next(), Some(10), "what happened meanwhile is still to come");
    }

    #[test]
    fn a_stream_that_breaks_before_it_began_begins_anew() {
        let mut progress = ResumePoint::default();
        assert_eq!(progress.next(), None);
        assert_eq!(progress.step(true, false, 12), Step::Started);
    }

    #[test]
    fn compaction_is_a_gap_and_a_replaced_store_is_noticed() {
        let mut progress = ResumePoint::default();
        assert_eq!(progress.step(true, false, 100), Step::Started);
        assert_eq!(progress.step(false, true, 200), Step::Gap, "canceled, as after compaction");
        assert_eq!(
            progress.step(true, false, 3),
            Step::Behind,
            "the store was emptied, or a member is behind"
        );
        assert!(progress.is_ahead_of(99) && !progress.is_ahead_of(100));
    }
}
