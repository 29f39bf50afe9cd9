//! JSON as text: it is laid out anew without being decoded, so that numbers, order and repeated fields stay as they are.
//!
//! All of this is for text that was checked to be JSON ([`parse`]); of other text nothing is promised but that it is not
//! lost.

use std::fmt::Write as _;

pub(crate) use coord_config::text::compact;
use coord_config::text::{Token, Tokens, in_line};
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
