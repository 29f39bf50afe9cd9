//! Batching: requests that wait at the same moment travel in one transaction.
//!
//! When nothing is in flight, a request leaves at once and alone. While transactions are in flight, the next
//! requests linger. So the busier a client is, the more of its requests share one commit of the store.
//! Entries in one queue need a transaction each, of which several are in flight at once.

mod in_flight;
mod linger;
mod op;
mod optimistic;

use std::{
    fmt,
    pin::Pin,
    slice,
    sync::{Arc, Weak},
    task::{Context, Poll},
    thread,
    time::Instant,
};

use tokio::{
    sync::{mpsc, oneshot},
    time,
};

use crate::{
    request::{
        Background, Rpc,
        batch::{Lanes, Lined},
        history::History,
        timer::sleep_until,
    },
    session::LeaseEpoch,
    store::{Distance, Effect, Failure, Op, Txn, TxnAnswer},
};
use in_flight::InFlight;
use linger::Linger;
use op::is_empty;
use optimistic::OptimisticEmpty;

pub(crate) use op::{FollowUps, Outcome, QueueOp, ReadAlong};

/// Number of transactions in flight: several, so that some are prepared and answered while the store writes
/// others.
const IN_FLIGHT: usize = 4;

/// Returns how many operations a second transaction has to carry. Fewer wait until the first is answered: a commit costs
/// the store far more than an operation in it.
fn worth_another(most_operations: usize) -> usize {
    most_operations / 4 * 3
}

/// Largest number of transactions in flight, slow ones included. Each entry in one queue needs its own
/// transaction, and the store commits together what is in flight.
const MOST_IN_FLIGHT: usize = 16;

/// Operation that errors name when queues are entered and left.
pub(crate) const LOCK: &str = "lock";

/// Handle of the task that sends.
#[derive(Debug)]
pub(crate) struct Sender {
    /// Queue of the task. Unbounded, since giving back must not wait; each entry has at most one request
    /// here.
    requests: mpsc::UnboundedSender<Request>,
    background: Background,
}

#[derive(Debug)]
struct Request {
    queue: Arc<str>,
    op: QueueOp,
    /// Whether it may be sent while others about its queue are in flight.
    overlaps: bool,
    reply: Box<dyn Reply>,
}

/// Caller of a request, which is told what becomes of it.
pub(crate) trait Reply: fmt::Debug + Send + Sync {
    /// Takes note that the request is sent.
    fn sent(&self) {}

    /// Takes the answer.
    fn answered(self: Box<Self>, outcome: Result<Outcome, Failure>);
}

impl Reply for oneshot::Sender<Result<Outcome, Failure>> {
    fn answered(self: Box<Self>, outcome: Result<Outcome, Failure>) {
        // The caller need not wait for the answer.
        let _ = (*self).send(outcome);
    }
}

impl Lined for Request {
    type Name = Arc<str>;

    fn lane(&self) -> &Arc<str> {
        &self.queue
    }
    fn key(&self) -> &str {
        self.op.key()
    }
    fn enters(&self) -> bool {
        matches!(self.op, QueueOp::Enter { .. } | QueueOp::EnterIfEmpty { .. })
    }
    fn is_conditional(&self) -> bool {
        matches!(self.op, QueueOp::EnterIfEmpty { .. })
    }
    fn operations(&self) -> usize {
        self.op.size(false)
    }
    fn overlaps(&self) -> bool {
        self.overlaps
    }
}

/// Answer to a request that is sent.
#[derive(Debug)]
pub(crate) struct Answer(oneshot::Receiver<Result<Outcome, Failure>>);

impl Future for Answer {
    type Output = Result<Outcome, Failure>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(cx).map(|answer| answer.unwrap_or_else(|_| Err(Failure::closed())))
    }
}

impl Sender {
    /// Starts the task, which ends when the sender is dropped.
    pub(crate) fn start(rpc: &Arc<Rpc>) -> Self {
        let (requests, inbox) = mpsc::unbounded_channel();
        let lingers = rpc.store.description().distance == Distance::Network;
        let work = send(Arc::downgrade(rpc), rpc.limits().operations, lingers, inbox);
        rpc.background.spawn_with_first_use(work);
        Self { requests, background: rpc.background.clone() }
    }

    /// Asks for an entry in `queue`, after what was asked of it before. With `overlaps`, the request may be
    /// in flight together with those. Returns `reply` if the request is not sent, since the task is gone.
    pub(crate) fn enter(
        &self,
        queue: Arc<str>,
        op: QueueOp,
        overlaps: bool,
        reply: Box<dyn Reply>,
    ) -> Option<Box<dyn Reply>> {
        self.background.begin();
        let request = Request { queue, op, overlaps, reply };
        Some(self.requests.send(request).err()?.0.reply)
    }

