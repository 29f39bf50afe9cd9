//! Requests that wait at the same moment travel in one transaction.
//!
//! When nothing is under way a request leaves at once and alone. While transactions are under way the next
//! ones gather, so the busier a client is, the more of its requests share one commit of etcd. Places in one queue
//! need a transaction each, of which several are under way at once.

mod action;
mod gather;
mod guess;
mod under_way;

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
    time::{self, sleep_until},
};

use crate::{
    core::Core,
    error::{Effect, Failure},
    gate::Gate,
    history::History,
    lanes::{Lanes, Lined, MAX_OPERATIONS},
    queue::Entering,
    read::revision,
};
use action::is_empty;
use gather::Gather;
use guess::Guesses;
use under_way::UnderWay;

pub(crate) use action::{Action, Heirs, Look, Outcome};

/// Several, so that some are prepared and answered while etcd writes others.
const UNDER_WAY: usize = 4;

/// How many operations a second transaction has to carry. Fewer wait until the first is answered: a commit costs
/// etcd far more than an operation in it.
const WORTH_ANOTHER: usize = MAX_OPERATIONS / 4 * 3;

/// Of one queue, each place needs a transaction of its own. etcd commits those that are under way together. Those that
/// are late count as well.
const MOST_UNDER_WAY: usize = 16;

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
    /// Whether it may be sent while others about its queue are under way.
    overlaps: bool,
    reply: Reply,
}

/// Who gets an answer.
#[derive(Debug)]
enum Reply {
    /// Whoever is first in line for a place.
    InLine(Entering),
    One(oneshot::Sender<Result<Outcome, Failure>>),
}

impl Reply {
    /// Takes note that the request is sent.
    fn sent(&self) {
        if let Self::InLine(entering) = self {
            entering.sent();
        }
    }

    fn send(self, outcome: Result<Outcome, Failure>) {
        match self {
            Self::InLine(entering) => entering.answered(outcome),
            Self::One(reply) => drop(reply.send(outcome)),
        }
    }
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
    fn is_conditional(&self) -> bool {
        matches!(self.action, Action::EnterIfEmpty { .. })
    }
    fn operations(&self) -> usize {
        self.action.size(false)
    }
    fn overlaps(&self) -> bool {
        self.overlaps
    }
}

/// The answer to a request that is sent.
#[derive(Debug)]
pub(crate) struct Answer(oneshot::Receiver<Result<Outcome, Failure>>);

impl Answer {
    pub(crate) async fn wait(self) -> Result<Outcome, Failure> {
        self.0.await.unwrap_or_else(|_| Err(Failure::closed()))
    }
}

impl Group {
    /// Starts the task on `runtime`; it ends when this is dropped.
    pub(crate) fn start(runtime: &runtime::Handle, core: Weak<Core>) -> Self {
        let (requests, inbox) = mpsc::unbounded_channel();
        runtime.spawn(send(core, inbox));
        Self { requests }
    }

    /// Asks for a place in `queue`, after what was asked of it before; `overlaps` if it may be under way meanwhile. What
    /// is not sent, since the task is gone, comes back.
    pub(crate) fn enter(
        &self,
        queue: Arc<str>,
        action: Action,
        overlaps: bool,
        entering: Entering,
    ) -> Option<Entering> {
        let request = Request { queue, action, overlaps, reply: Reply::InLine(entering) };
        match self.requests.send(request).err()?.0.reply {
            Reply::InLine(entering) => Some(entering),
            Reply::One(_) => None,
        }
    }

    /// Leaves `queue`; the request is sent, whether its answer is waited for or not.
    pub(crate) fn leave(&self, queue: Arc<str>, key: String, heirs: Heirs) -> Answer {
        let (reply, answer) = oneshot::channel();
        let (action, reply) = (Action::Leave { key, heirs }, Reply::One(reply));
        let _ = self.requests.send(Request { queue, action, overlaps: true, reply });
        Answer(answer)
    }
}

