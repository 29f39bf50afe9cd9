//! Entry of this client in a queue, from the request for it to its end.

use std::{
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
};

use async_trait::async_trait;
use coord_api::{
    Error, Hold, LossReason, Result, Ttl,
    backend::{Place, Release},
};
use tokio::{sync::oneshot, time::Instant};

use super::{
    arrivals::Assigned,
    entry::{IfOccupied, QueuedKey},
    state::{Leaving, Next, QueueState, Standing},
    wait_one::Seen,
};
use crate::{
    queue::Queues,
    queue::send::{Answer, FollowUps, LOCK, Outcome},
    request::{Kept, timer::timeout_at},
    session::{Epoch, Session},
    store::{Effect, Failure},
};

/// Request for an entry. If it is dropped, the entry that comes of it is left in the background.
struct Asked {
    queues: Kept<Queues>,
    session: Arc<Session>,
    local: Arc<QueueState>,
    /// Receiver of the answer; taken only when this ends.
    answer: Option<oneshot::Receiver<Assigned<QueuedKey>>>,
}

/// Entry in a queue. If it is dropped, the queue is left in the background.
pub(crate) struct Ticket {
    queues: Kept<Queues>,
    /// Key of the entry; taken only when the ticket is dropped.
    member: Option<QueuedKey>,
    pub(super) key: String,
    state: State,
    at_head: bool,
    /// Hold of the task that waits in the entry, or holds it.
    hold: Hold,
    /// Predecessor of the entry when it was created, if that is known.
    pub(super) predecessor: Option<Seen>,
    /// Whether the store has told of somebody before it.
    behind: AtomicBool,
    /// Guard of its deletion, set as soon as nobody stands in the entry any more.
    leaving: OnceLock<Leaving>,
    /// Whether the store is known to have deleted the entry.
    left: AtomicBool,
    /// Answer to a request that deletes the entry, as long as nobody has seen it. A task that drops the
    /// ticket goes on to wait for it.
    in_flight: Mutex<Option<Answer>>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// In the queue since this revision.
    Standing { created: i64 },
    /// Perhaps in the queue, now or later: the answer was lost at `since`, and the entry could not be read
    /// back.
    Unknown { since: Epoch },
    /// Never came into the queue.
    Refused,
}

impl Asked {
    /// Waits for the answer.
    async fn answer(mut self) -> Result<Assigned<QueuedKey>> {
        let answer = self.answer.as_mut().expect("is taken only when this ends");
        let answered = tokio::select! {
            biased;
            answered = answer => answered,
            () = self.queues.closed() => return Err(Error::Closed),
        };
        self.answer = None;
        answered.map_err(|_| Error::Closed)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take() else { return };
        // An entry on the lease is gone with it.
        if self.session.lease.loss().is_some() {
            return;
        }
        let queues = self.queues.area.clone();
        // From this moment on. The key of the entry will be known later.
        let leaving = self.local.leaving("", None);
        self.queues.background.spawn(async move {
            if let Ok(Assigned { place: member, outcome }) = answer.await {
                let state = match outcome {
                    Ok(Outcome { revision, .. }) => {
                        if let Some(next) = member.hand_on(&member.key(), revision) {
                            next.tell();
                        }
                        State::Standing { created: revision }
                    }
                    Err(Failure { effect: Effect::None, .. }) => State::Refused,
                    Err(_) => State::Unknown { since: member.session().epoch.now() },
                };
                leave(queues, member, state, None).await;
            }
            drop(leaving);
        });
    }
}

impl Ticket {
    /// Enters a queue on a live session of `ttl`, in one request.
    ///
    /// May be dropped: the entry is left then.
    pub(crate) async fn enter(kept: &Kept<Queues>, queue: String, ttl: Ttl) -> Result<Self> {
        let queue = queue.into();
        let begun = Instant::now();
        loop {
            let ask = |session| Self::ask(kept, &queue, session, IfOccupied::Wait);
            match kept.sessions.on_session(ttl, ask).await {
                Ok(ticket) => return Ok(ticket),
                // The entry of the failed attempt never comes to be, or is left. The next one has another
                // key.
                Err(error) => kept.retry_from_start(begun, error).await?,
            }
        }
    }

    /// Enters a queue only if it is empty, in one request that writes nothing otherwise. An entry that this
    /// client has left before is waited for, since nobody stands in it.
    ///
    /// May be dropped: the entry is left then.
    pub(crate) async fn enter_if_empty(kept: &Kept<Queues>, queue: String, ttl: Ttl) -> Result<Option<Self>> {
        let queue: Arc<str> = queue.into();
        let begun = Instant::now();
        let after = kept.request_timeout;
        loop {
            tokio::select! {
                biased;
                () = kept.closed() => return Err(Error::Closed),
                // Also an entry of an earlier attempt, of which nothing was heard.
                left = timeout_at(begun + after, kept.all_left(&queue)) => {
                    left.map_err(|_elapsed| Error::Timeout { operation: LOCK, after })?;
                }
            }
            let ask = |session| Self::ask(kept, &queue, session, IfOccupied::LeaveAlone);
            match kept.sessions.on_session(ttl, ask).await {
                Ok(ticket) => return Ok(Some(ticket).filter(|ticket| ticket.at_head)),
                Err(error) => kept.retry_from_start(begun, error).await?,
            }
        }
    }

