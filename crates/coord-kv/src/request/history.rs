//! The history of the store that this client has seen, and the marks by which it would know another one. No I/O.
//!
//! A store may be restored from a snapshot, or lose its data. It then counts its revisions from an earlier
//! one on, and gives them to other changes. Everything that a client believes of the store is believed of one
//! history: its leases, its places, how far its watches are.
//!
//! So each answer is compared with the known history. Whenever a connection was made anew the store is asked
//! whether it knows what this client has written and seen ([`Marks`]; `verify.rs` asks).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, MutexGuard, atomic::AtomicBool},
};

use coord_api::backend::lock;
use tokio::sync::Notify;

use crate::store::{Change, KeyValue};

/// Most given-back keys that are kept as marks.
const MOST_GIVEN_BACK: usize = 32;
/// Most seen changes that are kept as marks.
const MOST_SEEN: usize = 4;

/// Known history of the store.
#[derive(Debug, Default)]
pub(crate) struct History {
    state: Mutex<State>,
    /// Asks for a verification.
    pub(crate) doubts: Notify,
    /// Whether an answer on a stream was of another cluster.
    pub(crate) has_stranger: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// Number of histories that ended before this one.
    epoch: u64,
    /// The cluster that answered last.
    cluster: u64,
    /// The member that answered with this cluster last; empty if that is not known.
    member: String,
    /// Latest revision that an answer told of.
    revision: i64,
    /// The keys that this client keeps in the store: when each was written, and its lease.
    kept: BTreeMap<String, Kept>,
    /// The latest deletions of keys of this client.
    given_back: VecDeque<GivenBack>,
    /// The latest changes that were delivered by watches, one of each revision.
    seen: VecDeque<Seen>,
    /// Whether the store may have another history than that which watches have told of.
    in_doubt: bool,
    /// The keys that were written while that was in doubt.
    doubtful: BTreeSet<String>,
    /// The revisions of deletions that were made while that was in doubt.
    doubtful_deletions: BTreeSet<i64>,
}

/// A moment of the history, taken before a request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    epoch: u64,
    revision: i64,
}

/// Whether an answer shows the latest state of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Consistency {
    /// The answer was given after all that was known when the request was sent.
    Linearizable,
    /// The member that gave it may be behind the others.
    Local,
}

/// Result of comparing an answer with the known history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Nothing new.
    Same,
    /// The member that answered is behind the others, or the store is another one: verify.
    Behind,
    /// The store has another history. Told once for each that ends.
    Replaced,
    /// The answer is of another cluster than the answers of this member before.
    OtherCluster {
        /// The member that answered for the known cluster.
        member: String,
        known: u64,
    },
}

/// A key that this client keeps in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) revision: i64,
    pub(crate) lease: i64,
}

/// A key that this client has deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GivenBack {
    pub(crate) key: String,
    pub(crate) revision: i64,
}

/// A change that a watch delivered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) key: String,
    pub(crate) revision: i64,
    /// Revision at which the key was created, and a print of its value; `None` for a deletion.
    put: Option<(i64, u64)>,
}

/// The marks by which one history is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    /// The key that this client wrote last, of all keys that it keeps. It is there, as it was written.
    pub(crate) kept: Option<(String, Kept)>,
    /// As `kept`, of the keys that were written in this history for certain, if that is another one.
    pub(crate) kept_for_certain: Option<(String, Kept)>,
    /// Whether `kept` was written in this history for certain.
    pub(crate) is_kept_certain: bool,
    /// Keys that are not there, or were created later.
    pub(crate) given_back: Vec<GivenBack>,
    /// Changes that the store had at some revisions.
    pub(crate) seen: Vec<Seen>,
    /// The deletion that came last, if it came after all others and was made in this history for certain.
    pub(crate) last_given_back: Option<GivenBack>,
}

impl History {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Returns the present moment, to be taken before a request is sent.
    pub(crate) fn now(&self) -> Sent {
        let state = self.lock();
        Sent { epoch: state.epoch, revision: state.revision }
    }

    /// Returns the cluster that answered last; 0 before any has.
    pub(crate) fn cluster(&self) -> u64 {
        self.lock().cluster
    }

    /// Returns the latest revision that an answer told of.
    #[cfg(test)]
    fn revision(&self) -> i64 {
        self.lock().revision
    }

