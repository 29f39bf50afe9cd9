//! The stored record of an id, for people and for other processes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coord_api::{
    IdHolder, Owner,
    backend::{IdRange, time_of_day},
};
use serde::{Deserialize, Serialize};

use crate::keyspace::Keys;

/// The value of the key of an id and of its mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    #[serde(flatten)]
    owner: Owner,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<String>,
    /// Time since which the id is held, or rests.
    #[serde(with = "humantime_serde")]
    since: SystemTime,
    /// Time for which others have to let the id rest if its holder vanished.
    #[serde(with = "humantime_serde")]
    pub(super) rest: Duration,
    /// Number of this attempt among the client's.
    attempt: u64,
    /// Whether it is not held any more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) resting: bool,
}

impl Record {
    /// Makes the record of an id that is held from now on. A holder that vanished may believe in it for one
    /// TTL.
    pub(super) fn held(owner: &Owner, range: &IdRange, ttl: Duration, attempt: u64) -> Self {
        let (owner, identity) = (owner.clone(), range.identity.clone());
        let rest = range.quarantine.max(ttl);
        Self { owner, identity, since: now(), rest, attempt, resting: false }
    }

    /// Returns the record of the same id when it rests.
    pub(super) fn resting(&self) -> Self {
        Self { since: now(), resting: true, ..self.clone() }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings and numbers always serialize")
    }

    /// Parses a record; `None` for a value that another program has written.
    pub(super) fn read(value: &[u8]) -> Option<Self> {
        serde_json::from_slice(value).ok()
    }
}

/// Checks that a record that was read is written and read as the same again.
#[cfg(feature = "fuzz")]
pub(crate) fn read_again(value: &[u8]) {
    if let Some(record) = Record::read(value) {
        assert_eq!(Record::read(&record.to_bytes()), Some(record));
    }
    holder("/shop/ids/svc/ids/7", value);
}

/// Returns the present in whole seconds, for people.
fn now() -> SystemTime {
    let since = time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

/// Returns the holder of the id of a key; `None` if the id rests.
pub(super) fn holder(key: &str, value: &[u8]) -> Option<IdHolder> {
    let id = Keys::id_number(key)?.try_into().ok()?;
    match Record::read(value) {
        Some(record) if record.resting => None,
        Some(Record { owner, identity, since, .. }) => {
            Some(IdHolder::new(id, Some(owner), identity, Some(since)))
        }
        None => Some(IdHolder::new(id, None, None, None)),
    }
}

#[cfg(test)]
mod tests {
    use coord_api::{IdOptions, Ttl};

    use super::*;

    #[test]
    fn people_can_read_it_and_so_can_we() {
        let ttl = Ttl::parse(Duration::from_secs(30)).expect("is valid");
        let options = IdOptions::new("svc", 8).identity("web-1:80").quarantine(Duration::from_secs(5));
        let range = IdRange::of(options, ttl).expect("is valid");
        let owner = Owner::new("web-1", 42, None, "9f3a");
        let record = Record { since: UNIX_EPOCH, ..Record::held(&owner, &range, ttl.as_duration(), 7) };
        let text = String::from_utf8(record.to_bytes()).expect("is text");
        assert_eq!(
            text,
            r#"{"host":"web-1","pid":42,"client":"9f3a","identity":"web-1:80","since":"1970-01-01T00:00:00Z","rest":"30s","attempt":7}"#
        );
        assert_eq!(Record::read(text.as_bytes()), Some(record.clone()));
        assert_eq!(holder("/a/ids/7", text.as_bytes()).map(|holder| holder.id.get()), Some(7));
        assert_eq!(holder("/a/ids/7", &record.resting().to_bytes()), None);
    }

    #[test]
    fn the_value_of_the_go_original_is_a_holder_that_does_not_say_who_it_is() {
        let holder = holder("/im-infra/allocators/svc/ids/7", b"7").expect("is held");
        assert_eq!((holder.id.get(), holder.owner, holder.since), (7, None, None));
    }
}
