//! `--name value` and `--flag`, for a program that people start through `cargo xtask bench`.

use std::collections::BTreeMap;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

/// What was written on the command line after the first words.
#[derive(Debug, Default)]
pub(crate) struct Args(BTreeMap<String, String>);

impl Args {
    /// Parses; a name without a value is a flag.
    pub(crate) fn parse(words: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut found = BTreeMap::new();
        let mut words = words.into_iter().peekable();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--") else { bail!("`{word}` is not an option") };
            let value = words.next_if(|next| !next.starts_with("--")).unwrap_or_default();
            found.insert(name.to_owned(), value);
        }
        Ok(Self(found))
    }

    /// Whether an option is there.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The value of an option, if it is there.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// The value of an option that has to be there.
    pub(crate) fn need<T: FromStr>(&self, name: &str) -> Result<T> {
        let text = self.text(name).with_context(|| format!("`--{name}` is missing"))?;
        text.parse().ok().with_context(|| format!("`--{name} {text}` is not understood"))
    }
}
