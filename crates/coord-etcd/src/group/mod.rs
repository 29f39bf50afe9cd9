//! Requests that wait at the same moment travel in one transaction.
//!
//! When nothing is under way a request leaves at once and alone. While transactions are under way the next
//! ones gather, so the busier a client is, the more of its requests share one commit of etcd.

mod action;
mod gather;
mod guess;

use std::{
    slice,
    sync::{Arc, Weak},
    thread,
    time::Instant,
};

use etcd_client::{Txn, TxnOp, TxnOpResponse, TxnResponse};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    core::Core,
    error::{Effect, Failure},
    gate::Gate,
    lanes::{Lanes, Lined, MAX_OPERATIONS},
    read::revision,
};
use action::is_empty;
use gather::Gather;
use guess::Guesses;

pub(crate) use action::{Action, Heirs, Look, Outcome};

/// Several, so that some are prepared and answered while etcd writes others.
const UNDER_WAY: usize = 4;

/// How many operations a second transaction has to carry. Fewer wait until the first is answered: a commit costs
/// etcd far more than an operation in it.
const WORTH_ANOTHER: usize = MAX_OPERATIONS / 4 * 3;

/// What is tried when places are entered and left.
pub(crate) const LOCK: &str = "lock";

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
    type Name = Arc<str>;

    fn lane(&self) -> &Arc<str> {
        &self.queue
    }
    fn key(&self) -> &str {
        self.action.key()
    }
    fn enters(&self) -> bool {
        matches!(self.action, Action::Enter { .. } | Action::EnterIfEmpty { .. })
    }
    fn operations(&self) -> usize {
        self.action.size(false)
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
    let mut guesses = Guesses::default();
    loop {
        // Not with a timer, whose smallest step is longer than a commit takes.
        while gather.waits(Instant::now()) {
            if let Ok(request) = inbox.try_recv() {
                lanes.push(request);
                gather.came(Instant::now());
            } else {
                // Those that are waited for may need this very processor.
                thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
        while under_way.is_empty() || under_way.len() < UNDER_WAY && lanes.waiting() >= WORTH_ANOTHER {
            let batch = lanes.next_batch();
            let (false, Some(core)) = (batch.is_empty(), core.upgrade()) else { break };
            let guess = is_worth_a_guess(&batch) && guesses.may_guess();
            under_way.spawn(send_batch(core, batch, guess));
        }
        tokio::select! {
            biased;
            Some(answered) = under_way.join_next() => {
                let Answered { lanes: answered, follow, guess } = answered.unwrap_or_default();
                for lane in answered {
                    lanes.answered(&lane);
                }
                gather.answered(follow, Instant::now());
                if let Some(was_right) = guess {
                    guesses.was(was_right);
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

/// Whether it helps to take queues for empty: several are likely to be, and no other request in the batch, which comes
/// from somebody in the queue, shows that one is not.
fn is_worth_a_guess(batch: &[Request]) -> bool {
    batch.iter().filter(|request| request.action.is_likely_first()).count() > 1
        // Those of a lane are side by side.
        && batch.windows(2).all(|two| two[0].queue != two[1].queue)
}

/// What became of a batch.
#[derive(Debug, Default)]
struct Answered {
    /// The lanes that are free again.
    lanes: Vec<Arc<str>>,
    /// How many requests the answers are likely to set off.
    follow: usize,
    /// Whether a guess was right, if there was one and it was answered.
    guess: Option<bool>,
}

/// Sends a batch and answers its requests. With `guess`, queues are taken to be empty at first.
async fn send_batch(core: Arc<Core>, batch: Vec<Request>, guess: bool) -> Answered {
    let lanes = batch.iter().map(|request| request.queue.clone()).collect();
    let mut answered = Answered { lanes, ..Answered::default() };
    let guessed = if guess { Some(send_guessing(&core, &batch).await) } else { None };
    if let Some(Ok(outcomes)) = &guessed {
        answered.guess = Some(outcomes.is_some());
    }
    let outcomes = match guessed {
        Some(Ok(Some(outcomes))) => Ok(outcomes),
        Some(Err(failure)) => Err(failure),
        // Nothing is written yet.
        Some(Ok(None)) | None => send_together(&core, &batch).await,
    };
    match outcomes {
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

/// Sends a batch on the condition that the queues that are likely to be empty are. `None` if one is not: then nothing was
/// written.
async fn send_guessing(core: &Core, batch: &[Request]) -> Result<Option<Vec<Outcome>>, Failure> {
    let first = batch.iter().filter(|request| request.action.is_likely_first());
    let gates = gates(batch);
    let txn = || {
        let are_empty = first.clone().map(|request| is_empty(&request.queue));
        let conditions: Vec<_> = are_empty.chain(gates.iter().map(|gate| gate.is_open())).collect();
        Txn::new().when(conditions).and_then(operations(batch, true))
    };
    let answer = core.txn_from(LOCK, txn).await?;
    Ok(answer.succeeded().then(|| outcomes(batch, &answer, true)))
}

/// Sends a batch on no condition but that gates are open.
async fn send_together(core: &Core, batch: &[Request]) -> Result<Vec<Outcome>, Failure> {
    // Who leaves alone needs no transaction, which takes etcd longer.
    if let [Request { action: action @ Action::Leave { key, .. }, .. }] = batch {
        let deleted = core.delete(LOCK, key).await?;
        let revision = revision(deleted.header());
        return Ok(vec![action.outcome(&[TxnOpResponse::Delete(deleted)], revision)]);
    }
    let gates = gates(batch);
    loop {
        let txn = || {
            let are_open: Vec<_> = gates.iter().map(|gate| gate.is_open()).collect();
            let looks: Vec<_> = gates.iter().map(|gate| gate.look()).collect();
            Txn::new().when(are_open).and_then(operations(batch, false)).or_else(looks)
        };
        let answer = core.txn_from(LOCK, txn).await?;
        if answer.succeeded() {
            return Ok(outcomes(batch, &answer, false));
        }
        // One was shut for a request whose answer was lost, and let none through that was made before.
        gates.iter().zip(&answer.op_responses()).for_each(|(gate, found)| gate.looked(Some(found)));
    }
}

/// What a batch has to pass, each once.
fn gates(batch: &[Request]) -> Vec<&Arc<Gate>> {
    let mut gates: Vec<&Arc<Gate>> = Vec::new();
    for gate in batch.iter().filter_map(|request| request.action.gate()) {
        if !gates.iter().any(|other| Arc::ptr_eq(other, gate)) {
            gates.push(gate);
        }
    }
    gates
}

fn operations(batch: &[Request], known_empty: bool) -> Vec<TxnOp> {
    batch.iter().flat_map(|request| request.action.operations(&request.queue, known_empty)).collect()
}

/// The answers to [`operations`].
fn outcomes(batch: &[Request], answer: &TxnResponse, known_empty: bool) -> Vec<Outcome> {
    let revision = revision(answer.header());
    let answers = answer.op_responses();
    let mut answers = &answers[..];
    let outcome = |request: &Request| {
        let (own, others) = answers.split_at(request.action.size(known_empty));
        answers = others;
        request.action.outcome(own, revision)
    };
    batch.iter().map(outcome).collect()
}
