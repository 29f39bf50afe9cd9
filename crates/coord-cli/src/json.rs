//! JSON as text: it is laid out anew without being decoded, so that numbers, order and repeated fields stay as they are.
//!
//! All of this is for text that was checked to be JSON ([`parse`]); of other text nothing is promised but that it is not
//! lost.

use std::fmt::Write as _;

use serde_json::value::RawValue;

use crate::exit::Failure;

/// Checks that a text is JSON, and keeps it as it is but for white space around it, and a mark of the byte order, as some
/// editors write it.
pub(crate) fn parse(text: &str) -> Result<Box<RawValue>, Failure> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim();
    serde_json::from_str::<Box<RawValue>>(text).map_err(|error| {
        let hint = "a text needs quotes: '\"text\"'";
        Failure::usage(format!("the value is not JSON: {error}\n  {hint}"))
    })
}

/// Returns the text if bytes are JSON.
pub(crate) fn text_of(bytes: &[u8]) -> Option<&str> {
    serde_json::from_slice::<&RawValue>(bytes).ok().map(RawValue::get)
}

/// A piece of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Open(char),
    Close(char),
    Comma,
    Colon,
    /// A string with its quotes, a number, or a word.
    Scalar(&'a str),
}

/// Cuts text into pieces; white space between them is left out.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r']);
        let first = self.0.chars().next()?;
        let (token, length) = match first {
            '{' | '[' => (Token::Open(first), 1),
            '}' | ']' => (Token::Close(first), 1),
            ',' => (Token::Comma, 1),
            ':' => (Token::Colon, 1),
            _ => {
                let length = if first == '"' { string_length(self.0) } else { word_length(self.0) };
                (Token::Scalar(&self.0[..length]), length)
            }
        };
        self.0 = &self.0[length..];
        Some(token)
    }
}

fn string_length(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn word_length(text: &str) -> usize {
    let end = |c: char| c.is_ascii_whitespace() || "{}[],:\"".contains(c);
    text.find(end).unwrap_or(text.len())
}

/// Lays text out in one line: `comma` and `colon` are what stands between two values, and a name and its value.
fn in_line(text: &str, comma: &str, colon: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for token in Tokens(text) {
        match token {
            Token::Open(c) | Token::Close(c) => line.push(c),
            Token::Comma => line.push_str(comma),
            Token::Colon => line.push_str(colon),
            Token::Scalar(scalar) => line.push_str(scalar),
        }
    }
    line
}

/// Lays text out in one line without any white space.
pub(crate) fn compact(text: &str) -> String {
    in_line(text, ",", ":")
}

/// Lays text out with a line for each value.
pub(crate) fn indented(text: &str) -> String {
    // A value that is nested deeper than anybody reads does not become longer by its depth squared.
    const DEEPEST: usize = 40;
    let mut lines = String::with_capacity(text.len() * 2);
    let (mut depth, mut empty) = (0_usize, false);
    let line = |lines: &mut String, depth: usize| {
        lines.push('\n');
        lines.extend(std::iter::repeat_n("  ", depth.min(DEEPEST)));
    };
    for token in Tokens(text) {
        if empty && !matches!(token, Token::Close(_)) {
            line(&mut lines, depth);
        }
        match token {
            Token::Open(c) => {
                lines.push(c);
                depth += 1;
            }
            Token::Close(c) => {
                depth = depth.saturating_sub(1);
                if !empty {
                    line(&mut lines, depth);
                }
                lines.push(c);
            }
            Token::Comma => {
                lines.push(',');
                line(&mut lines, depth);
            }
            Token::Colon => lines.push_str(": "),
            Token::Scalar(scalar) => lines.push_str(scalar),
        }
        empty = matches!(token, Token::Open(_));
    }
    lines
}

/// How a text is laid out, so that it can be again after somebody has edited it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// In one line without white space.
    Compact,
    /// In one line, with a space after each comma and colon.
    Spaced,
    /// In some way of its own.
    Own,
}

impl Layout {
    pub(crate) fn of(text: &str) -> Self {
        match text {
            _ if text == compact(text) => Self::Compact,
            _ if text == in_line(text, ", ", ": ") => Self::Spaced,
            _ => Self::Own,
        }
    }

    /// Returns the text in this layout.
    pub(crate) fn apply(self, text: &str) -> String {
        match self {
            Self::Compact => compact(text),
            Self::Spaced => in_line(text, ", ", ": "),
            Self::Own => text.to_owned(),
        }
    }

    /// Returns the text for somebody who edits it: with a line for each value, if it can be brought back.
    pub(crate) fn to_edit(self, text: &str) -> String {
        if self == Self::Own { text.to_owned() } else { indented(text) }
    }
}

