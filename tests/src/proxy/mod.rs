//! A network between clients and a server, with everything that a network can do to them.
//!
//! It works on bytes and connections in this process, so it needs no rights and no tools. What it can not do is drop
//! packets: [`Conditions`] says what stands in for that.

mod fault;
mod line;
mod wire;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};

pub use fault::Fault;
pub use line::{Conditions, Line};
use wire::{Address, Listener, carry};

/// Forwards connections to a server. Dropping it closes them.
#[derive(Debug)]
pub struct Proxy {
    address: String,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Debug)]
struct Shared {
    target: Mutex<Address>,
    /// From clients to the server.
    up: Line,
    /// From the server to clients.
    down: Line,
    door: watch::Sender<Door>,
    /// Changed whenever all open connections have to go.
    broken: watch::Sender<u64>,
    accepted: AtomicU64,
    sent: AtomicU64,
    /// After how long a silence ends a connection, as seen from outside.
    patience: Option<Duration>,
}

/// What happens to those who connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    /// Nobody listens.
    Closed,
    /// They are accepted and thrown out.
    Slammed,
}

impl Proxy {
    /// Starts forwarding to `target`, a `host:port`, from a port on loopback.
    ///
    /// # Errors
    /// When no port can be opened.
    #[expect(clippy::unused_async, reason = "has to be called within a runtime")]
    pub async fn start(target: String) -> io::Result<Self> {
        let listener = crate::ports::listener()?;
        let address = Address::Tcp(listener.local_addr()?.to_string());
        Ok(Self::serve(
            Listener::Tcp(listener),
            &address,
            Shared::new(Address::Tcp(target), Line::default(), Line::default(), None),
        ))
    }

    /// Forwards from one socket file to another, over lines that others may use as well. After `patience` of silence
    /// a connection is closed.
    pub(crate) fn between(
        from: PathBuf,
        to: PathBuf,
        (up, down): (Line, Line),
        patience: Duration,
    ) -> io::Result<Self> {
        let from = Address::Unix(from);
        let listener = from.listen()?;
        Ok(Self::serve(listener, &from, Shared::new(Address::Unix(to), up, down, Some(patience))))
    }

    fn serve(listener: Listener, address: &Address, shared: Shared) -> Self {
        let shared = Arc::new(shared);
        let task = tokio::spawn(accept(listener, address.clone(), shared.clone())).abort_handle();
        Self { address: address.to_string(), shared, task }
    }

    /// Where clients connect to, as `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on nothing passes, in both directions; open connections stay open, and new ones are accepted.
    pub fn cut(&self) {
        self.set(Conditions::Silent);
    }

    /// Lets everything pass again, also what was sent meanwhile, and accepts connections again.
    pub fn restore(&self) {
        self.set(Conditions::Good);
        self.open();
    }

    fn open(&self) {
        self.shared.door.send_replace(Door::Open);
    }

    /// The same conditions in both directions.
    pub fn set(&self, conditions: Conditions) {
        self.shared.up.set(conditions);
        self.shared.down.set(conditions);
    }

    /// What clients send. The other direction is [`down`](Self::down).
    pub fn up(&self) -> &Line {
        &self.shared.up
    }

    /// What the server answers.
    pub fn down(&self) -> &Line {
        &self.shared.down
    }

    /// As if nobody listened: open connections are reset, new ones refused.
    pub fn refuse(&self) {
        self.shared.door.send_replace(Door::Closed);
        self.reset();
    }

    /// Open connections are reset, and new ones as soon as they are made.
    pub fn slam(&self) {
        self.shared.door.send_replace(Door::Slammed);
        self.reset();
    }

    /// Resets open connections; new ones can be made.
    pub fn reset(&self) {
        self.shared.broken.send_modify(|times| *times += 1);
    }

    /// Forwards to another `host:port` from now on; open connections are reset.
    pub fn redirect(&self, target: String) {
        *self.shared.target.lock().expect("nothing panics while this is locked") = Address::Tcp(target);
        self.reset();
    }

    /// How many bytes clients have sent so far.
    pub fn sent(&self) -> u64 {
        self.shared.sent.load(Ordering::Relaxed)
    }

    /// How many connections were made so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }
}

impl Shared {
    fn target(&self) -> Address {
        self.target.lock().expect("nothing panics while this is locked").clone()
    }

    fn new(target: Address, up: Line, down: Line, patience: Option<Duration>) -> Self {
        Self {
            target: Mutex::new(target),
            up,
            down,
            door: watch::Sender::new(Door::Open),
            broken: watch::Sender::new(0),
            accepted: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            patience,
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: Listener, address: Address, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    let mut door = shared.door.subscribe();
    let mut listening = Some(listener);
    loop {
        if *door.borrow_and_update() == Door::Closed {
            listening = None;
            // The sender is a part of what this task holds.
            let _ = door.wait_for(|door| *door != Door::Closed).await;
        }
        let listener = match listening.take() {
            Some(listener) => listening.insert(listener),
            None => match address.listen() {
                Ok(listener) => listening.insert(listener),
                Err(_taken) => {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                }
            },
        };
        let client = tokio::select! {
            client = listener.accept() => client,
            _ = door.changed() => continue,
        };
        // A client that is gone already is none.
        let Ok(client) = client else { continue };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        if *shared.door.borrow() == Door::Slammed {
            client.reset_when_closed();
            continue;
        }
        connections.spawn(carry(client, shared.clone(), shared.broken.subscribe()));
        while connections.try_join_next().is_some() {}
    }
}
