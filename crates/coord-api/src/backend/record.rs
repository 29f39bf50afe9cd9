//! Records of the registry, as they are stored, and how a watch over them is read.

use std::{collections::BTreeMap, vec};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{Entry, EntryEvent, Error, Owner, Result, ServiceEvent, ServiceInfo, ServiceName, Watch};

/// A registered instance as it is stored: its public record and who wrote it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The public record.
    #[serde(flatten)]
    pub service: ServiceInfo,
    /// The client that registered it; other programs' records have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
}

impl Record {
    /// The record of an instance that `owner` registers.
    pub fn owned(mut service: ServiceInfo, owner: &Owner) -> Self {
        // Where a user read a record as a whole, the owner of then is among the fields of other programs.
        service.foreign.remove("owner");
        Self { service, owner: Some(owner.to_string()) }
    }

    /// The stored form.
    pub fn to_json(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings, numbers and maps with string keys always serialize").into()
    }

    /// Reads an entry whose key is `service/id`.
    ///
    /// # Errors
    /// [`Error::Decode`] for what is no record, a record of another service or instance, or an address that clients can
    /// not connect to.
    pub fn from_entry(service: &ServiceName, entry: &Entry) -> Result<Self> {
        let record = Self::of_instance(service, entry)?;
        record.service.check_endpoint().map_err(|error| Error::Decode {
            key: entry.key().into(),
            version: entry.version(),
            path: "address".into(),
            source: error.to_string().into(),
        })?;
        Ok(record)
    }

    /// The record of the instance that the key names, whatever its address is.
    fn of_instance(service: &ServiceName, entry: &Entry) -> Result<Self> {
        let mut record: Self = entry.decode()?;
        record.service.revision = Some(entry.version());
        let mismatch = |path: &str, found: &str| Error::Decode {
            key: entry.key().into(),
            version: entry.version(),
            path: path.into(),
            source: format!("the record says {found:?}").into(),
        };
        if record.service.name != service.as_str() {
            return Err(mismatch("name", &record.service.name));
        }
        let id = entry.key().strip_prefix(service.as_str()).and_then(|rest| rest.strip_prefix('/'));
        if id != Some(&record.service.id) {
            return Err(mismatch("id", &record.service.id));
        }
        Ok(record)
    }

    /// Returns whether the client `me` may register over what is stored.
    ///
    /// It may replace a record of its own, and an entry that is no record of the instance, by which nobody
    /// can find anything. Not over one without an owner: another program has the id.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`] with the owner.
    pub fn check_replaceable(service: &ServiceName, entry: &Entry, me: &Owner) -> Result<()> {
        match Self::of_instance(service, entry) {
            Ok(Self { owner, service }) if owner.as_deref() != Some(&*me.to_string()) => {
                let ServiceInfo { name: service, id, .. } = service;
                let owner = owner.unwrap_or_else(|| "another program".into());
                Err(Error::AlreadyRegistered { service, id, owner })
            }
            _ => Ok(()),
        }
    }

    /// The instances of `service` among entries with keys `service/id`, ordered by id. An entry that is no
    /// record of it is left out, with a warning in the log.
    pub fn instances(service: &ServiceName, entries: impl IntoIterator<Item = Entry>) -> Vec<ServiceInfo> {
        let mut instances = Vec::new();
        for entry in entries {
            match Self::from_entry(service, &entry) {
                Ok(record) => instances.push(record.service),
                Err(error) => tracing::warn!(%service, %error, "record left out of discovery"),
            }
        }
        // Stored keys are escaped, which orders ids that contain a `/` differently.
        instances.sort_unstable_by(|a, b| a.id.cmp(&b.id));
        instances
    }
}

/// Turns a watch over the stored records of `service`, with keys `service/id`, into one of instances.
pub fn service_events(service: ServiceName, entries: Watch<EntryEvent>) -> Watch<ServiceEvent> {
    let mut decoder = Decoder { service, known: BTreeMap::new() };
    entries.told_as(move |item| decoder.step(item))
}

/// Remembers the last good record of each key, so that a removal can tell what was removed.
struct Decoder {
    service: ServiceName,
    known: BTreeMap<String, ServiceInfo>,
}

