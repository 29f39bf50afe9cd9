//! Candidates: which of the registered instances the pool uses. Filters by metadata, keeps the newest record of each
//! address, and chooses a subset (client-side subsetting).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use coord_api::{ServiceInfo, Version};
use tower::discover::Change;

use super::PoolOptions;
use crate::pick::ring::rank;

/// Record of one id.
#[derive(Debug)]
struct Registered {
    info: ServiceInfo,
    /// Age of the record: by the store's revision, else by the order of arrival. The larger one is newer.
    age: (Option<Version>, u64),
}

/// Registered instances that the pool may use.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Instances that match the filter, used or not, by id.
    matching: BTreeMap<String, Registered>,
    /// Ids that do not match it.
    unmatched: BTreeSet<String>,
    /// Number of records so far.
    records: u64,
    /// Seed of this client's own order of instances.
    seed: u64,
}

impl Candidates {
    pub(super) fn new() -> Self {
        Self { matching: BTreeMap::new(), unmatched: BTreeSet::new(), records: 0, seed: fastrand::u64(..) }
    }

    /// Applies one change of the list.
    pub(super) fn apply(&mut self, options: &PoolOptions, change: Change<String, ServiceInfo>) {
        match change {
            Change::Insert(id, info) if options.matches(&info) => {
                self.unmatched.remove(&id);
                self.records += 1;
                let age = (info.revision(), self.records);
                self.matching.insert(id, Registered { info, age });
            }
            Change::Insert(id, _) => {
                self.matching.remove(&id);
                self.unmatched.insert(id);
            }
            Change::Remove(id) => {
                self.matching.remove(&id);
                self.unmatched.remove(&id);
            }
        }
    }

    /// Returns the record of an id that [`chosen`](Self::chosen) has returned.
    pub(super) fn info(&self, id: &str) -> &ServiceInfo {
        &self.matching[id].info
    }

    /// Returns how many instances do not match the filter.
    pub(super) fn unmatched(&self) -> usize {
        self.unmatched.len()
    }

    /// Returns the ids to use. A subset has the instances of the own zone first, then those that this client's own order
    /// puts first, which hardly changes with the list.
    pub(super) fn chosen(&self, options: &PoolOptions) -> BTreeSet<String> {
        let newest = self.newest();
        let Some(size) = options.subset.filter(|size| *size < newest.len()) else {
            return newest.into_keys().cloned().collect();
        };
        let mut ranked: Vec<_> =
            newest.into_iter().map(|(id, info)| (!options.is_local(info), rank(self.seed, id), id)).collect();
        ranked.sort_unstable();
        ranked.into_iter().take(size).map(|(_, _, id)| id.clone()).collect()
    }

    /// Returns the newest record of each address. Several ids at one address are one process, such as one that crashed and
    /// its successor.
    fn newest(&self) -> BTreeMap<&String, &ServiceInfo> {
        let mut newest: HashMap<String, (&String, &Registered)> = HashMap::with_capacity(self.matching.len());
        for (id, registered) in &self.matching {
            let best = newest.entry(normal_address(&registered.info)).or_insert((id, registered));
            if best.1.age < registered.age {
                *best = (id, registered);
            }
        }
        newest.into_values().map(|(id, registered)| (id, &registered.info)).collect()
    }
}

/// Returns the address in its normal form, so that equal addresses are equal strings.
pub(super) fn normal_address(info: &ServiceInfo) -> String {
    let host = match info.address.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().to_string(),
        Err(_) => info.address.trim_end_matches('.').to_ascii_lowercase(),
    };
    format!("{host} {}", info.port)
}