async fn send(core: Weak<Core>, mut inbox: mpsc::UnboundedReceiver<Request>) {
    let mut lanes = Lanes::of(MAX_OPERATIONS);
    let mut under_way = UnderWay::none();
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
        while may_send(&under_way, &lanes) {
            let batch = lanes.next_batch();
            let (false, Some(core)) = (batch.is_empty(), core.upgrade()) else { break };
            for request in &batch {
                request.reply.sent();
            }
            let guess = is_worth_a_guess(&batch) && guesses.may_guess();
            under_way.send(send_batch(core, batch, guess));
        }
        let late = under_way.next_late().filter(|_| lanes.waiting() > 0);
        tokio::select! {
            biased;
            Some(answered) = under_way.answered() => {
                let Answered { lanes: answered, follow, guess } = answered;
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
            },
            () = sleep_until(late.unwrap_or_else(time::Instant::now)), if late.is_some() => {}
        }
    }
}

/// Whether a transaction with what waits may be sent now.
fn may_send(under_way: &UnderWay<Answered>, lanes: &Lanes<Request>) -> bool {
    let in_time = under_way.in_time();
    under_way.count() < MOST_UNDER_WAY
        && (in_time == 0
            || in_time < UNDER_WAY && lanes.waiting() >= WORTH_ANOTHER
            || lanes.has_one_that_overlaps())
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
    let mut lanes: Vec<_> = batch.iter().map(|request| request.queue.clone()).collect();
    // Those of a lane are side by side.
    lanes.dedup();
    let mut answered = Answered { lanes, ..Answered::default() };
    for request in &batch {
        if let Action::Leave { key, .. } = &request.action {
            core.history.leaves(key);
        }
    }
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
            answered.follow = how_many_follow(&batch, &outcomes);
            for (request, outcome) in batch.into_iter().zip(outcomes) {
                note(&core.history, &request.action, &outcome);
                request.reply.send(Ok(outcome));
            }
        }
        // One of several was refused, and with it all. Each on its own gets the answer that it deserves. Not while
        // etcd is away: they would wait for that one after the other.
        Err(failure)
            if failure.effect == Effect::None && !failure.error.is_retryable() && batch.len() > 1 =>
        {
            for request in batch {
                let outcome = send_together(&core, slice::from_ref(&request)).await;
                let outcome = outcome.map(|mut outcomes| outcomes.remove(0));
                if let Ok(outcome) = &outcome {
                    note(&core.history, &request.action, outcome);
                }
                request.reply.send(outcome);
            }
        }
        Err(failure) => {
            let mut others = batch.into_iter();
            let first = others.next();
            for request in others {
                request.reply.send(Err(failure.duplicate()));
            }
            if let Some(request) = first {
                request.reply.send(Err(failure));
            }
        }
    }
    answered
}

/// Takes note of what this client has in the store, by which it knows the history.
fn note(history: &History, action: &Action, outcome: &Outcome) {
    match action {
        Action::Enter { key, gate, .. } => history.wrote(key, outcome.revision, gate.lease()),
        Action::EnterIfEmpty { key, gate, .. } if outcome.condition => {
            history.wrote(key, outcome.revision, gate.lease());
        }
        Action::Leave { key, .. } if outcome.condition => history.gave_back(key, outcome.revision),
        Action::EnterIfEmpty { .. } | Action::Leave { .. } => {}
    }
}

/// How many requests these answers are likely to set off at once. In each queue one place at most comes to the head.
fn how_many_follow(batch: &[Request], outcomes: &[Outcome]) -> usize {
    let answers: Vec<_> = batch.iter().zip(outcomes).collect();
    let of_one = |answers: &[(&Request, &Outcome)]| {
        let follow = answers.iter().filter(|(request, _)| request.action.is_followed()).count();
        let has_next = answers.iter().any(|(request, outcome)| request.action.has_next(outcome));
        follow + usize::from(has_next)
    };
    answers.chunk_by(|one, next| one.0.queue == next.0.queue).map(of_one).sum()
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