impl Decoder {
    fn step(&mut self, item: Result<EntryEvent>) -> vec::IntoIter<Result<ServiceEvent>> {
        let mut items = Vec::new();
        match item {
            Err(error) => items.push(Err(error)),
            Ok(EntryEvent::Snapshot { version, entries }) => {
                let before = std::mem::take(&mut self.known);
                let mut errors = Vec::new();
                for entry in entries {
                    match Record::from_entry(&self.service, &entry) {
                        Ok(record) => drop(self.known.insert(entry.key().into(), record.service)),
                        Err(error) => {
                            // The instance may well be alive: its last good record is kept.
                            if let Some(last_good) = before.get(entry.key()) {
                                self.known.insert(entry.key().into(), last_good.clone());
                            }
                            errors.push(Err(error));
                        }
                    }
                }
                let instances = self.known.values().cloned().collect();
                items.push(Ok(ServiceEvent::Snapshot { version, instances }));
                items.append(&mut errors);
            }
            Ok(EntryEvent::Put(entry)) => match Record::from_entry(&self.service, &entry) {
                Ok(Record { service: new, .. }) => match self.known.insert(entry.key().into(), new.clone()) {
                    // Written again unchanged, as after a lost lease: nothing that a client could act on.
                    Some(old) if old == new => {}
                    Some(old) => items.push(Ok(ServiceEvent::Updated { old, new })),
                    None => items.push(Ok(ServiceEvent::Added(new))),
                },
                Err(error) => items.push(Err(error)),
            },
            Ok(EntryEvent::Deleted { key, .. }) => {
                items.extend(self.known.remove(&key).map(|gone| Ok(ServiceEvent::Removed(gone))));
            }
        }
        items.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Version;

    fn info(id: &str, port: u16) -> ServiceInfo {
        ServiceInfo::new("svc", id, "10.0.0.1", port)
    }

    fn entry(id: &str, port: u16, version: u64) -> Entry {
        let record = Record { service: info(id, port), owner: Some("me".into()) };
        Entry::new(format!("svc/{id}"), Version::new(version), record.to_json())
    }

    fn garbage(id: &str) -> Entry {
        Entry::new(format!("svc/{id}"), Version::new(9), "{")
    }

    fn decoder() -> Decoder {
        Decoder { service: ServiceName::parse("svc").expect("is valid"), known: BTreeMap::new() }
    }

    fn shown(items: vec::IntoIter<Result<ServiceEvent>>) -> Vec<String> {
        items
            .map(|item| match item {
                Ok(ServiceEvent::Snapshot { instances, .. }) => {
                    let ids: Vec<_> = instances.iter().map(|i| format!("{}:{}", i.id, i.port)).collect();
                    format!("snapshot {}", ids.join(" "))
                }
                Ok(ServiceEvent::Added(i)) => format!("added {}:{}", i.id, i.port),
                Ok(ServiceEvent::Updated { old, new }) => {
                    format!("updated {}:{} to {}", old.id, old.port, new.port)
                }
                Ok(ServiceEvent::Removed(i)) => format!("removed {}:{}", i.id, i.port),
                Err(Error::Decode { key, .. }) => format!("bad {key}"),
                Err(other) => panic!("{other}"),
            })
            .collect()
    }

    #[test]
    fn events_carry_old_and_new_records() {
        let mut decoder = decoder();
        let version = Version::new(1);
        let snapshot = EntryEvent::Snapshot { version, entries: vec![entry("1", 80, 1)] };
        assert_eq!(shown(decoder.step(Ok(snapshot))), ["snapshot 1:80"]);
        assert_eq!(shown(decoder.step(Ok(EntryEvent::Put(entry("2", 80, 2))))), ["added 2:80"]);
        assert_eq!(shown(decoder.step(Ok(EntryEvent::Put(entry("1", 81, 3))))), ["updated 1:80 to 81"]);
        assert_eq!(shown(decoder.step(Ok(EntryEvent::Put(entry("1", 81, 4))))), [""; 0]);
        let deleted = |key: &str| Ok(EntryEvent::Deleted { key: key.into(), version: Version::new(5) });
        assert_eq!(shown(decoder.step(deleted("svc/1"))), ["removed 1:81"]);
        assert_eq!(shown(decoder.step(deleted("svc/1"))), [""; 0]);
    }

    #[test]
    fn a_bad_record_is_reported_and_the_last_good_one_kept() {
        let mut decoder = decoder();
        let entries = vec![entry("1", 80, 1), garbage("2")];
        let version = Version::new(1);
        let first = decoder.step(Ok(EntryEvent::Snapshot { version, entries }));
        assert_eq!(shown(first), ["snapshot 1:80", "bad svc/2"]);
        assert_eq!(shown(decoder.step(Ok(EntryEvent::Put(garbage("1"))))), ["bad svc/1"]);
        let entries = vec![garbage("1")];
        let again = decoder.step(Ok(EntryEvent::Snapshot { version, entries }));
        assert_eq!(shown(again), ["snapshot 1:80", "bad svc/1"]);
    }

    #[test]
    fn a_record_that_was_read_as_a_whole_can_be_written_again() {
        let (before, now) = (Owner::new("h", 1, None, "before"), Owner::new("h", 2, None, "now"));
        let stored = Record::owned(info("1", 80), &before).to_json();
        let mut read: ServiceInfo = serde_json::from_slice(&stored).expect("is a record");
        read.metadata.insert("v".into(), "2".into());
        let again = Record::owned(read, &now).to_json();
        let again: Record = serde_json::from_slice(&again).expect("has one owner");
        assert_eq!(again, Record::owned(info("1", 80).with("v", "2"), &now));
    }

    #[test]
    fn a_record_of_another_is_not_replaced_and_what_is_none_is() {
        let service = ServiceName::parse("svc").expect("is valid");
        let (me, other) = (Owner::new("h", 1, None, "me"), Owner::new("h", 2, None, "other"));
        let of = |owner: Option<&Owner>| {
            let record = Record { service: info("1", 80), owner: owner.map(ToString::to_string) };
            Entry::new("svc/1", Version::new(1), record.to_json())
        };
        let check = |entry: &Entry| Record::check_replaceable(&service, entry, &me);
        check(&of(Some(&me))).expect("is ours");
        check(&garbage("1")).expect("is no record");
        for (owner, named) in [(Some(&other), other.to_string()), (None, "another program".into())] {
            let refused = check(&of(owner));
            assert!(
                matches!(&refused, Err(Error::AlreadyRegistered { service, id, owner })
                    if service == "svc" && id == "1" && *owner == named),
                "{refused:?}"
            );
        }
    }

    #[test]
    fn a_record_under_another_key_is_not_believed() {
        let service = ServiceName::parse("svc").expect("is valid");
        let moved = Entry::new("svc/2", Version::new(1), entry("1", 80, 1).as_bytes().clone());
        assert!(Record::from_entry(&service, &moved).is_err());
        let other = ServiceName::parse("svc2").expect("is valid");
        assert!(Record::from_entry(&other, &entry("1", 80, 1)).is_err());
    }
}