    async fn ask(
        kept: &Kept<Queues>,
        queue: &Arc<str>,
        session: Arc<Session>,
        if_occupied: IfOccupied,
    ) -> Result<Self> {
        let (local, answer) = kept.enter(queue, session.clone(), if_occupied);
        // From here on an entry may exist. Its owner leaves it if this future is dropped.
        let asked = Asked { queues: kept.clone(), session, local, answer: Some(answer) };
        let Assigned { place: member, outcome } = asked.answer().await?;
        let mut ticket = Self {
            queues: kept.clone(),
            key: member.key(),
            hold: Hold::on(member.session().lease.clone()),
            member: Some(member),
            state: State::Refused,
            at_head: false,
            predecessor: None,
            behind: AtomicBool::new(false),
            leaving: OnceLock::new(),
            left: AtomicBool::new(false),
            in_flight: Mutex::new(None),
        };
        match outcome {
            Ok(Outcome { condition, other, predecessor, revision }) => {
                ticket.at_head = condition;
                if let Some(key) = &other {
                    ticket.is_told_behind(key);
                }
                ticket.predecessor = predecessor.map(|key| Seen { key, at: revision });
                if condition || if_occupied == IfOccupied::Wait {
                    ticket.stands(revision);
                }
                Ok(ticket)
            }
            Err(Failure { error, effect: Effect::None }) => {
                ticket.session().learn(&error);
                Err(error)
            }
            // The answer was lost, but the key is ours alone: if it exists, the request took effect.
            Err(Failure { error, effect: Effect::Unknown }) => {
                let since = ticket.session().epoch.now();
                ticket.state = State::Unknown { since };
                match Box::pin(ticket.settle(since)).await {
                    Ok(Some(created)) => {
                        ticket.at_head = if_occupied == IfOccupied::LeaveAlone;
                        ticket.stands(created);
                        Ok(ticket)
                    }
                    Ok(None) => {
                        ticket.state = State::Refused;
                        Err(error)
                    }
                    Err(_) => Err(error),
                }
            }
        }
    }

    /// Makes sure that the request takes no effect any more. Returns the revision at which the key was
    /// created, if it was.
    async fn settle(&self, since: Epoch) -> Result<Option<i64>, Failure> {
        self.session().advance(self.queues(), since).await?;
        let found = self.queues().get(LOCK, self.key.as_str(), None).await?;
        Ok(found.kvs.first().map(|kv| kv.create_revision))
    }

    /// Takes note that the entry is in the queue. From here on the task that stands in it is told if it is
    /// gone.
    fn stands(&mut self, created: i64) {
        self.state = State::Standing { created };
        let (hold, session) = (self.hold.clone(), Arc::downgrade(self.session()));
        self.member().local().stand(self.key.clone(), Standing { created, hold, session });
    }

    /// Takes note of an entry before this one. An entry that this client has left does not count: nobody
    /// stands in it.
    pub(super) fn is_told_behind(&self, key: &str) {
        if !self.member().local().state().is_leaving(key) {
            self.behind.store(true, Ordering::Relaxed);
        }
    }

    /// Takes note that the store does not have the entry any more, which is not our doing.
    pub(super) fn is_gone(&self) {
        self.hold.end(LossReason::Deleted);
        self.session().renew_now();
    }

    /// Returns whether the store has told of somebody before this entry.
    pub(crate) fn is_behind(&self) -> bool {
        let is_told = || self.behind.load(Ordering::Relaxed);
        !self.at_head && (is_told() || self.member().local().state().is_behind(self.created()))
    }

    /// Takes note that nobody stands in the entry any more.
    fn is_left(&self, member: &QueuedKey) -> &Leaving {
        let created = match self.state {
            State::Standing { created } => Some(created),
            State::Unknown { .. } | State::Refused => None,
        };
        self.leaving.get_or_init(|| member.local().leaving(&self.key, created))
    }

