//! Leases in the store, and what is told of their end.

use std::{collections::BTreeSet, time::Duration};

use coord_kv::store::{Failure, Granted, Header, LeaseDetail, LeaseId, LeaseStatus, Notice, Revision};
use tokio::time::Instant;

use super::{
    pairs::{Key, Pair},
    state::{ClientId, State},
    txn::{lease_gone, refused},
};

/// Time for which the store believes in a lease longer than its holder does.
pub(crate) const GRACE: Duration = Duration::from_millis(500);

/// Most leases that are remembered when they have ended.
const MOST_ENDED: usize = 1024;

/// The longest time to live, as that of etcd, in seconds.
const LONGEST: i64 = 9_000_000_000;

/// A lease.
#[derive(Clone, Debug)]
pub(crate) struct StoredLease {
    pub(super) client: ClientId,
    /// The time to live, in seconds.
    pub(super) ttl: i64,
    expires: Instant,
    /// The revision of the store when it was granted.
    granted: Revision,
    pub(super) keys: BTreeSet<Key>,
}

/// A lease that has ended, at a revision.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    at: Revision,
    id: LeaseId,
    lease: StoredLease,
}

fn time(seconds: i64) -> Duration {
    Duration::from_secs(seconds.unsigned_abs())
}

impl StoredLease {
    /// Gives it its whole time again.
    fn prolong(&mut self, now: Instant) {
        self.expires = now + time(self.ttl) + GRACE;
    }
}

impl State {
    /// Grants a lease.
    pub(crate) fn grant(
        &mut self,
        operation: &'static str,
        client: ClientId,
        (id, ttl): (LeaseId, i64),
        now: Instant,
    ) -> Result<Granted, Failure> {
        self.check_space()?;
        if self.leases.contains_key(&id) {
            return Err(refused(operation, "lease already exists"));
        }
        if !(1..=LONGEST).contains(&ttl) {
            return Err(refused(operation, "the time to live is too large, or none"));
        }
        let mut lease =
            StoredLease { client, ttl, expires: now, granted: self.revision, keys: BTreeSet::new() };
        lease.prolong(now);
        self.add_lease(id, lease);
        Ok(Granted { header: self.header(), ttl })
    }

    fn add_lease(&mut self, id: LeaseId, lease: StoredLease) {
        let is_next = self.expiries.first().is_none_or(|(first, _)| lease.expires < *first);
        self.expiries.insert((lease.expires, id));
        self.leases.insert(id, lease);
        if is_next {
            // Any client may be the only one that still runs when this one expires.
            self.watchers.wake_all();
        }
    }

    /// Renews a lease; `None` if there is no such lease, or its time is over.
    pub(crate) fn renew(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let lease = self.leases.get_mut(&id).filter(|lease| now < lease.expires)?;
        self.expiries.remove(&(lease.expires, id));
        lease.prolong(now);
        self.expiries.insert((lease.expires, id));
        Some(time(lease.ttl))
    }

    /// Revokes a lease for its own client.
    pub(crate) fn revoke(&mut self, id: LeaseId) -> Result<Header, Failure> {
        if !self.leases.contains_key(&id) {
            return Err(lease_gone());
        }
        self.end_lease(id);
        Ok(self.header())
    }

    /// Looks up a lease.
    pub(crate) fn lease(&self, id: LeaseId, detail: LeaseDetail, now: Instant) -> LeaseStatus {
        let header = self.header();
        let Some(lease) = self.leases.get(&id) else {
            return LeaseStatus { header, granted: 0, left: -1, keys: Vec::new() };
        };
        let left = lease.expires.saturating_duration_since(now).saturating_sub(GRACE).as_secs();
        let keys = match detail {
            LeaseDetail::Times => Vec::new(),
            LeaseDetail::TimesAndKeys => lease.keys.iter().map(|key| key.to_vec()).collect(),
        };
        let left = i64::try_from(left).unwrap_or(i64::MAX);
        LeaseStatus { header, granted: lease.ttl, left, keys }
    }

    /// Ends a lease, with all keys on it at one revision.
    fn end_lease(&mut self, id: LeaseId) {
        let Some(ended) = self.leases.remove(&id) else { return };
        let (client, keys) = (ended.client, ended.keys.len());
        self.note(Instant::now(), || format!("client {client}: lease {id:x} ends with {keys} keys"));
        self.expiries.remove(&(ended.expires, id));
        let at = self.revision + 1;
        for key in &ended.keys {
            // Its holder is told of the lease.
            self.delete(at, key, Some(ended.client));
        }
        self.commit(at);
        self.ended.push_back(Ended { at: self.revision, id, lease: ended });
        if self.ended.len() > MOST_ENDED {
            self.ended.pop_front();
        }
    }

