//! JSON as values are stored: nothing is written that a reader would refuse, or read as something else.
//!
//! `serde_json` writes more than it reads. NaN and the infinities become `null`, two fields may have one
//! name, and raw text may hold numbers and escapes that no reader takes. Every write goes through [`to_json`]
//! or [`check`], and both tell the path of a refusal. Neither depends on features of `serde_json`, which
//! another crate of a build may switch on.

mod check;
mod finite;

use serde::Serialize;

use crate::{Error, Result, names::ShownPath};
pub(crate) use check::check;
use finite::{Finite, Path};

/// The deepest nesting of arrays and objects: `serde_json` reads 127 levels.
pub(crate) const MAX_DEPTH: usize = 127;

/// A place in JSON text, and the reason why the text is refused there.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flaw {
    /// `None` for the text as a whole.
    path: Option<String>,
    reason: String,
}

impl Flaw {
    fn whole(reason: impl Into<String>) -> Self {
        Self { path: None, reason: reason.into() }
    }

    /// The error for a value of `key`.
    pub(crate) fn of(self, key: &str) -> Error {
        let Self { path, reason } = self;
        let place = path.map(|path| format!(" at {}", ShownPath(&path))).unwrap_or_default();
        Error::invalid("value", format!("of `{key}`{place} {reason}"))
    }
}

/// Writes `value` as JSON that everyone reads as it was, for what keeps values of `key` in other places.
///
/// # Errors
/// [`Error::InvalidArgument`] with the key and the JSON path. JSON can not express NaN, an infinity, or a map
/// with keys that are no text. Repeated fields are not read by everyone.
///
/// ```
/// use coord_api::backend::to_json;
/// assert_eq!(to_json("limits", &[Some(0.1), None])?, "[0.1,null]");
/// let refused = to_json("limits", &[0.1, f64::NAN]).expect_err("is no number");
/// assert_eq!(refused.to_string(), "invalid value: of `limits` at `[1]` can not be written as JSON: NaN is no number there");
/// # Ok::<(), coord_api::Error>(())
/// ```
pub fn to_json<T: Serialize + ?Sized>(key: &str, value: &T) -> Result<String> {
    let json = write(key, value)?;
    check(json.as_bytes(), MAX_DEPTH).map_err(|flaw| flaw.of(key))?;
    Ok(json)
}

/// Does that without a check of what was written.
pub(crate) fn write<T: Serialize + ?Sized>(key: &str, value: &T) -> Result<String> {
    let mut json = Vec::with_capacity(128);
    let path = Path::default();
    let written = value.serialize(Finite { inner: &mut serde_json::Serializer::new(&mut json), path: &path });
    written.map_err(|error| {
        let reason = format!("can not be written as JSON: {error}");
        Flaw { path: Some(path.shown()), reason }.of(key)
    })?;
    String::from_utf8(json).map_err(|_| Flaw::whole("is not UTF-8").of(key))
}
