//! One place in a queue, from the request for it to its end.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{Error, Hold, LossReason, Result, Ttl, backend::Place, backend::Release};
use etcd_client::{GetOptions, SortOrder, SortTarget, Txn, TxnOp, TxnResponse};
use tokio::time::Instant;

use super::local::Member;
use crate::{
    core::{Core, Shared},
    error::{Effect, Failure, may_pass},
    gate::Mark,
    group::{Action, Answer, Heirs, LOCK, Look, Outcome},
    keys::Range,
    read::{pairs, revision},
    session::Session,
    watch::hub::Delivery,
};

/// A place in a queue. Dropping it leaves the queue in the background, whatever became of the request for it.
pub(crate) struct Spot {
    shared: Arc<Shared>,
    /// Taken only when the spot is dropped.
    member: Option<Member>,
    queue: Arc<str>,
    key: String,
    session: Arc<Session>,
    state: State,
    at_head: bool,
    /// Who was next before it when it entered, if that is known.
    predecessor: Option<Seen>,
    /// Whether the store is known to have deleted it.
    left: AtomicBool,
    /// Whether a request to delete it was sent whose answer was not seen.
    is_leaving: AtomicBool,
}

#[derive(Debug)]
enum State {
    /// The request is on its way.
    Asked(Answer),
    /// In the queue since this revision.
    Standing { created: i64 },
    /// Perhaps in the queue, now or later: the answer was lost then, and could not be read back.
    Unknown { since: Mark },
    /// Never came into the queue.
    Refused,
}

/// A place that was there at a revision.
#[derive(Clone, Debug)]
struct Seen {
    key: String,
    at: i64,
}

/// What to do when the queue is not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IfOccupied {
    Wait,
    LeaveAlone,
}

impl Spot {
    /// Enters a queue on a live session of `ttl`, in one request.
    ///
    /// May be dropped: the place is left then.
    pub(crate) async fn enter(shared: &Arc<Shared>, queue: String, ttl: Ttl) -> Result<Self> {
        let queue = queue.into();
        let begun = Instant::now();
        loop {
            let ask = |session| Self::ask(shared, &queue, session, IfOccupied::Wait);
            match shared.core.on_session(ttl, ask).await {
                Ok(spot) => return Ok(spot),
                // The place before never comes to be, or is left; this one has another key.
                Err(error) => shared.core.begin_anew(begun, error).await?,
            }
        }
    }

    /// Enters a queue only if it is empty, in one request that writes nothing otherwise.
    ///
    /// May be dropped: the place is left then.
    pub(crate) async fn enter_if_empty(
        shared: &Arc<Shared>,
        queue: String,
        ttl: Ttl,
    ) -> Result<Option<Self>> {
        let queue = queue.into();
        let begun = Instant::now();
        loop {
            let ask = |session| Self::ask(shared, &queue, session, IfOccupied::LeaveAlone);
            match shared.core.on_session(ttl, ask).await {
                Ok(spot) => return Ok(Some(spot).filter(|spot| spot.at_head)),
                Err(error) => shared.core.begin_anew(begun, error).await?,
            }
        }
    }

    async fn ask(
        shared: &Arc<Shared>,
        queue: &Arc<str>,
        session: Arc<Session>,
        if_occupied: IfOccupied,
    ) -> Result<Self> {
        let core = &shared.core;
        let member = core.queues.join(core, queue, &session);
        let key = member.key();
        let look = member.what_to_look_for();
        let action = match (if_occupied, key.clone(), core.holder.clone(), session.gate.clone()) {
            (IfOccupied::Wait, key, value, gate) => Action::Enter { key, value, gate, look },
            (IfOccupied::LeaveAlone, key, value, gate) => Action::EnterIfEmpty { key, value, gate },
        };
        // From here on the place may exist; the spot leaves it if this future is dropped.
        let mut spot = Self {
            shared: shared.clone(),
            member: Some(member),
            queue: queue.clone(),
            key: key.clone(),
            session,
            state: State::Asked(core.group.send(queue.clone(), action)),
            at_head: false,
            predecessor: None,
            left: AtomicBool::new(false),
            is_leaving: AtomicBool::new(false),
        };
        let State::Asked(answer) = &mut spot.state else { unreachable!("was just asked") };
        let outcome = tokio::select! {
            biased;
            outcome = answer.wait() => outcome,
            () = core.closed() => return Err(Error::Closed),
        };
        match outcome {
            Ok(Outcome { condition, predecessor, revision }) => {
                spot.at_head = condition;
                let seen = predecessor.filter(|_| look == Look::Predecessor);
                spot.predecessor = seen.map(|key| Seen { key, at: revision });
                spot.state = if condition || if_occupied == IfOccupied::Wait {
                    State::Standing { created: revision }
                } else {
                    State::Refused
                };
                Ok(spot)
            }
            Err(Failure { error, effect: Effect::None }) => {
                spot.state = State::Refused;
                spot.session.learn(&error);
                Err(error)
            }
            // The answer was lost, but the key is ours alone: if it is there, the request took effect.
            Err(Failure { error, effect: Effect::Unknown }) => {
                let since = spot.session.gate.now();
                spot.state = State::Unknown { since };
                match Box::pin(spot.settle(since)).await {
                    Ok(Some(created)) => {
                        spot.at_head = if_occupied == IfOccupied::LeaveAlone;
                        spot.state = State::Standing { created };
                        Ok(spot)
                    }
                    Ok(None) => {
                        spot.state = State::Refused;
                        Err(error)
                    }
                    Err(_) => Err(error),
                }
            }
        }
    }