    /// Ends the lease whose time is over first.
    pub(super) fn expire(&mut self, _now: Instant) {
        if let Some((_, id)) = self.expiries.first().copied() {
            self.end_and_tell(id);
        }
    }

    fn end_and_tell(&mut self, id: LeaseId) {
        // First its holder, so that the loss of the lease is what it hears.
        if let Some(client) = self.leases.get(&id).and_then(|lease| self.clients.get(&lease.client)) {
            client.tell(Notice::LeaseEnded(id));
        }
        self.end_lease(id);
    }

    /// Revokes leases as an operator would: of one client, or all.
    pub(crate) fn revoke_leases(&mut self, of: Option<ClientId>) {
        let meant = self.leases.iter().filter(|(_, lease)| of.is_none_or(|client| lease.client == client));
        let meant: Vec<_> = meant.map(|(id, _)| *id).collect();
        // All holders are told first, so that nobody is given a place only to lose it with the next lease.
        for id in &meant {
            if let Some(client) = self.leases.get(id).and_then(|lease| self.clients.get(&lease.client)) {
                client.tell(Notice::LeaseEnded(*id));
            }
        }
        for id in meant {
            self.end_lease(id);
        }
    }

    /// Gives every lease its whole time again.
    pub(super) fn prolong_all(&mut self, now: Instant) {
        self.expiries.clear();
        for (id, lease) in &mut self.leases {
            lease.prolong(now);
            self.expiries.insert((lease.expires, *id));
        }
    }

    /// Puts the leases back to those of an earlier revision, whose keys are there already.
    pub(super) fn leases_of(&mut self, revision: Revision, now: Instant) {
        while self.ended.back().is_some_and(|ended| ended.at > revision) {
            let ended = self.ended.pop_back();
            self.leases.extend(ended.map(|ended| (ended.id, ended.lease)));
        }
        self.leases.retain(|_, lease| lease.granted <= revision);
        for lease in self.leases.values_mut() {
            lease.keys.clear();
        }
        for (key, pair) in &self.pairs {
            if let Some(lease) = self.leases.get_mut(&pair.lease) {
                lease.keys.insert(key.clone());
            }
        }
        self.prolong_all(now);
    }

    /// Tells the holder of a key that somebody else has deleted it.
    pub(super) fn tell_of_deletion(&self, key: &Key, before: &Pair, by: Option<ClientId>) {
        let holder = self.leases.get(&before.lease).map(|lease| lease.client);
        let told = holder.filter(|holder| by != Some(*holder)).and_then(|holder| self.clients.get(&holder));
        if let (Some(told), Ok(key)) = (told, std::str::from_utf8(key)) {
            told.tell(Notice::KeyDeleted { key: key.to_owned(), created: before.created });
        }
    }
}

#[cfg(test)]
mod tests {
    use coord_kv::store::{Op, PutOptions, Txn};

    use super::*;

    const TEST: &str = "test";

    #[test]
    fn lease_ends_with_its_keys_at_one_revision() {
        let mut state = State::default();
        let now = Instant::now();
        state.grant(TEST, 1, (7, 2), now).expect("is granted");
        state.grant(TEST, 1, (7, 2), now).expect_err("is taken");
        let on_lease = Some(PutOptions::new().with_lease(7));
        let puts = [Op::put("a", "1", on_lease), Op::put("b", "1", on_lease)];
        state.txn(TEST, 1, &Txn::new().and_then(puts)).expect("is made");
        let later = now + Duration::from_secs(1);
        assert_eq!(state.renew(7, later), Some(Duration::from_secs(2)));
        assert_eq!(state.lease(7, LeaseDetail::TimesAndKeys, later).keys, [b"a", b"b"]);
        let end = later + Duration::from_secs(2) + GRACE;
        state.catch_up(end - Duration::from_millis(1));
        assert_eq!(state.leases.len(), 1);
        state.catch_up(end);
        assert_eq!((state.leases.len(), state.pairs.len(), state.revision), (0, 0, 3));
        assert!(state.renew(7, end).is_none() && state.revoke(7).is_err());
        assert!(state.lease(7, LeaseDetail::Times, end).left < 0);
    }

    #[test]
    fn key_that_is_written_again_leaves_its_lease() {
        let mut state = State::default();
        state.grant(TEST, 1, (7, 2), Instant::now()).expect("is granted");
        let on_lease = Some(PutOptions::new().with_lease(7));
        for put in [Op::put("a", "1", on_lease), Op::put("a", "2", None)] {
            state.txn(TEST, 1, &Txn::new().and_then([put])).expect("is made");
        }
        state.revoke(7).expect("is there");
        assert!(state.pair(b"a").is_some_and(|pair| (pair.created, pair.modified) == (2, 3)));
    }
}
