//! Names, parsed once at the edge. Inside, a value of these types is always valid.
//!
//! Rules for all:
//! - 1 to 255 bytes; segments divided by `/`; no control character;
//! - no segment is empty, `.` or `..`, nor begins or ends with white space;
//! - no `%`: backends store an inner `/` as `%2F`, so a `%` of the user's could make two names meet.

use std::fmt;

use crate::{Error, Result};

/// The longest name in bytes.
pub const MAX_NAME_BYTES: usize = 255;

fn check(field: &'static str, name: &str) -> Result<()> {
    let refuse = |reason: &str| Err(Error::invalid(field, format!("{} {reason}", Shown(name))));
    if name.is_empty() {
        return Err(Error::invalid(field, format!("is empty, it needs 1 to {MAX_NAME_BYTES} bytes")));
    }
    if name.len() > MAX_NAME_BYTES {
        return refuse(&format!("has {} bytes, the limit is {MAX_NAME_BYTES}", name.len()));
    }
    if name.chars().any(char::is_control) {
        return refuse("contains a control character");
    }
    if name.contains('%') {
        return refuse("contains `%`, which is kept for escaping");
    }
    if name.starts_with('/') || name.ends_with('/') {
        return refuse("begins or ends with `/`");
    }
    for segment in name.split('/') {
        match segment {
            "" => return refuse("contains an empty segment (`//`)"),
            "." | ".." => return refuse("contains `.` or `..` as a segment"),
            _ if segment.trim() != segment => return refuse("has white space at an end of a segment"),
            _ => {}
        }
    }
    Ok(())
}

/// Prints what is refused so that a person sees it and a terminal survives it: in backticks, escaped, and the beginning
/// if it is long.
///
/// ```
/// use coord_api::backend::Shown;
/// assert_eq!(Shown("a\nb").to_string(), r"`a\nb`");
/// assert_eq!(Shown(&"x".repeat(100)).to_string(), format!("`{}…`", "x".repeat(64)));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Shown<'a>(pub &'a str);

/// How many characters are shown, escapes counted as they are written.
const MOST_SHOWN: usize = 64;

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut escaped = self.0.escape_debug();
        let head: String = escaped.by_ref().take(MOST_SHOWN).collect();
        let more = if escaped.next().is_some() { "…" } else { "" };
        write!(f, "`{head}{more}`")
    }
}

/// Prints a path within a value as [`Shown`] does, since its steps may be another program's text. Of a long
/// path it is the end, where the field is.
///
/// ```
/// use coord_api::backend::ShownPath;
/// assert_eq!(ShownPath("pool.sizes[1]").to_string(), "`pool.sizes[1]`");
/// assert_eq!(ShownPath("a\nb").to_string(), r"`a\nb`");
/// assert_eq!(ShownPath(&format!("{}.port", "x".repeat(200))).to_string(), format!("`…{}.port`", "x".repeat(123)));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ShownPath<'a>(pub &'a str);

/// As [`MOST_SHOWN`], of a path: steps are names, and some of them are needed to find the place.
const MOST_SHOWN_OF_PATH: usize = 128;

impl fmt::Display for ShownPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped: Vec<char> = self.0.escape_debug().collect();
        let left_out = escaped.len().saturating_sub(MOST_SHOWN_OF_PATH);
        let more = if left_out > 0 { "…" } else { "" };
        write!(f, "`{more}{}`", escaped[left_out..].iter().collect::<String>())
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(std::sync::Arc<str>);

        impl $type {
            /// Checks the rule of this module.
            ///
            /// # Errors
            /// [`Error::InvalidArgument`] with this field's name and what is wrong.
            pub fn parse(name: &str) -> Result<Self> {
                check($field, name)?;
                Ok(Self(name.into()))
            }

            /// The name as the user wrote it.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// The name of a lock. `a` and `a/b` are two locks that know nothing of each other.
    LockName, "lock name"
}
name! {
    /// The name of an election. `a` and `a/b` are two elections that know nothing of each other.
    ElectionName, "election name"
}
name! {
    /// The name of a service. `im-logic` and `im-logic-2` never meet.
    ServiceName, "service name"
}
name! {
    /// The id of one instance within its service.
    InstanceId, "instance id"
}
name! {
    /// The part of a shared store that a provider works in.
    Namespace, "namespace"
}

