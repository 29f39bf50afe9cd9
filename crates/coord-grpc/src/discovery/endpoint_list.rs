//! Endpoint list: turns registry events into the smallest changes of a list of instances. Pure.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use coord_api::{ServiceEvent, ServiceInfo};
use tower::discover::Change;

pub(crate) type InstanceChange = Change<String, ServiceInfo>;

/// Registered instances that calls can go to.
#[derive(Debug, Default)]
pub(crate) struct EndpointList {
    known: BTreeMap<String, ServiceInfo>,
    /// Whether the last instances stay when the list becomes empty.
    keep_when_empty: bool,
    /// Whether the list is empty and the last instances have stayed. They go when there is another.
    kept: bool,
}

impl EndpointList {
    pub(crate) fn new(keep_when_empty: bool) -> Self {
        Self { keep_when_empty, ..Self::default() }
    }

    /// Applies one event, and returns the changes.
    pub(crate) fn apply(&mut self, event: ServiceEvent) -> Vec<InstanceChange> {
        let mut changes = Vec::new();
        match event {
            ServiceEvent::Snapshot { instances, .. } => self.replace(&instances, &mut changes),
            ServiceEvent::Added(info) | ServiceEvent::Updated { new: info, .. } => {
                if self.kept && usable(&info) {
                    self.replace(&[info], &mut changes);
                } else {
                    self.put(&info, &mut changes);
                }
            }
            ServiceEvent::Removed(info) => self.remove(&info.id, &mut changes),
            unknown => tracing::warn!(?unknown, "ignored an event that this version does not know"),
        }
        changes
    }

    fn replace(&mut self, instances: &[ServiceInfo], changes: &mut Vec<InstanceChange>) {
        let present: BTreeSet<_> =
            instances.iter().filter(|info| usable(info)).map(|info| info.id.as_str()).collect();
        self.kept = self.keep_when_empty && present.is_empty();
        if self.kept {
            return;
        }
        let gone: Vec<_> = self.known.keys().filter(|id| !present.contains(id.as_str())).cloned().collect();
        for id in gone {
            self.known.remove(&id);
            changes.push(Change::Remove(id));
        }
        for info in instances {
            self.put(info, changes);
        }
    }

    fn put(&mut self, info: &ServiceInfo, changes: &mut Vec<InstanceChange>) {
        if !usable(info) {
            tracing::warn!(service = info.name, id = info.id, "ignored an instance whose address is no host");
            return self.remove(&info.id, changes);
        }
        match self.known.entry(info.id.clone()) {
            Entry::Occupied(known) if known.get() == info => return,
            Entry::Occupied(mut known) => drop(known.insert(info.clone())),
            Entry::Vacant(free) => drop(free.insert(info.clone())),
        }
        changes.push(Change::Insert(info.id.clone(), info.clone()));
    }

    fn remove(&mut self, id: &str, changes: &mut Vec<InstanceChange>) {
        let is_last = self.known.len() == 1 && self.known.contains_key(id);
        if self.keep_when_empty && is_last {
            self.kept = true;
        } else if self.known.remove(id).is_some() {
            changes.push(Change::Remove(id.into()));
        }
    }
}

