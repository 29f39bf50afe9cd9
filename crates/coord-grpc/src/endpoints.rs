//! From registry events to endpoint changes: pure, so that every case is a line in a table.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use coord_api::{ServiceEvent, ServiceInfo};
use http::Uri;

/// A change of the endpoints that calls may go to, by instance id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Insert(String, Uri),
    Remove(String),
}

/// The endpoints of the known instances.
#[derive(Debug, Default)]
pub(crate) struct Endpoints(BTreeMap<String, Uri>);

impl Endpoints {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes in one event and returns what it changes, removals before insertions of the same id.
    pub(crate) fn step(&mut self, event: ServiceEvent) -> Vec<Change> {
        let mut changes = Vec::new();
        match event {
            ServiceEvent::Snapshot { instances, .. } => {
                let present: BTreeSet<_> = instances.iter().map(|info| info.id.as_str()).collect();
                let gone: Vec<_> =
                    self.0.keys().filter(|id| !present.contains(id.as_str())).cloned().collect();
                for id in &gone {
                    self.remove(id, &mut changes);
                }
                for info in &instances {
                    self.put(info, &mut changes);
                }
            }
            ServiceEvent::Added(info) | ServiceEvent::Updated { new: info, .. } => {
                self.put(&info, &mut changes);
            }
            ServiceEvent::Removed(info) => self.remove(&info.id, &mut changes),
            unknown => tracing::warn!(?unknown, "ignored an event that this version does not know"),
        }
        changes
    }

    fn put(&mut self, info: &ServiceInfo, changes: &mut Vec<Change>) {
        let Some(uri) = uri(info) else {
            tracing::warn!(service = info.name, id = info.id, "ignored an instance whose address is no host");
            return self.remove(&info.id, changes);
        };
        match self.0.entry(info.id.clone()) {
            // New metadata alone must not cut a connection.
            Entry::Occupied(known) if *known.get() == uri => return,
            Entry::Occupied(mut known) => {
                changes.push(Change::Remove(info.id.clone()));
                known.insert(uri.clone());
            }
            Entry::Vacant(free) => {
                free.insert(uri.clone());
            }
        }
        changes.push(Change::Insert(info.id.clone(), uri));
    }

    fn remove(&mut self, id: &str, changes: &mut Vec<Change>) {
        if self.0.remove(id).is_some() {
            changes.push(Change::Remove(id.into()));
        }
    }
}

/// Where an instance is. Another program may have written its record without the registry's checks, so those
/// of the address and the port are made here; its metadata is no reason to refuse it.
fn uri(info: &ServiceInfo) -> Option<Uri> {
    ServiceInfo::new("service", "id", &info.address, info.port).validate().ok()?;
    let endpoint = Uri::builder().scheme("http").authority(info.authority());
    endpoint.path_and_query("/").build().ok()
}

#[cfg(test)]
mod tests {
    use coord_api::Version;

    use super::*;

    fn info(id: &str, address: &str, port: u16) -> ServiceInfo {
        ServiceInfo::new("svc", id, address, port)
    }

    fn snapshot(instances: Vec<ServiceInfo>) -> ServiceEvent {
        ServiceEvent::Snapshot { version: Version::new(1), instances }
    }

    fn shown(changes: Vec<Change>) -> Vec<String> {
        changes
            .into_iter()
            .map(|change| match change {
                Change::Insert(id, uri) => format!("+{id} {uri}"),
                Change::Remove(id) => format!("-{id}"),
            })
            .collect()
    }

    #[test]
    fn events_become_the_smallest_changes() {
        let mut endpoints = Endpoints::default();
        let table: Vec<(&str, ServiceEvent, &[&str])> = vec![
            (
                "first snapshot",
                snapshot(vec![info("1", "10.0.0.1", 80), info("2", "db.local", 81)]),
                &["+1 http://10.0.0.1:80/", "+2 http://db.local:81/"],
            ),
            ("added", ServiceEvent::Added(info("3", "2001:db8::1", 82)), &["+3 http://[2001:db8::1]:82/"]),
            (
                "only metadata",
                ServiceEvent::Updated {
                    old: info("3", "2001:db8::1", 82),
                    new: info("3", "2001:db8::1", 82).with("zone", "a"),
                },
                &[],
            ),
            (
                "moved",
                ServiceEvent::Updated {
                    old: info("3", "2001:db8::1", 82),
                    new: info("3", "2001:db8::2", 82),
                },
                &["-3", "+3 http://[2001:db8::2]:82/"],
            ),
            (
                "snapshot after a gap",
                snapshot(vec![
                    info("1", "10.0.0.1", 80),
                    info("2", "db.local", 90),
                    info("4", "10.0.0.4", 84),
                ]),
                &["-3", "-2", "+2 http://db.local:90/", "+4 http://10.0.0.4:84/"],
            ),
            ("removed", ServiceEvent::Removed(info("4", "10.0.0.4", 84)), &["-4"]),
            ("removed twice", ServiceEvent::Removed(info("4", "10.0.0.4", 84)), &[]),
            ("all gone", snapshot(vec![]), &["-1", "-2"]),
        ];
        for (case, event, expected) in table {
            assert_eq!(shown(endpoints.step(event)), expected, "{case}");
        }
        assert_eq!(endpoints.len(), 0);
    }

    #[test]
    fn an_address_that_is_no_host_is_left_out() {
        let mut endpoints = Endpoints::default();
        for address in ["", "a b", "user@host", "host/path", "host?q", "a:b"] {
            let changes = endpoints.step(ServiceEvent::Added(info("1", address, 80)));
            assert_eq!(shown(changes), [""; 0], "{address}");
        }
        assert_eq!(shown(endpoints.step(ServiceEvent::Added(info("1", "host", 0)))), [""; 0]);
        endpoints.step(ServiceEvent::Added(info("1", "host", 80)));
        let spoiled = endpoints.step(ServiceEvent::Added(info("1", "a b", 80)));
        assert_eq!(shown(spoiled), ["-1"]);
    }
}
