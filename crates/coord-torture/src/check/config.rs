//! Config values: linearizable by key, with versions that only grow.

use std::collections::{BTreeMap, HashMap};

use super::{
    ByName, Promise, Violations,
    linear::{Interval, Model, Verdict, linearizable},
};
use crate::history::{Answer, Event, Item, Name, Op, Value, What};

/// Where a value was seen first, and its version.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sighting {
    pub(super) version: u64,
    at: usize,
}

/// The versions of the values of one key, by their ids: as answers, reads and watches showed them.
pub(super) type Versions = ByName<HashMap<u64, Sighting>>;

/// Collects what versions values have; one with two of them is told.
pub(super) fn versions(events: &[Event], found: &mut Violations) -> Versions {
    let mut versions = Versions::new();
    let mut keys = HashMap::new();
    for (at, event) in events.iter().enumerate() {
        let mut sees = |key: &Name, value: Value, version: u64| {
            let values = versions.entry(key.clone()).or_default();
            let first = values.entry(value.id).or_insert(Sighting { version, at });
            if first.version != version {
                let detail = format!("#{at} {key}: {value:?} at version {version}, and at {first:?}");
                found.add(Promise::Versions, detail);
            }
        };
        match &event.what {
            What::Calls { call, key, .. } => drop(keys.insert(*call, key)),
            What::Answers {
                call,
                answer: Answer::Found(Some((value, version))) | Answer::Wrote(value, version),
            } => {
                sees(keys[call], *value, *version);
            }
            What::Told { item: Item::Set(key, value, version), .. } => sees(key, *value, *version),
            What::Told { item: Item::Snapshot(_, values), .. } | What::End { values, .. } => {
                for (key, value, version) in values {
                    sees(key, *value, *version);
                }
            }
            _ => {}
        }
    }
    versions
}

pub(super) fn check(events: &[Event], found: &mut Violations) {
    let versions = versions(events, found);
    real_time(events, found);
    for (key, ops) in operations(events, &versions) {
        let count = ops.len();
        let known = versions.get(&key).into_iter().flatten().map(|(_, seen)| seen.version).collect();
        match linearizable(&Setting { known }, State::default(), ops) {
            Verdict::Linearizable => {}
            Verdict::Broken { stuck_at } => {
                let detail =
                    format!("{key}: {count} calls, in no order beyond #{stuck_at}: {:?}", events[stuck_at]);
                found.add(Promise::Linearizable, detail);
            }
            Verdict::Undecided => {
                found.add(Promise::Linearizable, format!("{key}: {count} calls, which could not be decided"));
            }
        }
    }
}

/// A write has a version larger than all that were known to anyone when it began.
fn real_time(events: &[Event], found: &mut Violations) {
    let (mut largest, mut begun) = (0, BTreeMap::new());
    for (at, event) in events.iter().enumerate() {
        match &event.what {
            What::Calls { call, .. } => drop(begun.insert(*call, largest)),
            What::Answers { call, answer } => match answer {
                Answer::Wrote(_, version) | Answer::Deleted(version, true) => {
                    let before = begun.get(call).copied().unwrap_or(0);
                    if *version <= before {
                        let detail = format!("#{at}: version {version}, though {before} was known before");
                        found.add(Promise::Versions, detail);
                    }
                    largest = largest.max(*version);
                }
                Answer::Found(Some((_, version))) | Answer::Conflict(version) => {
                    largest = largest.max(*version);
                }
                _ => {}
            },
            _ => {}
        }
    }
}

/// The calls on each key, with what became of them.
fn operations(events: &[Event], versions: &Versions) -> ByName<Vec<Interval<(Op, Answer)>>> {
    let mut all = ByName::<Vec<_>>::new();
    let mut open = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        match &event.what {
            What::Calls { call, key, op } => drop(open.insert(*call, (key, *op, at))),
            What::Answers { call, answer } => {
                let Some((key, op, begun)) = open.remove(call) else { continue };
                let seen = |value: Option<Value>| versions.get(key)?.get(&value?.id);
                let (answer, ended) = match answer {
                    Answer::Refused => continue,
                    Answer::Unknown(value) => match seen(*value) {
                        // It took effect, since somebody saw it, and before that.
                        Some(seen) => {
                            let value = value.expect("was just looked up");
                            (Answer::Wrote(value, seen.version), Some(seen.at))
                        }
                        None => (*answer, None),
                    },
                    answer => (*answer, Some(at)),
                };
                all.entry(key.clone()).or_default().push(Interval { op: (op, answer), begun, ended });
            }
            _ => {}
        }
    }
    // Calls of tasks that were stopped in between.
    for (_, (key, op, begun)) in open {
        let value = match op {
            Op::Get | Op::Increment => continue,
            Op::Set(value) | Op::Cas(_, value) | Op::Guarded(value) => Some(value),
            Op::Delete => None,
        };
        let op = (op, Answer::Unknown(value));
        all.entry(key.clone()).or_default().push(Interval { op, begun, ended: None });
    }
    all
}

