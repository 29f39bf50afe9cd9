//! Config writes: as transactions, each with an outcome that is always known, and batched where several wait.

mod batcher;
mod marker;
mod txn;

use std::{ops::Deref, sync::Arc};

use crate::{request::Rpc, session::Sessions};
use batcher::WriteBatcher;
use marker::CommitMarkers;

pub(crate) use batcher::SendMode;
pub(crate) use marker::{MarkerGuard, Settled};
pub(crate) use txn::{deleted, deletions, refusal, transaction};

/// Operation that errors name when config values are written.
pub(crate) const WRITE: &str = "write config values";

/// State that the commits of one client share.
#[derive(Debug)]
pub(crate) struct Commits {
    rpc: Arc<Rpc>,
    sessions: Arc<Sessions>,
    markers: CommitMarkers,
    batcher: WriteBatcher,
}

impl Deref for Commits {
    type Target = Rpc;

    fn deref(&self) -> &Rpc {
        &self.rpc
    }
}

impl Commits {
    pub(crate) fn new(sessions: &Arc<Sessions>) -> Arc<Self> {
        let (rpc, sessions) = (sessions.rpc().clone(), sessions.clone());
        let batcher = WriteBatcher::new(rpc.limits().operations);
        Arc::new(Self { rpc, sessions, markers: CommitMarkers::default(), batcher })
    }
}