    /// Leaves `queue`. The request is sent, whether its answer is waited for or not.
    pub(crate) fn leave(&self, queue: Arc<str>, key: String, follow_ups: FollowUps) -> Answer {
        let (reply, answer) = oneshot::channel();
        let (op, reply) = (QueueOp::Leave { key, follow_ups }, Box::new(reply));
        self.background.begin();
        let _ = self.requests.send(Request { queue, op, overlaps: true, reply });
        Answer(answer)
    }
}

async fn send(
    rpc: Weak<Rpc>,
    most_operations: usize,
    lingers: bool,
    mut inbox: mpsc::UnboundedReceiver<Request>,
) {
    let mut lanes = Lanes::of(most_operations);
    let mut in_flight = InFlight::none();
    let mut linger = Linger::default();
    let mut optimistic = OptimisticEmpty::default();
    loop {
        // Polled without a timer, whose smallest step is longer than a commit takes.
        while lingers && linger.waits(Instant::now()) {
            if let Ok(request) = inbox.try_recv() {
                lanes.push(request);
                linger.came(Instant::now());
            } else {
                // The tasks that are waited for may need this very processor.
                thread::yield_now();
                tokio::task::yield_now().await;
            }
        }
        while may_send(&in_flight, &lanes, most_operations) {
            let batch = lanes.next_batch();
            let (false, Some(rpc)) = (batch.is_empty(), rpc.upgrade()) else { break };
            for request in &batch {
                request.reply.sent();
            }
            let guess = is_worth_a_guess(&batch) && optimistic.may_guess();
            in_flight.send(send_batch(rpc, batch, guess));
        }
        let slow = in_flight.next_slow().filter(|_| lanes.waiting() > 0);
        tokio::select! {
            biased;
            Some(answered) = in_flight.answered() => {
                let Answered { lanes: answered, follow, guess } = answered;
                for lane in answered {
                    lanes.answered(&lane);
                }
                linger.answered(follow, Instant::now());
                if let Some(was_right) = guess {
                    optimistic.was(was_right);
                }
            }
            request = inbox.recv() => match request {
                Some(request) => {
                    lanes.push(request);
                    // All requests that are there already can travel along.
                    while let Ok(request) = inbox.try_recv() {
                        lanes.push(request);
                    }
                }
                None => return,
            },
            () = sleep_until(slow.unwrap_or_else(time::Instant::now)), if slow.is_some() => {}
        }
    }
}

/// Returns whether a transaction with the waiting requests may be sent now.
fn may_send(in_flight: &InFlight<Answered>, lanes: &Lanes<Request>, most_operations: usize) -> bool {
    let in_time = in_flight.in_time();
    in_flight.count() < MOST_IN_FLIGHT
        && (in_time == 0
            || in_time < IN_FLIGHT && lanes.waiting() >= worth_another(most_operations)
            || lanes.has_one_that_overlaps())
}

/// Returns whether it helps to take queues for empty. It does if several are likely to be, and no other
/// request in the batch shows that one is not. Such a request comes from somebody in the queue.
fn is_worth_a_guess(batch: &[Request]) -> bool {
    batch.iter().filter(|request| request.op.is_likely_first()).count() > 1
        // Requests of a lane are side by side.
        && batch.windows(2).all(|two| two[0].queue != two[1].queue)
}

/// Outcome of a batch.
#[derive(Debug, Default)]
struct Answered {
    /// Lanes that are free again.
    lanes: Vec<Arc<str>>,
    /// Number of requests that the answers are likely to set off.
    follow: usize,
    /// Whether a guess was right, if there was one and it was answered.
    guess: Option<bool>,
}

/// Sends a batch and answers its requests. With `guess`, queues are taken to be empty at first.
async fn send_batch(rpc: Arc<Rpc>, batch: Vec<Request>, guess: bool) -> Answered {
    let mut lanes: Vec<_> = batch.iter().map(|request| request.queue.clone()).collect();
    // Requests of a lane are side by side.
    lanes.dedup();
    let mut answered = Answered { lanes, ..Answered::default() };
    for request in &batch {
        if let QueueOp::Leave { key, .. } = &request.op {
            rpc.history.leaves(key);
        }
    }
    let guessed = if guess { Some(send_guessing(&rpc, &batch).await) } else { None };
    if let Some(Ok(outcomes)) = &guessed {
        answered.guess = Some(outcomes.is_some());
    }
    let outcomes = match guessed {
        Some(Ok(Some(outcomes))) => Ok(outcomes),
        Some(Err(failure)) => Err(failure),
        // Nothing is written yet.
        Some(Ok(None)) | None => send_together(&rpc, &batch).await,
    };
    match outcomes {
        Ok(outcomes) => {
            answered.follow = how_many_follow(&batch, &outcomes);
            for (request, outcome) in batch.into_iter().zip(outcomes) {
                note(&rpc.history, &request.op, &outcome);
                request.reply.answered(Ok(outcome));
            }
        }
        // A request was refused, and the whole batch with it. Each request on its own gets the answer that it
        // deserves. Not while the store is unavailable: the requests would wait for it one after the other.
        Err(failure)
            if failure.effect == Effect::None && !failure.error.is_retryable() && batch.len() > 1 =>
        {
            for request in batch {
                let outcome = send_together(&rpc, slice::from_ref(&request)).await;
                let outcome = outcome.map(|mut outcomes| outcomes.remove(0));
                if let Ok(outcome) = &outcome {
                    note(&rpc.history, &request.op, outcome);
                }
                request.reply.answered(outcome);
            }
        }
        Err(failure) => {
            let mut others = batch.into_iter();
            let first = others.next();
            for request in others {
                request.reply.answered(Err(failure.duplicate()));
            }
            if let Some(request) = first {
                request.reply.answered(Err(failure));
            }
        }
    }
    answered
}