/// One config value.
struct Setting {
    /// The versions that values are known to have.
    known: Vec<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct State {
    /// The value with its version, as far as that is known.
    value: Option<(Value, Option<u64>)>,
    /// The version of the last write that is known to have one.
    floor: u64,
}

impl State {
    fn is_at(&self, version: u64) -> bool {
        match self.value {
            None => version == 0,
            Some((_, at)) => version != 0 && at == Some(version),
        }
    }

    fn n(&self) -> u64 {
        self.value.map_or(0, |(value, _)| value.n)
    }

    fn written(&self, value: Value, version: u64) -> Option<Self> {
        (version > self.floor).then_some(Self { value: Some((value, Some(version))), floor: version })
    }
}

impl Model for Setting {
    type State = State;
    type Op = (Op, Answer);

    fn step(&self, state: &State, (op, answer): &(Op, Answer)) -> Option<State> {
        let fits = match (op, answer) {
            (Op::Cas(expected, _), Answer::Wrote(..) | Answer::Unknown(_)) => state.is_at(*expected),
            (Op::Increment | Op::Guarded(_), Answer::Wrote(value, _) | Answer::Unknown(Some(value))) => {
                value.n == state.n() + 1
            }
            _ => true,
        };
        if !fits {
            return None;
        }
        match answer {
            Answer::Found(found) => {
                let same = match (found, state.value) {
                    (None, None) => true,
                    (Some((value, version)), Some((at, known))) => *value == at && known == Some(*version),
                    _ => false,
                };
                same.then(|| state.clone())
            }
            Answer::Wrote(value, version) => state.written(*value, *version),
            Answer::Conflict(actual) => match state.value {
                // The value of a write that nobody ever saw has a version that no other value has: this one.
                Some((value, None)) if !self.known.contains(actual) => state.written(value, *actual),
                _ => state.is_at(*actual).then(|| state.clone()),
            },
            Answer::Deleted(version, true) => (state.value.is_some() && *version > state.floor)
                .then_some(State { value: None, floor: *version }),
            Answer::Deleted(version, false) => {
                (state.value.is_none() && *version >= state.floor).then(|| state.clone())
            }
            Answer::Unknown(Some(value)) => Some(State { value: Some((*value, None)), floor: state.floor }),
            Answer::Unknown(None) => state.value.map(|_| State { value: None, floor: state.floor }),
            Answer::Refused => Some(state.clone()),
        }
    }

    fn alike(&self, one: &(Op, Answer), other: &(Op, Answer)) -> bool {
        match (one, other) {
            ((_, Answer::Unknown(None)), (_, Answer::Unknown(None))) => true,
            // Of values that nobody ever saw only the count can matter.
            ((Op::Set(_), Answer::Unknown(Some(one))), (Op::Set(_), Answer::Unknown(Some(other)))) => {
                one.n == other.n
            }
            _ => false,
        }
    }