    /// Makes sure that the request takes no effect any more; the revision at which the key was created, if it has.
    async fn settle(&self, since: Mark) -> Result<Option<i64>, Failure> {
        self.core().shut(&self.session, since).await?;
        let found = self.core().get(LOCK, self.key.as_str(), None).await?;
        Ok(found.kvs().first().map(etcd_client::KeyValue::create_revision))
    }

    /// The key in etcd.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The lease that the place lives on.
    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// The revision at which the place was created; larger than that of everyone before.
    pub(crate) fn created(&self) -> i64 {
        match self.state {
            State::Standing { created } => created,
            _ => unreachable!("only a spot that stands in the queue is handed out"),
        }
    }

    /// Makes it a place that is held until its lease is lost.
    pub(crate) fn into_place(self) -> Place {
        Place::new(Hold::on(self.session.lease.clone()), self)
    }

    /// Waits until the place is at the head.
    ///
    /// May be dropped and called again.
    pub(crate) async fn wait_for_turn(&mut self) -> Result<()> {
        if self.at_head {
            return Ok(());
        }
        tokio::select! {
            biased;
            () = self.core().closed() => return Err(Error::Closed),
            // Its own place is gone: whatever the queue looks like, it is not our turn.
            reason = self.session.lease.lost() => return Err(Error::Lost { reason }),
            turn = self.member().turn(&self.key, self.created()) => turn?,
            turn = self.wait_alone() => turn?,
        }
        self.at_head = true;
        Ok(())
    }

    fn core(&self) -> &Arc<Core> {
        &self.shared.core
    }

    fn member(&self) -> &Member {
        self.member.as_ref().expect("is taken only when the spot is dropped")
    }

    /// Waits for the predecessors one by one, until the client watches the whole queue.
    async fn wait_alone(&self) -> Result<()> {
        tokio::select! {
            biased;
            () = self.member().shared() => {}
            // Boxed, since most of the time nobody stands here while many wait. Also when there are others: one of
            // them may have gone again before anybody began to watch the whole queue.
            turn = Box::pin(self.follow_predecessors()) => return turn,
        }
        std::future::pending().await
    }

