//! From entries to a value: which of them count, and how they are laid over each other. No I/O.

use bytes::Bytes;
use coord_api::{Entry, EntryEvent, Error, Version};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::current::{Rejection, RejectionCause};

/// What is stored in the places that a live value is made of, the lowest first.
#[derive(Clone)]
pub(super) struct Layers {
    entries: Vec<Option<Entry>>,
    merge: Option<Merge>,
}

/// Objects are merged field by field; without it the highest entry counts alone.
#[derive(Clone)]
pub(super) struct Merge {
    /// What fields have that no entry has; an empty object for nothing.
    pub(super) lowest: Value,
}

/// What an event meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// Nothing is different.
    Same,
    /// An entry was written.
    Written,
    /// An entry was deleted.
    Deleted,
}

/// A value made of entries.
pub(super) struct Composed<T> {
    pub(super) value: T,
    pub(super) version: Version,
}

/// The bytes that a value was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Ingredients(Vec<Option<Bytes>>);

impl Layers {
    pub(super) fn new(count: usize, merge: Option<Merge>) -> Self {
        Self { entries: vec![None; count], merge }
    }

    pub(super) fn entries(&self) -> &[Option<Entry>] {
        &self.entries
    }

    /// What counts now.
    pub(super) fn ingredients(&self) -> Ingredients {
        let bytes = |entry: &Option<Entry>| entry.as_ref().map(|entry| entry.as_bytes().clone());
        if self.merge.is_some() {
            return Ingredients(self.entries.iter().map(bytes).collect());
        }
        let top = self.entries.iter().rev().find(|entry| entry.is_some());
        Ingredients(top.map(bytes).into_iter().collect())
    }

    /// The version of the youngest entry that counts.
    pub(super) fn version(&self) -> Version {
        let mut present = self.entries.iter().flatten().map(Entry::version);
        let version = if self.merge.is_some() { present.max() } else { present.next_back() };
        version.unwrap_or(Version::ABSENT)
    }

    /// Sets what is stored in one place.
    pub(super) fn put(&mut self, layer: usize, entry: Option<Entry>) {
        self.entries[layer] = entry;
    }

    /// Takes an event of one place.
    pub(super) fn apply(&mut self, layer: usize, event: EntryEvent) -> Step {
        let known = self.entries[layer].as_ref().map(Entry::version);
        let entry = match event {
            EntryEvent::Snapshot { mut entries, .. } => entries.pop(),
            // Known already: it was read while the event was on its way.
            EntryEvent::Put(entry) if known >= Some(entry.version()) => return Step::Same,
            EntryEvent::Put(entry) => Some(entry),
            EntryEvent::Deleted { version, .. } if known >= Some(version) => return Step::Same,
            EntryEvent::Deleted { .. } => None,
        };
        let step = match (&self.entries[layer], &entry) {
            (Some(old), Some(new)) if old == new => Step::Same,
            (_, Some(_)) => Step::Written,
            (Some(_), None) => Step::Deleted,
            (None, None) => Step::Same,
        };
        self.entries[layer] = entry;
        step
    }

    /// Makes the value; `None` if nothing is there.
    pub(super) fn compose<T: DeserializeOwned>(&self) -> Result<Option<Composed<T>>, Rejection> {
        let Some(top) = self.entries.iter().flatten().next_back() else { return Ok(None) };
        let version = self.version();
        let value = match &self.merge {
            None => top.decode().map_err(|error| rejection(top, error))?,
            Some(Merge { lowest }) => {
                let mut merged = lowest.clone();
                for entry in self.entries.iter().flatten() {
                    lay_over(&mut merged, entry.decode().map_err(|error| rejection(entry, error))?);
                }
                serde_path_to_error::deserialize(merged).map_err(|error| Rejection {
                    key: top.key().into(),
                    version,
                    cause: RejectionCause::Decode { path: error.path().to_string() },
                    // serde's own words may quote the value.
                    reason: "JSON of another shape than expected".into(),
                })?
            }
        };
        Ok(Some(Composed { value, version }))
    }
}

fn rejection(entry: &Entry, error: Error) -> Rejection {
    let (path, reason) = match error {
        Error::Decode { path, source, .. } => (path, source.to_string()),
        other => (".".into(), other.to_string()),
    };
    let cause = RejectionCause::Decode { path };
    Rejection { key: entry.key().into(), version: entry.version(), cause, reason }
}

