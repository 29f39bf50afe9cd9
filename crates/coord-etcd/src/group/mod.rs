//! Requests that wait at the same moment travel in one transaction.
//!
//! When nothing is under way a request leaves at once and alone. While transactions are under way the next
//! ones gather, so the busier a client is, the more of its requests share one commit of etcd.

mod gather;

use std::{
    slice,
    sync::{Arc, Weak},
    time::Instant,
};

use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse,
};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    core::Core,
    error::{Effect, Failure},
    lanes::{Lanes, Lined, MAX_OPERATIONS},
    read::revision,
};
use gather::Gather;

/// Two, so that one is prepared while the other is answered; more would only make them smaller.
const UNDER_WAY: usize = 2;

/// How many operations a second transaction has to carry. Fewer wait until the first is answered: a commit costs
/// etcd far more than an operation in it.
const WORTH_ANOTHER: usize = MAX_OPERATIONS / 2;

/// What is tried when places are entered and left.
pub(crate) const LOCK: &str = "lock";

/// What a request does to a queue.
///
/// The key of a place is used again only after the answer to the request that deleted it, and never if one
/// about it got no answer. So whoever deletes a key by its name deletes its own place or nothing.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Writes a place and looks who else is there.
    Enter { key: String, value: Vec<u8>, lease: i64, look: Look },
    /// Writes a place only if the queue is empty.
    EnterIfEmpty { key: String, value: Vec<u8>, lease: i64 },
    /// Deletes a place, if it is there.
    Leave { key: String, heirs: Heirs },
}

/// Who is told by this client when a place is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heirs {
    /// Nobody who stands in the queue, and not whoever leaves it either.
    Nobody,
    /// Whoever leaves it.
    Leaver,
    /// Another place of this client may be the next to hold as well.
    LeaverAndNext,
}

/// What [`Action::Enter`] wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// Nothing: the client watches the queue and will hear.
    Away,
    /// Whether anyone else is in the queue: the same small effort however long it is.
    AnyoneElse,
    /// Who is next before it, for which etcd has to sort the whole queue.
    Predecessor,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether the queue was empty, or the place was there.
    pub(crate) condition: bool,
    /// Who is next before the place that was entered, if that was asked for.
    pub(crate) predecessor: Option<String>,
    /// The store's revision after it.
    pub(crate) revision: i64,
}

impl Action {
    fn key(&self) -> &str {
        match self {
            Self::Enter { key, .. } | Self::EnterIfEmpty { key, .. } | Self::Leave { key, .. } => key,
        }
    }

    /// The operations, in a transaction without conditions: those of nested ones cost etcd far more.
    fn operations(&self, queue: &str) -> Vec<TxnOp> {
        let put = |key: &str, value: &[u8], lease| {
            TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
        };
        match self {
            Self::Enter { key, value, lease, look } => {
                let two = GetOptions::new().with_prefix().with_keys_only().with_limit(2);
                let two = match look {
                    Look::Away => return vec![put(key, value, *lease)],
                    Look::AnyoneElse => two,
                    Look::Predecessor => two.with_sort(SortTarget::Create, SortOrder::Descend),
                };
                vec![put(key, value, *lease), TxnOp::get(queue, Some(two))]
            }
            Self::EnterIfEmpty { key, value, lease } => {
                let nobody = Compare::create_revision(queue, CompareOp::Equal, 0).with_prefix();
                vec![TxnOp::txn(Txn::new().when([nobody]).and_then([put(key, value, *lease)]))]
            }
            Self::Leave { key, .. } => vec![TxnOp::delete(key.as_str(), None)],
        }
    }

    /// How many requests its answer is likely to set off at once.
    fn sets_off(&self, outcome: &Outcome) -> usize {
        match self {
            Self::Enter { .. } | Self::EnterIfEmpty { .. } => usize::from(outcome.condition),
            Self::Leave { heirs: Heirs::Nobody, .. } => 0,
            Self::Leave { heirs: Heirs::Leaver, .. } => 1,
            Self::Leave { heirs: Heirs::LeaverAndNext, .. } => 2,
        }
    }

    /// Reads the answers to [`operations`](Self::operations).
    fn outcome(&self, answers: &[TxnOpResponse], revision: i64) -> Outcome {
        let outcome = |condition| Outcome { condition, predecessor: None, revision };
        match answers {
            [TxnOpResponse::Put(_), TxnOpResponse::Get(found)] => {
                let others =
                    found.kvs().iter().filter_map(|kv| kv.key_str().ok()).find(|key| *key != self.key());
                let predecessor = others.map(ToOwned::to_owned);
                Outcome { predecessor, ..outcome(found.kvs().len() <= 1) }
            }
            [TxnOpResponse::Put(_)] => outcome(false),
            [TxnOpResponse::Txn(nested)] => outcome(nested.succeeded()),
            [TxnOpResponse::Delete(deleted)] => outcome(deleted.deleted() > 0),
            _ => unreachable!("etcd answers each operation in its order and kind"),
        }
    }
}

/// The way to the task that sends.
#[derive(Debug)]
pub(crate) struct Group {
    /// Unbounded, since giving back must not wait; each place has at most one request here.
    requests: mpsc::UnboundedSender<Request>,
}

#[derive(Debug)]
struct Request {
    queue: Arc<str>,
    action: Action,
    reply: oneshot::Sender<Result<Outcome, Failure>>,
}

