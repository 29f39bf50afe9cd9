//! Looks for what grammar allows in JSON text and readers refuse. It takes a single pass, without recursion.

use std::{borrow::Cow, collections::HashSet};

use serde::de::IgnoredAny;

use super::Flaw;

/// How many names of one object are compared one by one, before they are hashed.
const FEW: usize = 16;

/// Refuses text that is no JSON, or would not be read by everyone as it was written: repeated fields, numbers
/// beyond an `f64`, escapes that are no character. Nesting deeper than `deepest` levels is refused too.
pub(crate) fn check(json: &[u8], deepest: usize) -> Result<(), Flaw> {
    if json.starts_with(b"\xef\xbb\xbf") {
        return Err(Flaw::whole(
            "begins with a byte order mark, which JSON must not have: save it as UTF-8 without BOM",
        ));
    }
    let text = std::str::from_utf8(json).map_err(|_| Flaw::whole("is not UTF-8"))?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| Flaw::whole(format!("is not JSON: {error}")))?;
    Scan { text, at: 0, deepest, open: Vec::new() }.run()
}

/// A walk over text of which the grammar is known to be good.
struct Scan<'a> {
    text: &'a str,
    at: usize,
    deepest: usize,
    /// The objects and arrays around this place.
    open: Vec<Open<'a>>,
}

enum Open<'a> {
    Object { names: Names<'a>, last: Cow<'a, str>, expects_name: bool },
    Array { index: usize },
}

/// The names of one object so far.
#[derive(Default)]
struct Names<'a> {
    few: Vec<Cow<'a, str>>,
    many: HashSet<Cow<'a, str>>,
}

impl<'a> Names<'a> {
    /// Adds a name; `false` if it is there.
    fn insert(&mut self, name: Cow<'a, str>) -> bool {
        if self.few.len() == FEW {
            self.many.extend(self.few.drain(..));
        }
        if !self.many.is_empty() {
            return self.many.insert(name);
        }
        if self.few.contains(&name) {
            return false;
        }
        self.few.push(name);
        true
    }
}

impl<'a> Scan<'a> {
    fn run(mut self) -> Result<(), Flaw> {
        while let Some(byte) = self.text.as_bytes().get(self.at) {
            match byte {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'-' | b'0'..=b'9' => {
                    self.number()?;
                    continue;
                }
                b'{' => self.enter(Open::Object {
                    names: Names::default(),
                    last: Cow::Borrowed(""),
                    expects_name: true,
                })?,
                b'[' => self.enter(Open::Array { index: 0 })?,
                b'}' | b']' => {
                    self.open.pop();
                }
                b',' => match self.open.last_mut() {
                    Some(Open::Object { expects_name, .. }) => *expects_name = true,
                    Some(Open::Array { index }) => *index += 1,
                    None => {}
                },
                // White space, a colon, or a letter of a word.
                _ => {}
            }
            self.at += 1;
        }
        Ok(())
    }

    fn enter(&mut self, open: Open<'a>) -> Result<(), Flaw> {
        if self.open.len() == self.deepest {
            return Err(Flaw::whole(format!("is nested deeper than {} levels", self.deepest)));
        }
        self.open.push(open);
        Ok(())
    }

    fn string(&mut self) -> Result<(), Flaw> {
        let bytes = self.text.as_bytes();
        let (start, mut end, mut escaped) = (self.at, self.at + 1, false);
        while bytes[end] != b'"' {
            // An escape hides the byte after it.
            let hides = bytes[end] == b'\\';
            escaped |= hides;
            end += 1 + usize::from(hides);
        }
        self.at = end + 1;
        let content = if escaped {
            let content = serde_json::from_str(&self.text[start..=end]);
            Cow::Owned(content.map_err(|_| self.flaw("has an escape that stands for no character"))?)
        } else {
            Cow::Borrowed(&self.text[start + 1..end])
        };
        let Some(Open::Object { names, last, expects_name: expects_name @ true }) = self.open.last_mut()
        else {
            return Ok(());
        };
        *expects_name = false;
        last.clone_from(&content);
        if names.insert(content) { Ok(()) } else { Err(self.flaw("is there twice")) }
    }

