//! Locks and ids: one holder by belief, tokens in real-time order, and a fenced register that loses nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::{ByName, Promise, Violations};
use crate::{
    Operator,
    history::{Access, Event, Name, What},
};

#[derive(Default)]
struct Place {
    /// The hold that began last, and where.
    latest: Option<(u64, usize)>,
    tokens: BTreeSet<u64>,
}

#[derive(Default)]
struct Register {
    value: u64,
    /// The largest token that was let in.
    token: u64,
}

pub(super) fn check(events: &[Event], operator: Operator, found: &mut Violations) {
    let mut places = ByName::<Place>::new();
    let mut registers = ByName::<Register>::new();
    // The largest token of its lock when a hold was asked for.
    let mut asked = BTreeMap::<u64, u64>::new();
    for (at, event) in events.iter().enumerate() {
        match &event.what {
            What::Asks { place, hold } => {
                let place = places.entry(place.clone()).or_default();
                asked.insert(*hold, place.tokens.last().copied().unwrap_or(0));
            }
            What::Acquires { place, hold, token } => {
                let known = places.entry(place.clone()).or_default();
                known.latest = Some((*hold, at));
                if let Some(token) = *token {
                    let before = asked.get(hold).copied().unwrap_or(0);
                    if !known.tokens.insert(token) {
                        found.add(Promise::Tokens, format!("#{at} {place}: token {token} for a second hold"));
                    } else if token <= before {
                        let detail =
                            format!("#{at} {place}: token {token}, though {before} was known before");
                        found.add(Promise::Tokens, detail);
                    }
                }
            }
            What::Believes { place, .. }
                if operator == Operator::Present
                    && (place.starts_with("lock ") || place.starts_with("election ")) => {}
            What::Believes { place, hold } => believes(&places, at, event.process, place, *hold, found),
            What::Fenced { register, token, access, accepted: true } => {
                let known = registers.entry(register.clone()).or_default();
                fenced(known, at, register, *token, *access, found);
            }
            _ => {}
        }
    }
}

/// Who believes now has believed since its hold began: what is lost never comes back.
fn believes(
    places: &ByName<Place>,
    at: usize,
    process: usize,
    place: &Name,
    hold: u64,
    found: &mut Violations,
) {
    let latest = places.get(place).and_then(|place| place.latest);
    if let Some((other, since)) = latest.filter(|(other, _)| *other != hold) {
        let detail = format!(
            "#{at} {place}: process {process} believes in hold {hold}, though hold {other} began at #{since}"
        );
        found.add(Promise::OneHolder, detail);
    }
}

fn fenced(
    register: &mut Register,
    at: usize,
    name: &Name,
    token: u64,
    access: Access,
    found: &mut Violations,
) {
    if let Access::Write(value) = access {
        if value != register.value + 1 {
            let detail = format!("#{at} {name}: {value} written over {} with token {token}", register.value);
            found.add(Promise::NoLostUpdate, detail);
        }
        register.value = value;
    }
    if token < register.token {
        let detail = format!("#{at} {name}: token {token} was let in after {}", register.token);
        found.add(Promise::NoLostUpdate, detail);
    }
    register.token = register.token.max(token);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::{Hold, Lease};
    use tokio::time::Instant;

    use super::*;
    use crate::{
        check::{check, promises},
        fenced::{Fence, Registers},
        history::History,
    };

    fn place() -> Name {
        "lock a".into()
    }

    fn asks(hold: u64) -> What {
        What::Asks { place: place(), hold }
    }

    fn acquires(hold: u64, token: u64) -> What {
        What::Acquires { place: place(), hold, token: Some(token) }
    }

    fn believes(hold: u64) -> What {
        What::Believes { place: place(), hold }
    }

    fn ends(hold: u64) -> What {
        What::Ends { place: place(), hold }
    }

    #[test]
    fn two_who_believe_are_seen() {
        assert_eq!(promises([acquires(1, 1), believes(1), ends(1), acquires(2, 2), believes(2)]), []);
        assert_eq!(promises([acquires(1, 1), acquires(2, 2), believes(1)]), [Promise::OneHolder]);
        // Whoever believed when the other one began, whatever became of it before anyone looked again.
        assert_eq!(promises([acquires(1, 1), acquires(2, 2), ends(2), believes(1)]), [Promise::OneHolder]);
        assert_eq!(promises([acquires(1, 1), acquires(2, 2), ends(1), believes(2)]), []);
    }

    #[tokio::test(start_paused = true)]
    async fn a_holder_is_asked_when_the_next_one_begins() {
        let hold = || Hold::on(Lease::granted(Instant::now(), Duration::from_secs(1)));
        let (early, history) = (hold(), History::new());
        history.acquires(0, &place(), 1, Some(1), early.lost());
        tokio::time::advance(Duration::from_millis(999)).await;
        history.acquires(1, &place(), 2, Some(2), hold().lost());
        let found = check(&history.events(), Operator::Absent);
        assert_eq!(found.iter().map(|one| one.promise).collect::<Vec<_>>(), [Promise::OneHolder]);

        let history = History::new();
        history.acquires(0, &place(), 1, Some(1), early.lost());
        tokio::time::advance(Duration::from_millis(1)).await;
        history.acquires(1, &place(), 2, Some(2), hold().lost());
        assert!(!history.believes(&place(), 1) && history.believes(&place(), 2));
        history.ends(&place(), 2);
        assert!(!history.believes(&place(), 2), "who gives back does not believe");
        assert_eq!(check(&history.events(), Operator::Absent), []);
    }

    #[test]
    fn tokens_that_go_back_or_come_twice_are_seen() {
        assert_eq!(promises([asks(1), acquires(1, 1), ends(1), asks(2), acquires(2, 2)]), []);
        assert_eq!(promises([asks(1), acquires(1, 2), ends(1), asks(2), acquires(2, 1)]), [Promise::Tokens]);
        assert_eq!(promises([asks(1), acquires(1, 2), ends(1), asks(2), acquires(2, 2)]), [Promise::Tokens]);
        // Asked at the same time: nobody knows who was first.
        assert_eq!(promises([asks(1), asks(2), acquires(1, 2), ends(1), acquires(2, 1)]), []);
    }

    /// Two holders, of which the first one writes late.
    fn zombie(fence: Fence) -> Vec<Promise> {
        let (registers, history, name) = (Registers::fenced_by(fence), History::new(), place());
        let early = registers.read(&history, 0, &name, 1).expect("is the first");
        let next = registers.read(&history, 1, &name, 2).expect("is larger");
        registers.write(&history, 0, &name, 1, early + 1);
        registers.write(&history, 1, &name, 2, next + 1);
        check(&history.events(), Operator::Absent).into_iter().map(|one| one.promise).collect()
    }

    #[tokio::test]
    async fn an_update_that_is_lost_is_seen() {
        assert_eq!(zombie(Fence::ReadsAndWrites), []);
        let found = zombie(Fence::WritesOnly);
        assert!(!found.is_empty() && found.iter().all(|one| *one == Promise::NoLostUpdate), "{found:?}");
    }
}
