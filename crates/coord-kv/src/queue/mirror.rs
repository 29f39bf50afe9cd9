//! Cache of one queue, as one process sees it. No I/O.

use std::collections::{BTreeSet, HashMap};

/// Change of an entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change<'a> {
    pub(super) key: &'a str,
    pub(super) revision: i64,
    /// Revision at which the entry was created; `None` if it was deleted.
    pub(super) created: Option<i64>,
}

/// Entries that may be gone after a change.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Affected {
    Nobody,
    Places(Vec<String>),
    All,
}

/// Entries in a queue, kept from a read and the changes after it.
///
/// A task that finds its own entry at the head of the mirror is at the head of the queue. Changes come in
/// order, so all entries created before its own are known, and an entry that is gone never comes back. This
/// holds between changes of two revisions, and not between those of one: a lease that ends deletes all its
/// entries at one revision.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    /// Revision up to which all changes are in here; `None` while nobody keeps the mirror.
    seen: Option<i64>,
    order: BTreeSet<(i64, String)>,
    created: HashMap<String, i64>,
    /// Entries that nobody stands in any more, whatever the store says of them, with the revisions at which
    /// they were created.
    left: HashMap<String, i64>,
}

impl Mirror {
    /// Replaces everything by what was read at a revision: keys with the revisions at which they were
    /// created. Returns the entries that may be gone.
    pub(super) fn reset(&mut self, places: impl IntoIterator<Item = (String, i64)>, at: i64) -> Affected {
        self.clear();
        self.seen = Some(at);
        for (key, created) in places {
            self.put(key, created);
        }
        Affected::All
    }

    /// Forgets what the store told: nobody keeps the mirror from now on.
    pub(super) fn clear(&mut self) {
        self.seen = None;
        self.order.clear();
        self.created.clear();
    }

    /// Applies all changes of one or several whole revisions, in their order. Returns the entries that may be
    /// gone.
    pub(super) fn apply<'a>(&mut self, changes: impl IntoIterator<Item = Change<'a>>) -> Affected {
        let mut deleted = Vec::new();
        for Change { key, revision, created } in changes {
            self.seen = self.seen.max(Some(revision));
            if let Some(created) = created {
                self.put(key.to_owned(), created);
            } else {
                self.delete(key);
                deleted.push(key.to_owned());
            }
        }
        if deleted.is_empty() { Affected::Nobody } else { Affected::Places(deleted) }
    }

    /// Returns whether the store has told of an entry that was created then, and that it is gone.
    pub(super) fn is_gone(&self, key: &str, created: i64) -> bool {
        self.seen.is_some_and(|seen| created <= seen) && self.created(key) != Some(created)
    }

    /// Takes note that a key was written.
    pub(super) fn put(&mut self, key: String, created: i64) {
        if self.left.get(&key) == Some(&created) {
            return;
        }
        if let Some(before) = self.created.insert(key.clone(), created)
            && before != created
        {
            self.order.remove(&(before, key.clone()));
        }
        self.order.insert((created, key));
    }

    /// Takes note that a key was deleted.
    pub(super) fn delete(&mut self, key: &str) {
        if let Some(created) = self.created.remove(key) {
            self.order.remove(&(created, key.to_owned()));
        }
    }

    /// Takes note that nobody stands in an entry any more, before the store does.
    pub(super) fn leave(&mut self, key: &str, created: i64) {
        self.left.insert(key.to_owned(), created);
        if self.created(key) == Some(created) {
            self.delete(key);
        }
    }

    /// Forgets an entry that was left: the store has deleted it, or it does not matter any more.
    pub(super) fn forget(&mut self, key: impl FnOnce() -> String) {
        if !self.left.is_empty() {
            self.left.remove(&key());
        }
    }

    /// Returns the revision at which an entry of the queue was created.
    pub(super) fn created(&self, key: &str) -> Option<i64> {
        self.created.get(key).copied()
    }

    /// Returns the entry at the head: the revision at which it was created, and its key.
    pub(super) fn head(&self) -> Option<(i64, &str)> {
        self.order.first().map(|(created, key)| (*created, key.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_create_revision_is_the_head() {
        let mut mirror = Mirror::default();
        assert_eq!(mirror.head(), None);
        mirror.reset([("b".to_owned(), 5), ("a".to_owned(), 7)], 7);
        assert_eq!(mirror.head(), Some((5, "b")));
        mirror.put("c".into(), 9);
        mirror.delete("b");
        mirror.delete("b");
        assert_eq!(mirror.head(), Some((7, "a")));
        mirror.put("a".into(), 7);
        mirror.put("a".into(), 12);
        assert_eq!(mirror.head(), Some((9, "c")), "deleted and created again is a later place");
        mirror.delete("c");
        mirror.delete("a");
        assert_eq!(mirror.head(), None);
        assert!(mirror.order.is_empty() && mirror.created.is_empty());
    }

    #[test]
    fn a_place_that_was_left_is_not_there_whatever_is_heard_of_it_later() {
        let mut mirror = Mirror::default();
        mirror.reset([("a".to_owned(), 5), ("b".to_owned(), 7)], 7);
        mirror.leave("a", 5);
        assert_eq!(mirror.head(), Some((7, "b")));
        mirror.leave("c", 9);
        mirror.put("c".into(), 9);
        mirror.reset([("a".to_owned(), 5), ("c".to_owned(), 9), ("d".to_owned(), 10)], 10);
        assert_eq!(mirror.head(), Some((10, "d")), "the store has not deleted them yet");
        mirror.put("a".into(), 12);
        mirror.delete("d");
        assert_eq!(mirror.head(), Some((12, "a")), "a later place with the same key");
        mirror.leave("a", 11);
        assert_eq!(mirror.head(), Some((12, "a")));
        for key in ["a", "c"] {
            mirror.forget(|| key.to_owned());
        }
        assert!(mirror.left.is_empty());
        mirror.forget(|| unreachable!("there are none"));
    }
    #[test]
    fn a_place_is_gone_once_all_that_was_told_says_so() {
        let mut mirror = Mirror::default();
        assert!(!mirror.is_gone("a", 5), "nothing was told");
        assert_eq!(mirror.reset([("a".to_owned(), 5)], 6), Affected::All);
        assert!(!mirror.is_gone("a", 5) && mirror.is_gone("b", 6));
        assert!(!mirror.is_gone("b", 7), "it was created later");
        let change = |key, revision, created| Change { key, revision, created };
        assert_eq!(mirror.apply([change("b", 7, Some(7))]), Affected::Nobody);
        let affected = mirror.apply([change("c", 8, Some(8)), change("a", 9, None), change("c", 9, None)]);
        assert_eq!(affected, Affected::Places(vec!["a".into(), "c".into()]));
        assert_eq!(mirror.head(), Some((7, "b")));
        assert!(mirror.is_gone("a", 5) && mirror.is_gone("c", 8) && !mirror.is_gone("b", 7));
        assert!(!mirror.is_gone("a", 10), "a later place with the same key, of which nothing is told yet");
        mirror.clear();
        assert!(!mirror.is_gone("a", 5), "nobody keeps it");
    }
}