/// The key of one config value, for example `common/mq`, or of something that is kept beside it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigKey {
    path: std::sync::Arc<str>,
    beside: bool,
}

impl ConfigKey {
    /// The key of a value. Checks the rule of this module.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with this field's name and what is wrong.
    pub fn parse(key: &str) -> Result<Self> {
        check("config key", key)?;
        Ok(Self { path: key.into(), beside: false })
    }

    /// Returns whether [`parse`](Self::parse) takes it, for what is found in a store that other programs
    /// write to as well.
    pub fn is_key(key: &str) -> bool {
        check("config key", key).is_ok()
    }

    /// The place of something that is kept about the value of `key`: `kind/<key>/part`, or `kind/<key>` for an
    /// empty part, in a space of its own. No list or watch of values sees it, and no key of a value is the same.
    ///
    /// ```
    /// use coord_api::ConfigKey;
    /// let place = ConfigKey::parse("common/mq")?.beside("history", "index");
    /// assert_eq!(place.as_str(), "history/common%2Fmq/index");
    /// assert!(place.is_beside());
    /// # Ok::<(), coord_api::Error>(())
    /// ```
    #[must_use]
    pub fn beside(&self, kind: &str, part: &str) -> Self {
        let key = self.path.replace('/', "%2F");
        let path = if part.is_empty() { format!("{kind}/{key}") } else { format!("{kind}/{key}/{part}") };
        Self { path: path.into(), beside: true }
    }

    /// Returns whether this is a place beside the values.
    pub fn is_beside(&self) -> bool {
        self.beside
    }

    /// The key as the user wrote it, or the path in the space beside the values.
    pub fn as_str(&self) -> &str {
        &self.path
    }
}

impl fmt::Display for ConfigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path)
    }
}

impl fmt::Debug for ConfigKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.path, f)
    }
}

/// A part of the config keys: all of them, or those below one path.
///
/// Prefixes end at a `/`: `common` covers `common/mq`, but neither `common` itself nor `common2/mq`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConfigPrefix(Option<std::sync::Arc<str>>);

impl ConfigPrefix {
    /// Parses a prefix; the empty string covers every key.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for what is no valid name.
    pub fn parse(prefix: &str) -> Result<Self> {
        if prefix.is_empty() {
            return Ok(Self(None));
        }
        check("config prefix", prefix)?;
        Ok(Self(Some(prefix.into())))
    }

    /// Prefix of every covered key: empty, or a path that ends in `/`.
    pub fn as_key_start(&self) -> String {
        self.0.as_ref().map(|path| format!("{path}/")).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_pass_unchanged() {
        for name in ["a", "a/b", "im-logic", "im-logic-2", "jobs/日报", "host:8080", "a b", "...", "a..b"] {
            assert_eq!(LockName::parse(name).expect(name).as_str(), name);
        }
        assert!(ConfigKey::parse(&"x".repeat(MAX_NAME_BYTES)).is_ok());
    }

    #[test]
    fn every_bad_name_is_refused_with_its_field_and_reason() {
        let long = "x".repeat(MAX_NAME_BYTES + 1);
        let table = [
            ("", "is empty"),
            ("/a", "begins or ends with `/`"),
            ("a/", "begins or ends with `/`"),
            ("/", "begins or ends with `/`"),
            ("a//b", "empty segment"),
            (".", "`.` or `..`"),
            ("..", "`.` or `..`"),
            ("../services/x", "`.` or `..`"),
            ("a/../b", "`.` or `..`"),
            ("a\0", "control character"),
            ("a\nb", "control character"),
            ("\u{7f}", "control character"),
            (" a", "white space"),
            ("a ", "white space"),
            ("a/ b", "white space"),
            ("a%2Fb", "`%`"),
            (long.as_str(), "has 256 bytes, the limit is 255"),
        ];
        for (name, reason) in table {
            let error = ServiceName::parse(name).expect_err(name).to_string();
            assert!(error.starts_with("invalid service name: "), "{error}");
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains('\n') && error.len() < 200, "{error}");
        }
    }

    #[test]
    fn a_prefix_ends_at_a_segment() {
        assert_eq!(ConfigPrefix::parse("").expect("all").as_key_start(), "");
        assert_eq!(ConfigPrefix::parse("common").expect("path").as_key_start(), "common/");
        assert!(ConfigPrefix::parse("common/").is_err());
        assert!(ConfigPrefix::parse("..").is_err());
    }
}