/// A value of an object with its name, or of a list without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Member<'a> {
    /// As it is written, with quotes.
    pub(crate) name: Option<&'a str>,
    pub(crate) value: &'a str,
}

/// Returns what is directly in an object or a list; `None` of a scalar.
pub(crate) fn members(text: &str) -> Option<Vec<Member<'_>>> {
    let (mut members, mut depth, mut name) = (Vec::new(), 0_usize, None);
    let mut begun: Option<usize> = None;
    let mut tokens = Tokens(text);
    let at = |tokens: &Tokens<'_>| text.len() - tokens.0.len();
    loop {
        tokens.0 = tokens.0.trim_start_matches([' ', '\t', '\n', '\r']);
        let start = at(&tokens);
        let Some(token) = tokens.next() else { return Some(members) };
        let ends = match token {
            Token::Scalar(_) if depth == 0 => return None,
            Token::Comma | Token::Close(_) => depth == 1,
            _ => false,
        };
        if ends && let Some(begun) = begun.take() {
            members.push(Member { name: name.take(), value: text[begun..start].trim_end() });
        }
        match token {
            Token::Colon if depth == 1 => {
                name = begun.take().map(|begun| text[begun..start].trim_end());
            }
            Token::Comma if depth == 1 => {}
            Token::Close(_) => depth = depth.saturating_sub(1),
            _ if depth >= 1 && begun.is_none() => begun = Some(start),
            _ => {}
        }
        if matches!(token, Token::Open(_)) {
            depth += 1;
        }
    }
}

/// Writes characters that a terminal acts on in JSON's own way: the value is the same.
pub(crate) fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && crate::out::is_harmful(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing into a string never fails.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(c);
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODD: &str =
        r#" { "b" : 0.1234567890123456789012 , "a":[ 1e400,{ } ,[] ], "b":-0, "c\"]}" : "x , y:\u00e9\\" } "#;

    #[test]
    fn layout_changes_white_space_alone() {
        let line = r#"{"b":0.1234567890123456789012,"a":[1e400,{},[]],"b":-0,"c\"]}":"x , y:\u00e9\\"}"#;
        assert_eq!(compact(ODD), line);
        assert_eq!(compact(&indented(ODD)), line);
        let lines = "{\n  \"b\": 0.1234567890123456789012,\n  \"a\": [\n    1e400,\n    {},\n    []\n  ],\n  \
                     \"b\": -0,\n  \"c\\\"]}\": \"x , y:\\u00e9\\\\\"\n}";
        assert_eq!(indented(ODD), lines);
    }

    #[test]
    fn indented_text_is_as_serde_json_writes_it() {
        let value = serde_json::json!({"a": [1, {"b": null}, [], {}], "c": "d", "e": {"f": [true]}});
        assert_eq!(indented(&value.to_string()), format!("{value:#}"));
        assert_eq!(indented("7"), "7");
    }

    #[test]
    fn text_in_one_line_gets_its_layout_back() {
        for text in [r#"{"a":[1,2]}"#, r#"{"a": [1, 2], "b": {}}"#, "{\n \"a\": 1}", "17"] {
            let layout = Layout::of(text);
            assert_eq!(layout.apply(&layout.to_edit(text)), text);
        }
        assert_eq!(Layout::of("{\n \"a\": 1}"), Layout::Own);
    }

    #[test]
    fn members_are_cut_as_they_are_written() {
        let pair = |name, value| Member { name, value };
        let found = members(r#" {"a" : 1.0 ,"a":{"b":[1 ,2]}, "c":"}"} "#).expect("is an object");
        let expected = [
            pair(Some("\"a\""), "1.0"),
            pair(Some("\"a\""), r#"{"b":[1 ,2]}"#),
            pair(Some("\"c\""), "\"}\""),
        ];
        assert_eq!(found, expected);
        assert_eq!(members("[ 1, [2] ,{}]").expect("is a list").len(), 3);
        assert_eq!(members("[]"), Some(vec![]));
        assert_eq!(members("\"[1]\""), None);
    }

    #[test]
    fn marks_of_the_byte_order_are_no_part_of_a_value() {
        assert_eq!(parse("\u{feff}{\"a\": 1}\n").expect("is JSON").get(), "{\"a\": 1}");
        assert!(parse("{").is_err());
    }

    #[test]
    fn characters_that_terminals_act_on_are_escaped_in_text() {
        assert_eq!(escaped("\"\u{9b}2J \u{202e}é日\""), "\"\\u009b2J \\u202eé日\"");
        let deep = "[".repeat(100_000) + &"]".repeat(100_000);
        assert!(indented(&deep).len() < 20_000_000);
    }
}
