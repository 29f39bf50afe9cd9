//! Differences between two JSON values, compared as text: no number is read and rounded. No I/O.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use serde::Serialize;
use serde_json::value::RawValue;

use crate::text::{Member, compact, members};

/// Difference between two values, with JSON as it is stored: digits, repeated fields and the order of fields count.
///
/// Without `old` something was added, without `new` removed; `null` is a value as any other.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Difference {
    /// Place of the difference: a JSON pointer (RFC 6901), empty for the whole value.
    pub pointer: String,
    /// Value before; `None` if it was added.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub old: Option<Box<RawValue>>,
    /// Value now; `None` if it was removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub new: Option<Box<RawValue>>,
}

impl Difference {
    fn new(pointer: &str, old: Option<&str>, new: Option<&str>) -> Self {
        let raw = |text: &str| RawValue::from_string(compact(text)).expect("is a piece of JSON");
        Self { pointer: pointer.to_owned(), old: old.map(raw), new: new.map(raw) }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pointer = if self.pointer.is_empty() { "(all)" } else { &self.pointer };
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => write!(f, "{pointer}: {old} -> {new}"),
            (None, Some(new)) => write!(f, "{pointer}: + {new}"),
            (Some(old), None) => write!(f, "{pointer}: - {old}"),
            (None, None) => f.write_str(pointer),
        }
    }
}

/// Returns the differences in the order of the old value, then what was added.
pub(crate) fn differences(old: &str, new: &str) -> Vec<Difference> {
    let mut found = Vec::new();
    compare("", old, new, 0, &mut found);
    found
}

fn compare(pointer: &str, old: &str, new: &str, depth: usize, found: &mut Vec<Difference>) {
    // Deeper values are told as a whole.
    const DEEPEST: usize = 100;
    if compact(old) == compact(new) {
        return;
    }
    let is_same_kind = old.trim_start().as_bytes().first() == new.trim_start().as_bytes().first();
    let both = if is_same_kind && depth < DEEPEST { members(old).zip(members(new)) } else { None };
    let before = found.len();
    if let Some((old, new)) = both {
        let (old, new) = (named(old), named(new));
        let by_name: HashMap<&(String, usize), &str> =
            new.iter().map(|(name, value)| (name, *value)).collect();
        let mut gone: Vec<&(String, usize)> = Vec::new();
        for (name, old) in &old {
            let below = format!("{pointer}/{}", name.0);
            gone.push(name);
            match by_name.get(name) {
                Some(new) => compare(&below, old, new, depth + 1, found),
                None => found.push(Difference::new(&below, Some(old), None)),
            }
        }
        let known: HashSet<_> = gone.into_iter().collect();
        for (name, new) in new.iter().filter(|(name, _)| !known.contains(name)) {
            found.push(Difference::new(&format!("{pointer}/{}", name.0), None, Some(new)));
        }
    }
    // Only the order of fields, or the way a name is written, is another.
    if found.len() == before {
        found.push(Difference::new(pointer, Some(old), Some(new)));
    }
}

/// Names as they stand in a pointer, each with how often it stood there before; an index in a list.
fn named(members: Vec<Member<'_>>) -> Vec<((String, usize), &str)> {
    let mut seen: HashMap<String, usize> = HashMap::new();
    let name = |(at, member): (usize, Member<'_>)| match member.name {
        None => at.to_string(),
        Some(name) => {
            let read = serde_json::from_str::<String>(name).unwrap_or_else(|_| name.to_owned());
            read.replace('~', "~0").replace('/', "~1")
        }
    };
    let members = members.into_iter().enumerate();
    members
        .map(|(at, member)| {
            let name = name((at, member));
            let times = seen.entry(name.clone()).and_modify(|times| *times += 1).or_default();
            ((name, *times), member.value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_told_by_pointer_and_digit_by_digit() {
        let table: [(&str, &str, &[&str]); 8] = [
            ("1", " 1 ", &[]),
            ("1", "\"1\"", &["(all): 1 -> \"1\""]),
            ("1.0", "1", &["(all): 1.0 -> 1"]),
            (
                "[12345678901234567890123]",
                "[12345678901234567890124]",
                &["/0: 12345678901234567890123 -> 12345678901234567890124"],
            ),
            ("{\"a\":1,\"a\":2}", "{\"a\":1,\"a\":3}", &["/a: 2 -> 3"]),
            ("{\"a\":1,\"b\":2}", "{\"b\":2,\"a\":1}", &["(all): {\"a\":1,\"b\":2} -> {\"b\":2,\"a\":1}"]),
            ("null", "[]", &["(all): null -> []"]),
            (
                r#"{"a": {"b/c": 1, "d~": 2}, "list": [1, 2, 3], "gone": null}"#,
                r#"{"a": {"b/c": 5, "d~": 2, "new": []}, "list": [1, 7]}"#,
                &["/a/b~1c: 1 -> 5", "/a/new: + []", "/list/1: 2 -> 7", "/list/2: - 3", "/gone: - null"],
            ),
        ];
        for (old, new, expected) in table {
            let found: Vec<_> = differences(old, new).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{old} {new}");
        }
    }
}
