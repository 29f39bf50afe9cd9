//! One watch stream for all watches of a client, reopened and resumed where each of them stood.
//!
//! All that subscribe to the same keys share one watch on the server, which ends with the last of them. Each has
//! a bounded queue of its own: one that is behind loses its place alone.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use coord_api::{Connectivity, Error, backend::ConnectivitySource};
use coord_grpc::Attempts;
use etcd_client::{WatchClient, WatchRequestSender, WatchResponse, WatchResponseStream};
use futures::future;
use tokio::{
    runtime,
    sync::mpsc::{self, error::TryRecvError},
    time::{Instant, sleep_until},
};

use super::{
    asked::Asked,
    change::Change,
    inbox::{Inbox, Sink, inbox},
    progress::Step,
    refusal::{Verdict, is_refusal, refusal},
    watches::{Read, Watches},
};
use crate::{core::Core, error::classify, keys::Range, telemetry, transport::noted};

/// How many deliveries may wait for one consumer. A consumer that is further behind reads the state anew.
const QUEUE: usize = 128;

/// How long the server may take to open the stream.
const OPENING: Duration = Duration::from_secs(5);

/// How many reads are made at once to show that watches may go on.
const PROVEN_AT_ONCE: usize = 16;

/// The largest answer: a revision is delivered whole, however many keys it changed.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The way to the task that owns the stream.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Unbounded, since dropping a subscription must not wait; each subscription sends three commands.
    commands: mpsc::UnboundedSender<Command>,
    next_id: AtomicU64,
    contact: Connectivity,
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
    /// A user has read what is watched.
    Read {
        range: Range,
        read: Read,
    },
    /// The store has another history: every watch begins anew.
    Anew,
    /// The client is closed.
    Stop,
}

/// What a subscription receives. When its channel ends, changes may have been missed: read the state anew.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// Every change from this revision on will be delivered.
    Started { from: i64 },
    /// Changes, in order; all that share the watch read the same.
    Changes(Arc<[Change]>),
    /// The server does not allow the watch; nothing follows. Boxed, because it is large and seldom.
    Refused(Box<Error>),
}

/// One user of a watch. When the last of them is dropped, the watch is cancelled at the server.
#[derive(Debug)]
pub(crate) struct Subscription {
    range: Range,
    id: u64,
    deliveries: Inbox,
    commands: mpsc::UnboundedSender<Command>,
}

impl Subscription {
    /// The next delivery; `None` when changes may have been missed, or the client is gone.
    ///
    /// May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.next().await
    }
}

impl Subscription {
    /// Takes note that its user has read what is watched. If the store can not be shown to have had that when the stream
    /// was opened again, the subscription ends.
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
    /// Starts the task on `runtime`; it ends when this is dropped.
    pub(crate) fn start(runtime: &runtime::Handle, client: WatchClient, core: Weak<Core>) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
        let source = ConnectivitySource::default();
        let contact = source.connectivity();
        let task = Task {
            core,
            client,
            inbox,
            watches: Watches::default(),
            contact: source,
            asked: Asked::default(),
            refused: None,
            generation: 0,
            is_behind: false,
            is_reopened: false,
            tries: Attempts::new(),
        };
        runtime.spawn(task.run());
        Self { commands, next_id: AtomicU64::new(1), contact }
    }

    /// Whether the stream is up.
    pub(crate) fn contact(&self) -> Connectivity {
        self.contact.clone()
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
        // If the task is gone, the sink is dropped here and the subscription ends at once.
        let _ = self.commands.send(Command::Add { range: range.clone(), id, sink });
        Subscription { range, id, deliveries, commands: self.commands.clone() }
    }
}

struct Task {
    /// To look at the store itself.
    core: Weak<Core>,
    client: WatchClient,
    inbox: mpsc::UnboundedReceiver<Command>,
    watches: Watches,
    contact: ConnectivitySource,
    /// The requests for watches on the stream, and how the server numbers them.
    asked: Asked,
    /// The watch that the stream has just refused, and why.
    refused: Option<(i64, String)>,
    /// The token that the stream was opened with, which it keeps.
    generation: u64,
    /// Whether the member that the stream is open to has not seen what was delivered.
    is_behind: bool,
    /// Whether a stream was open before, and deliveries may be of what was known then.
    is_reopened: bool,
    /// The member that the stream goes to.
    tries: Attempts,
}

