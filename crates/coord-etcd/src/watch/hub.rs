//! One watch stream for all watches of a client, reopened and resumed where each of them stood.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicI64, Ordering},
    time::Duration,
};

use coord_api::{Contact, Error, backend::ContactSource};
use etcd_client::{WatchClient, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::{
    runtime,
    sync::mpsc::{self, error::TrySendError},
};

use super::{
    change::Change,
    progress::{Progress, Step},
};
use crate::{error::classify, keys::Range};

/// How many deliveries may wait for one consumer. A consumer that is further behind reads the state anew.
const QUEUE: usize = 128;

/// How long the server may take to open the stream.
const OPENING: Duration = Duration::from_secs(5);

/// The largest answer: a revision is delivered whole, however many keys it changed.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// The way to the task that owns the stream.
#[derive(Debug)]
pub(crate) struct Hub {
    /// Unbounded, since dropping a subscription must not wait; each subscription sends two commands.
    commands: mpsc::UnboundedSender<Command>,
    next_id: AtomicI64,
    contact: Contact,
}

#[derive(Debug)]
enum Command {
    Add {
        id: i64,
        watched: Watched,
    },
    Remove {
        id: i64,
    },
    /// The client is closed.
    Stop,
}

/// What a subscription receives. When its channel ends, changes may have been missed: read the state anew.
#[derive(Debug)]
pub(crate) enum Delivery {
    /// Every change from now on will be delivered.
    Started,
    /// Changes, in order.
    Changes(Vec<Change>),
    /// The server does not allow the watch; nothing follows.
    Refused(Error),
}

/// One watch. Dropping it cancels the watch at the server.
#[derive(Debug)]
pub(crate) struct Subscription {
    id: i64,
    deliveries: mpsc::Receiver<Delivery>,
    commands: mpsc::UnboundedSender<Command>,
}

impl Subscription {
    /// The next delivery; `None` when changes may have been missed, or the client is gone.
    ///
    /// May be dropped and called again.
    pub(crate) async fn next(&mut self) -> Option<Delivery> {
        self.deliveries.recv().await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        // Fails only when the task is gone, and every watch with it.
        let _ = self.commands.send(Command::Remove { id: self.id });
    }
}

impl Hub {
    /// Starts the task on `runtime`; it ends when this is dropped.
    pub(crate) fn start(runtime: &runtime::Handle, client: WatchClient) -> Self {
        let (commands, inbox) = mpsc::unbounded_channel();
        let client = client.max_decoding_message_size(MAX_ANSWER_BYTES);
        let source = ContactSource::default();
        let contact = source.contact();
        runtime.spawn(Task { client, inbox, watched: HashMap::new(), contact: source }.run());
        Self { commands, next_id: AtomicI64::new(1), contact }
    }

    /// Whether the stream is up.
    pub(crate) fn contact(&self) -> Contact {
        self.contact.clone()
    }

    /// Ends the task, and every watch with it.
    pub(crate) fn stop(&self) {
        // Fails only when it has ended.
        let _ = self.commands.send(Command::Stop);
    }

    /// Watches `range` from after revision `after`, or from now on.
    pub(crate) fn subscribe(&self, range: Range, after: Option<i64>) -> Subscription {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sink, deliveries) = mpsc::channel(QUEUE);
        let watched = Watched { range, progress: Progress::after(after), sink };
        // If the task is gone, the sink is dropped here and the subscription ends at once.
        let _ = self.commands.send(Command::Add { id, watched });
        Subscription { id, deliveries, commands: self.commands.clone() }
    }
}

#[derive(Debug)]
struct Watched {
    range: Range,
    progress: Progress,
    sink: mpsc::Sender<Delivery>,
}

impl Watched {
    fn options(&self, id: i64) -> WatchOptions {
        let options = WatchOptions::new().with_watch_id(id);
        let options = match &self.range {
            Range::Key(_) => options,
            Range::Prefix(_) => options.with_prefix(),
        };
        match self.progress.next() {
            Some(revision) => options.with_start_revision(revision),
            None => options,
        }
    }

    fn key(&self) -> &str {
        match &self.range {
            Range::Key(key) | Range::Prefix(key) => key,
        }
    }
}

struct Task {
    client: WatchClient,
    inbox: mpsc::UnboundedReceiver<Command>,
    watched: HashMap<i64, Watched>,
    contact: ContactSource,
}

impl Task {
    async fn run(mut self) {
        let mut pauses = super::pauses();
        loop {
            while self.watched.is_empty() {
                match self.command().await {
                    Some(command) => drop(self.note(command)),
                    None => return,
                }
            }
            match self.open().await {
                Ok((requests, answers)) => match self.serve(requests, answers).await {
                    Served::Done => return,
                    Served::Broken { answered } => {
                        if answered {
                            pauses = super::pauses();
                        }
                    }
                },
                Err(error) => self.refuse_if_not_allowed(error),
            }
            self.contact.lost();
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
        }
    }