impl Lined for Request {
    fn lane(&self) -> &str {
        &self.queue
    }
    fn key(&self) -> &str {
        self.action.key()
    }
    fn enters(&self) -> bool {
        matches!(self.action, Action::Enter { .. } | Action::EnterIfEmpty { .. })
    }
    fn operations(&self) -> usize {
        match self.action {
            Action::Enter { look: Look::AnyoneElse | Look::Predecessor, .. } => 2,
            _ => 1,
        }
    }
}

/// A request that is sent, whether its answer is waited for or not.
#[derive(Debug)]
pub(crate) struct Answer(oneshot::Receiver<Result<Outcome, Failure>>);

impl Answer {
    /// Waits for the answer. May be dropped and called again.
    pub(crate) async fn wait(&mut self) -> Result<Outcome, Failure> {
        (&mut self.0).await.unwrap_or_else(|_| Err(Failure::closed()))
    }
}

impl Group {
    /// Starts the task on `runtime`; it ends when this is dropped.
    pub(crate) fn start(runtime: &runtime::Handle, core: Weak<Core>) -> Self {
        let (requests, inbox) = mpsc::unbounded_channel();
        runtime.spawn(send(core, inbox));
        Self { requests }
    }

    /// Sends a request about `queue`, after those about it that were sent before.
    pub(crate) fn send(&self, queue: Arc<str>, action: Action) -> Answer {
        let (reply, answer) = oneshot::channel();
        // If the task is gone, the reply is dropped here and the answer says so.
        let _ = self.requests.send(Request { queue, action, reply });
        Answer(answer)
    }
}

async fn send(core: Weak<Core>, mut inbox: mpsc::UnboundedReceiver<Request>) {
    let mut lanes = Lanes::of(MAX_OPERATIONS);
    let mut under_way = JoinSet::new();
    let mut gather = Gather::default();
    loop {
        // Not with a timer, whose smallest step is longer than a commit takes.
        while gather.waits(Instant::now()) {
            match inbox.try_recv() {
                Ok(request) => {
                    lanes.push(request);
                    gather.came(Instant::now());
                }
                Err(_) => tokio::task::yield_now().await,
            }
        }
        while under_way.is_empty() || under_way.len() < UNDER_WAY && lanes.waiting() >= WORTH_ANOTHER {
            let batch = lanes.next_batch();
            let (false, Some(core)) = (batch.is_empty(), core.upgrade()) else { break };
            under_way.spawn(send_batch(core, batch));
        }
        tokio::select! {
            biased;
            Some(answered) = under_way.join_next() => {
                let Answered { lanes: answered, follow } = answered.unwrap_or_default();
                for lane in answered {
                    lanes.answered(&lane);
                }
                gather.answered(follow, Instant::now());
            }
            request = inbox.recv() => match request {
                Some(request) => {
                    lanes.push(request);
                    // Whatever else is there already can travel along.
                    while let Ok(request) = inbox.try_recv() {
                        lanes.push(request);
                    }
                }
                None => return,
            }
        }
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Answered {
    /// The lanes that are free again.
    lanes: Vec<Arc<str>>,
    /// How many requests the answers are likely to set off.
    follow: usize,
}

/// Sends a batch and answers its requests.
async fn send_batch(core: Arc<Core>, batch: Vec<Request>) -> Answered {
    let mut answered =
        Answered { lanes: batch.iter().map(|request| request.queue.clone()).collect(), follow: 0 };
    match send_together(&core, &batch).await {
        Ok(outcomes) => {
            for (request, outcome) in batch.into_iter().zip(outcomes) {
                answered.follow += request.action.sets_off(&outcome);
                let _ = request.reply.send(Ok(outcome));
            }
        }
        // One of several was refused, and with it all. Each on its own gets the answer that it deserves. Not while
        // etcd is away: they would wait for that one after the other.
        Err(failure)
            if failure.effect == Effect::None && !failure.error.is_retryable() && batch.len() > 1 =>
        {
            for request in batch {
                let outcome = send_together(&core, slice::from_ref(&request)).await;
                let _ = request.reply.send(outcome.map(|mut outcomes| outcomes.remove(0)));
            }
        }
        Err(failure) => {
            let mut others = batch.into_iter();
            let first = others.next();
            for request in others {
                let _ = request.reply.send(Err(failure.again()));
            }
            if let Some(request) = first {
                let _ = request.reply.send(Err(failure));
            }
        }
    }
    answered
}

async fn send_together(core: &Core, batch: &[Request]) -> Result<Vec<Outcome>, Failure> {
    // Who leaves alone needs no transaction, which takes etcd longer.
    if let [Request { action: action @ Action::Leave { key, .. }, .. }] = batch {
        let deleted = core.delete(LOCK, key).await?;
        let revision = revision(deleted.header());
        return Ok(vec![action.outcome(&[TxnOpResponse::Delete(deleted)], revision)]);
    }
    let operations: Vec<_> =
        batch.iter().flat_map(|request| request.action.operations(&request.queue)).collect();
    let answer = core.txn(LOCK, Txn::new().and_then(operations)).await?;
    let revision = revision(answer.header());
    let answers = answer.op_responses();
    let mut answers = &answers[..];
    Ok(batch
        .iter()
        .map(|request| {
            let (own, others) = answers.split_at(request.operations());
            answers = others;
            request.action.outcome(own, revision)
        })
        .collect())
}
