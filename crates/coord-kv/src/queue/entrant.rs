//! Contender for an entry in a queue: the value that it writes, and the end of its key.

use std::sync::Arc;

/// Contender that enters a queue.
#[derive(Clone, Debug)]
pub(crate) enum Entrant {
    /// Contender for a lock or an id: the owner of the client is the value. All entries of a client on one lease are
    /// alike.
    Holder,
    /// Candidate of an election: the value is its own, and the owner of the client is a part of the key.
    Candidate(Arc<[u8]>),
}

impl Entrant {
    /// Returns the value of the entry.
    pub(super) fn value(&self, holder: &Arc<[u8]>) -> Arc<[u8]> {
        match self {
            Self::Holder => holder.clone(),
            Self::Candidate(value) => value.clone(),
        }
    }

    /// Returns the end of the entry's key.
    pub(super) fn signature(&self, signature: &Arc<str>) -> Option<Arc<str>> {
        match self {
            Self::Holder => None,
            Self::Candidate(_) => Some(signature.clone()),
        }
    }

    /// Returns whether another entry on the same lease is as good for this contender.
    pub(super) fn is_like_others(&self) -> bool {
        matches!(self, Self::Holder)
    }
}