    /// Compares an answer by `member` of `cluster` at `revision` to a request that was sent at `sent` with
    /// the known history.
    pub(crate) fn heard(
        &self,
        sent: Sent,
        (cluster, member): (u64, Option<&str>),
        revision: i64,
        consistency: Consistency,
    ) -> Heard {
        let mut state = self.lock();
        // Nobody knows whether it was of the history before.
        if sent.epoch != state.epoch || cluster == 0 || revision == 0 {
            return Heard::Same;
        }
        if state.cluster != 0 && state.cluster != cluster {
            return Heard::OtherCluster { member: state.member.clone(), known: state.cluster };
        }
        if revision < sent.revision {
            return match consistency {
                Consistency::Linearizable => {
                    state.begin_anew(cluster, revision);
                    Heard::Replaced
                }
                Consistency::Local => Heard::Behind,
            };
        }
        state.cluster = cluster;
        if let Some(member) = member
            && state.member != member
        {
            member.clone_into(&mut state.member);
        }
        state.revision = state.revision.max(revision);
        Heard::Same
    }

    /// Begins another history, unless the history of `sent` has ended already.
    pub(crate) fn end(&self, sent: Sent) -> bool {
        let mut state = self.lock();
        let ends = state.epoch == sent.epoch;
        if ends {
            state.begin_anew(0, 0);
        }
        ends
    }

    /// Takes note of a key that this client wrote and keeps. Of two writes of one key, the later one counts, in whatever
    /// order their answers came.
    pub(crate) fn wrote(&self, key: &str, revision: i64, lease: i64) {
        let kept = Kept { revision, lease };
        let mut state = self.lock();
        if state.in_doubt {
            state.doubtful.insert(key.to_owned());
        } else {
            state.doubtful.remove(key);
        }
        match state.kept.get_mut(key) {
            Some(before) if before.revision > revision => {}
            Some(before) => *before = kept,
            None => drop(state.kept.insert(key.to_owned(), kept)),
        }
    }

    /// Takes note that a key is about to be deleted or written over.
    pub(crate) fn leaves(&self, key: &str) {
        self.lock().kept.remove(key);
    }

    /// Takes note that this client deleted a key of its own.
    pub(crate) fn gave_back(&self, key: &str, revision: i64) {
        let mut state = self.lock();
        if state.in_doubt {
            state.doubtful_deletions.insert(revision);
        }
        state.given_back.retain(|before| before.key != key);
        if state.given_back.len() >= MOST_GIVEN_BACK {
            state.given_back.pop_front();
        }
        state.given_back.push_back(GivenBack { key: key.to_owned(), revision });
    }

    /// Takes note of changes that a watch delivered, in their order.
    pub(crate) fn saw(&self, changes: &[Change]) {
        let Some(last) = changes.last() else { return };
        let mut state = self.lock();
        if state.seen.iter().any(|seen| seen.revision == last.revision) {
            return;
        }
        state.seen.push_back(Seen::of(last));
        if state.seen.len() > MOST_SEEN {
            let oldest = (0..state.seen.len()).min_by_key(|at| state.seen[*at].revision);
            oldest.map(|oldest| state.seen.remove(oldest));
        }
    }

    /// Takes note that the stream of watches broke. Later writes may be made in another history, and show nothing of
    /// what the watches have told.
    pub(crate) fn doubt(&self) {
        self.lock().in_doubt = true;
    }

    /// Takes note that all watches are known to be of the history in which the store is.
    pub(crate) fn trust(&self) {
        let mut state = self.lock();
        state.in_doubt = false;
        state.doubtful.clear();
        state.doubtful_deletions.clear();
    }

    /// Returns whether there is anything by which the history is known.
    pub(crate) fn has_marks(&self) -> bool {
        let state = self.lock();
        !(state.kept.is_empty() && state.given_back.is_empty() && state.seen.is_empty())
    }

    /// Returns whether the kept key of some marks is still kept as it was when they were taken: neither given back nor
    /// written again meanwhile.
    pub(crate) fn still_keeps(&self, marks: &Marks) -> bool {
        let state = self.lock();
        marks.kept.as_ref().is_some_and(|(key, kept)| state.kept.get(key) == Some(kept))
    }

    /// Forgets the keys that were kept on leases that are over.
    pub(crate) fn keep_on(&self, is_alive: impl Fn(i64) -> bool) {
        self.lock().kept.retain(|_, kept| is_alive(kept.lease));
    }

