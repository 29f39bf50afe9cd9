//! The state of a store, and how it goes on with time.
//!
//! All maps are ordered: from the same requests in the same order comes the same state, and the same is told.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
};

use coord_kv::store::{Header, LeaseId, Revision};
use tokio::time::Instant;

use super::{
    changes::Log,
    faults::{Permission, Space},
    lease::{Ended, StoredLease},
    pairs::{Key, Pair},
    trace::Trace,
    watchers::Watchers,
};
use crate::network::Peer;

/// A client, in the order in which they were made.
pub(crate) type ClientId = u64;

/// A request that arrives later.
type Late = Box<dyn FnOnce(&mut State, Instant) + Send>;

/// All that is stored, and all who are told of it.
pub(crate) struct State {
    /// The number that tells this store, with this data, from others.
    pub(super) cluster: u64,
    pub(super) revision: Revision,
    pub(super) pairs: BTreeMap<Key, Pair>,
    pub(super) log: Log,
    pub(super) leases: BTreeMap<LeaseId, StoredLease>,
    /// The leases by the moment at which they end.
    pub(super) expiries: BTreeSet<(Instant, LeaseId)>,
    /// The leases that ended last, for a store that goes back.
    pub(super) ended: VecDeque<Ended>,
    /// Requests by the moment at which they arrive, in the order in which they were sent.
    late: BTreeMap<(Instant, u64), Late>,
    sent: u64,
    /// Moment until which the store stands still, or stood still last.
    still_until: Option<Instant>,
    pub(super) watchers: Watchers,
    /// The clients that are not dropped.
    pub(super) clients: BTreeMap<ClientId, Arc<Peer>>,
    clients_made: ClientId,
    pub(super) space: Space,
    pub(super) permission: Permission,
    pub(super) trace: Option<Trace>,
}

/// Returns a number that no other store has, not even of a process that has the same id later.
pub(super) fn new_cluster() -> u64 {
    static PROCESS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static STORES: AtomicU64 = AtomicU64::new(0);
    PROCESS.hash_one(STORES.fetch_add(1, Ordering::Relaxed)).max(1)
}

impl Default for State {
    fn default() -> Self {
        Self {
            cluster: new_cluster(),
            revision: 1,
            pairs: BTreeMap::new(),
            log: Log::new(),
            leases: BTreeMap::new(),
            expiries: BTreeSet::new(),
            ended: VecDeque::new(),
            late: BTreeMap::new(),
            sent: 0,
            still_until: None,
            watchers: Watchers::default(),
            clients: BTreeMap::new(),
            clients_made: 0,
            space: Space::Left,
            permission: Permission::Everything,
            trace: None,
        }
    }
}

impl State {
    /// Returns the origin of an answer that is given now.
    pub(crate) fn header(&self) -> Header {
        Header { cluster: self.cluster, revision: self.revision }
    }

    /// Takes in a new client. Returns its number.
    pub(crate) fn join(&mut self, peer: impl FnOnce(ClientId) -> Arc<Peer>) -> Arc<Peer> {
        self.clients_made += 1;
        let peer = peer(self.clients_made);
        self.clients.insert(self.clients_made, peer.clone());
        peer
    }

    /// Forgets a client that was dropped.
    pub(crate) fn leave(&mut self, client: ClientId) {
        self.clients.remove(&client);
    }

    /// Returns whether the store stands still.
    pub(crate) fn is_still(&self, now: Instant) -> bool {
        self.still_until.is_some_and(|until| now < until)
    }

    /// Returns when something that is due then happens: a store that stands still does nothing before it goes on.
    pub(crate) fn happens(&self, due: Instant) -> Instant {
        self.still_until.map_or(due, |until| due.max(until))
    }

    /// Lets the store stand still.
    pub(super) fn stand_still(&mut self, until: Instant) {
        self.still_until = self.still_until.max(Some(until));
        self.watchers.wake_all();
    }

    /// Lets a request arrive then.
    pub(crate) fn send(&mut self, at: Instant, request: Late) {
        self.sent += 1;
        self.late.insert((at, self.sent), request);
        // Any client may be the only one that still runs then.
        self.watchers.wake_all();
    }

    /// Loses all that was sent and has not arrived. A store that stood still goes on.
    pub(super) fn lose_requests(&mut self) {
        self.late.clear();
        self.still_until = None;
    }

    /// Returns when time brings something next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let late = self.late.first_key_value().map(|((at, _), _)| *at);
        let expiry = self.expiries.first().map(|(at, _)| *at);
        late.into_iter().chain(expiry).min().map(|due| self.happens(due))
    }

    /// Lets happen what time has brought: requests arrive, and leases end.
    pub(crate) fn catch_up(&mut self, now: Instant) {
        loop {
            let late = self.late.first_key_value().map(|((at, _), _)| self.happens(*at));
            let expiry = self.expiries.first().map(|(at, _)| self.happens(*at));
            let is_late = late.is_some_and(|late| expiry.is_none_or(|expiry| late <= expiry));
            let Some(at) = (if is_late { late } else { expiry }) else { return };
            if at > now {
                return;
            }
            if !is_late {
                self.expire(at);
            } else if let Some((_, request)) = self.late.pop_first() {
                request(self, at);
            }
        }
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("revision", &self.revision)
            .field("clients", &self.clients.len())
            .field("leases", &self.leases.len())
            .finish_non_exhaustive()
    }
}
