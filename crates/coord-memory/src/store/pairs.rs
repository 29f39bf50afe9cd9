//! The pairs of a store: written and deleted at revisions, and read as they are or as they were.

use std::{borrow::Cow, cmp::Reverse, collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;
use coord_kv::store::{
    Detail, Extent, GetAnswer, GetOptions, Header, KeyValue, LeaseId, Order, Revision, RevisionError,
};

use super::state::{ClientId, State};

/// A key, which the state, the log and a lease share.
pub(crate) type Key = Arc<[u8]>;

/// A value, with what is known about its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) value: Bytes,
    pub(crate) created: Revision,
    pub(crate) modified: Revision,
    /// The lease that it lives on; zero for none.
    pub(crate) lease: LeaseId,
}

/// Returns the first key that does not begin with `prefix`.
fn after_all(prefix: &[u8]) -> Bound<Vec<u8>> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            return Bound::Excluded(end);
        }
    }
    Bound::Unbounded
}

/// Returns where a range of keys ends.
fn end(key: &[u8], extent: &Extent) -> Bound<Vec<u8>> {
    match extent {
        Extent::Key => Bound::Included(key.to_vec()),
        Extent::Prefix => after_all(key),
        Extent::Until(end) => Bound::Excluded(end.clone()),
    }
}

/// Returns the pairs in a range, in their order.
fn in_range<'a>(
    pairs: &'a BTreeMap<Key, Pair>,
    key: &'a [u8],
    extent: &Extent,
) -> impl Iterator<Item = (&'a Key, &'a Pair)> + use<'a> {
    let end = end(key, extent);
    let is_empty = matches!(&end, Bound::Excluded(end) if end.as_slice() <= key);
    let range = (!is_empty).then(|| pairs.range::<[u8], _>((Bound::Included(key), bound(&end))));
    range.into_iter().flatten()
}

fn bound(end: &Bound<Vec<u8>>) -> Bound<&[u8]> {
    match end {
        Bound::Included(end) => Bound::Included(end),
        Bound::Excluded(end) => Bound::Excluded(end),
        Bound::Unbounded => Bound::Unbounded,
    }
}

impl State {
    /// Returns a pair as it is now.
    pub(super) fn pair(&self, key: &[u8]) -> Option<&Pair> {
        self.pairs.get(key)
    }

    /// Returns whether all keys that begin with `prefix` satisfy a condition.
    pub(super) fn all_below(&self, prefix: &[u8], is_so: impl Fn(&Pair) -> bool) -> bool {
        in_range(&self.pairs, prefix, &Extent::Prefix).all(|(_, pair)| is_so(pair))
    }

    /// Returns all keys that begin with `prefix`.
    pub(super) fn keys_below(&self, prefix: &[u8]) -> Vec<Key> {
        in_range(&self.pairs, prefix, &Extent::Prefix).map(|(key, _)| key.clone()).collect()
    }

    /// Writes a pair at a revision that is being made.
    pub(super) fn put(&mut self, at: Revision, key: &[u8], value: Bytes, lease: LeaseId) {
        let (key, before) = match self.pairs.remove_entry(key) {
            Some((key, before)) => (key, Some(before)),
            None => (Key::from(key), None),
        };
        self.detach(&key, before.as_ref());
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.keys.insert(key.clone());
        }
        let created = before.as_ref().map_or(at, |before| before.created);
        let pair = Pair { value, created, modified: at, lease };
        self.log.push(at, key.clone(), before, Some(pair.clone()));
        self.pairs.insert(key, pair);
    }

    /// Deletes a pair at a revision that is being made. Returns whether it was there. If it was on the lease of another client
    /// than `by`, that client is told.
    pub(super) fn delete(&mut self, at: Revision, key: &[u8], by: Option<ClientId>) -> bool {
        let Some((key, before)) = self.pairs.remove_entry(key) else { return false };
        self.detach(&key, Some(&before));
        self.tell_of_deletion(&key, &before, by);
        self.log.push(at, key, Some(before), None);
        true
    }

    fn detach(&mut self, key: &[u8], before: Option<&Pair>) {
        if let Some(lease) = before.and_then(|before| self.leases.get_mut(&before.lease)) {
            lease.keys.remove(key);
        }
    }

    /// Checks that the state is known as it was then; zero is now. `now` is the latest revision.
    ///
    /// # Errors
    /// If it is not kept, or not there yet.
    pub(super) fn check_revision(&self, at: Revision, now: Revision) -> Result<(), RevisionError> {
        if at > now {
            return Err(RevisionError::Future("the required revision is a future one".into()));
        }
        if at != 0 && at < self.log.compacted() {
            return Err(RevisionError::Compacted("the required revision has been compacted".into()));
        }
        Ok(())
    }

    /// Reads, at a revision that is known.
    pub(super) fn read(&self, key: &[u8], options: &GetOptions, header: Header) -> GetAnswer {
        let pairs = self.at(key, options);
        let limit = usize::try_from(options.limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX);
        let of_keys =
            |pair: &Pair| options.max_create_revision == 0 || pair.created <= options.max_create_revision;
        let all = in_range(&pairs, key, &options.extent);
        if options.detail == Detail::Count {
            let count = i64::try_from(all.count()).unwrap_or(i64::MAX);
            return GetAnswer { header, kvs: Vec::new(), more: false, count };
        }
        let mut all = all.filter(|(_, pair)| of_keys(pair));
        let (found, more) = match options.order {
            Order::ByKey => {
                let found: Vec<_> = all.by_ref().take(limit).collect();
                let more = all.next().is_some();
                (found, more)
            }
            Order::LatestFirst => {
                let mut found: Vec<_> = all.collect();
                found.sort_by_key(|(_, pair)| Reverse(pair.created));
                let more = found.len() > limit;
                found.truncate(limit);
                (found, more)
            }
        };
        let count = found.len() + usize::from(more);
        let kvs = found.into_iter().map(|(key, pair)| told(key, pair, options.detail)).collect();
        GetAnswer { header, kvs, more, count: i64::try_from(count).unwrap_or(i64::MAX) }
    }

    /// Returns the pairs of a range at the revision of a read; others may be among them.
    fn at(&self, key: &[u8], options: &GetOptions) -> Cow<'_, BTreeMap<Key, Pair>> {
        // Also while a transaction writes at a later one.
        let is_latest = || self.log.since(options.revision + 1).next().is_none();
        if options.revision == 0 || is_latest() {
            return Cow::Borrowed(&self.pairs);
        }
        let now = in_range(&self.pairs, key, &options.extent);
        let mut then: BTreeMap<_, _> = now.map(|(key, pair)| (key.clone(), pair.clone())).collect();
        for change in self.log.since(options.revision + 1).rev() {
            match &change.before {
                Some(before) => drop(then.insert(change.key.clone(), before.clone())),
                None => drop(then.remove(&change.key)),
            }
        }
        Cow::Owned(then)
    }
}

fn told(key: &Key, pair: &Pair, detail: Detail) -> KeyValue {
    KeyValue {
        key: key.to_vec(),
        value: if detail == Detail::Keys { Bytes::new() } else { pair.value.clone() },
        create_revision: pair.created,
        mod_revision: pair.modified,
        lease: pair.lease,
    }
}
