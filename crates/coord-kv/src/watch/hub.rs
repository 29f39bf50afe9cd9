//! The watch stream for all watches of a client, reopened and resumed where each of them stood.
//!
//! All that subscribe to the same keys share one watch on the server, which ends with the last of them. Each
//! has a bounded queue of its own: a user that is behind loses its place alone.

use std::{
    ops::Deref,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coord_api::{Error, backend::ConnectivitySource};
use futures::future;
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::{
    inbox::{Inbox, Sink, inbox},
    progress::Step,
    refusal::Verdict,
    watches::Watches,
};
use crate::{
    request::{Read, Rpc, pauses, timer},
    store::{Attempts, Canceled, Change, Effect, Failure, Observation, Range, WatchAnswer, WatchStream},
};

/// Most deliveries that may wait for one consumer. A consumer that is further behind reads the state anew.
const QUEUE: usize = 128;

/// Longest time that the server may take to open the stream.
const OPENING: Duration = Duration::from_secs(5);

/// Number of reads that are made at once to show that watches may go on.
const PROVEN_AT_ONCE: usize = 16;

/// The way to the task that owns the stream.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Unbounded, since dropping a subscription must not wait; each subscription sends three commands.
    commands: mpsc::UnboundedSender<Command>,
    next_id: AtomicU64,
    rpc: Arc<Rpc>,
}

impl Deref for Hub {
    type Target = Rpc;

    fn deref(&self) -> &Rpc {
        &self.rpc
    }
}

#[derive(Debug)]
enum Command {
    Add {
        range: Range,
        id: u64,
        sink: Sink,
    },
    Remove {
        range: Range,
        id: u64,
    },
    /// A user has read the watched keys.
    Read {
        range: Range,
        read: Read,
    },
    /// The store has another history: every watch begins anew.
    Anew,
    /// The client is closed.
    Stop,
}

/// Message to a subscription. When its channel ends, changes may have been missed: read the state anew.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// Every change from this revision on will be delivered.
    Started { from: i64 },
    /// Changes, in order; all that share the watch read the same.
    Changes(Arc<[Change]>),
    /// The server does not allow the watch; nothing follows. Boxed, because it is large and seldom.
    Refused(Box<Error>),
}

/// User of a watch. When the last user is dropped, the watch is cancelled at the server.
#[derive(Debug)]
pub(crate) struct Subscription {
    range: Range,
    id: u64,
    deliveries: Inbox,
    commands: mpsc::UnboundedSender<Command>,
}

impl Subscription {
    /// Waits for the next delivery; `None` when changes may have been missed, or the client is gone.
    ///
    /// May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.next().await
    }
}

impl Subscription {
    /// Takes note that its user has read the watched keys. If the store can not be shown to have had that
    /// when the stream was opened again, the subscription ends.
    pub(crate) fn has_read(&self, read: Read) {
        let _ = self.commands.send(Command::Read { range: self.range.clone(), read });
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // Fails only when the task is gone, and every watch with it.
        let _ = self.commands.send(Command::Remove { range: self.range.clone(), id: self.id });
    }
}

impl Hub {
    /// Starts the task, which ends when this is dropped. The task tells `connectivity` whether the stream is up.
    pub(crate) fn start(rpc: Arc<Rpc>, connectivity: ConnectivitySource) -> Arc<Self> {
        let (commands, inbox) = mpsc::unbounded_channel();
        let task = Task {
            attempts: rpc.store.attempts(None),
            rpc: Arc::downgrade(&rpc),
            inbox,
            watches: Watches::default(),
            connectivity,
            refused: None,
            generation: 0,
            is_behind: false,
            is_reopened: false,
        };
        rpc.background.spawn_with_first_use(task.run());
        Arc::new(Self { commands, next_id: AtomicU64::new(1), rpc })
    }

    /// Ends every watch, so that its users read the state anew and watch from then on.
    pub(crate) fn begin_anew(&self) {
        // Fails only when the task has ended.
        let _ = self.commands.send(Command::Anew);
    }

    /// Ends the task, and every watch with it.
    pub(crate) fn stop(&self) {
        // Fails only when it has ended.
        let _ = self.commands.send(Command::Stop);
    }

