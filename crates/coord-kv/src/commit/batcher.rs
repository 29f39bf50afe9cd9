//! Batching: config writes that wait at the same moment travel in one transaction.
//!
//! A few writes are in flight at the same time, each sent by its caller. The next ones gather until one in
//! flight is answered, and then go together. A transaction costs the store far more than an operation in it.
//! Two writes of one key are never in one transaction, and go one after the other. A write that has waited
//! long goes alone: the store does not answer the writes in flight.

use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicBool, Ordering},
};

use coord_api::{Batch, ConfigKey, Error, Result, Write};
use tokio::sync::oneshot;

use super::{Commits, MarkerGuard, Settled, WRITE, txn};
use crate::request::{
    batch::{Lanes, Lined},
    timer::timeout,
};

/// Number of writes that are sent before the next ones gather.
const IN_FLIGHT: usize = 4;

/// Divisor of the request timeout: a write waits that part of it for others before it goes alone.
const LINGER: u32 = 10;

/// Size of the largest value that travels with others: as many as go together are well below what the store
/// takes.
const MAX_TOGETHER_BYTES: usize = 4096;

/// Returns whether a batch may travel with others: one write, which nothing but the sidecar keys of coord can
/// refuse.
fn may_travel(batch: &Batch) -> bool {
    let is_small = |write: &Write| matches!(write, Write::Set(_, json) if json.len() <= MAX_TOGETHER_BYTES);
    batch.writes().len() == 1
        && batch.writes().iter().all(is_small)
        && batch.held().is_empty()
        && batch.requirements().iter().all(|(key, _)| key.is_beside() && key != batch.writes()[0].key())
}

/// Way in which a batch is written.
#[derive(Debug)]
pub(crate) enum SendMode {
    /// By its caller, which keeps the turn, if there is one, until the write is answered.
    Alone(Option<Turn>),
    /// Written already, together with others.
    Settled(Settled),
}

/// Batcher of config writes: counts the writes in flight, and keeps the writes that wait.
#[derive(Debug)]
pub(crate) struct WriteBatcher(Mutex<State>);

#[derive(Debug)]
struct State {
    waiting: Lanes<Request>,
    in_flight: usize,
}

#[derive(Debug)]
struct Request {
    batch: Arc<Batch>,
    claim: Claim,
    /// Outcome of the write; `None` if the batch has to be written alone.
    reply: oneshot::Sender<Result<Option<Settled>>>,
}

/// Right to write a request, which goes to the task that comes first.
#[derive(Clone, Debug, Default)]
struct Claim(Arc<AtomicBool>);

impl Claim {
    fn is_mine(&self) -> bool {
        // Nothing else is handed over with it.
        !self.0.swap(true, Ordering::Relaxed)
    }
}

impl Request {
    fn name(&self) -> &ConfigKey {
        self.batch.writes()[0].key()
    }
}

impl Lined for Request {
    type Name = ConfigKey;

    fn lane(&self) -> &ConfigKey {
        self.name()
    }
    fn key(&self) -> &str {
        self.name().as_str()
    }
    fn enters(&self) -> bool {
        false
    }
    fn is_conditional(&self) -> bool {
        false
    }
    fn operations(&self) -> usize {
        1
    }
    fn overlaps(&self) -> bool {
        false
    }
}

