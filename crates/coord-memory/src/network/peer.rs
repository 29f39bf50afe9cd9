//! A client as the network knows it: whether it reaches the store, and what the store wants to tell it.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use coord_api::backend::sleep_until;
use coord_kv::store::{Failure, Notice};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::faults::{Chances, Fate, NetworkFaults, cut_off};
use crate::store::ClientId;

/// Whether what a client sends arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// At once.
    Up,
    /// It fails.
    Down,
    /// It waits until then.
    Stalled(Instant),
}

/// Link of a client to the store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    reach: Reach,
    /// Number of the connection: streams end with theirs.
    pub(super) connection: u64,
    /// Whether the client is closed, and waits for no stall to end.
    is_closed: bool,
}

impl Link {
    /// Returns whether what is sent now arrives.
    pub(super) fn reach(self) -> Reach {
        match self.reach {
            Reach::Stalled(_) if self.is_closed => Reach::Down,
            Reach::Stalled(until) if until <= Instant::now() => Reach::Up,
            reach => reach,
        }
    }
}

/// A client, for the store and the network.
pub(crate) struct Peer {
    id: ClientId,
    link: watch::Sender<Link>,
    chances: Mutex<Chances>,
    notices: mpsc::UnboundedSender<Notice>,
    /// The other end of `notices`, until somebody takes it.
    told: Mutex<Option<mpsc::UnboundedReceiver<Notice>>>,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} {:?})", self.id, *self.link.borrow())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peer {
    pub(crate) fn new(id: ClientId) -> Arc<Self> {
        let (notices, told) = mpsc::unbounded_channel();
        Arc::new(Self {
            id,
            link: watch::Sender::new(Link { reach: Reach::Up, connection: 0, is_closed: false }),
            chances: Mutex::new(Chances::new()),
            notices,
            told: Mutex::new(Some(told)),
        })
    }

    pub(crate) fn id(&self) -> ClientId {
        self.id
    }

    /// Tells the client something that it has not asked for. A network with faults loses that: the client finds out by itself.
    pub(crate) fn tell(&self, notice: Notice) {
        if lock(&self.chances).are_good() {
            // Fails only when the client is gone.
            let _ = self.notices.send(notice);
        }
    }

    /// Returns the notices; only the first caller gets them.
    pub(super) fn notices(&self) -> Option<mpsc::UnboundedReceiver<Notice>> {
        lock(&self.told).take()
    }

    pub(super) fn link(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    pub(super) fn link_now(&self) -> Link {
        *self.link.borrow()
    }

    pub(super) fn set_faults(&self, faults: NetworkFaults) {
        lock(&self.chances).set(faults);
    }

    pub(super) fn set_failing(&self, calls: usize) {
        lock(&self.chances).failing = calls;
    }

    pub(super) fn set_losing(&self, calls: usize) {
        lock(&self.chances).losing = calls;
    }

    /// Returns whether the answer to this config write is lost on demand.
    pub(crate) fn loses_answer(&self) -> bool {
        let mut chances = lock(&self.chances);
        let left = chances.losing.checked_sub(1);
        chances.losing = left.unwrap_or(0);
        left.is_some()
    }

    /// Draws the fate of a renewal.
    pub(super) fn draw_renewal(&self) -> Fate {
        lock(&self.chances).draw_renewal()
    }

    /// Waits until the client may send a request, and draws its fate.
    ///
    /// # Errors
    /// If it is cut off, or the request fails on demand or by chance.
    pub(super) async fn admitted(&self) -> Result<Fate, Failure> {
        if self.link_now().reach() != Reach::Up {
            self.going().await?;
        }
        let mut chances = lock(&self.chances);
        match chances.failing.checked_sub(1) {
            Some(left) => {
                chances.failing = left;
                Err(cut_off())
            }
            None => chances.draw(),
        }
    }

    /// Waits until the client does not stand still.
    ///
    /// # Errors
    /// If it is cut off.
    pub(super) async fn going(&self) -> Result<(), Failure> {
        let mut link = self.link();
        loop {
            let now = *link.borrow_and_update();
            match now.reach() {
                Reach::Up => return Ok(()),
                Reach::Down => return Err(cut_off()),
                Reach::Stalled(until) => tokio::select! {
                    () = sleep_until(until) => {}
                    _ = link.changed() => {}
                },
            }
        }
    }

    /// Cuts the link.
    pub(super) fn disconnect(&self) {
        self.link.send_modify(|link| link.reach = Reach::Down);
    }

    /// Mends the link.
    pub(super) fn reconnect(&self) {
        self.link.send_modify(|link| {
            if link.reach == Reach::Down {
                link.connection += 1;
            }
            link.reach = Reach::Up;
        });
    }

    /// Breaks the connection, which is made anew at once unless the client is cut off.
    pub(crate) fn reconnect_anew(&self) {
        self.link.send_modify(|link| link.connection += 1);
    }

    /// Lets the client stand still, if it is not cut off.
    pub(super) fn stall(&self, until: Instant) {
        self.link.send_modify(|link| {
            link.reach = match link.reach {
                Reach::Down => Reach::Down,
                Reach::Stalled(earlier) => Reach::Stalled(until.max(earlier)),
                Reach::Up => Reach::Stalled(until),
            };
        });
    }

    /// Takes note that the client is closed: nothing waits any more for a stall to end.
    pub(crate) fn close(&self) {
        self.link.send_modify(|link| link.is_closed = true);
    }
}