    /// Watches `range` from now on.
    pub(crate) fn subscribe(&self, range: Range) -> Subscription {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sink, deliveries) = inbox(QUEUE);
        self.background.begin();
        // If the task is gone, the sink is dropped here and the subscription ends at once.
        let _ = self.commands.send(Command::Add { range: range.clone(), id, sink });
        Subscription { range, id, deliveries, commands: self.commands.clone() }
    }
}

struct Task {
    /// Context for reads of the store itself.
    rpc: Weak<Rpc>,
    inbox: mpsc::UnboundedReceiver<Command>,
    watches: Watches,
    connectivity: ConnectivitySource,
    /// The watch that the stream has just refused, and why.
    refused: Option<(i64, Error)>,
    /// The generation of the credentials that the stream was opened with, which it keeps.
    generation: u64,
    /// Whether the member that the stream is open to has not seen the delivered changes.
    is_behind: bool,
    /// Whether a stream was open before, and deliveries may be of the history that was known then.
    is_reopened: bool,
    /// The member that the stream goes to.
    attempts: Box<dyn Attempts>,
}

impl Task {
    async fn run(mut self) {
        let mut pauses = pauses();
        loop {
            while self.watches.is_empty() {
                match self.command().await {
                    Some(command) => drop(self.note(command)),
                    None => return,
                }
            }
            if !self.catch_up() {
                return;
            }
            if self.watches.is_empty() {
                continue;
            }
            match self.open().await {
                Ok(stream) => match self.serve(stream).await {
                    Served::Done => return,
                    Served::Broken { answered } => {
                        if let Some(rpc) = self.rpc.upgrade() {
                            rpc.store.observe(Observation::WatchStreamBroken);
                        }
                        if answered {
                            pauses = self::pauses();
                        }
                    }
                    // Its watches resume on one with the new token.
                    Served::HasOldToken => continue,
                },
                Err(failure) => self.refuse_unbegun(&failure.error),
            }
            self.connectivity.lost();
            if let Some(rpc) = self.rpc.upgrade() {
                rpc.history.doubt();
            }
            // The next one to another member, if one is ready.
            match self.rpc.upgrade() {
                Some(rpc) => self.attempts = rpc.store.attempts(self.attempts.member()),
                None => return,
            }
            if !self.pause(pauses.next().unwrap_or_default()).await {
                return;
            }
        }
    }

    /// Takes note of all commands that are there; `false` when the client is closed or gone.
    fn catch_up(&mut self) -> bool {
        loop {
            match self.inbox.try_recv() {
                Ok(Command::Stop) | Err(TryRecvError::Disconnected) => return false,
                Ok(command) => drop(self.note(command)),
                Err(TryRecvError::Empty) => return true,
            }
        }
    }

