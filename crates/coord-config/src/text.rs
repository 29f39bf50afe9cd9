//! JSON as text: cut into tokens without being decoded, so that numbers, order and repeated fields stay as they are.
//!
//! All of this is for text that was checked to be JSON; of other text nothing is promised but that it is not lost.

/// Token of JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token<'a> {
    Open(char),
    Close(char),
    Comma,
    Colon,
    /// A string with its quotes, a number, or a word.
    Scalar(&'a str),
}

/// Cuts text into pieces; white space between them is left out.
pub struct Tokens<'a>(pub &'a str);

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
pub fn in_line(text: &str, comma: &str, colon: &str) -> String {
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
pub fn compact(text: &str) -> String {
    in_line(text, ",", ":")
}

/// A value of an object with its name, or of a list without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// As it is written, with quotes.
    pub name: Option<&'a str>,
    pub value: &'a str,
}

/// Returns what is directly in an object or a list; `None` of a scalar.
pub fn members(text: &str) -> Option<Vec<Member<'_>>> {
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

#[cfg(test)]
mod tests {
    use super::*;

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
}
