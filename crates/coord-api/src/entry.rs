//! Stored entries and their changes, as backends deliver them: keys, versions, JSON bytes.

use std::fmt;

use bytes::Bytes;
use serde::de::DeserializeOwned;

use crate::{Error, Result, Version};

/// Stored value with its key and version. Its `Debug` shows the size, never the value.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    key: String,
    version: Version,
    value: Bytes,
}

impl Entry {
    /// An entry as a backend read it.
    pub fn new(key: impl Into<String>, version: Version, value: impl Into<Bytes>) -> Self {
        Self { key: key.into(), version, value: value.into() }
    }

    /// The key, in the form that every call takes.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The version at which the value was written.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The stored bytes; JSON, unless another program wrote something else.
    pub fn as_bytes(&self) -> &Bytes {
        &self.value
    }

    /// Decodes the JSON.
    ///
    /// # Errors
    /// [`Error::Decode`] with the key, the version and the JSON path of the first difference. If the JSON is
    /// cut off, it is the innermost field or element that was begun; `.` is the whole.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T> {
        let mut json = serde_json::Deserializer::from_slice(&self.value);
        let value = serde_path_to_error::deserialize(&mut json)
            .map_err(|error| self.decode_error(known_part(error.path()), error.inner()))?;
        json.end().map_err(|error| self.decode_error(".".into(), &error))?;
        Ok(value)
    }

    fn decode_error(&self, path: String, error: &serde_json::Error) -> Error {
        // serde's own message may quote the value, which may be a secret: only the kind and place are kept.
        let kind = match error.classify() {
            serde_json::error::Category::Syntax if self.value.starts_with(b"\xef\xbb\xbf") => {
                "a byte order mark before the JSON, which another program wrote: save it as UTF-8 without BOM"
            }
            serde_json::error::Category::Syntax => "not valid JSON",
            serde_json::error::Category::Eof => "the JSON ends too early",
            serde_json::error::Category::Data => "JSON of another shape than expected",
            serde_json::error::Category::Io => "could not be read",
        };
        let source = format!("{kind}, line {} column {}", error.line(), error.column()).into();
        Error::Decode { key: self.key.clone(), version: self.version, path, source }
    }
}

/// Returns the known part of a path: if the JSON is broken, its last step is unknown.
fn known_part(path: &serde_path_to_error::Path) -> String {
    let path = path.to_string();
    match path.trim_end_matches(['?', '.']) {
        "" => ".".into(),
        known => known.into(),
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("version", &self.version)
            .field("bytes", &self.value.len())
            .finish()
    }
}

/// Item of a watch over entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryEvent {
    /// Everything in scope as it was at `version`; replaces all that was known.
    Snapshot {
        /// The store's revision of the snapshot.
        version: Version,
        /// The entries, ordered by key.
        entries: Vec<Entry>,
    },
    /// An entry was written.
    Put(Entry),
    /// An entry was deleted.
    Deleted {
        /// The key.
        key: String,
        /// The store's revision of the deletion.
        version: Version,
    },
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    fn decode_error(json: &str) -> (String, String) {
        #[derive(Debug, serde::Deserialize)]
        #[expect(dead_code, reason = "only decoded")]
        struct Pool {
            sizes: Vec<u8>,
        }
        let entry = Entry::new("common/mq", Version::new(7), json.to_owned());
        let error = entry.decode::<Pool>().expect_err(json);
        assert!(!format!("{error} {error:?}").contains("s3cret"), "{error:?}");
        (error.to_string(), error.source().expect("has a source").to_string())
    }

    #[test]
    fn a_decode_error_names_key_version_and_path_but_not_the_value() {
        let (message, source) = decode_error(r#"{"sizes":[1,"s3cret"]}"#);
        assert_eq!(message, "common/mq at version 7 does not have the expected form at `sizes[1]`");
        assert_eq!(source, "JSON of another shape than expected, line 1 column 20");
    }

    #[test]
    fn broken_json_has_the_path_that_was_reached() {
        let table = [
            ("", "`.`", "line 1 column 0"),
            (r#"{"sizes":[1,"#, "`sizes`", "the JSON ends too early, line 1 column 12"),
            (r#"{"sizes":[1,2"#, "`sizes`", "line 1 column 13"),
            (r#"{"sizes""#, "`.`", "line 1 column 8"),
            (r#"{"siz"#, "`.`", "line 1 column 5"),
            (r#"{"sizes":[1,x]}"#, "`sizes[1]`", "not valid JSON, line 1 column 13"),
            ("\u{feff}{\"sizes\":[]}", "`.`", "a byte order mark before the JSON"),
        ];
        for (json, path, place) in table {
            let (message, source) = decode_error(json);
            assert!(message.contains(path) && source.contains(place), "{json}: {message}: {source}");
        }
    }

    #[test]
    fn garbage_is_an_error_not_a_panic() {
        decode_error("");
        decode_error("{s3cret");
        decode_error("null");
        decode_error(r#"{"sizes":[]} s3cret"#);
        decode_error(&"[".repeat(100_000));
        let bytes = Entry::new("k", Version::new(1), vec![0xff, 0xfe]);
        assert!(bytes.decode::<String>().is_err());
    }

    #[test]
    fn debug_hides_the_value() {
        let entry = Entry::new("k", Version::new(1), r#""s3cret""#);
        assert_eq!(format!("{entry:?}"), r#"Entry { key: "k", version: Version(1), bytes: 8 }"#);
    }
}
