//! Conversion of a change of a key to the event that users are told.

use coord_api::{Entry, EntryEvent};

use crate::{request::version, store::Change};

/// Returns a change as watches tell it, under the user's name of the key.
pub(super) fn event(change: &Change, name: String) -> EntryEvent {
    let version = version(change.revision);
    match &change.value {
        Some(value) => EntryEvent::Put(Entry::new(name, version, value.clone())),
        None => EntryEvent::Deleted { key: name, version },
    }
}
