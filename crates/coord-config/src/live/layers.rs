//! From entries to a value: which of them count, and how they are laid over each other. No I/O.

use std::sync::Arc;

use bytes::Bytes;
use coord_api::{Entry, EntryEvent, Error, Version};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::{
    check_result::guarded,
    current::{Rejection, RejectionCause},
    held::Held,
    merge::{self, Misfit, Text},
};

/// Entries in the places that a live value is made of, the lowest first.
#[derive(Clone)]
pub(super) struct Layers {
    entries: Vec<Option<Entry>>,
    merge: Option<Merge>,
}

/// Structs are merged field by field; without it the highest entry counts alone.
#[derive(Clone)]
pub(super) struct Merge {
    /// Fields that no entry has, as JSON, if there is a default for that.
    pub(super) lowest: Option<Box<RawValue>>,
}

/// Meaning of an event.
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
    pub(super) value: Held<T>,
    pub(super) version: Version,
}

/// The bytes that a value was made of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Inputs(Vec<Option<Bytes>>);

impl Layers {
    pub(super) fn new(count: usize, merge: Option<Merge>) -> Self {
        Self { entries: vec![None; count], merge }
    }

    pub(super) fn entries(&self) -> &[Option<Entry>] {
        &self.entries
    }

    /// Returns the entries that count now.
    pub(super) fn inputs(&self) -> Inputs {
        let bytes = |entry: &Option<Entry>| entry.as_ref().map(|entry| entry.as_bytes().clone());
        if self.merge.is_some() {
            return Inputs(self.entries.iter().map(bytes).collect());
        }
        let top = self.entries.iter().rev().find(|entry| entry.is_some());
        Inputs(top.map(bytes).into_iter().collect())
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
        let made = guarded(|| match &self.merge {
            None => top.decode().map_err(|error| rejection(top, error)),
            Some(merge) => self.merged(top, merge),
        });
        let value = made.unwrap_or_else(|| {
            Err(Rejection {
                key: top.key().into(),
                version: top.version(),
                cause: RejectionCause::Decode { path: ".".into() },
                reason: "its `Deserialize` panicked".into(),
            })
        })?;
        Ok(Some(Composed { value: Held::new(Arc::new(value)), version: self.version() }))
    }

    fn merged<T: DeserializeOwned>(&self, top: &Entry, merge: &Merge) -> Result<T, Rejection> {
        let entries = || self.entries.iter().flatten().rev();
        let texts = entries().map(|entry| {
            // Fails where the text as a whole is bad, in words that fit.
            serde_json::from_slice::<&RawValue>(entry.as_bytes()).map(RawValue::get).map_err(|error| {
                let told = entry.decode::<Box<RawValue>>().err();
                rejection(entry, told.unwrap_or_else(|| Error::invalid("value", error.to_string())))
            })
        });
        let mut texts = texts.collect::<Result<Vec<_>, _>>()?;
        texts.extend(merge.lowest.as_ref().map(|lowest| lowest.get()));
        let texts: Vec<_> = texts.into_iter().enumerate().map(|(layer, json)| Text { layer, json }).collect();
        merge::read(&texts).map_err(|Misfit { layer, path }| {
            let from = layer.and_then(|layer| entries().nth(layer)).unwrap_or(top);
            Rejection {
                key: from.key().into(),
                version: from.version(),
                cause: RejectionCause::Decode { path },
                // serde's own words may quote the value.
                reason: "JSON of another shape than expected".into(),
            }
        })
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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "as the layers take it")]
    fn entry(key: &str, version: u64, json: &str) -> Option<Entry> {
        Some(Entry::new(key, Version::new(version), json.to_owned()))
    }

    fn layers(merge: Option<Value>) -> Layers {
        let lowest = |json: Value| serde_json::value::to_raw_value(&json).expect("is JSON");
        Layers::new(2, merge.map(|json| Merge { lowest: Some(lowest(json)) }))
    }

    fn made<T: DeserializeOwned + Clone>(layers: &Layers) -> Option<(T, u64)> {
        layers.compose::<T>().expect("is good").map(|made| ((**made.value.get()).clone(), made.version.get()))
    }

    fn composed(layers: &Layers) -> Option<(Value, u64)> {
        made(layers)
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
    fn structs_are_merged_from_the_default_up() {
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        struct Outer {
            a: Option<u32>,
            r#in: Inner,
            list: Vec<u32>,
        }
        #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
        struct Inner {
            x: u32,
            y: u32,
            z: Option<u32>,
        }
        let mut layers = layers(Some(json!({"a": 0, "in": {"x": 0, "y": 0}, "list": [1, 2]})));
        layers.put(0, entry("common", 9, r#"{"a":1,"in":{"x":1}}"#));
        layers.put(1, entry("own", 3, r#"{"in":{"z":3},"list":[3],"a":null}"#));
        let expected = Outer { a: None, r#in: Inner { x: 1, y: 0, z: Some(3) }, list: vec![3] };
        assert_eq!(made(&layers), Some((expected, 9)));
        // A value that is no struct is one unit.
        assert_eq!(composed(&layers), Some((json!({"in": {"z": 3}, "list": [3], "a": null}), 9)));
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
        // The entry that the part is from.
        let mut layers = layers(Some(json!({})));
        layers.put(0, entry("common", 5, r#"{"sizes":["s3cret"]}"#));
        layers.put(1, entry("own", 3, "{}"));
        let rejection = layers.compose::<Limits>().map(|_| ()).expect_err("is bad");
        assert_eq!((rejection.key.as_str(), rejection.version.get()), ("common", 5));
        layers.put(0, entry("common", 6, "{}"));
        let rejection = layers.compose::<Limits>().map(|_| ()).expect_err("has no sizes");
        assert_eq!(
            (rejection.key.as_str(), rejection.cause),
            ("own", RejectionCause::Decode { path: ".".into() })
        );
    }

    #[test]
    fn a_deserialize_that_panics_is_a_rejection() {
        #[derive(Debug)]
        struct Panics;
        impl<'de> serde::Deserialize<'de> for Panics {
            fn deserialize<D: serde::Deserializer<'de>>(_: D) -> Result<Self, D::Error> {
                panic!("expected: it panics")
            }
        }
        for merge in [None, Some(json!({}))] {
            let mut layers = layers(merge);
            layers.put(1, entry("own", 3, "1"));
            let rejection = layers.compose::<Panics>().map(|_| ()).expect_err("panics");
            assert_eq!(
                (rejection.version.get(), rejection.reason.as_str()),
                (3, "its `Deserialize` panicked")
            );
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
