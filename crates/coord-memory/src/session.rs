//! What the store knows of each client, and the task that keeps a client going.
//!
//! A client's keeper renews its leases at a third of their TTL, and ends what has expired in the store,
//! whoever it belonged to: the client that should have renewed it may be gone. Every call does so too.
//!
//! A keeper is on the runtime of the call that started it, whose clock it needs where a test moves that. Nobody may drive
//! that runtime any more, and there may be none. So where the clock is the machine's, another keeper of the same client
//! is on a thread of coord's.

use std::{collections::BTreeMap, sync::Arc};

use coord_api::{
    Error, Hold, Lease, LeaseHealth, LossReason, Owner, Result, Ttl,
    backend::{ConnectivitySource, Driver, is_machine_clock},
};
use tokio::{
    runtime::Handle,
    sync::{Notify, watch},
    task::JoinHandle,
    time::Instant,
};

use crate::{
    lease::{LeaseId, StoredLease},
    store::{self, Item, Shared, State},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ClientId(u64);

/// One client, as the store knows it.
pub(crate) struct Session {
    pub(crate) owner: Arc<Owner>,
    link: watch::Sender<Link>,
    /// What users are told of the link.
    pub(crate) contact: ConnectivitySource,
    /// The lease for each TTL, as long as its loss has not been noticed.
    pub(crate) leases: BTreeMap<Ttl, LeaseId>,
    /// How many of the next calls fail.
    pub(crate) failing: usize,
    /// The answers of how many of the next config writes are lost.
    pub(crate) losing: usize,
    /// What the client could not be told while its link was down.
    missed: Vec<News>,
    /// The places that the client could not free while its link was down.
    unsent: Vec<(LeaseId, u64)>,
    keeper: Option<JoinHandle<()>>,
    /// The keeper on coord's thread, which lives as long as the session.
    driven: Option<(JoinHandle<()>, Driver)>,
    /// Tells the keepers that something may be due earlier than they know.
    pub(crate) wake: Wake,
}

/// Wakes both keepers of a client.
#[derive(Clone, Default)]
pub(crate) struct Wake([Arc<Notify>; 2]);

impl Wake {
    pub(crate) fn notify_one(&self) {
        self.0.iter().for_each(|keeper| keeper.notify_one());
    }
}

/// Where a client stands with the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link {
    pub(crate) reach: Reach,
    pub(crate) closed: bool,
}

/// Whether what a client sends arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// At once.
    Up,
    /// It fails.
    Down,
    /// It waits until then.
    Stalled(Instant),
}

impl Link {
    pub(crate) fn is_up(self) -> bool {
        self.reach == Reach::Up
    }
}

/// Something that a client learns from the store.
pub(crate) enum News {
    Hold(Hold, LossReason),
    Lease(Lease, LossReason),
}

impl News {
    fn arrive(self) {
        match self {
            Self::Hold(hold, reason) => {
                hold.end(reason);
            }
            Self::Lease(lease, reason) => lease.lose(reason),
        }
    }
}

impl Session {
    pub(crate) fn is_up(&self) -> bool {
        self.link.borrow().is_up()
    }

    /// What a call of this client meets; `false` if it has to wait.
    pub(crate) fn admit(&mut self) -> Result<bool> {
        let Link { reach, closed } = *self.link.borrow();
        if closed {
            return Err(Error::Closed);
        }
        match reach {
            Reach::Down => return Err(unavailable()),
            Reach::Stalled(_) => return Ok(false),
            Reach::Up => {}
        }
        match self.failing.checked_sub(1) {
            Some(left) => {
                self.failing = left;
                Err(unavailable())
            }
            None => Ok(true),
        }
    }

    /// Whether the answer to a config write is lost.
    pub(crate) fn loses_answer(&mut self) -> bool {
        let left = self.losing.checked_sub(1);
        self.losing = left.unwrap_or(0);
        left.is_some()
    }

    /// Starts the keepers, also anew when the runtime of one has been shut down.
    pub(crate) fn start_keeper(&mut self, store: &Shared, id: ClientId) {
        let [here, on_thread] = &self.wake.0;
        if self.keeper.as_ref().is_none_or(JoinHandle::is_finished)
            && let Ok(runtime) = Handle::try_current()
        {
            self.keeper = Some(runtime.spawn(keep(store.clone(), id, here.clone())));
        }
        if self.driven.is_none() && is_machine_clock() {
            let driver = Driver::get();
            let keeper = driver.runtime().spawn(keep(store.clone(), id, on_thread.clone()));
            self.driven = Some((keeper, driver));
        }
    }

    /// Ends the keepers, which let go of the store then.
    fn stop_keepers(&mut self) {
        let driven = self.driven.take().map(|(keeper, _)| keeper);
        self.keeper.take().into_iter().chain(driven).for_each(|keeper| keeper.abort());
    }
}

fn unavailable() -> Error {
    Error::Unavailable { what: "memory store".into(), source: None }
}

