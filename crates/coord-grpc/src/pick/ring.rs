//! Ring of consistent hashing: the instance that a key belongs to; and a client's own order of instances.

use super::policy::hash;

/// Points of each instance on the ring (virtual nodes). The shares of ten instances differ by about a tenth.
const POINTS: u32 = 100;

/// Ring of all instances, ready or not, so that a key stays with its instance over a short absence.
#[derive(Debug, Default)]
pub(crate) struct Ring(Vec<(u64, u32)>);

impl Ring {
    /// Builds the ring. [`find`](Self::find) numbers the instances in the order of `ids`.
    pub(crate) fn new<'a>(ids: impl Iterator<Item = &'a str>) -> Self {
        let mut points: Vec<_> = ids
            .zip(0..)
            .flat_map(|(id, index)| {
                (0..POINTS).map(move |point| (hash(&[id.as_bytes(), &point.to_le_bytes()]), index))
            })
            .collect();
        points.sort_unstable();
        Self(points)
    }

    /// Returns the first usable instance at or after the key.
    pub(crate) fn find<T>(&self, key: u64, usable: impl Fn(u32) -> Option<T>) -> Option<T> {
        let start = self.0.partition_point(|(point, _)| *point < key);
        let (before, after) = self.0.split_at(start);
        after.iter().chain(before).find_map(|(_, index)| usable(*index))
    }
}

/// Returns the rank of an instance in a client's own order. Each client has its own `seed`, and so its own subset.
pub(crate) fn rank(seed: u64, id: &str) -> u64 {
    hash(&[&seed.to_le_bytes(), id.as_bytes()])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn owners(ids: &[String], usable: impl Fn(&str) -> bool) -> Vec<String> {
        let ring = Ring::new(ids.iter().map(String::as_str));
        let found = |key: u64| {
            ring.find(hash(&[&key.to_le_bytes()]), |index| {
                let id = &ids[index as usize];
                usable(id).then(|| id.clone())
            })
        };
        (0..10_000).filter_map(found).collect()
    }

    fn ids(range: std::ops::Range<u32>) -> Vec<String> {
        range.map(|n| format!("im-logic-{n}")).collect()
    }

    #[test]
    fn keys_are_spread_and_the_share_of_one_instance_moves() {
        let ten = owners(&ids(0..10), |_| true);
        let mut shares = BTreeMap::new();
        for owner in &ten {
            *shares.entry(owner).or_insert(0) += 1;
        }
        assert_eq!(shares.len(), 10);
        assert!(shares.values().all(|share| (600..1500).contains(share)), "{shares:?}");

        let eleven = owners(&ids(0..11), |_| true);
        let moved = |now: &[String]| ten.iter().zip(now).filter(|(a, b)| a != b).count();
        assert!((500..1500).contains(&moved(&eleven)), "{}", moved(&eleven));
        assert!(eleven.iter().zip(&ten).all(|(now, before)| now == before || now == "im-logic-10"));

        let away = owners(&ids(0..10), |id| id != "im-logic-3");
        assert!(away.iter().zip(&ten).all(|(now, before)| now == before || before == "im-logic-3"));
    }

    #[test]
    fn ring_without_usable_instance_finds_none() {
        assert_eq!(owners(&ids(0..3), |_| false).len(), 0);
        assert_eq!(owners(&[], |_| true).len(), 0);
    }

    #[test]
    fn clients_differ_in_their_order() {
        let order = |seed| {
            let mut ids = ids(0..20);
            ids.sort_by_key(|id| rank(seed, id));
            ids
        };
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }
}