impl Task {
    async fn run(mut self) {
        let mut pauses = super::pauses();
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
                Ok((requests, answers)) => match self.serve(requests, answers).await {
                    Served::Done => return,
                    Served::Broken { answered } => {
                        telemetry::watch_stream_broken();
                        if answered {
                            pauses = super::pauses();
                        }
                    }
                    // Its watches resume on one with the new token.
                    Served::HasOldToken => continue,
                },
                Err(error) => self.refuse_if_not_allowed(error),
            }
            self.contact.lost();
            // The next one to another member, if one is ready.
            self.tries = Attempts::new().avoiding(self.tries.instance());
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
        let over = tokio::time::sleep(time);
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

    /// The next command; `None` when the client is closed or gone.
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

    /// Opens a stream with the request for one watch. Requests for the others follow, each from where its watch stands.
    async fn open(&mut self) -> Result<(WatchRequestSender, WatchResponseStream), etcd_client::Error> {
        self.generation = self.core.upgrade().and_then(|core| core.generation()).unwrap_or_default();
        self.asked = Asked::new(self.watches.iter().map(|(id, _)| id));
        let first = self.asked.next(Instant::now()).and_then(|id| Some((id, self.watches.get(id)?)));
        let (id, first) = first.expect("only called when something is watched");
        let opening = self.client.watch(first.key(), Some(first.options(id)));
        let opened = tokio::time::timeout(OPENING, noted(&self.tries, opening)).await;
        let no_answer = |_| etcd_client::Error::WatchError("the stream was not opened in time".into());
        Ok(opened.map_err(no_answer)??.split())
    }