    /// Waits, and takes note of commands meanwhile; `false` when the client is closed or gone.
    async fn pause(&mut self, time: Duration) -> bool {
        let over = timer::sleep(time);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return true,
                command = self.command() => match command {
                    Some(command) => drop(self.note(command)),
                    None => return false,
                },
            }
        }
    }

    /// Waits for the next command; `None` when the client is closed or gone.
    async fn command(&mut self) -> Option<Command> {
        self.inbox.recv().await.filter(|command| !matches!(command, Command::Stop))
    }

    /// Takes note of a command; the watch that the stream has to be told of.
    fn note(&mut self, command: Command) -> Option<Told> {
        match command {
            Command::Add { range, id, sink } => self.watches.add(range, id, sink).map(Told::Watch),
            Command::Remove { range, id } => self.watches.remove(&range, id).map(Told::Cancel),
            Command::Read { range, read } => {
                self.watches.has_read(&range, read);
                None
            }
            Command::Anew => {
                let ended = self.watches.end_all().into_iter().map(|(id, _)| id).collect();
                Some(Told::CancelAll(ended))
            }
            Command::Stop => None,
        }
    }

    /// Opens a stream with all watches, each from where it stands.
    async fn open(&mut self) -> Result<Box<dyn WatchStream>, Failure> {
        let rpc = self.rpc.upgrade().ok_or_else(Failure::closed)?;
        self.generation = rpc.store.credentials().unwrap_or_default();
        let first = self.watches.iter().map(|(id, watched)| watched.request(id)).collect();
        let opening = rpc.store.watch(&*self.attempts, first);
        let opened = timer::timeout(OPENING, opening).await;
        let no_answer = |_| {
            let source = Some("the stream was not opened in time".into());
            Failure { error: rpc.store.unavailable(source), effect: Effect::Unknown }
        };
        opened.map_err(no_answer)?
    }

    /// Passes answers on until the stream breaks. It is kept when nothing is watched any more: waiters come and
    /// go, and a stream costs more to open than to keep.
    async fn serve(&mut self, mut stream: Box<dyn WatchStream>) -> Served {
        let mut answered = false;
        // The member may be another process by now, with other data, at revisions that prove nothing.
        if std::mem::replace(&mut self.is_reopened, true) {
            let Some(unproven) = self.unproven().await else { return Served::Broken { answered } };
            if cancel(&mut *stream, unproven).await.is_err() {
                return Served::Broken { answered };
            }
        }
        if let Some(rpc) = self.rpc.upgrade() {
            rpc.history.trust();
        }
        loop {
            let unused = tokio::select! {
                answer = stream.next() => match answer {
                    Ok(Some(answer)) => {
                        answered = true;
                        if let Some(rpc) = self.rpc.upgrade() {
                            rpc.heard_on_stream(answer.header, &*self.attempts);
                        }
                        self.connectivity.restored();
                        let unused = Vec::from_iter(self.take(answer));
                        if std::mem::take(&mut self.is_behind) {
                            // A member that is behind comes to where the others are.
                            let verified = match self.rpc.upgrade() {
                                Some(rpc) => rpc.verify().await,
                                None => return Served::Done,
                            };
                            if verified.is_err() {
                                return Served::Broken { answered: false };
                            }
                        }
                        if let Some((id, reason)) = self.refused.take()
                            && let Some(ended) = self.refuse_or_try_again(id, reason).await
                        {
                            return ended;
                        }
                        unused
                    }
                    Ok(None) => return Served::Broken { answered },
                    Err(Failure { error, .. }) => {
                        tracing::debug!(%error, "watch stream broken, opening another");
                        // A store that does not answer is not asked more often for what it answered before.
                        let answered = answered && !matches!(error, Error::Timeout { .. });
                        return Served::Broken { answered };
                    }
                },
                command = self.command() => {
                    let Some(command) = command else { return Served::Done };
                    match self.note(command) {
                        Some(Told::Watch(id)) => {
                            let added = self.watches.get(id).expect("was just added").request(id);
                            if let Err(Failure { error, .. }) = stream.watch(added).await {
                                tracing::debug!(%error, "watch stream broken, opening another");
                                return Served::Broken { answered };
                            }
                            Vec::new()
                        }
                        Some(Told::Cancel(id)) => vec![id],
                        Some(Told::CancelAll(ids)) => ids,
                        None => Vec::new(),
                    }
                }
            };
            if let Err(Failure { error, .. }) = cancel(&mut *stream, unused).await {
                tracing::debug!(%error, "watch stream broken, opening another");
                return Served::Broken { answered };
            }
        }
    }

    /// Passes one answer on; the id of a watch that the server should stop, since nobody listens any more.
    fn take(&mut self, answer: WatchAnswer) -> Option<i64> {
        let (id, revision) = (answer.id?, answer.header.revision);
        // A watch that nobody uses any more ended before its number was known.
        let Some(watched) = self.watches.get_mut(id) else {
            let goes_on = answer.is_created && answer.canceled.is_none();
            return goes_on.then_some(id);
        };
        match watched.progress.step(answer.is_created, answer.canceled.is_some(), revision) {
            Step::Gap => {
                if let Some(Canceled::NotAllowed(reason)) = answer.canceled {
                    self.refused = Some((id, reason));
                    return None;
                }
                drop(self.watches.end(id));
                return None;
            }
            Step::Behind => {
                self.is_behind = true;
                return None;
            }
            Step::Started => watched.deliver(|| Delivery::Started { from: revision + 1 }),
            Step::Changes => {
                let after = watched.progress.next().unwrap_or_default();
                let changes: Arc<[Change]> =
                    answer.changes.into_iter().filter(|change| change.revision >= after).collect();
                watched.progress.delivered(changes.last()?.revision);
                watched.deliver(|| Delivery::Changes(changes.clone()));
                if let Some(rpc) = self.rpc.upgrade() {
                    rpc.history.saw(&changes);
                }
            }
            Step::Nothing => return None,
        }
        self.watches.end_if_unused(id)
    }

    /// Makes sure that the store has the history that deliveries were of. Ends the watches for which that can
    /// not be shown, and returns their ids, for the stream to be told of. Returns `None` if the store can not
    /// be asked.
    async fn unproven(&mut self) -> Option<Vec<i64>> {
        match self.prove().await {
            Ok(unproven) => Some(unproven),
            Err(error) => {
                tracing::debug!(%error, "the history of the store is not verified, opening another stream");
                None
            }
        }
    }

    async fn prove(&mut self) -> Result<Vec<i64>, Error> {
        let rpc = self.rpc.upgrade().ok_or(Error::Closed)?;
        let shown = rpc.verify().await?;
        let beyond = self.watches.beyond(shown);
        let mut unproven = Vec::new();
        for some in beyond.chunks(PROVEN_AT_ONCE) {
            let proofs = some.iter().map(|(_, range, read)| rpc.has_read(range, *read));
            for ((id, ..), is_proven) in some.iter().zip(future::try_join_all(proofs).await?) {
                if !is_proven {
                    drop(self.watches.end(*id));
                    unproven.push(*id);
                }
            }
        }
        Ok(unproven)
    }

    /// Finds out why a watch was refused. A watch that was refused for the token of the stream is kept, and
    /// the stream ends. The users of a watch that was refused for itself are told, and decide what to do.
    async fn refuse_or_try_again(&mut self, id: i64, reason: Error) -> Option<Served> {
        let watched = self.watches.get(id)?;
        let verdict = match self.rpc.upgrade() {
            Some(rpc) => rpc.judge_refusal(watched.range(), self.generation).await,
            None => return Some(Served::Done),
        };
        let error = match verdict {
            Verdict::OldToken => {
                tracing::debug!("the token of the watch stream is no longer good, opening another");
                return Some(Served::HasOldToken);
            }
            // Watches that have begun go on when there are credentials again.
            Verdict::NoToken(error) if watched.progress.has_started() => {
                tracing::debug!(%error, "watches wait for credentials");
                return Some(Served::Broken { answered: false });
            }
            Verdict::Unknown => return Some(Served::Broken { answered: false }),
            Verdict::NoToken(error) => error,
            Verdict::Refused => reason,
        };
        if let Some(ended) = self.watches.end(id) {
            ended.refuse(&error);
        }
        None
    }

    /// Tells the users of watches that have not begun why the stream was not opened, if waiting would not help.
    fn refuse_unbegun(&mut self, error: &Error) {
        tracing::debug!(%error, "watch stream could not be opened, trying again");
        let is_final = self.rpc.upgrade().is_some_and(|rpc| rpc.store.is_final(error));
        if is_final || matches!(error, Error::Unauthenticated { .. }) {
            // Watches that have begun go on when there are credentials again.
            for refused in self.watches.end_unbegun() {
                refused.refuse(error);
            }
        }
    }
}

/// Asks a stream to end watches.
async fn cancel(stream: &mut dyn WatchStream, ids: Vec<i64>) -> Result<(), Failure> {
    for id in ids {
        stream.cancel(id).await?;
    }
    Ok(())
}

/// Request to send on the stream.
enum Told {
    /// Request to begin the watch with this id.
    Watch(i64),
    /// Request to end the watch with this id.
    Cancel(i64),
    /// Request to end the watches with these ids.
    CancelAll(Vec<i64>),
}

/// Reason why [`Task::serve`] returned.
enum Served {
    /// The client is gone.
    Done,
    /// The stream broke; `answered` if it had worked before.
    Broken { answered: bool },
    /// The stream works, but not for new watches.
    HasOldToken,
}