    /// Returns the marks by which this history is known; `is_held` tells which leases this client believes
    /// in.
    pub(crate) fn marks(&self, is_held: impl Fn(i64) -> bool) -> Marks {
        let state = self.lock();
        let latest = |is_meant: &dyn Fn(&str) -> bool| {
            let kept = state.kept.iter().filter(|(key, kept)| is_held(kept.lease) && is_meant(key));
            kept.max_by_key(|(_, kept)| kept.revision).map(|(key, kept)| (key.clone(), *kept))
        };
        let (kept, certain) = (latest(&|_| true), latest(&|key| !state.doubtful.contains(key)));
        let from = certain.as_ref().map_or(0, |(_, kept)| kept.revision);
        let is_kept_certain = kept == certain;
        let kept_for_certain = certain.filter(|_| !is_kept_certain);
        let mut seen: Vec<_> = state.seen.iter().filter(|seen| seen.revision > from).cloned().collect();
        seen.sort_by_key(|seen| seen.revision);
        let last_seen = seen.last().map_or(from, |seen| seen.revision);
        let certain = state.given_back.iter().filter(|one| !state.doubtful_deletions.contains(&one.revision));
        let last = certain.max_by_key(|given_back| given_back.revision);
        let last_given_back = last.filter(|last| last.revision > last_seen).cloned();
        let given_back = state.given_back.iter().cloned().collect();
        Marks { kept, kept_for_certain, is_kept_certain, given_back, seen, last_given_back }
    }
}

impl Sent {
    /// Returns the epoch of the history that the moment is of.
    pub(crate) fn epoch(self) -> u64 {
        self.epoch
    }
}

impl State {
    fn begin_anew(&mut self, cluster: u64, revision: i64) {
        *self = Self { epoch: self.epoch + 1, cluster, revision, ..Self::default() };
    }
}

impl Kept {
    /// Returns whether the key was found as it was kept.
    pub(crate) fn is(&self, found: Option<&KeyValue>) -> bool {
        found.is_some_and(|kv| kv.mod_revision == self.revision && kv.lease == self.lease)
    }
}

impl GivenBack {
    /// Returns whether the key that was found is the deleted one: then it was never deleted, in this store.
    pub(crate) fn is_back(&self, found: Option<&KeyValue>) -> bool {
        found.is_some_and(|kv| kv.create_revision <= self.revision)
    }
}

impl Seen {
    fn of(change: &Change) -> Self {
        let put = change.value.as_ref().map(|value| (change.created, print(value)));
        Self { key: change.key.clone(), revision: change.revision, put }
    }

    /// Returns whether a store that has this at the revision of the change can be the store that made the
    /// change.
    pub(crate) fn is(&self, found: Option<&KeyValue>) -> bool {
        match (self.put, found) {
            (None, None) => true,
            (Some((created, value)), Some(kv)) => {
                kv.mod_revision == self.revision && kv.create_revision == created && print(&kv.value) == value
            }
            _ => false,
        }
    }

    /// Returns whether the key was deleted.
    pub(crate) fn is_deletion(&self) -> bool {
        self.put.is_none()
    }
}

