//! Requests that wait at the same moment travel in one transaction of nested ones.
//!
//! When nothing is under way a request leaves at once and alone. While transactions are under way the next
//! ones gather, so the busier a client is, the more of its requests share one commit of etcd.

mod lanes;

use std::sync::{Arc, Weak};

use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    core::Core,
    error::{Effect, Failure},
    read::revision,
};
use lanes::{Lanes, Lined};

/// Two, so that one is prepared while the other is answered; more would only make them smaller.
const UNDER_WAY: usize = 2;

/// What a request does to a queue. Small and cloneable, so that it can be sent again on its own.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    /// Writes a place, and says whether the queue was empty before.
    Enter { key: String, value: Vec<u8>, lease: i64 },
    /// Writes a place only if the queue is empty.
    EnterIfEmpty { key: String, value: Vec<u8>, lease: i64 },
    /// Deletes a place that was created at this revision.
    Leave { key: String, created: i64 },
    /// Deletes a place that may or may not have been created; nobody else can have written this key.
    LeaveAnyhow { key: String },
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether the condition was met: the queue was empty, the place was there.
    pub(crate) condition: bool,
    /// The store's revision after it.
    pub(crate) revision: i64,
}

impl Action {
    fn key(&self) -> &str {
        match self {
            Self::Enter { key, .. }
            | Self::EnterIfEmpty { key, .. }
            | Self::Leave { key, .. }
            | Self::LeaveAnyhow { key } => key,
        }
    }

    fn txn(&self, queue: &str) -> Txn {
        let nobody = || Compare::create_revision(queue, CompareOp::Equal, 0).with_prefix();
        let put = |key: &str, value: &[u8], lease| {
            TxnOp::put(key, value, Some(PutOptions::new().with_lease(lease)))
        };
        match self {
            Self::Enter { key, value, lease } => Txn::new()
                .when([nobody()])
                .and_then([put(key, value, *lease)])
                .or_else([put(key, value, *lease)]),
            Self::EnterIfEmpty { key, value, lease } => {
                Txn::new().when([nobody()]).and_then([put(key, value, *lease)])
            }
            Self::Leave { key, created } => Txn::new()
                .when([Compare::create_revision(key.as_str(), CompareOp::Equal, *created)])
                .and_then([TxnOp::delete(key.as_str(), None)]),
            Self::LeaveAnyhow { key } => Txn::new()
                .when([Compare::create_revision(key.as_str(), CompareOp::Greater, 0)])
                .and_then([TxnOp::delete(key.as_str(), None)]),
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
    let mut lanes = Lanes::new();
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < UNDER_WAY {
            let batch = lanes.next_batch();
            let (false, Some(core)) = (batch.is_empty(), core.upgrade()) else { break };
            under_way.spawn(send_batch(core, batch));
        }
        tokio::select! {
            biased;
            Some(answered) = under_way.join_next() => {
                for lane in answered.unwrap_or_default() {
                    lanes.answered(&lane);
                }
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

/// Sends a batch and answers its requests; the lanes that are free again.
async fn send_batch(core: Arc<Core>, batch: Vec<Request>) -> Vec<Arc<str>> {
    let lanes = batch.iter().map(|request| request.queue.clone()).collect();
    let answer = if batch.len() > 1 {
        let nested: Vec<_> =
            batch.iter().map(|request| TxnOp::txn(request.action.txn(&request.queue))).collect();
        core.txn("lock", Txn::new().and_then(nested)).await.map_err(Some)
    } else {
        // A single one needs no nesting.
        Err(None)
    };
    match answer {
        Ok(answer) => {
            let revision = revision(answer.header());
            for (request, response) in batch.into_iter().zip(answer.op_responses()) {
                let condition = matches!(response, TxnOpResponse::Txn(nested) if nested.succeeded());
                let _ = request.reply.send(Ok(Outcome { condition, revision }));
            }
        }
        Err(Some(failure)) if failure.effect == Effect::Unknown => {
            for request in batch {
                let _ = request.reply.send(Err(failure.again()));
            }
        }
        // Of several one was refused, and with it all. Each on its own gets the answer that it deserves.
        Err(_) => {
            for request in batch {
                let outcome = send_alone(&core, &request).await;
                let _ = request.reply.send(outcome);
            }
        }
    }
    lanes
}

async fn send_alone(core: &Core, request: &Request) -> Result<Outcome, Failure> {
    let answer: TxnResponse = core.txn("lock", request.action.txn(&request.queue)).await?;
    Ok(Outcome { condition: answer.succeeded(), revision: revision(answer.header()) })
}
