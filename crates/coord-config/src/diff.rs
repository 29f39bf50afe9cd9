//! What is different between two JSON values. No I/O.

use std::{collections::BTreeSet, fmt};

use serde_json::Value;

/// One difference.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Difference {
    /// Where: a JSON pointer (RFC 6901), empty for the whole value.
    pub pointer: String,
    /// What was there; `None` if it was added.
    pub old: Option<Value>,
    /// What is there; `None` if it was removed.
    pub new: Option<Value>,
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

/// The differences, ordered by the names of the fields.
pub(crate) fn differences(old: &Value, new: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    compare(String::new(), Some(old), Some(new), &mut found);
    found
}

fn compare(pointer: String, old: Option<&Value>, new: Option<&Value>, found: &mut Vec<Difference>) {
    match (old, new) {
        (Some(old), Some(new)) if old == new => {}
        (Some(Value::Object(old)), Some(Value::Object(new))) => {
            // The order of a map depends on a feature of serde_json.
            for field in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
                let escaped = field.replace('~', "~0").replace('/', "~1");
                compare(format!("{pointer}/{escaped}"), old.get(field), new.get(field), found);
            }
        }
        (Some(Value::Array(old)), Some(Value::Array(new))) => {
            for n in 0..old.len().max(new.len()) {
                compare(format!("{pointer}/{n}"), old.get(n), new.get(n), found);
            }
        }
        (old, new) => found.push(Difference { pointer, old: old.cloned(), new: new.cloned() }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn differences_are_told_by_pointer() {
        let table = [
            (json!(1), json!(1), &[][..]),
            (json!(1), json!("1"), &["(all): 1 -> \"1\""]),
            (
                json!({"a": {"b/c": 1, "d~": 2}, "list": [1, 2, 3], "gone": null}),
                json!({"a": {"b/c": 5, "d~": 2, "new": []}, "list": [1, 7]}),
                &["/a/b~1c: 1 -> 5", "/a/new: + []", "/gone: - null", "/list/1: 2 -> 7", "/list/2: - 3"],
            ),
        ];
        for (old, new, expected) in table {
            let found: Vec<_> = differences(&old, &new).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected);
        }
    }
}