/// Values are not kept, which may be large, and secret.
fn print(value: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const CLUSTER: (u64, Option<&str>) = (7, Some("a:1"));

    fn heard(history: &History, revision: i64, consistency: Consistency) -> Heard {
        history.heard(history.now(), CLUSTER, revision, consistency)
    }

    fn change(key: &str, revision: i64) -> Change {
        Change { key: key.into(), revision, created: revision, value: Some(Bytes::from_static(b"1")) }
    }

    #[test]
    fn linearizable_answer_below_the_known_revision_ends_a_history() {
        let history = History::default();
        assert_eq!(heard(&history, 50, Consistency::Linearizable), Heard::Same);
        assert_eq!(heard(&history, 50, Consistency::Linearizable), Heard::Same);
        assert_eq!(heard(&history, 40, Consistency::Local), Heard::Behind, "the member may be behind");
        assert_eq!(heard(&history, 40, Consistency::Linearizable), Heard::Replaced);
        assert_eq!(heard(&history, 41, Consistency::Linearizable), Heard::Same, "told once");
        assert_eq!(history.revision(), 41);
    }

    #[test]
    fn answers_that_overtake_each_other_end_no_history() {
        let history = History::default();
        let (first, second) = (history.now(), history.now());
        assert_eq!(history.heard(second, CLUSTER, 9, Consistency::Linearizable), Heard::Same);
        assert_eq!(history.heard(first, CLUSTER, 8, Consistency::Linearizable), Heard::Same);
        assert_eq!(history.revision(), 9);
    }

    #[test]
    fn answer_to_a_request_of_an_ended_history_says_nothing_of_the_next() {
        let history = History::default();
        heard(&history, 50, Consistency::Linearizable);
        let before = history.now();
        assert_eq!(heard(&history, 40, Consistency::Linearizable), Heard::Replaced);
        for late in [60, 41] {
            assert_eq!(history.heard(before, CLUSTER, late, Consistency::Linearizable), Heard::Same);
        }
        assert_eq!(history.revision(), 40);
        assert!(!history.end(before), "it has ended");
        assert!(history.end(history.now()));
    }

    #[test]
    fn answer_of_another_cluster_is_told_with_the_member_of_the_known_one() {
        let history = History::default();
        heard(&history, 50, Consistency::Linearizable);
        let other = history.heard(history.now(), (8, Some("b:1")), 60, Consistency::Local);
        assert_eq!(other, Heard::OtherCluster { member: "a:1".into(), known: 7 });
        assert_eq!(history.revision(), 50, "it is not believed");
    }

    #[test]
    fn marks_are_the_latest_writes_and_changes() {
        let history = History::default();
        assert_eq!(history.marks(|_| true), Marks { is_kept_certain: true, ..Marks::default() });
        history.wrote("old", 3, 1);
        history.wrote("new", 5, 1);
        history.wrote("lost", 6, 2);
        history.saw(&[change("x", 2), change("x", 4)]);
        let marks = history.marks(|lease| lease == 1);
        assert_eq!(marks.kept, Some(("new".into(), Kept { revision: 5, lease: 1 })));
        assert!(marks.seen.is_empty(), "what was written later shows that as well");
        history.leaves("new");
        history.gave_back("new", 7);
        history.saw(&[change("x", 6)]);
        let marks = history.marks(|lease| lease == 1);
        assert_eq!(marks.kept.expect("is kept").0, "old");
        assert_eq!(marks.seen.iter().map(|seen| seen.revision).collect::<Vec<_>>(), [4, 6]);
        assert_eq!(marks.last_given_back.expect("came last").key, "new");
        history.saw(&[change("x", 8)]);
        assert_eq!(history.marks(|_| true).last_given_back, None);
        history.keep_on(|_| false);
        assert_eq!(history.marks(|_| true).kept, None);
    }

    #[test]
    fn write_in_doubt_shows_nothing_of_what_watches_told() {
        let history = History::default();
        history.wrote("before", 3, 1);
        history.saw(&[change("x", 9)]);
        history.doubt();
        history.wrote("after", 12, 1);
        history.gave_back("gone", 13);
        let marks = history.marks(|_| true);
        let name = |kept: Option<(String, Kept)>| kept.map(|(key, _)| key);
        assert_eq!(name(marks.kept).as_deref(), Some("after"), "it tells a later history all the same");
        assert_eq!(name(marks.kept_for_certain).as_deref(), Some("before"));
        assert_eq!(marks.seen.iter().map(|seen| seen.revision).collect::<Vec<_>>(), [9]);
        assert_eq!((marks.is_kept_certain, marks.last_given_back), (false, None));
        history.trust();
        let marks = history.marks(|_| true);
        assert_eq!((name(marks.kept_for_certain), marks.is_kept_certain, marks.seen.len()), (None, true, 0));
        assert_eq!(marks.last_given_back.expect("came last").key, "gone");
    }

    #[test]
    fn key_written_again_is_not_kept_as_its_marks_say() {
        let history = History::default();
        history.wrote("slot", 10, 1);
        let marks = history.marks(|_| true);
        assert!(history.still_keeps(&marks));
        history.leaves("slot");
        assert!(!history.still_keeps(&marks), "it may be written at this moment");
        history.wrote("slot", 12, 1);
        assert!(!history.still_keeps(&marks), "what is found is the later write");
        assert!(history.still_keeps(&history.marks(|_| true)));
        assert!(!history.still_keeps(&Marks::default()));
    }

    #[test]
    fn later_of_two_writes_counts_in_whatever_order_their_answers_come() {
        let history = History::default();
        history.leaves("slot");
        history.wrote("slot", 12, 1);
        history.wrote("slot", 10, 1);
        assert_eq!(history.marks(|_| true).kept, Some(("slot".into(), Kept { revision: 12, lease: 1 })));
    }

    #[test]
    fn marks_are_bounded_and_the_latest_stay() {
        let history = History::default();
        for revision in 1..100 {
            history.saw(&[change("x", revision)]);
            history.gave_back(&format!("k{revision}"), revision);
        }
        let marks = history.marks(|_| true);
        assert_eq!((marks.given_back.len(), marks.seen.len()), (MOST_GIVEN_BACK, MOST_SEEN));
        assert_eq!(marks.seen.last().map(|seen| seen.revision), Some(99));
        assert_eq!(marks.given_back.last().map(|last| last.revision), Some(99));
    }
}