/// Takes note of what this client has in the store, by which it knows the history.
fn note(history: &History, op: &QueueOp, outcome: &Outcome) {
    match op {
        QueueOp::Enter { key, epoch, .. } => history.wrote(key, outcome.revision, epoch.lease()),
        QueueOp::EnterIfEmpty { key, epoch, .. } if outcome.condition => {
            history.wrote(key, outcome.revision, epoch.lease());
        }
        QueueOp::Leave { key, .. } if outcome.condition => history.gave_back(key, outcome.revision),
        QueueOp::EnterIfEmpty { .. } | QueueOp::Leave { .. } => {}
    }
}

/// Returns how many requests these answers are likely to set off at once. In each queue at most one entry
/// comes to the head.
fn how_many_follow(batch: &[Request], outcomes: &[Outcome]) -> usize {
    let answers: Vec<_> = batch.iter().zip(outcomes).collect();
    let of_one = |answers: &[(&Request, &Outcome)]| {
        let follow = answers.iter().filter(|(request, _)| request.op.is_followed()).count();
        let has_next = answers.iter().any(|(request, outcome)| request.op.has_next(outcome));
        follow + usize::from(has_next)
    };
    answers.chunk_by(|one, next| one.0.queue == next.0.queue).map(of_one).sum()
}

/// Sends a batch on the condition that its likely empty queues are empty. Returns `None` if a condition was
/// not met: then nothing was written.
async fn send_guessing(rpc: &Rpc, batch: &[Request]) -> Result<Option<Vec<Outcome>>, Failure> {
    let first = batch.iter().filter(|request| request.op.is_likely_first());
    let epochs = epochs(batch);
    let txn = || {
        let are_empty = first.clone().map(|request| is_empty(&request.queue));
        let conditions: Vec<_> = are_empty.chain(epochs.iter().map(|epoch| epoch.unchanged())).collect();
        Txn::new().when(conditions).and_then(operations(batch, true))
    };
    let answer = rpc.txn_from(LOCK, txn).await?;
    Ok(answer.succeeded.then(|| outcomes(batch, &answer, true)))
}

/// Sends a batch on no condition but that epochs are unchanged.
async fn send_together(rpc: &Rpc, batch: &[Request]) -> Result<Vec<Outcome>, Failure> {
    // A request that leaves alone needs no transaction, which takes the store longer.
    if let [Request { op: op @ QueueOp::Leave { key, .. }, .. }] = batch {
        let deleted = rpc.delete(LOCK, key).await?;
        return Ok(vec![op.outcome(&deleted.results, deleted.header.revision)]);
    }
    let epochs = epochs(batch);
    loop {
        let txn = || {
            let are_open: Vec<_> = epochs.iter().map(|epoch| epoch.unchanged()).collect();
            let looks: Vec<_> = epochs.iter().map(|epoch| epoch.reload()).collect();
            Txn::new().when(are_open).and_then(operations(batch, false)).or_else(looks)
        };
        let answer = rpc.txn_from(LOCK, txn).await?;
        if answer.succeeded {
            return Ok(outcomes(batch, &answer, false));
        }
        // An epoch was advanced for a request whose answer was lost, which voided all that were made before.
        epochs.iter().zip(&answer.results).for_each(|(epoch, found)| epoch.reloaded(Some(found)));
    }
}

/// Returns the epochs that a batch requires, each once.
fn epochs(batch: &[Request]) -> Vec<&Arc<LeaseEpoch>> {
    let mut epochs: Vec<&Arc<LeaseEpoch>> = Vec::new();
    for epoch in batch.iter().filter_map(|request| request.op.epoch()) {
        if !epochs.iter().any(|other| Arc::ptr_eq(other, epoch)) {
            epochs.push(epoch);
        }
    }
    epochs
}

fn operations(batch: &[Request], known_empty: bool) -> Vec<Op> {
    batch.iter().flat_map(|request| request.op.operations(&request.queue, known_empty)).collect()
}

/// Returns the outcomes of a batch, from the answers to [`operations`].
fn outcomes(batch: &[Request], answer: &TxnAnswer, known_empty: bool) -> Vec<Outcome> {
    let revision = answer.header.revision;
    let mut answers = &answer.results[..];
    let outcome = |request: &Request| {
        let (own, others) = answers.split_at(request.op.size(known_empty));
        answers = others;
        request.op.outcome(own, revision)
    };
    batch.iter().map(outcome).collect()
}