    /// The next command; `None` when the client is closed or gone.
    async fn command(&mut self) -> Option<Command> {
        self.inbox.recv().await.filter(|command| !matches!(command, Command::Stop))
    }

    /// Takes note of a command; the id, if the stream has to be told.
    fn note(&mut self, command: Command) -> Option<i64> {
        match command {
            Command::Add { id, watched } => {
                self.watched.insert(id, watched);
                Some(id)
            }
            Command::Remove { id } => self.watched.remove(&id).map(|_| id),
            Command::Stop => None,
        }
    }

    /// Opens a stream and asks for every watch, each from where it stands.
    async fn open(&mut self) -> Result<(WatchRequestSender, WatchResponseStream), etcd_client::Error> {
        let mut all = self.watched.iter();
        let (id, first) = all.next().expect("only called when something is watched");
        let opening = self.client.watch(first.key(), Some(first.options(*id)));
        let opened = tokio::time::timeout(OPENING, opening).await;
        let no_answer = |_| etcd_client::Error::WatchError("the stream was not opened in time".into());
        let (mut requests, answers) = opened.map_err(no_answer)??.split();
        for (id, watched) in all {
            requests.watch(watched.key(), Some(watched.options(*id))).await?;
        }
        Ok((requests, answers))
    }

    /// Passes answers on until the stream breaks. It is kept when nothing is watched any more: waiters come and
    /// go, and a stream costs more to open than to keep.
    async fn serve(&mut self, mut requests: WatchRequestSender, mut answers: WatchResponseStream) -> Served {
        let mut answered = false;
        loop {
            let sent = tokio::select! {
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        answered = true;
                        self.contact.restored();
                        match self.take(&answer) {
                            Some(behind) => requests.cancel(behind).await,
                            None => Ok(()),
                        }
                    }
                    Ok(None) => return Served::Broken { answered },
                    Err(error) => Err(error),
                },
                command = self.command() => {
                    let Some(command) = command else { return Served::Done };
                    match self.note(command) {
                        Some(id) => match self.watched.get(&id) {
                            Some(added) => requests.watch(added.key(), Some(added.options(id))).await,
                            None => requests.cancel(id).await,
                        },
                        None => Ok(()),
                    }
                }
            };
            if let Err(error) = sent {
                tracing::debug!(%error, "watch stream broken, opening another");
                return Served::Broken { answered };
            }
        }
    }

    /// Passes one answer on; the id of a watch that the server should stop, since its consumer is behind.
    fn take(&mut self, answer: &WatchResponse) -> Option<i64> {
        let id = answer.watch_id();
        let watched = self.watched.get_mut(&id)?;
        let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
        let delivery = match watched.progress.step(answer.created(), answer.canceled(), revision) {
            Step::Gap => {
                let refused = answer.cancel_reason().contains("permission denied")
                    || answer.cancel_reason().contains("PermissionDenied")
                    || answer.cancel_reason().contains("auth token");
                let watched = self.watched.remove(&id)?;
                if refused {
                    let source = answer.cancel_reason().to_owned().into();
                    let error = Error::PermissionDenied { operation: "watch", source };
                    let _ = watched.sink.try_send(Delivery::Refused(error));
                }
                return None;
            }
            Step::Started => Delivery::Started,
            Step::Changes => {
                let after = watched.progress.next().unwrap_or_default();
                let changes: Vec<_> =
                    answer.events().iter().filter_map(Change::of).filter(|c| c.revision >= after).collect();
                let last = changes.last()?;
                watched.progress.delivered(last.revision);
                Delivery::Changes(changes)
            }
            Step::Nothing => return None,
        };
        match watched.sink.try_send(delivery) {
            // A closed sink is removed by the command that its subscription sends.
            Ok(()) | Err(TrySendError::Closed(_)) => None,
            Err(TrySendError::Full(_)) => {
                // Dropping the sink tells the consumer, once it has read what waits for it.
                tracing::debug!(key = watched.key(), "watch consumer is behind, it will read the state anew");
                self.watched.remove(&id);
                Some(id)
            }
        }
    }

    fn refuse_if_not_allowed(&mut self, error: etcd_client::Error) {
        let error = classify("watch", OPENING, error).error;
        tracing::debug!(%error, "watch stream could not be opened, trying again");
        if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) {
            // The consumers decide what to do; they subscribe again if they want to go on.
            for (_, watched) in self.watched.drain() {
                let source = error.to_string().into();
                let refused = Error::PermissionDenied { operation: "watch", source };
                let _ = watched.sink.try_send(Delivery::Refused(refused));
            }
        }
    }
}

/// Why [`Task::serve`] returned.
enum Served {
    /// The client is gone.
    Done,
    /// The stream broke; `answered` if it had worked before.
    Broken { answered: bool },
}