    fn in_flight(&self) -> MutexGuard<'_, Option<Answer>> {
        self.in_flight.lock().expect("nothing panics while this is locked")
    }

    /// Takes note of the answer to a request that was sent to delete the entry.
    fn begins(&self, leaving: Answer) {
        *self.in_flight() = Some(leaving);
    }

    /// Waits for the answer to the request that deletes the entry. May be dropped: the answer stays.
    async fn answered(&self) -> Result<Outcome, Failure> {
        let answer = poll_fn(|cx| match &mut *self.in_flight() {
            Some(answer) => Pin::new(answer).poll(cx),
            None => Poll::Ready(Err(Failure::closed())),
        });
        let outcome = answer.await;
        *self.in_flight() = None;
        outcome
    }

    /// Returns the key in the store.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Returns the session of the lease that the entry lives on.
    pub(crate) fn session(&self) -> &Arc<Session> {
        self.member().session()
    }

    /// Returns the revision at which the entry was created, which is larger than that of every entry before
    /// it.
    pub(crate) fn created(&self) -> i64 {
        match self.state {
            State::Standing { created } => created,
            _ => unreachable!("only a ticket that stands in the queue is handed out"),
        }
    }

    /// Turns the ticket into a place that is held until it is gone, or its lease is lost.
    pub(crate) fn into_place(self) -> Place {
        Place::new(self.hold.clone(), self)
    }

    /// Returns the next local waiter if it may be woken before the store has deleted this entry; the delete
    /// must be queued first. Returns `None` if the hold is a fence. A write may then be in flight that the
    /// store lets in for as long as the entry exists. It would come after those of the next holder.
    fn hand_on(&self, member: &QueuedKey) -> Option<Next> {
        match self.state {
            State::Standing { created } if !self.hold.is_fence() => member.hand_on(&self.key, created),
            _ => None,
        }
    }

    /// Waits until the entry is at the head.
    ///
    /// May be dropped and called again.
    ///
    /// # Errors
    /// [`Error::Lost`] if the entry is gone.
    pub(crate) async fn wait_for_turn(&mut self) -> Result<()> {
        if !self.at_head {
            tokio::select! {
                biased;
                () = self.queues().closed() => return Err(Error::Closed),
                // The own entry is gone: whatever the queue looks like, it is not at the head.
                reason = self.hold.lost() => return Err(Error::Lost { reason }),
                turn = self.member().turn(&self.key, self.created()) => turn?,
                turn = self.wait_alone() => turn?,
            }
            self.at_head = true;
        }
        self.hold.check()
    }

    pub(super) fn queues(&self) -> &Arc<Queues> {
        &self.queues
    }

    pub(super) fn member(&self) -> &QueuedKey {
        self.member.as_ref().expect("is taken only when the ticket is dropped")
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").field("key", &self.key).field("state", &self.state).finish_non_exhaustive()
    }
}

#[async_trait]
impl Release for Ticket {
    async fn release(&self) -> Result<()> {
        self.queues().check_open().map_err(|_| Error::Lost { reason: LossReason::Closed })?;
        self.is_left(self.member());
        let next = self.hand_on(self.member());
        let is_told_later = next.is_none() && self.member().is_among_others();
        let follow_ups = if is_told_later { FollowUps::Two } else { FollowUps::One };
        let leave = || self.member().leave(self.queues(), follow_ups);
        self.begins(leave());
        if let Some(next) = next {
            next.tell();
        }
        let outcome = match self.answered().await {
            // The answer was lost. It does not matter which of two requests deletes our own key.
            Err(Failure { effect: Effect::Unknown, .. }) => {
                self.member().retire();
                self.begins(leave());
                self.answered().await.map(|outcome| Outcome { condition: true, ..outcome })
            }
            outcome => outcome,
        };
        let outcome = outcome?;
        self.left.store(true, Ordering::Relaxed);
        self.member().left(&self.key);
        if outcome.condition {
            return Ok(());
        }
        self.session().renew_now();
        Err(Error::Lost { reason: LossReason::Deleted })
    }

    fn release_in_background(&self) {
        // Done when the ticket is dropped, which follows at once.
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(member) = self.member.take() else { return };
        if matches!(self.state, State::Refused) {
            return;
        }
        self.is_left(&member);
        let leaving = self.leaving.take();
        if *self.left.get_mut() || member.session().lease.loss().is_some() {
            return;
        }
        let queues = self.queues().clone();
        // The request of a release that was given up is as good.
        let in_flight = self.in_flight().take();
        // Sent before the next waiter can ask for anything, so that its requests come after this one.
        let leave_now =
            || matches!(self.state, State::Standing { .. }).then(|| member.leave(&queues, FollowUps::None));
        let begun = in_flight.or_else(leave_now);
        if let Some(next) = self.hand_on(&member) {
            next.tell();
        }
        let leave = leave(queues, member, self.state, begun);
        self.queues().background.spawn(async move {
            leave.await;
            drop(leaving);
        });
    }
}

/// Leaves a queue, until it is done or the lease is over, since the entry is gone with it. `begun` is the
/// answer to a request that was already sent for it, if there is one.
async fn leave(queues: Arc<Queues>, member: QueuedKey, state: State, begun: Option<Answer>) {
    let stray = match state {
        State::Standing { .. } => None,
        State::Unknown { since } => Some(since),
        State::Refused => return,
    };
    let key = member.key();
    let begun = Mutex::new(begun);
    let leave = || async {
        let begun = begun.lock().expect("nothing panics while this is locked").take();
        let leaving = begun.unwrap_or_else(|| member.leave(&queues, FollowUps::None));
        let left = leaving.await;
        if matches!(left, Err(Failure { effect: Effect::Unknown, .. })) {
            member.retire();
        }
        left.map(drop)
    };
    member.session().undo(&queues, &key, stray, leave).await;
    member.left(&key);
}