impl State {
    /// Opens a session for a new client, who is called what `name` makes of its number.
    pub(crate) fn open(
        &mut self,
        name: impl FnOnce(u64) -> Owner,
    ) -> (ClientId, Arc<Owner>, watch::Receiver<Link>) {
        self.clients_opened += 1;
        let id = ClientId(self.clients_opened);
        let owner = Arc::new(name(id.0));
        let (sender, link) = watch::channel(Link { reach: Reach::Up, closed: false });
        let session = Session {
            owner: owner.clone(),
            link: sender,
            contact: ConnectivitySource::default(),
            leases: BTreeMap::new(),
            failing: 0,
            losing: 0,
            missed: Vec::new(),
            unsent: Vec::new(),
            keeper: None,
            driven: None,
            wake: Wake::default(),
        };
        self.sessions.insert(id, session);
        (id, owner, link)
    }

    /// A client's session; there is one until the client is dropped.
    pub(crate) fn session(&mut self, client: ClientId) -> &mut Session {
        self.sessions.get_mut(&client).expect("the client has not been dropped")
    }

    /// Forgets a client that has been dropped.
    pub(crate) fn forget(&mut self, client: ClientId) {
        self.sessions.remove(&client);
        self.stalls.retain(|(_, stalled)| *stalled != client);
    }

    /// The worst health of a client's leases as the client sees them: also of those that the store has ended
    /// without being able to tell.
    pub(crate) fn lease_health(&self, client: ClientId) -> LeaseHealth {
        let session = &self.sessions[&client];
        if session.link.borrow().closed {
            return LeaseHealth::Healthy;
        }
        let untold = session.missed.iter().filter_map(|news| match news {
            News::Lease(lease, _) => Some(lease),
            News::Hold(..) => None,
        });
        let stored = self.leases.values().filter(|stored| stored.client == client);
        let mut worst = LeaseHealth::Healthy;
        for lease in stored.map(|stored| &stored.lease).chain(untold) {
            match lease.health() {
                LeaseHealth::Healthy => {}
                lost @ LeaseHealth::Lost(_) => return lost,
                overdue => worst = overdue,
            }
        }
        worst
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
            self.hand_on(client, lease, place);
        }
    }

    /// A client gives back a place. If the store can not hear of it now, another one of the same client that waits for
    /// it need not wait for the store.
    pub(crate) fn hand_on(&mut self, client: ClientId, lease: LeaseId, place: u64) {
        let is_up = self.session(client).is_up();
        let item = self.leases.get(&lease).and_then(|lease| lease.places.get(&place));
        if let (false, Some(Item::Lock(name))) = (is_up, item) {
            let name = name.clone();
            self.leave_unseen(&name, place);
        }
    }

    /// Cuts a client's link.
    pub(crate) fn disconnect(&mut self, client: ClientId) {
        self.reach(client, Reach::Down);
    }

    /// Lets a client stand still, if it is not cut off.
    pub(crate) fn stall(&mut self, client: ClientId, until: Instant) {
        let reach = self.session(client).link.borrow().reach;
        let until = match reach {
            Reach::Down => return,
            Reach::Stalled(earlier) => until.max(earlier),
            Reach::Up => until,
        };
        self.reach(client, Reach::Stalled(until));
    }

    fn reach(&mut self, client: ClientId, reach: Reach) {
        self.stalls.retain(|(_, stalled)| *stalled != client);
        if let Reach::Stalled(until) = reach {
            self.stalls.insert((until, client));
        }
        let session = self.session(client);
        session.link.send_modify(|link| link.reach = reach);
        match reach {
            Reach::Up => session.contact.restored(),
            Reach::Down | Reach::Stalled(_) => session.contact.lost(),
        }
        session.wake.notify_one();
    }

    /// What time has brought: leases are over, ids have rested, and clients that stood still go on.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        self.expire(now);
        self.end_rests(now);
        while let Some(&(at, client)) = self.stalls.first()
            && at <= now
        {
            self.reconnect(client);
        }
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
        self.reach(client, Reach::Up);
    }

    /// Closes a client: all that it holds is lost, and freed if the store can be told.
    pub(crate) fn close(&mut self, client: ClientId) -> Result<()> {
        let session = self.session(client);
        session.leases.clear();
        session.link.send_modify(|link| link.closed = true);
        session.contact.lost();
        session.stop_keepers();
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
        self.catch_up(now);
        self.give_back_unused(client, now);
        let session = self.sessions.get(&client)?;
        let up = session.is_up();
        let due = |lease: &StoredLease| if up { lease.renewal() } else { lease.deadline() };
        for id in session.leases.values().copied().collect::<Vec<_>>() {
            let stored = &self.leases[&id];
            if !up {
                stored.lease.not_renewed(&unavailable());
            }
            if let Some(reason) = stored.lease.loss() {
                self.retire(id, reason);
            } else if up && due(stored) <= now {
                self.renew(id, now);
            }
        }
        let own = self.session(client).leases.values().copied().collect::<Vec<_>>();
        let unused = own.iter().filter_map(|id| self.leases[id].given_back().filter(|_| up));
        let own = own.iter().map(|id| due(&self.leases[id])).chain(unused);
        let expiry = self.expiries.first().map(|(at, _)| *at);
        // Whoever's it is: that client's own keeper may have been shut down with its runtime.
        let stall = self.stalls.first().map(|(at, _)| *at);
        let rest = self.rests.first().map(|(at, ..)| *at);
        own.chain(expiry).chain(stall).chain(rest).min()
    }
}

/// A client's keeper. It is aborted when the client is closed, and lets go of the store then.
async fn keep(store: Shared, client: ClientId, wake: Arc<Notify>) {
    loop {
        let next = store::lock(&store).keep(client, Instant::now());
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
