//! What a sequence of steps came to, in a form in which two stores can be compared.

use std::collections::BTreeMap;

use coord_api::Error;

/// One line for each step.
pub(crate) type Lines = Vec<String>;

/// The lines of a run. Versions and tokens are numbers of one store, so they are told by their rank among all of the run:
/// `v3` is larger than `v2`, and the same version has the same rank.
#[derive(Debug, Default)]
pub(crate) struct Log(Vec<Vec<Part>>);

#[derive(Debug)]
enum Part {
    Text(String),
    Version(u64),
    Token(u64),
}

impl Log {
    /// Begins the line of a step.
    pub(crate) fn step(&mut self, step: String) {
        self.0.push(vec![Part::Text(step), Part::Text(" ->".into())]);
    }

    fn part(&mut self, part: Part) {
        self.0.last_mut().expect("a step has begun").push(part);
    }

    pub(crate) fn text(&mut self, text: impl Into<String>) {
        self.part(Part::Text(format!(" {}", text.into())));
    }

    pub(crate) fn version(&mut self, version: u64) {
        self.part(Part::Version(version));
    }

    pub(crate) fn token(&mut self, token: u64) {
        self.part(Part::Token(token));
    }

    /// The kind of an error, with what it says that does not depend on the store.
    pub(crate) fn error(&mut self, error: &Error) {
        match error {
            Error::InvalidArgument { field, reason } => self.text(format!("invalid {field}: {reason}")),
            Error::Conflict { key, expected, actual } => {
                self.text(format!("conflict of {key}"));
                self.version(expected.get());
                self.version(actual.get());
            }
            Error::AlreadyRegistered { service, id, .. } => self.text(format!("{service}/{id} is taken")),
            Error::Lost { reason } => self.text(format!("lost: {reason:?}")),
            other => self.text(other.to_string()),
        }
    }

    /// All lines, with ranks for numbers.
    pub(crate) fn lines(self) -> Lines {
        let rank = |of: fn(&Part) -> Option<u64>| {
            let mut all: Vec<_> = self.0.iter().flatten().filter_map(of).collect();
            all.sort_unstable();
            all.dedup();
            all.into_iter().zip(1..).collect::<BTreeMap<u64, usize>>()
        };
        let versions =
            rank(|part| if let Part::Version(version @ 1..) = part { Some(*version) } else { None });
        let tokens = rank(|part| if let Part::Token(token) = part { Some(*token) } else { None });
        let show = |part: &Part| match part {
            Part::Text(text) => text.clone(),
            Part::Version(0) => " absent".into(),
            Part::Version(version) => format!(" v{}", versions[version]),
            Part::Token(token) => format!(" t{}", tokens[token]),
        };
        self.0.iter().map(|line| line.iter().map(show).collect()).collect()
    }
}