impl WriteBatcher {
    /// Returns a batcher for a store that takes so many operations in one transaction.
    pub(super) fn new(most_operations: usize) -> Self {
        // The marker needs an operation of its own.
        Self(Mutex::new(State { waiting: Lanes::of(most_operations - 1), in_flight: 0 }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while this is locked")
    }
}

/// Right to be in flight. When it ends, the writes that wait get it.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Commits>);

impl Drop for Turn {
    fn drop(&mut self) {
        let mut state = self.0.batcher.lock();
        let next = state.waiting.next_batch();
        if next.is_empty() {
            state.in_flight -= 1;
        } else {
            drop(state);
            let turn = Self(self.0.clone());
            self.0.rpc.background.spawn(carry(turn, next));
        }
    }
}

impl Commits {
    /// Waits until `batch` may be written by its caller, or was written with others.
    ///
    /// May be dropped: a batch that waits is not written then; a batch that is in flight may be.
    pub(crate) async fn write_batched(self: &Arc<Self>, batch: &Arc<Batch>) -> Result<SendMode> {
        if !may_travel(batch) {
            return Ok(SendMode::Alone(None));
        }
        let (claim, mut answer) = {
            let mut state = self.batcher.lock();
            if state.in_flight < IN_FLIGHT {
                state.in_flight += 1;
                return Ok(SendMode::Alone(Some(Turn(self.clone()))));
            }
            let (claim, (reply, answer)) = (Claim::default(), oneshot::channel());
            state.waiting.push(Request { batch: batch.clone(), claim: claim.clone(), reply });
            (claim, answer)
        };
        let linger = self.rpc.request_timeout / LINGER;
        let answer = match timeout(linger, &mut answer).await {
            Ok(answer) => answer,
            Err(_elapsed) if claim.is_mine() => return Ok(SendMode::Alone(None)),
            Err(_elapsed) => answer.await,
        };
        match answer {
            Ok(Ok(Some(settled))) => Ok(SendMode::Settled(settled)),
            Ok(Ok(None)) => Ok(SendMode::Alone(None)),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Closed),
        }
    }
}

/// Writes requests together. The requests that came in the meantime get the turn.
async fn carry(turn: Turn, mut requests: Vec<Request>) {
    let commits = &turn.0;
    let names: Vec<_> = requests.iter().map(|request| request.name().clone()).collect();
    requests.retain(|request| !request.reply.is_closed() && request.claim.is_mine());
    if !requests.is_empty() {
        let outcome = send(commits, &requests).await;
        for request in requests {
            let _ = request.reply.send(outcome.of_one());
        }
    }
    let mut state = commits.batcher.lock();
    for name in names {
        state.waiting.answered(&name);
    }
    // The state is unlocked before the turn ends, which locks it.
    drop(state);
}

/// Outcome of requests that were sent together.
#[derive(Debug)]
enum Outcome {
    WrittenAt(i64),
    /// Not written, nor ever will be.
    NeverWritten(Error),
    Failed(Error),
    /// Each request on its own gets the answer that it deserves.
    ToEachAlone,
}

impl Outcome {
    fn of_one(&self) -> Result<Option<Settled>> {
        match self {
            Self::WrittenAt(at) => Ok(Some(Settled::WrittenUnseen(*at))),
            Self::NeverWritten(error) => Ok(Some(Settled::NeverWritten(error.duplicate()))),
            Self::ToEachAlone => Ok(None),
            Self::Failed(error) => Err(error.duplicate()),
        }
    }
}

async fn send(commits: &Arc<Commits>, requests: &[Request]) -> Outcome {
    let batches: Vec<_> = requests.iter().map(|request| &*request.batch).collect();
    let settled = async {
        let marker: MarkerGuard = commits.marker().await?;
        let txn = txn::together(&commits.rpc.keys, &batches, &marker);
        marker.settle(commits.rpc.txn(WRITE, txn).await).await
    };
    match settled.await {
        Ok(Settled::Written(answer)) => Outcome::WrittenAt(answer.header.revision),
        Ok(Settled::WrittenUnseen(at)) => Outcome::WrittenAt(at),
        Ok(Settled::NeverWritten(error)) => Outcome::NeverWritten(error),
        // Nothing is sent again while the store is unavailable: the write was tried until its time was over.
        Err(error) if error.is_retryable() => Outcome::Failed(error),
        Ok(Settled::Refused(_) | Settled::MarkerGone) | Err(_) => Outcome::ToEachAlone,
    }
}