    fn rank(&self, (_, answer): &(Op, Answer)) -> u64 {
        match answer {
            Answer::Wrote(_, version) | Answer::Deleted(version, _) => *version,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::promises;

    const fn value(id: u64) -> Value {
        Value { id, n: id }
    }

    /// Calls that do not overlap, in their order.
    fn calls(all: &[(Op, Answer)]) -> Vec<What> {
        let calls = all.iter().zip(1..);
        calls
            .flat_map(|((op, answer), call)| {
                let calls = What::Calls { call, key: "k".into(), op: *op };
                [calls, What::Answers { call, answer: *answer }]
            })
            .collect()
    }

    fn set(id: u64, version: u64) -> (Op, Answer) {
        (Op::Set(value(id)), Answer::Wrote(value(id), version))
    }

    fn found(id: u64, version: u64) -> (Op, Answer) {
        (Op::Get, Answer::Found(Some((value(id), version))))
    }

    fn lost(id: u64) -> (Op, Answer) {
        (Op::Set(value(id)), Answer::Unknown(Some(value(id))))
    }

    const ABSENT: (Op, Answer) = (Op::Get, Answer::Found(None));

    #[test]
    fn good_histories_pass() {
        let cas = (Op::Cas(1, value(2)), Answer::Wrote(value(2), 2));
        let conflict = (Op::Cas(1, value(3)), Answer::Conflict(2));
        let deleted = (Op::Delete, Answer::Deleted(3, true));
        let nothing = (Op::Delete, Answer::Deleted(3, false));
        let absent = (Op::Cas(0, value(4)), Answer::Wrote(value(4), 4));
        let all =
            [ABSENT, set(1, 1), found(1, 1), cas, conflict, deleted, nothing, ABSENT, absent, found(4, 4)];
        assert_eq!(promises(calls(&all)), []);
    }

    #[test]
    fn unknown_writes_may_come_late_or_never() {
        assert_eq!(promises(calls(&[set(1, 1), lost(2), found(1, 1), found(2, 2), found(2, 2)])), []);
        assert_eq!(promises(calls(&[set(1, 1), lost(2), found(1, 1), set(3, 3)])), []);
        // A value that nobody saw can be all that was there to delete, or to conflict with.
        assert_eq!(promises(calls(&[lost(2), (Op::Delete, Answer::Deleted(2, true)), ABSENT])), []);
        assert_eq!(promises(calls(&[lost(2), (Op::Cas(0, value(3)), Answer::Conflict(7)), found(2, 7)])), []);
        let next = (Op::Cas(7, value(3)), Answer::Wrote(value(3), 8));
        assert_eq!(promises(calls(&[lost(2), (Op::Cas(0, value(9)), Answer::Conflict(7)), next])), []);
        let unknown = (Op::Delete, Answer::Unknown(None));
        assert_eq!(promises(calls(&[set(1, 1), unknown, found(1, 1), ABSENT, ABSENT])), []);
    }

    #[test]
    fn broken_ones_are_seen() {
        let linearizable = [Promise::Linearizable];
        // A stale read; a write that is gone; one that comes back; a read of what was never there.
        assert_eq!(promises(calls(&[set(1, 1), set(2, 2), found(1, 1)])), linearizable);
        assert_eq!(promises(calls(&[set(1, 1), ABSENT])), linearizable);
        assert_eq!(promises(calls(&[set(1, 1), lost(2), found(2, 2), set(3, 3), found(2, 2)])), linearizable);
        assert_eq!(promises(calls(&[ABSENT, found(9, 9)])), linearizable);
        // What was answered with "nothing was changed" and took effect.
        assert_eq!(promises(calls(&[(Op::Set(value(1)), Answer::Refused), found(1, 1)])), linearizable);
        // A compare-and-set over another version, and one that is refused for no reason.
        let over = (Op::Cas(1, value(3)), Answer::Wrote(value(3), 3));
        assert_eq!(promises(calls(&[set(1, 1), set(2, 2), over])), linearizable);
        assert_eq!(promises(calls(&[set(1, 1), (Op::Cas(1, value(3)), Answer::Conflict(0))])), linearizable);
        // A deletion that says the wrong thing.
        assert_eq!(promises(calls(&[set(1, 1), (Op::Delete, Answer::Deleted(2, false))])), linearizable);
    }

    #[test]
    fn versions_that_go_back_are_seen() {
        let found = promises(calls(&[set(1, 2), set(2, 1)]));
        assert!(found.contains(&Promise::Versions), "{found:?}");
        let found = promises(calls(&[set(1, 1), self::found(1, 2)]));
        assert!(found.contains(&Promise::Versions), "{found:?}");
    }

    #[test]
    fn a_lost_update_is_seen() {
        let counted = |id, n, version| {
            let value = Value { id, n };
            (Op::Guarded(value), Answer::Wrote(value, version))
        };
        assert_eq!(promises(calls(&[counted(1, 1, 1), counted(2, 2, 2)])), []);
        assert_eq!(promises(calls(&[counted(1, 1, 1), counted(2, 1, 2)])), [Promise::Linearizable]);
        // The late write of one who lost the lock may be refused, but not come after the next holder's.
        let late = Value { id: 1, n: 1 };
        let late = (Op::Guarded(late), Answer::Unknown(Some(late)));
        let read = (Op::Get, Answer::Found(Some((Value { id: 1, n: 1 }, 3))));
        assert_eq!(promises(calls(&[late, counted(2, 1, 1)])), []);
        assert_eq!(promises(calls(&[late, counted(2, 1, 1), read])), [Promise::Linearizable]);
    }
}
