//! Comments of a Rust file, as paragraphs of plain text.

/// Kind of a comment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Documentation of the item below it: `///`.
    Item,
    /// Documentation of the module: `//!`.
    Module,
    /// Plain comment: `//`.
    Plain,
}

/// Paragraph of a comment, in one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Paragraph {
    pub(super) kind: Kind,
    /// Number of its first line in the file.
    pub(super) line: usize,
    /// Whether its comment begins with it.
    pub(super) is_first: bool,
    pub(super) text: String,
}

/// Returns the paragraphs of all comments that have a line of their own. Code, tables and headings are left out.
pub(super) fn paragraphs(source: &str) -> Vec<Paragraph> {
    let mut found = Vec::new();
    let (mut open, mut last_kind, mut in_code): (Option<Paragraph>, _, _) = (None, None, false);
    for (index, line) in source.lines().enumerate() {
        let comment = comment(line);
        let kind = comment.map(|(kind, _)| kind);
        let is_new = kind != last_kind;
        last_kind = kind;
        if is_new {
            in_code = false;
            found.extend(open.take());
        }
        let Some((kind, text)) = comment else { continue };
        if text.starts_with("```") {
            in_code = !in_code;
            found.extend(open.take());
            continue;
        }
        if in_code || text.is_empty() || text.starts_with('|') || text.starts_with('#') {
            found.extend(open.take());
            continue;
        }
        let item = list_item(text);
        if item.is_some() {
            found.extend(open.take());
        }
        let text = item.unwrap_or(text);
        match &mut open {
            Some(paragraph) => {
                paragraph.text.push(' ');
                paragraph.text.push_str(text);
            }
            None => open = Some(Paragraph { kind, line: index + 1, is_first: is_new, text: text.to_owned() }),
        }
    }
    found.extend(open);
    found
}

/// Splits a line into the kind of its comment and the text; `None` if it has code.
fn comment(line: &str) -> Option<(Kind, &str)> {
    let rest = line.trim_start().strip_prefix("//")?;
    let (kind, text) = match rest.as_bytes().first() {
        Some(b'/') => (Kind::Item, &rest[1..]),
        Some(b'!') => (Kind::Module, &rest[1..]),
        _ => (Kind::Plain, rest),
    };
    Some((kind, text.trim()))
}

/// Returns the text of a list item.
fn list_item(text: &str) -> Option<&str> {
    let number = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let numbered = if number.len() < text.len() { number.strip_prefix(". ") } else { None };
    text.strip_prefix("- ").or_else(|| text.strip_prefix("* ")).or(numbered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_become_paragraphs_without_code_and_tables() {
        let source = "//! Module.\n//!\n//! # Heading\n//! - An item\n//!   of two lines.\n//! 2. Another.\n\
                      //! | a | table |\n//! ```\n//! let code = 1;\n//! ```\n\nfn f() { // not a line of its own\n    \
                      // Plain\n    // text.\n    /// Item.\n    fn g() {}\n}\n";
        let found: Vec<_> = paragraphs(source)
            .into_iter()
            .map(|Paragraph { kind, line, is_first, text }| (kind, line, is_first, text))
            .collect();
        let expected = [
            (Kind::Module, 1, true, "Module."),
            (Kind::Module, 4, false, "An item of two lines."),
            (Kind::Module, 6, false, "Another."),
            (Kind::Plain, 13, true, "Plain text."),
            (Kind::Item, 15, true, "Item."),
        ];
        let expected = expected.map(|(kind, line, is_first, text)| (kind, line, is_first, text.to_owned()));
        assert_eq!(found, expected);
    }

    #[test]
    fn code_block_without_end_ends_with_its_comment() {
        let found = paragraphs("/// ```\n/// code\nfn f() {}\n/// Text.\nfn g() {}");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].text, "Text.");
    }
}