/// Returns whether the address and the port are valid. Another program may have written the record without the registry's
/// checks. Its metadata is no reason to refuse it.
fn usable(info: &ServiceInfo) -> bool {
    ServiceInfo::new("service", "id", &info.address, info.port).validate().is_ok()
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

    fn shown(changes: Vec<InstanceChange>) -> Vec<String> {
        changes
            .into_iter()
            .map(|change| match change {
                Change::Insert(id, info) => {
                    let zone = info.metadata.get("zone").map(|zone| format!(" {zone}"));
                    format!("+{id} {}{}", info.authority(), zone.unwrap_or_default())
                }
                Change::Remove(id) => format!("-{id}"),
            })
            .collect()
    }

    #[test]
    fn events_become_the_smallest_changes() {
        let mut endpoints = EndpointList::default();
        let table: Vec<(&str, ServiceEvent, &[&str])> = vec![
            (
                "first snapshot",
                snapshot(vec![info("1", "10.0.0.1", 80), info("2", "db.local", 81)]),
                &["+1 10.0.0.1:80", "+2 db.local:81"],
            ),
            ("added", ServiceEvent::Added(info("3", "2001:db8::1", 82)), &["+3 [2001:db8::1]:82"]),
            (
                "only metadata",
                ServiceEvent::Updated {
                    old: info("3", "2001:db8::1", 82),
                    new: info("3", "2001:db8::1", 82).with("zone", "a"),
                },
                &["+3 [2001:db8::1]:82 a"],
            ),
            ("nothing new", ServiceEvent::Added(info("3", "2001:db8::1", 82).with("zone", "a")), &[]),
            (
                "moved",
                ServiceEvent::Updated {
                    old: info("3", "2001:db8::1", 82),
                    new: info("3", "2001:db8::2", 82),
                },
                &["+3 [2001:db8::2]:82"],
            ),
            (
                "snapshot after a gap",
                snapshot(vec![
                    info("1", "10.0.0.1", 80),
                    info("2", "db.local", 90),
                    info("4", "10.0.0.4", 84),
                ]),
                &["-3", "+2 db.local:90", "+4 10.0.0.4:84"],
            ),
            ("removed", ServiceEvent::Removed(info("4", "10.0.0.4", 84)), &["-4"]),
            ("removed twice", ServiceEvent::Removed(info("4", "10.0.0.4", 84)), &[]),
            ("all gone", snapshot(vec![]), &["-1", "-2"]),
        ];
        for (case, event, expected) in table {
            assert_eq!(shown(endpoints.apply(event)), expected, "{case}");
        }
        assert_eq!(endpoints.known.len(), 0);
    }

    #[test]
    fn address_that_is_no_host_is_left_out() {
        let mut endpoints = EndpointList::default();
        for address in ["", "a b", "user@host", "host/path", "host?q", "a:b"] {
            let changes = endpoints.apply(ServiceEvent::Added(info("1", address, 80)));
            assert_eq!(shown(changes), [""; 0], "{address}");
        }
        assert_eq!(shown(endpoints.apply(ServiceEvent::Added(info("1", "host", 0)))), [""; 0]);
        endpoints.apply(ServiceEvent::Added(info("1", "host", 80)));
        let spoiled = endpoints.apply(ServiceEvent::Added(info("1", "a b", 80)));
        assert_eq!(shown(spoiled), ["-1"]);
    }

    #[test]
    fn last_instances_stay_in_an_empty_list_if_so_asked() {
        let mut endpoints = EndpointList::new(true);
        let table: Vec<(&str, ServiceEvent, &[&str])> = vec![
            ("nobody yet", snapshot(vec![]), &[]),
            (
                "two",
                snapshot(vec![info("1", "10.0.0.1", 80), info("2", "10.0.0.2", 80)]),
                &["+1 10.0.0.1:80", "+2 10.0.0.2:80"],
            ),
            ("all gone at once", snapshot(vec![]), &[]),
            ("a bad one is nobody", ServiceEvent::Added(info("4", "a b", 80)), &[]),
            ("one is back", ServiceEvent::Added(info("2", "10.0.0.2", 80)), &["-1"]),
            ("another", ServiceEvent::Added(info("3", "10.0.0.3", 80)), &["+3 10.0.0.3:80"]),
            ("one by one", ServiceEvent::Removed(info("2", "10.0.0.2", 80)), &["-2"]),
            ("the last stays", ServiceEvent::Removed(info("3", "10.0.0.3", 80)), &[]),
            ("till the next", ServiceEvent::Added(info("5", "10.0.0.5", 80)), &["-3", "+5 10.0.0.5:80"]),
            ("and goes", snapshot(vec![info("6", "10.0.0.6", 80)]), &["-5", "+6 10.0.0.6:80"]),
        ];
        for (case, event, expected) in table {
            assert_eq!(shown(endpoints.apply(event)), expected, "{case}");
        }
    }
}
