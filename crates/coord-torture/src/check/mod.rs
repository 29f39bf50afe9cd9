//! Checkers: what a history shows to be broken. Pure, and each is shown to see what it is for.

mod config;
mod linear;
mod locks;
mod registry;
mod restored;
mod watch;

use std::{collections::BTreeMap, fmt};

pub use linear::{Interval, Model, Verdict, linearizable};

use crate::{
    Operator,
    history::{Event, Name, What},
};

/// Something that was promised and did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What was promised.
    pub promise: Promise,
    /// What happened instead, with the places in the history.
    pub detail: String,
}

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Promise {
    /// No two holders of one lock, or of one id, believe in their holds at the same time.
    OneHolder,
    /// Tokens of a lock differ, and who asked after another had one gets a larger one.
    Tokens,
    /// What a lock protects loses no update.
    NoLostUpdate,
    /// The calls on one key are as if each had happened at one moment between its beginning and its answer.
    Linearizable,
    /// A write has a version larger than all that were known when it began.
    Versions,
    /// What is written together is read together.
    Atomic,
    /// A watch begins with a snapshot, tells each change after it once and in order, and never goes back.
    Watch,
    /// A follower ends up with what the store has.
    EndState,
    /// An instance is listed as it was answered, and not after it has left.
    Registry,
    /// No number is made twice, and those of one id grow, also from holder to holder.
    Numbers,
    /// Calls end, with errors that their faults explain.
    Calls,
    /// Nothing is left behind, and all can be had again.
    Rest,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.promise, self.detail)
    }
}

/// Where the checkers write down what they see.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<Violation>);

impl Violations {
    /// More of one kind tell nothing new.
    const OF_A_KIND: usize = 3;

    pub(crate) fn add(&mut self, promise: Promise, detail: impl Into<String>) {
        if self.0.iter().filter(|one| one.promise == promise).count() < Self::OF_A_KIND {
            self.0.push(Violation { promise, detail: detail.into() });
        }
    }
}

/// All that a history shows to be broken.
///
/// A [restored](What::Restored) store divides it. Each part is checked for what is promised in it, the second one
/// with what the store has then.
pub fn check(events: &[Event], operator: Operator) -> Vec<Violation> {
    let Some(parts) = restored::divide(events) else { return check_whole(events, operator) };
    let mut found = check_whole(&parts.before, operator);
    found.extend(parts.found);
    let after = check_whole(&parts.after, operator).into_iter();
    found.extend(after.map(|violation| Violation {
        detail: format!("counted from the restore on: {}", violation.detail),
        ..violation
    }));
    found
}

fn check_whole(events: &[Event], operator: Operator) -> Vec<Violation> {
    let mut found = Violations::default();
    locks::check(events, operator, &mut found);
    config::check(events, &mut found);
    watch::check(events, &mut found);
    registry::check(events, &mut found);
    numbers(events, &mut found);
    for (at, event) in events.iter().enumerate() {
        match &event.what {
            What::Unexpected(what) => {
                found.add(Promise::Calls, format!("#{at} process {}: {what}", event.process));
            }
            What::Pair(one, other) if one != other => {
                found.add(Promise::Atomic, format!("#{at}: {one:?} and {other:?} were written together"));
            }
            _ => {}
        }
    }
    found.0
}

/// Numbers of one id grow, also from holder to holder: each is above those that were known when its hold began.
fn numbers(events: &[Event], found: &mut Violations) {
    let (mut made, mut holds) = (BTreeMap::new(), BTreeMap::new());
    let mut largest = ByName::<u64>::new();
    for (at, event) in events.iter().enumerate() {
        match &event.what {
            What::Acquires { place, hold, token: None } => {
                holds.insert(*hold, (place, largest.get(place).copied()));
            }
            What::Number { hold, number } => {
                if let Some(before) = made.insert(*number, at) {
                    found.add(Promise::Numbers, format!("#{at}: {number} was made before, at #{before}"));
                }
                let Some((place, last)) = holds.get_mut(hold) else { continue };
                if let Some(before) = *last
                    && before >= *number
                {
                    let detail = format!("#{at} {place}: {number} of hold {hold} is not above {before}");
                    found.add(Promise::Numbers, detail);
                }
                *last = Some(*number);
                let of_all = largest.entry((*place).clone()).or_default();
                *of_all = (*number).max(*of_all);
            }
            _ => {}
        }
    }
}

/// Events as a test writes them.
#[cfg(test)]
pub(crate) fn history(all: impl IntoIterator<Item = What>) -> Vec<Event> {
    let events = all.into_iter().enumerate();
    events
        .map(|(at, what)| Event { at: std::time::Duration::from_millis(at as u64), process: 0, what })
        .collect()
}

#[cfg(test)]
pub(crate) fn promises(all: impl IntoIterator<Item = What>) -> Vec<Promise> {
    check(&history(all), Operator::Absent).into_iter().map(|violation| violation.promise).collect()
}

/// Groups by name, in the order of names.
pub(crate) type ByName<T> = BTreeMap<Name, T>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Value;

    #[test]
    fn a_number_that_is_made_twice_or_goes_back_is_seen() {
        let holds = |hold| What::Acquires { place: "id 1".into(), hold, token: None };
        let number = |hold, number| What::Number { hold, number };
        assert_eq!(promises([holds(1), number(1, 10), number(1, 11), holds(2), number(2, 12)]), []);
        assert_eq!(promises([number(1, 10), number(2, 10)]), [Promise::Numbers]);
        assert_eq!(promises([holds(1), number(1, 11), number(1, 10)]), [Promise::Numbers]);
        assert_eq!(promises([holds(1), number(1, 11), holds(2), number(2, 10)]), [Promise::Numbers]);
    }

    #[test]
    fn half_a_batch_is_seen() {
        let value = |id| Some((Value { id, n: 0 }, id));
        assert_eq!(promises([What::Pair(value(1), value(1)), What::Pair(None, None)]), []);
        assert_eq!(promises([What::Pair(value(1), value(2))]), [Promise::Atomic]);
    }

    #[test]
    fn what_no_fault_explains_is_seen() {
        assert_eq!(promises([What::Unexpected("a panic".into())]), [Promise::Calls]);
    }
}
