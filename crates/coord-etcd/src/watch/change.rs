//! One change of one key.

use bytes::Bytes;
use coord_api::{Entry, EntryEvent, Version};
use etcd_client::{Event, EventType, KeyValue};

/// One change of one key, owned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) key: String,
    pub(crate) revision: i64,
    /// The revision at which the key was created; 0 if it was deleted.
    pub(crate) created: i64,
    /// The new value; `None` if the key was deleted.
    pub(crate) value: Option<Bytes>,
}

impl Change {
    /// `None` for a key that is not UTF-8, which coord never writes and no one can ask for.
    pub(crate) fn of(event: &Event) -> Option<Self> {
        let kv = event.kv()?;
        let value = match event.event_type() {
            EventType::Put => Some(Bytes::copy_from_slice(kv.value())),
            EventType::Delete => None,
        };
        Some(Self {
            key: kv.key_str().ok()?.into(),
            revision: kv.mod_revision(),
            created: kv.create_revision(),
            value,
        })
    }

    /// The change as watches tell it, under the user's name of the key.
    pub(crate) fn event(&self, name: String) -> EntryEvent {
        let version = version(self.revision);
        match &self.value {
            Some(value) => EntryEvent::Put(Entry::new(name, version, value.clone())),
            None => EntryEvent::Deleted { key: name, version },
        }
    }
}

/// A revision of etcd as a version.
pub(crate) fn version(revision: i64) -> Version {
    Version::new(u64::try_from(revision).expect("etcd's revisions are not negative"))
}

/// A stored pair as an entry, under the user's name of the key.
pub(crate) fn entry(kv: &KeyValue, name: String) -> Entry {
    Entry::new(name, version(kv.mod_revision()), Bytes::copy_from_slice(kv.value()))
}
