//! The subscriptions to watches of a client, all over one stream.
//!
//! All that subscribe to the same keys share one watch on the server, which ends with the last of them. Each
//! has a bounded queue of its own: a user that is behind loses its place alone.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use coord_api::{Error, backend::ConnectivitySource};
use tokio::sync::mpsc;

use super::{
    inbox::{Inbox, Sink, inbox},
    stream::Task,
};
use crate::{
    request::{Read, Rpc},
    store::{Change, Range},
};

/// Most deliveries that may wait for one consumer. A consumer that is further behind reads the state anew.
const QUEUE: usize = 128;

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

/// Word of a subscription, or of the client, to the task that owns the stream.
#[derive(Debug)]
pub(super) enum Command {
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
        rpc.background.spawn_with_first_use(Task::new(&rpc, inbox, connectivity).run());
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
