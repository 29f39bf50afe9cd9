//! What the store knows of each client, and the task that keeps a client going.
//!
//! A client's keeper renews its leases at a third of their TTL, and ends what has expired in the store,
//! whoever it belonged to: the client that should have renewed it may be gone. Every call does so too.

use std::{collections::BTreeMap, sync::Arc};

use coord_api::{Error, Hold, Lease, LossReason, Result, Ttl};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    lease::{LeaseId, StoredLease},
    store::{State, Store},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(u64);

/// One client, as the store knows it.
pub(crate) struct Session {
    pub(crate) owner: Arc<str>,
    link: watch::Sender<Link>,
    /// The lease for each TTL, as long as its loss has not been noticed.
    pub(crate) leases: BTreeMap<Ttl, LeaseId>,
    /// How many of the next calls fail.
    pub(crate) failing: usize,
    /// What the client could not be told while its link was down.
    missed: Vec<News>,
    /// The places that the client could not free while its link was down.
    unsent: Vec<(LeaseId, u64)>,
    keeper: Option<JoinHandle<()>>,
    /// Tells the keeper that something may be due earlier than it knows.
    pub(crate) wake: Arc<Notify>,
}

/// Where a client stands with the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) up: bool,
    pub(crate) closed: bool,
}

/// Something that a client learns from the store.
pub(crate) enum News {
    Hold(Hold, LossReason),
    Lease(Lease, LossReason),
}

impl News {
    fn arrive(self) {
        match self {
            Self::Hold(hold, reason) => hold.end(reason),
            Self::Lease(lease, reason) => lease.lose(reason),
        }
    }
}

impl Session {
    fn is_up(&self) -> bool {
        self.link.borrow().up
    }

    /// What a call of this client meets.
    pub(crate) fn admit(&mut self) -> Result<()> {
        let Link { up, closed } = *self.link.borrow();
        if closed {
            return Err(Error::Closed);
        }
        if !up {
            return Err(unavailable());
        }
        match self.failing.checked_sub(1) {
            Some(left) => {
                self.failing = left;
                Err(unavailable())
            }
            None => Ok(()),
        }
    }

    /// Starts the keeper, also anew when its runtime has been shut down. Without a runtime nothing can be
    /// kept but by the calls themselves.
    pub(crate) fn start_keeper(&mut self, store: &Store, id: ClientId) {
        if self.keeper.as_ref().is_none_or(JoinHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
        {
            self.keeper = Some(runtime.spawn(keep(store.clone(), id, self.wake.clone())));
        }
    }
}

fn unavailable() -> Error {
    Error::Unavailable { what: "memory store".into(), source: None }
}

impl State {
    /// Opens a session for a new client, who is called by `label` and a number.
    pub(crate) fn open(&mut self, label: &str) -> (ClientId, Arc<str>, watch::Receiver<Link>) {
        self.clients_opened += 1;
        let id = ClientId(self.clients_opened);
        let owner: Arc<str> = format!("{label}-{}", id.0).into();
        let (sender, link) = watch::channel(Link { up: true, closed: false });
        let session = Session {
            owner: owner.clone(),
            link: sender,
            leases: BTreeMap::new(),
            failing: 0,
            missed: Vec::new(),
            unsent: Vec::new(),
            keeper: None,
            wake: Arc::default(),
        };
        self.sessions.insert(id, session);
        (id, owner, link)
    }

    /// A client's session; there is one until the client is dropped.
    pub(crate) fn session(&mut self, client: ClientId) -> &mut Session {
        self.sessions.get_mut(&client).expect("the client has not been dropped")
    }

    /// Tells a client something, now or when its link is up again.
    pub(crate) fn tell(&mut self, client: ClientId, news: News) {
        match self.sessions.get_mut(&client) {
            Some(session) if !session.is_up() => session.missed.push(news),
            _ => news.arrive(),
        }
    }

    /// Frees a place of a client, now or when its link is up again.
    pub(crate) fn free_soon(&mut self, client: ClientId, lease: LeaseId, place: u64) {
        let session = self.session(client);
        if session.is_up() {
            self.free(lease, place);
        } else {
            session.unsent.push((lease, place));
        }
    }

    /// Cuts a client's link.
    pub(crate) fn disconnect(&mut self, client: ClientId) {
        let session = self.session(client);
        session.link.send_modify(|link| link.up = false);
        session.wake.notify_one();
    }

    /// Restores a client's link: what it could not send arrives, it learns what it missed, and its leases
    /// are renewed.
    pub(crate) fn reconnect(&mut self, client: ClientId) {
        let session = self.session(client);
        let unsent = std::mem::take(&mut session.unsent);
        let missed = std::mem::take(&mut session.missed);
        let leases: Vec<_> = session.leases.values().copied().collect();
        for (lease, place) in unsent {
            self.free(lease, place);
        }
        missed.into_iter().for_each(News::arrive);
        for lease in leases {
            self.renew(lease, Instant::now());
        }
        let session = self.session(client);
        session.link.send_modify(|link| link.up = true);
        session.wake.notify_one();
    }

    /// Closes a client: all that it holds is lost, and freed if the store can be told.
    pub(crate) fn close(&mut self, client: ClientId) -> Result<()> {
        let session = self.session(client);
        session.leases.clear();
        session.link.send_modify(|link| link.closed = true);
        if let Some(keeper) = session.keeper.take() {
            keeper.abort();
        }
        let up = session.is_up();
        let own = self.leases_of(client);
        for lease in &own {
            self.leases[lease].lease.lose(LossReason::Closed);
        }
        if up {
            self.end_leases(&own, LossReason::Closed);
        }
        if up || own.is_empty() { Ok(()) } else { Err(unavailable()) }
    }

    /// One round of a client's keeper; tells when the next is due.
    fn keep(&mut self, client: ClientId, now: Instant) -> Option<Instant> {
        self.expire(now);
        let session = self.sessions.get(&client)?;
        let up = session.is_up();
        let due = |lease: &StoredLease| if up { lease.renewal() } else { lease.deadline() };
        for id in session.leases.values().copied().collect::<Vec<_>>() {
            let stored = &self.leases[&id];
            if let Some(reason) = stored.lease.loss() {
                self.retire(id, reason);
            } else if up && due(stored) <= now {
                self.renew(id, now);
            }
        }
        let own = self.session(client).leases.values().copied().collect::<Vec<_>>();
        let own = own.iter().map(|id| due(&self.leases[id]));
        own.chain(self.expiries.first().map(|(at, _)| *at)).min()
    }
}

/// A client's keeper. It is aborted when the client is closed, and lets go of the store then.
async fn keep(store: Store, client: ClientId, wake: Arc<Notify>) {
    loop {
        let next = store.lock().keep(client, Instant::now());
        let due = async {
            match next {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = wake.notified() => {}
        }
    }
}