    /// Passes answers on until the stream breaks. It is kept when nothing is watched any more: waiters come and
    /// go, and a stream costs more to open than to keep.
    async fn serve(&mut self, mut requests: WatchRequestSender, mut answers: WatchResponseStream) -> Served {
        let mut answered = false;
        // The member may be another process by now, with other data, at revisions that prove nothing.
        if std::mem::replace(&mut self.is_reopened, true) {
            let Some(unproven) = self.unproven().await else { return Served::Broken { answered } };
            if self.ask(&mut requests, unproven).await.is_err() {
                return Served::Broken { answered };
            }
        }
        loop {
            let overdue = self.asked.overdue_at();
            let unused = tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        answered = true;
                        if let Some(core) = self.core.upgrade() {
                            core.heard_on_stream(answer.header(), &self.tries);
                        }
                        self.contact.restored();
                        let unused = Vec::from_iter(self.take(&answer));
                        if std::mem::take(&mut self.is_behind) {
                            // A member that is behind comes to where the others are.
                            let verified = match self.core.upgrade() {
                                Some(core) => core.verify().await,
                                None => return Served::Done,
                            };
                            if verified.is_err() {
                                return Served::Broken { answered: false };
                            }
                        }
                        if let Some((id, reason)) = self.refused.take()
                            && let Some(ended) = self.refuse_or_try_again(id, &reason).await
                        {
                            return ended;
                        }
                        unused
                    }
                    Ok(None) => return Served::Broken { answered },
                    Err(error) => {
                        tracing::debug!(%error, "watch stream broken, opening another");
                        return Served::Broken { answered };
                    }
                },
                command = self.command() => {
                    let Some(command) = command else { return Served::Done };
                    match self.note(command) {
                        Some(Told::Watch(id)) => {
                            self.asked.want(id);
                            Vec::new()
                        }
                        Some(Told::Cancel(id)) => vec![id],
                        Some(Told::CancelAll(ids)) => ids,
                        None => Vec::new(),
                    }
                }
                () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                    tracing::debug!("a watch was not begun in time, opening another stream");
                    return Served::Broken { answered: false };
                }
            };
            if let Err(error) = self.ask(&mut requests, unused).await {
                tracing::debug!(%error, "watch stream broken, opening another");
                return Served::Broken { answered };
            }
        }
    }

    /// Asks the stream to end the watches that nobody uses any more, and to begin the ones that may begin now.
    async fn ask(
        &mut self,
        requests: &mut WatchRequestSender,
        unused: Vec<i64>,
    ) -> Result<(), etcd_client::Error> {
        for number in unused.into_iter().filter_map(|id| self.asked.end(id)) {
            requests.cancel(number).await?;
        }
        while let Some(id) = self.asked.next(Instant::now()) {
            let added = self.watches.get(id).expect("one that ends is not asked for any more");
            requests.watch(added.key(), Some(added.options(id))).await?;
        }
        Ok(())
    }

    /// Passes one answer on; our id of a watch that the server should stop, since nobody listens any more.
    fn take(&mut self, answer: &WatchResponse) -> Option<i64> {
        let number = answer.watch_id();
        let id = if answer.created() { self.asked.created(number)? } else { self.asked.id(number)? };
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        // One that nobody uses any more ended before its number was known.
        let Some(watched) = self.watches.get_mut(id) else {
            let goes_on = answer.created() && !answer.canceled();
            return goes_on.then_some(id);
        };
        match watched.progress.step(answer.created(), answer.canceled(), revision) {
            Step::Gap => {
                if is_refusal(answer.cancel_reason()) {
                    self.refused = Some((id, answer.cancel_reason().to_owned()));
                    return None;
                }
                drop(self.watches.end(id));
                // The server has ended it.
                let _ = self.asked.end(id);
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
                    answer.events().iter().filter_map(Change::of).filter(|c| c.revision >= after).collect();
                watched.progress.delivered(changes.last()?.revision);
                watched.deliver(|| Delivery::Changes(changes.clone()));
                if let Some(core) = self.core.upgrade() {
                    core.history.saw(&changes);
                }
            }
            Step::Nothing => return None,
        }
        self.watches.end_if_unused(id)
    }

    /// Makes sure that the store has the history that deliveries were of, and ends the watches for which that can not be
    /// shown, which the stream has to be told of; `None` if the store can not be asked.
    async fn unproven(&mut self) -> Option<Vec<i64>> {
        match self.prove().await {
            Ok(unproven) => Some(unproven),
            Err(error) => {
                tracing::debug!(%error, "the history of etcd is not verified, opening another stream");
                None
            }
        }
    }

    async fn prove(&mut self) -> Result<Vec<i64>, Error> {
        let core = self.core.upgrade().ok_or(Error::Closed)?;
        let shown = core.verify().await?;
        let beyond = self.watches.beyond(shown);
        let mut unproven = Vec::new();
        for some in beyond.chunks(PROVEN_AT_ONCE) {
            let proofs = some.iter().map(|(_, range, read)| core.has_read(range, *read));
            for ((id, ..), is_proven) in some.iter().zip(future::try_join_all(proofs).await?) {
                if !is_proven {
                    drop(self.watches.end(*id));
                    unproven.push(*id);
                }
            }
        }
        Ok(unproven)
    }

    /// Finds out why a watch was refused. If it was for the token of the stream, the watch is kept, and the stream ends;
    /// else its users are told, who decide what to do.
    async fn refuse_or_try_again(&mut self, id: i64, reason: &str) -> Option<Served> {
        let watched = self.watches.get(id)?;
        let verdict = match self.core.upgrade() {
            Some(core) => core.judge_refusal(watched.range(), self.generation).await,
            None => return Some(Served::Done),
        };
        let error = match verdict {
            Verdict::OldToken => {
                tracing::debug!("the token of the watch stream is no longer good, opening another");
                return Some(Served::HasOldToken);
            }
            // Those that have begun go on when there are credentials again.
            Verdict::NoToken(error) if watched.progress.has_started() => {
                tracing::debug!(%error, "watches wait for credentials");
                return Some(Served::Broken { answered: false });
            }
            Verdict::Unknown => return Some(Served::Broken { answered: false }),
            Verdict::NoToken(error) => error,
            Verdict::Refused => refusal(reason),
        };
        if let Some(ended) = self.watches.end(id) {
            let _ = self.asked.end(id);
            ended.refuse(&error);
        }
        None
    }

    fn refuse_if_not_allowed(&mut self, error: etcd_client::Error) {
        let error = classify("watch", OPENING, error).error;
        tracing::debug!(%error, "watch stream could not be opened, trying again");
        if matches!(error, Error::Unauthenticated { .. }) {
            // Those that have begun go on when there are credentials again.
            for refused in self.watches.end_unbegun() {
                refused.refuse(&error);
            }
        }
    }
}

/// What the stream has to be told.
enum Told {
    /// To begin the watch with this id.
    Watch(i64),
    /// To end the watch with this id.
    Cancel(i64),
    /// To end the watches with these ids.
    CancelAll(Vec<i64>),
}

/// Why [`Task::serve`] returned.
enum Served {
    /// The client is gone.
    Done,
    /// The stream broke; `answered` if it had worked before.
    Broken { answered: bool },
    /// The stream works, but not for new watches.
    HasOldToken,
}
