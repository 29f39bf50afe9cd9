//! A queue as one process sees it. No I/O.

use std::collections::{BTreeSet, HashMap};

/// The places in a queue, kept from a read and the changes after it.
///
/// Whoever finds its own place in here at the head is at the head: changes come in order, so all that were
/// created before it are known, and a place that is gone never comes back.
#[derive(Debug, Default)]
pub(super) struct Mirror {
    order: BTreeSet<(i64, String)>,
    created: HashMap<String, i64>,
}

impl Mirror {
    /// Replaces everything by what was read: keys with the revisions at which they were created.
    pub(super) fn reset(&mut self, places: impl IntoIterator<Item = (String, i64)>) {
        self.order.clear();
        self.created.clear();
        for (key, created) in places {
            self.put(key, created);
        }
    }

    /// Takes note that a key was written.
    pub(super) fn put(&mut self, key: String, created: i64) {
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

    /// The revision at which a place in the queue was created.
    pub(super) fn created(&self, key: &str) -> Option<i64> {
        self.created.get(key).copied()
    }

    /// The place at the head: when it was created, and its key.
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
        mirror.reset([("b".to_owned(), 5), ("a".to_owned(), 7)]);
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
}
