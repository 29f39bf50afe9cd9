//! The one watch stream of a client: reopened, and resumed where each watch stood.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use coord_api::{Error, backend::ConnectivitySource};
use futures::future;
use tokio::sync::mpsc::{self, error::TryRecvError};

use super::{
    hub::{Command, Delivery},
    progress::Step,
    watches::Watches,
};
use crate::{
    request::{Rpc, backoff, timer},
    store::{Attempts, Canceled, Change, Effect, Failure, Observation, WatchAnswer, WatchStream},
};

/// Longest time that the server may take to open the stream.
const OPENING: Duration = Duration::from_secs(5);

/// Number of reads that are made at once to show that watches may go on.
const PROVEN_AT_ONCE: usize = 16;

/// The task that owns the stream.
pub(super) struct Task {
    /// Context for reads of the store itself.
    pub(super) rpc: Weak<Rpc>,
    inbox: mpsc::UnboundedReceiver<Command>,
    pub(super) watches: Watches,
    connectivity: ConnectivitySource,
    /// The watch that the stream has just refused, and why.
    refused: Option<(i64, Error)>,
    /// The generation of the credentials that the stream was opened with, which it keeps.
    pub(super) generation: u64,
    /// Whether the member that the stream is open to has not seen the delivered changes.
    is_behind: bool,
    /// Whether a stream was open before, and deliveries may be of the history that was known then.
    is_reopened: bool,
    /// The member that the stream goes to.
    attempts: Box<dyn Attempts>,
}

impl Task {
    /// Makes the task, which has nothing to watch yet.
    pub(super) fn new(
        rpc: &Arc<Rpc>,
        inbox: mpsc::UnboundedReceiver<Command>,
        connectivity: ConnectivitySource,
    ) -> Self {
        Self {
            attempts: rpc.store.attempts(None),
            rpc: Arc::downgrade(rpc),
            inbox,
            watches: Watches::default(),
            connectivity,
            refused: None,
            generation: 0,
            is_behind: false,
            is_reopened: false,
        }
    }

    /// Keeps a stream open while anything is watched, until the client is closed or gone.
    pub(super) async fn run(mut self) {
        let mut backoff = backoff();
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
                            backoff.reset();
                        }
                    }
                    // Its watches resume on one with the new token.
                    Served::HasOldToken => continue,
                },
                Err(failure) => self.refuse_unbegun(&failure.error),
            }
            self.connectivity.lost();
            let Some(rpc) = self.rpc.upgrade() else { return };
            rpc.history.doubt();
            // The next one to another member, if one is ready.
            self.attempts = rpc.store.attempts(self.attempts.member());
            drop(rpc);
            if !self.pause(backoff.pause()).await {
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
            Step::Started => {
                tracing::debug!(range = ?watched.range(), from = revision + 1, "watch begun");
                watched.deliver(|| Delivery::Started { from: revision + 1 });
            }
            Step::Changes => {
                let after = watched.progress.next().unwrap_or_default();
                let changes: Arc<[Change]> =
                    answer.changes.into_iter().filter(|change| change.revision >= after).collect();
                watched.progress.delivered(changes.last()?.revision);
                tracing::debug!(range = ?watched.range(), count = changes.len(), revision, "changes delivered");
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
pub(super) enum Served {
    /// The client is gone.
    Done,
    /// The stream broke; `answered` if it had worked before.
    Broken { answered: bool },
    /// The stream works, but not for new watches.
    HasOldToken,
}