/// Objects are merged, anything else is replaced.
fn lay_over(below: &mut Value, above: Value) {
    match (below, above) {
        (Value::Object(below), Value::Object(above)) => {
            for (field, value) in above {
                lay_over(below.entry(field).or_insert(Value::Null), value);
            }
        }
        (below, above) => *below = above,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as the layers take it")]
    fn entry(key: &str, version: u64, json: &str) -> Option<Entry> {
        Some(Entry::new(key, Version::new(version), json.to_owned()))
    }

    fn layers(merge: Option<Value>) -> Layers {
        Layers::new(2, merge.map(|lowest| Merge { lowest }))
    }

    fn composed(layers: &Layers) -> Option<(Value, u64)> {
        layers.compose::<Value>().expect("is good").map(|made| (made.value, made.version.get()))
    }

    #[test]
    fn the_highest_entry_counts_alone() {
        let mut layers = layers(None);
        assert_eq!(composed(&layers), None);
        layers.put(0, entry("common", 9, r#"{"a":1}"#));
        assert_eq!(composed(&layers), Some((json!({"a": 1}), 9)));
        layers.put(1, entry("own", 3, r#"{"b":2}"#));
        assert_eq!(composed(&layers), Some((json!({"b": 2}), 3)));
    }

    #[test]
    fn or_objects_are_merged_from_the_default_up() {
        let mut layers = layers(Some(json!({"a": 0, "in": {"x": 0, "y": 0}, "list": [1, 2]})));
        layers.put(0, entry("common", 9, r#"{"a":1,"in":{"x":1}}"#));
        layers.put(1, entry("own", 3, r#"{"in":{"z":3},"list":[3],"a":null}"#));
        let expected = json!({"a": null, "in": {"x": 1, "y": 0, "z": 3}, "list": [3]});
        assert_eq!(composed(&layers), Some((expected, 9)));
    }

    #[test]
    fn a_bad_entry_is_named_with_its_path() {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only decoded")]
        struct Limits {
            sizes: Vec<u8>,
        }
        for merge in [None, Some(json!({}))] {
            let mut layers = layers(merge);
            layers.put(1, entry("own", 3, r#"{"sizes":[1,"s3cret"]}"#));
            let rejection = layers.compose::<Limits>().map(|_| ()).expect_err("is bad");
            assert_eq!((rejection.key.as_str(), rejection.version.get()), ("own", 3));
            assert_eq!(rejection.cause, RejectionCause::Decode { path: "sizes[1]".into() });
            assert!(!format!("{rejection} {rejection:?}").contains("s3cret"));
            layers.put(1, entry("own", 4, "{s3cret"));
            let rejection = layers.compose::<Limits>().map(|_| ()).expect_err("is bad");
            assert_eq!(rejection.key, "own");
        }
    }

    #[test]
    fn events_that_are_known_already_change_nothing() {
        let mut layers = layers(None);
        let put = |version, json: &str| EntryEvent::Put(entry("own", version, json).expect("is some"));
        let deleted = |version| EntryEvent::Deleted { key: "own".into(), version: Version::new(version) };
        let snapshot = |entry: Option<Entry>| EntryEvent::Snapshot {
            version: Version::new(99),
            entries: entry.into_iter().collect(),
        };
        let table = [
            (snapshot(None), Step::Same, None),
            (put(5, "5"), Step::Written, Some(5)),
            (put(5, "5"), Step::Same, Some(5)),
            (put(4, "4"), Step::Same, Some(5)),
            (deleted(4), Step::Same, Some(5)),
            (snapshot(entry("own", 5, "5")), Step::Same, Some(5)),
            (deleted(6), Step::Deleted, None),
            (put(7, "7"), Step::Written, Some(7)),
            // The store was emptied and filled anew: its snapshot counts, whatever its versions are.
            (snapshot(entry("own", 2, "2")), Step::Written, Some(2)),
            (snapshot(None), Step::Deleted, None),
        ];
        for (event, step, value) in table {
            let shown = format!("{event:?}");
            assert_eq!(layers.apply(1, event), step, "{shown}");
            assert_eq!(composed(&layers).map(|(_, version)| version), value, "{shown}");
        }
    }
}