    async fn follow_predecessors(&self) -> Result<()> {
        let mut before = match self.predecessor.clone() {
            Some(seen) => Some(seen),
            None => self.predecessor(None).await?,
        };
        while let Some(Seen { key, at }) = before {
            // From now on: a watch from a revision of the past is served by etcd only every 100 ms. One that begins
            // after the predecessor was seen may have missed its end, so it is looked for again.
            let mut changes = self.core().hub.subscribe(Range::Key(key.as_str().into()));
            match changes.next().await {
                Some(Delivery::Started { from }) if from <= at + 1 => {}
                Some(Delivery::Started { .. }) => {
                    if !self.is_before(&key).await? {
                        before = self.predecessor(None).await?;
                        continue;
                    }
                }
                Some(Delivery::Refused(error)) if !may_pass(&error) => return Err(*error),
                _ => {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(20..100))).await;
                    before = self.predecessor(None).await?;
                    continue;
                }
            }
            tracing::debug!(key = self.key, behind = key, "waiting in the queue");
            let gone = loop {
                match changes.next().await {
                    Some(Delivery::Changes(changes)) => {
                        if let Some(gone) = changes.iter().find(|change| change.value.is_none()) {
                            break Some(gone.revision);
                        }
                    }
                    Some(Delivery::Refused(error)) if !may_pass(&error) => return Err(*error),
                    _ => break None,
                }
            };
            before = self.predecessor(gone).await?;
        }
        Ok(())
    }

    /// Whether a key is a place before this one. The same key may be a later place by now: who leaves a queue
    /// and enters it again may use its key again. Tries on while etcd is away.
    async fn is_before(&self, key: &str) -> Result<bool> {
        loop {
            let options = GetOptions::new().with_keys_only();
            match self.core().get("wait in a queue", key, Some(options)).await {
                Ok(found) => {
                    return Ok(found.kvs().first().is_some_and(|kv| kv.create_revision() < self.created()));
                }
                Err(failure) if may_pass(&failure.error) => {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(50..250))).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Who is next before us in the queue; `None` at the head. With `after`, as of that revision or a later one,
    /// which any member that has got so far can tell without asking the others. Tries on while etcd is away.
    async fn predecessor(&self, mut after: Option<i64>) -> Result<Option<Seen>> {
        let before = GetOptions::new()
            .with_prefix()
            .with_max_create_revision(self.created() - 1)
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(1);
        loop {
            let get = |key: &str, options: GetOptions| {
                let options = options.with_keys_only();
                TxnOp::get(key, Some(if after.is_some() { options.with_serializable() } else { options }))
            };
            let look =
                Txn::new().and_then([get(&self.key, GetOptions::new()), get(&self.queue, before.clone())]);
            match self.core().look("wait in a queue", look).await {
                Ok(answer) if after.is_some_and(|after| revision(answer.header()) < after) => after = None,
                Ok(answer) => return read_predecessor(&answer),
                Err(failure) if may_pass(&failure.error) => {
                    tokio::time::sleep(Duration::from_millis(fastrand::u64(50..250))).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

fn read_predecessor(answer: &TxnResponse) -> Result<Option<Seen>> {
    let answers = answer.op_responses();
    let key = |index: usize| pairs(answers.get(index)).first().map(|kv| kv.key_str().map(ToOwned::to_owned));
    if key(0).is_none() {
        return Err(Error::Lost { reason: LossReason::Deleted });
    }
    let at = revision(answer.header());
    key(1)
        .map(|key| key.map(|key| Seen { key, at }))
        .transpose()
        .map_err(|error| Error::Backend { operation: "wait in a queue", source: Box::new(error) })
}

impl fmt::Debug for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spot").field("key", &self.key).field("state", &self.state).finish_non_exhaustive()
    }
}

#[async_trait]
impl Release for Spot {
    async fn release(&self) -> Result<()> {
        self.core().check_open().map_err(|_| Error::Lost { reason: LossReason::Closed })?;
        let send = |action| self.core().group.send(self.queue.clone(), action);
        let heirs = if self.member().is_among_others() { Heirs::LeaverAndNext } else { Heirs::Leaver };
        let leave = || send(Action::Leave { key: self.key.clone(), heirs });
        // Should this future be dropped, the request may still be under way when the place was left by another one.
        self.is_leaving.store(true, Ordering::Relaxed);
        let outcome = match leave().wait().await {
            // The answer was lost. Which of two requests deletes our own key does not matter.
            Err(Failure { effect: Effect::Unknown, .. }) => {
                self.member().retire();
                leave().wait().await.map(|outcome| Outcome { condition: true, ..outcome })
            }
            outcome => outcome,
        };
        self.is_leaving.store(false, Ordering::Relaxed);
        let outcome = outcome?;
        self.left.store(true, Ordering::Relaxed);
        self.member().left(&self.key);
        if outcome.condition { Ok(()) } else { Err(Error::Lost { reason: LossReason::Deleted }) }
    }

    fn release_in_background(&self) {
        // Done when the spot is dropped, which follows at once.
    }
}

impl Drop for Spot {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut self.state, State::Refused);
        if *self.left.get_mut() || matches!(state, State::Refused) || self.session.lease.loss().is_some() {
            return;
        }
        let Some(member) = self.member.take() else { return };
        if *self.is_leaving.get_mut() {
            member.retire();
        }
        let (core, queue, key) = (self.core().clone(), self.queue.clone(), self.key.clone());
        let session = self.session.clone();
        self.core().runtime.spawn(async move {
            if leave(core, queue, &key, &session, &member, state).await {
                member.left(&key);
            } else {
                member.retire();
            }
        });
    }
}

/// Leaves a queue now, or as soon as etcd can be reached again; gives up when the lease is over, since the
/// place is gone with it. Whether it is known to be left.
async fn leave(
    core: Arc<Core>,
    queue: Arc<str>,
    key: &str,
    session: &Session,
    member: &Member,
    state: State,
) -> bool {
    let stray = match state {
        State::Standing { .. } => None,
        State::Unknown { since } => Some(since),
        State::Refused => return true,
        State::Asked(mut answer) => match answer.wait().await {
            Ok(_) => None,
            Err(failure) if failure.effect == Effect::None => return true,
            Err(_) => Some(session.gate.now()),
        },
    };
    let leave = || async {
        let action = Action::Leave { key: key.to_owned(), heirs: Heirs::Nobody };
        let left = core.group.send(queue.clone(), action).wait().await;
        if matches!(left, Err(Failure { effect: Effect::Unknown, .. })) {
            member.retire();
        }
        left.map(drop)
    };
    let left = core.undo(session, stray, leave).await;
    left.inspect_err(|error| tracing::warn!(key, %error, "a place in a queue could not be left")).is_ok()
}
