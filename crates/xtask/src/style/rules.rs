//! Rules of prose: first words, length of sentences, and comments that stand alone.

use std::fmt;

use super::comments::{Kind, Paragraph};

/// Largest number of words in a sentence.
const MOST_WORDS: usize = 25;

/// Words with which no sentence begins.
const OPENERS: [&str; 7] = ["What", "Who", "Whoever", "Those", "That", "One", "The same"];

/// Names that are written with a small letter, also as the first word of a comment.
const SMALL_NAMES: [&str; 14] = [
    "cargo", "coord", "etcd", "etcdctl", "gRPC", "hyper", "h2", "rustls", "serde", "std", "systemd", "tokio",
    "tonic", "tower",
];

/// Ends of words that are not the end of a sentence.
const ABBREVIATIONS: [&str; 5] = ["e.g.", "i.e.", "etc.", "vs.", "cf."];

/// Rule of prose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// No sentence begins with a pronoun.
    Opener,
    /// No sentence is too long.
    Length,
    /// No sentence is split over the comments of two items.
    Split,
}

impl Rule {
    pub(super) const ALL: [Self; 3] = [Self::Opener, Self::Length, Self::Split];
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opener => "begins with What, Who, Whoever, Those, That, One or The same",
            Self::Length => "has more than 25 words",
            Self::Split => "continues the comment of another item",
        })
    }
}

/// Violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) rule: Rule,
    pub(super) line: usize,
    pub(super) sentence: String,
}

/// Checks one paragraph.
pub(super) fn check(paragraph: &Paragraph) -> Vec<Violation> {
    let text = &paragraph.text;
    let mut found = Vec::new();
    let mut add = |rule, sentence: &str| {
        found.push(Violation { rule, line: paragraph.line, sentence: sentence.to_owned() });
    };
    if paragraph.kind == Kind::Item && paragraph.is_first && is_continuation(text) {
        add(Rule::Split, text);
    }
    for sentence in sentences(text) {
        if OPENERS.iter().any(|opener| begins_with(sentence, opener)) {
            add(Rule::Opener, sentence);
        }
        if words(sentence) > MOST_WORDS {
            add(Rule::Length, sentence);
        }
    }
    found
}

/// Returns whether a comment begins in the middle of a sentence.
fn is_continuation(text: &str) -> bool {
    text.starts_with(|letter: char| letter.is_lowercase())
        && !SMALL_NAMES.iter().any(|name| begins_with(text, name))
}

/// Returns whether a text begins with these whole words.
fn begins_with(text: &str, words: &str) -> bool {
    let rest = text.strip_prefix(words);
    rest.is_some_and(|rest| !rest.starts_with(|letter: char| letter.is_alphanumeric() || letter == '_'))
}

/// Splits a paragraph into its sentences. An end is a full stop, question or exclamation mark, before a word that does not
/// begin with a small letter.
fn sentences(text: &str) -> Vec<&str> {
    let (mut found, mut start) = (Vec::new(), 0);
    let mut in_code = false;
    for (at, letter) in text.char_indices() {
        if letter == '`' {
            in_code = !in_code;
        }
        if letter != ' ' || in_code {
            continue;
        }
        let (before, after) = (&text[start..at], text[at..].trim_start());
        let word = before.rsplit(' ').next().unwrap_or(before);
        let is_end = before.trim_end_matches([')', '"', '*', '`']).ends_with(['.', '?', '!'])
            && !ABBREVIATIONS.contains(&word.trim_start_matches('('))
            && !after.starts_with(|letter: char| letter.is_lowercase());
        if is_end {
            found.push(before.trim());
            start = at;
        }
    }
    found.push(text[start..].trim());
    found
}

/// Counts the words of a sentence. A piece of code is one word, and so is the target of a link with its text.
fn words(sentence: &str) -> usize {
    let mut count = 0;
    for (index, part) in sentence.split('`').enumerate() {
        if index % 2 == 1 {
            count += 1;
        } else {
            let is_word = |word: &&str| {
                // The letters right after code belong to it, as in `Option`s, or are the target of a link.
                let is_glued = index > 0 && part.starts_with(*word) && !part.starts_with(' ');
                !is_glued && word.contains(char::is_alphanumeric)
            };
            count += part.split_whitespace().filter(is_word).count();
        }
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(kind: Kind, text: &str) -> Vec<Rule> {
        let paragraph = Paragraph { kind, line: 1, is_first: true, text: text.to_owned() };
        check(&paragraph).into_iter().map(|violation| violation.rule).collect()
    }

    #[test]
    fn pronouns_begin_no_sentence() {
        for bad in ["What it is.", "Fine. Who is next?", "One that waits.", "The same again.", "That's it."] {
            assert_eq!(rules(Kind::Plain, bad), [Rule::Opener], "{bad}");
        }
        for good in ["Whatever it is.", "Ones.", "The sameness.", "Returns what is there.", "`One` is."] {
            assert_eq!(rules(Kind::Item, good), [], "{good}");
        }
    }

    #[test]
    fn sentences_have_25_words_at_most() {
        let words = |count| vec!["word"; count].join(" ");
        assert_eq!(rules(Kind::Item, &format!("A {}.", words(24))), []);
        assert_eq!(rules(Kind::Item, &format!("A {}.", words(25))), [Rule::Length]);
        assert_eq!(rules(Kind::Module, &format!("A {}. B {}.", words(20), words(20))), []);
        assert_eq!(rules(Kind::Plain, &format!("A {} e.g. {}.", words(15), words(15))), [Rule::Length]);
    }

    #[test]
    fn code_counts_as_one_word() {
        assert_eq!(words("The call `a b c d` of [`f`](Self::f) and `Option`s - twice."), 8);
        assert_eq!(words("The [text of a link](https://example.org)."), 5);
    }

    #[test]
    fn sentence_ends_before_a_large_letter_or_code() {
        assert_eq!(
            sentences("One. Two (three.) `four`. five. Six?"),
            ["One.", "Two (three.)", "`four`. five.", "Six?"]
        );
        assert_eq!(
            sentences("It takes 1.5 s, e.g. Tokio's `a. B` too."),
            ["It takes 1.5 s, e.g. Tokio's `a. B` too."]
        );
    }

    #[test]
    fn item_comments_stand_alone() {
        assert_eq!(rules(Kind::Item, "and up to this."), [Rule::Split]);
        assert_eq!(rules(Kind::Plain, "and up to this."), [], "plain comments may");
        assert_eq!(rules(Kind::Item, "etcd's revision."), []);
        assert_eq!(rules(Kind::Item, "`f` and more."), []);
    }
}
