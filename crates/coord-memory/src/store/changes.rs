//! The log of changes: for reads at an earlier revision, for watches from one, and for a store that goes back.

use std::collections::VecDeque;

use coord_kv::store::{Change, Revision};

use super::pairs::{Key, Pair};

/// Most changes that are remembered.
const MOST: usize = 4096;

/// Change of one key.
#[derive(Clone, Debug)]
pub(crate) struct Logged {
    pub(super) revision: Revision,
    pub(super) key: Key,
    pub(super) before: Option<Pair>,
    pub(super) after: Option<Pair>,
}

impl Logged {
    /// Returns the change as watches tell it; `None` for a key that is not text.
    pub(super) fn told(&self) -> Option<Change> {
        Some(Change {
            key: std::str::from_utf8(&self.key).ok()?.to_owned(),
            revision: self.revision,
            created: self.after.as_ref().map_or(0, |after| after.created),
            value: self.after.as_ref().map(|after| after.value.clone()),
        })
    }
}

/// The latest changes, in their order, all of each revision.
#[derive(Debug)]
pub(crate) struct Log {
    changes: VecDeque<Logged>,
    /// The revision up to which changes are forgotten.
    compacted: Revision,
}

impl Log {
    pub(super) fn new() -> Self {
        Self { changes: VecDeque::new(), compacted: 0 }
    }

    /// Returns the revision up to which changes are forgotten. The state at that revision is known.
    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(super) fn push(&mut self, revision: Revision, key: Key, before: Option<Pair>, after: Option<Pair>) {
        self.changes.push_back(Logged { revision, key, before, after });
    }

    /// Forgets the oldest changes, if there are too many. All of the latest revision stay.
    pub(super) fn trim(&mut self, latest: Revision) {
        while self.changes.len() > MOST
            && let Some(oldest) = self.changes.front().map(|change| change.revision)
            && oldest < latest
        {
            while self.changes.front().is_some_and(|change| change.revision == oldest) {
                self.changes.pop_front();
            }
            self.compacted = oldest + 1;
        }
    }

    /// Forgets all changes before a revision, the latest.
    pub(super) fn compact(&mut self, to: Revision) {
        self.changes.retain(|change| change.revision >= to);
        self.compacted = to;
    }

    /// Returns whether there are changes of a revision, or later ones.
    pub(super) fn has(&self, revision: Revision) -> bool {
        self.changes.back().is_some_and(|latest| latest.revision >= revision)
    }

    /// Returns the changes from a revision on.
    pub(super) fn since(&self, from: Revision) -> impl DoubleEndedIterator<Item = &Logged> {
        let first = self.changes.partition_point(|change| change.revision < from);
        self.changes.range(first..)
    }

    /// Takes back the latest change, if it was made after a revision.
    pub(super) fn take_back(&mut self, after: Revision) -> Option<Logged> {
        let is_later = self.changes.back().is_some_and(|change| change.revision > after);
        if is_later { self.changes.pop_back() } else { None }
    }
}