    fn number(&mut self) -> Result<(), Flaw> {
        let rest = &self.text[self.at..];
        let length = rest.bytes().take_while(|b| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E'));
        let number = &rest[..length.count()];
        self.at += number.len();
        if number.parse::<f64>().is_ok_and(f64::is_finite) {
            return Ok(());
        }
        Err(self.flaw("is not JSON that can be read: number out of range"))
    }

    /// A flaw at this place, with its path as errors of readers show it.
    fn flaw(&self, reason: &str) -> Flaw {
        let mut path = String::new();
        for open in &self.open {
            match open {
                Open::Object { last, .. } if path.is_empty() => path.push_str(last),
                Open::Object { last, .. } => path.extend([".", last]),
                Open::Array { index } => path.extend(["[", &index.to_string(), "]"]),
            }
        }
        Flaw { path: Some(if path.is_empty() { ".".into() } else { path }), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::MAX_DEPTH, *};

    fn flaw(json: &str) -> (String, String) {
        let Flaw { path, reason } = check(json.as_bytes(), MAX_DEPTH).expect_err(json);
        (path.unwrap_or_default(), reason)
    }

    #[test]
    fn text_that_readers_refuse_is_refused_at_its_path() {
        let twice = "is there twice";
        let many: Vec<_> = (0..40).map(|n| format!(r#""k{n}":0,"#)).collect();
        let many = many.concat();
        let table = [
            (r#"{"max":0,"max":5}"#.to_owned(), "max", twice),
            (r#"{"a":[{"b":1},{"b":1,"c":{"d":1,"e":2,"d":3}}]}"#.into(), "a[1].c.d", twice),
            (r#"{"max":0,"m\u0061x":5}"#.into(), "max", twice),
            (r#"{"":0,"":5}"#.into(), ".", twice),
            (format!(r#"{{{many}"k3":1}}"#), "k3", twice),
            ("[1,1e999]".into(), "[1]", "number out of range"),
            (format!(r#"{{"n":-{}}}"#, "9".repeat(400)), "n", "number out of range"),
            (r#"{"a":"\ud800"}"#.into(), "a", "escape"),
            (r#"{"\udc00":1}"#.into(), ".", "escape"),
            ("[".repeat(128) + &"]".repeat(128), "", "deeper than 127 levels"),
            ("\u{feff}{}".into(), "", "byte order mark"),
            ("{".into(), "", "is not JSON: EOF while parsing an object at line 1 column 1"),
            ("[1,]".into(), "", "is not JSON"),
            ("1 2".into(), "", "is not JSON"),
        ];
        for (json, path, reason) in table {
            let (found, words) = flaw(&json);
            assert!(found == path && words.contains(reason), "{json}: {found}: {words}");
        }
        assert_eq!(check(b"\"\xff\"", MAX_DEPTH), Err(Flaw::whole("is not UTF-8")));
    }

    #[test]
    fn text_that_everyone_reads_passes() {
        let many: Vec<_> = (0..40).map(|n| format!(r#""k{n}":[],"#)).collect();
        let many = many.concat();
        let table = [
            "null",
            " [ ] ",
            r#"{"a":{"a":{"a":["a","a"]}},"b":[{"a":1},{"a":1}]}"#,
            r#"["a","a",{"b":"a","a":"b"}]"#,
            r#"{"\"{":"[[\"","\\":"}","\ud83d\ude00":"\ud83d\ude00"}"#,
            r#"{"a":340282366920938463463374607431768211455,"b":-1.5E+3,"c":0e9999,"d":1e-999}"#,
            &(many_object(&many)),
            &("[".repeat(127) + &"]".repeat(127)),
        ];
        for json in table {
            assert_eq!(check(json.as_bytes(), MAX_DEPTH), Ok(()), "{json}");
        }
    }

    fn many_object(fields: &str) -> String {
        format!(r#"[{{{fields}"z":{{"k3":1}}}},{{{fields}"z":1}}]"#)
    }
}
