//! The choice of ids to try. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::store::Distance;

/// Number of ids that one transaction tries. With half of the ids taken one in 16 claims needs a second
/// transaction.
pub(super) const TRIES: usize = 4;

/// The ids that are tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Any, so that clients that claim at the same moment seldom meet.
    Random,
    /// The lowest, where meeting others costs nothing.
    Lowest,
}

impl Choice {
    pub(super) fn at(distance: Distance) -> Self {
        match distance {
            Distance::Network => Self::Random,
            Distance::Process => Self::Lowest,
        }
    }
}

/// Ids of a service that are not free.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// The ids that are held or rest.
    pub(super) taken: BTreeSet<u32>,
    /// The ids that somebody may believe to hold, with the revisions of their marks.
    pub(super) marked: BTreeMap<u32, i64>,
    /// Whether others wait for one.
    pub(super) queued: bool,
}

impl Listed {
    /// Returns the ids below `max_id` that are marked as held but are not there, with the revisions of their
    /// marks. Their leases are over or were revoked; nobody can tell which.
    pub(super) fn vanished(&self, max_id: u32) -> Vec<(u32, i64)> {
        let below = self.marked.range(..max_id).map(|(id, revision)| (*id, *revision));
        below.filter(|(id, _)| !self.taken.contains(id)).collect()
    }

    /// Returns some free ids below `max_id`, in the order in which they are to be tried.
    pub(super) fn some_free(&self, max_id: u32, choice: Choice) -> Vec<u32> {
        let free = (1..max_id).filter(|id| !self.taken.contains(id) && !self.marked.contains_key(id));
        match choice {
            Choice::Random => shuffled(fastrand::choose_multiple(free, TRIES)),
            Choice::Lowest => free.take(TRIES).collect(),
        }
    }
}

/// Returns some ids below `max_id` of which nothing is known.
pub(super) fn some_of(max_id: u32, choice: Choice) -> Vec<u32> {
    if choice == Choice::Lowest || (max_id as usize) <= 4 * TRIES {
        return Listed::default().some_free(max_id, choice);
    }
    let mut some = BTreeSet::new();
    while some.len() < TRIES {
        some.insert(fastrand::u32(1..max_id));
    }
    shuffled(some.into_iter().collect())
}

fn shuffled(mut ids: Vec<u32>) -> Vec<u32> {
    fastrand::shuffle(&mut ids);
    ids
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(taken: &[u32], marked: &[u32]) -> Listed {
        let marked = marked.iter().map(|id| (*id, 1)).collect();
        Listed { taken: taken.iter().copied().collect(), marked, queued: false }
    }

    #[test]
    fn free_is_what_is_neither_taken_nor_marked() {
        let check = |taken: &[u32], marked: &[u32], max_id, free: &[u32], vanished: &[u32]| {
            let listed = listed(taken, marked);
            let mut found = listed.some_free(max_id, Choice::Random);
            found.sort_unstable();
            let gone: Vec<_> = listed.vanished(max_id).into_iter().map(|(id, _)| id).collect();
            assert_eq!((&*found, &*gone), (free, vanished), "{listed:?} below {max_id}");
        };
        check(&[], &[], 2, &[1], &[]);
        check(&[1], &[1], 2, &[], &[]);
        check(&[], &[1], 2, &[], &[1]);
        check(&[1, 3], &[1, 2], 6, &[4, 5], &[2]);
        check(&[1, 2, 900], &[1, 900], 4, &[3], &[]);
        check(&[1], &[7], 4, &[2, 3], &[]);
    }

    #[test]
    fn blind_tries_are_different_ids_of_the_range() {
        for max_id in [2, 3, 4, 5, 17, 18, 1023, 1 << 20] {
            let tries = some_of(max_id, Choice::Random);
            assert_eq!(tries.len(), TRIES.min(max_id as usize - 1));
            assert_eq!(tries.iter().collect::<BTreeSet<_>>().len(), tries.len());
            assert!(tries.iter().all(|id| (1..max_id).contains(id)));
        }
    }
}
