//! Histories in which a store went back, made into two in which everything else is promised as always.
//!
//! Up to the restore nothing differs. From there on the history begins with what the store has then. Earlier requests
//! may still be answered, and writes may take effect, now or never. For a while clients have not heard of the restore:
//! two may believe in a lock or an id. After that every hold of before is over. Fencing tokens go back, so that
//! nothing is promised of what is fenced outside the store.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Promise, Violation};
use crate::history::{Answer, Covers, Event, Item, Name, Op, Seen, Value, What};

/// The parts of a history.
pub(super) struct Parts {
    /// Events that count before the first restore.
    pub(super) before: Vec<Event>,
    /// Events that count after the last restore.
    pub(super) after: Vec<Event>,
    /// Violations that neither part shows.
    pub(super) found: Vec<Violation>,
}

/// Divides a history; `None` if no store was restored.
pub(super) fn divide(events: &[Event]) -> Option<Parts> {
    let is_restored = |event: &Event| matches!(event.what, What::Restored { .. });
    let (first, last) = (events.iter().position(is_restored)?, events.iter().rposition(is_restored)?);
    let What::Restored { unheard, .. } = &events[last].what else { return None };
    let after = After {
        earlier: &events[..last],
        all: events,
        last,
        heard: events[last].at + *unheard,
        begun: events[..last].iter().filter_map(call).collect(),
        settled: BTreeSet::new(),
        asked: BTreeSet::new(),
        holds: BTreeMap::new(),
        out: Vec::new(),
        found: Vec::new(),
    };
    let (after, found) = after.run();
    Some(Parts { before: before(events, first), after, found })
}

fn call(event: &Event) -> Option<(u64, &Event)> {
    match &event.what {
        What::Calls { call, .. } => Some((*call, event)),
        _ => None,
    }
}

/// Returns what counts of the events before a restore. Calls that had no answer then may have taken effect.
fn before(events: &[Event], restore: usize) -> Vec<Event> {
    let mut open = BTreeMap::new();
    for event in &events[..restore] {
        match &event.what {
            What::Calls { call, key, op } => drop(open.insert(*call, (key, *op))),
            What::Answers { call, .. } => drop(open.remove(call)),
            _ => {}
        }
    }
    let mut later = Vec::new();
    for event in &events[restore..] {
        if let What::Answers { call, answer } = &event.what
            && let Some((_, op)) = open.get(call)
            && let Some(value) = value(*op, *answer)
        {
            open.remove(call);
            later.push(Event {
                what: What::Answers { call: *call, answer: Answer::Unknown(Some(value)) },
                ..event.clone()
            });
        }
    }
    // Nobody knows what these wrote, so that nothing can be said of their keys from there on.
    open.retain(|_, (_, op)| matches!(op, Op::Increment));
    let mut unknown = BTreeSet::new();
    let mut calls = BTreeSet::new();
    let counts = |event: &&Event| match &event.what {
        What::Calls { call, key, .. } => {
            if open.contains_key(call) {
                unknown.insert(key.clone());
            }
            let counts = !unknown.contains(key);
            if !counts {
                calls.insert(*call);
            }
            counts
        }
        What::Answers { call, .. } => !calls.contains(call),
        // Said when the tasks are done.
        What::Stays { .. } => false,
        _ => true,
    };
    events[..restore].iter().chain(&later).filter(counts).cloned().collect()
}

/// Config as a watch has told it.
struct Known {
    scope: Covers,
    values: BTreeMap<Name, (Value, u64)>,
}

impl Known {
    fn take(&mut self, item: &Item) {
        match item {
            Item::Snapshot(_, all) => {
                self.values = all.iter().map(|(key, value, at)| (key.clone(), (*value, *at))).collect();
            }
            Item::Set(key, value, version) => {
                self.values.insert(key.clone(), (*value, *version));
            }
            Item::Deleted(key, _) => {
                self.values.remove(key);
            }
        }
    }
}

impl Known {
    /// Returns how it differs from what the store has.
    fn differs(&self, watcher: u64, values: &[(Name, Value, u64)]) -> Option<Violation> {
        let covered = values.iter().filter(|(key, ..)| self.scope.covers(key));
        let stored: BTreeMap<_, _> =
            covered.map(|(key, value, version)| (key.clone(), (*value, *version))).collect();
        let detail =
            format!("watch {watcher}, of before the restore: {:?}, there is {stored:?}", self.values);
        (stored != self.values).then_some(Violation { promise: Promise::EndState, detail })
    }
}

/// Returns what a call wrote, if it wrote anything.
fn value(op: Op, answer: Answer) -> Option<Value> {
    match (op, answer) {
        (_, Answer::Wrote(value, _) | Answer::Unknown(Some(value)))
        | (Op::Set(value) | Op::Cas(_, value) | Op::Guarded(value), _) => Some(value),
        _ => None,
    }
}

/// The history from the restore on, while it is made.
struct After<'a> {
    earlier: &'a [Event],
    all: &'a [Event],
    last: usize,
    /// From when on everybody has heard of the restore.
    heard: Duration,
    /// The calls that began before.
    begun: BTreeMap<u64, &'a Event>,
    /// The calls of which the store has the value.
    settled: BTreeSet<u64>,
    /// The holds that were asked for since.
    asked: BTreeSet<u64>,
    /// The holds that began since, with when they did.
    holds: BTreeMap<u64, Duration>,
    out: Vec<Event>,
    found: Vec<Violation>,
}

impl After<'_> {
    fn run(mut self) -> (Vec<Event>, Vec<Violation>) {
        let restored = &self.all[self.last];
        self.begin(restored);
        let (all, last) = (self.all, self.last);
        let followers = self.followers();
        for (at, event) in all.iter().enumerate() {
            let is_old = |watcher: &u64| followers.get(watcher).map_or(at < last, |from| at < *from);
            match &event.what {
                What::Told { watcher, .. } | What::Sees { watcher, .. } if is_old(watcher) => {}
                What::Told { .. } | What::Sees { .. } => self.push(event, event.what.clone()),
                What::Watches { watcher, .. } if followers.get(watcher) == Some(&usize::MAX) => {}
                _ if at > last => self.take(event),
                _ => {}
            }
        }
        (self.out, self.found)
    }

    fn push(&mut self, event: &Event, what: What) {
        self.out.push(Event { what, ..event.clone() });
    }

    /// Tells what the store has, and what may still happen to it.
    fn begin(&mut self, restored: &Event) {
        let What::Restored { values, .. } = &restored.what else { return };
        let mut values: Vec<_> = values.iter().collect();
        let restored_ids: BTreeSet<_> = values.iter().map(|(_, value, _)| value.id).collect();
        values.sort_by_key(|(.., version)| *version);
        // No call of the run has such a number.
        let values: Vec<_> = (1..=u64::MAX).rev().zip(values).collect();
        for (call, (key, value, _)) in &values {
            self.push(restored, What::Calls { call: *call, key: key.clone(), op: Op::Set(*value) });
        }
        // Some were written together, and have one version.
        for (call, (_, value, version)) in values {
            self.push(restored, What::Answers { call, answer: Answer::Wrote(*value, *version) });
        }
        // A value that the store has needs no call any more that wrote it.
        let wrote = |answer: &Answer| match answer {
            Answer::Wrote(value, _) | Answer::Unknown(Some(value)) => restored_ids.contains(&value.id),
            _ => false,
        };
        self.settled =
            (self.all.iter())
                .filter_map(|event| match &event.what {
                    What::Answers { call, answer } if self.begun.contains_key(call) && wrote(answer) => {
                        Some(*call)
                    }
                    What::Calls {
                        call, op: Op::Set(value) | Op::Cas(_, value) | Op::Guarded(value), ..
                    } if restored_ids.contains(&value.id) => Some(*call),
                    _ => None,
                })
                .collect();
        for event in self.earlier {
            match &event.what {
                What::Calls { call, .. } | What::Answers { call, .. } if self.settled.contains(call) => {}
                What::Calls { call, key, op } => {
                    let (key, op) = (key.clone(), self.op(*call, *op));
                    self.push(restored, What::Calls { call: *call, key, op });
                }
                What::Publishes { .. }
                | What::Stays { .. }
                | What::Watches { .. }
                | What::Unwatches { .. } => self.push(restored, event.what.clone()),
                What::Answers { call, answer } => {
                    // Answered calls are over, but for writes whose outcome nobody knows.
                    if let Answer::Unknown(value) = answer {
                        self.push(restored, What::Answers { call: *call, answer: Answer::Unknown(*value) });
                        self.begun.remove(call);
                    } else if self.begun.remove(call).is_some() {
                        self.push(restored, What::Answers { call: *call, answer: Answer::Refused });
                    }
                }
                _ => {}
            }
        }
    }

    /// Returns the promise of a call that began before: it may have read what was lost, and write what follows from that.
    fn op(&self, call: u64, op: Op) -> Op {
        let mut answers = self.all.iter().rev().filter_map(|event| match &event.what {
            What::Answers { call: other, answer } if *other == call => Some(*answer),
            _ => None,
        });
        match (op, answers.next()) {
            (Op::Guarded(value), _)
            | (Op::Increment, Some(Answer::Wrote(value, _) | Answer::Unknown(Some(value)))) => Op::Set(value),
            _ => op,
        }
    }

    /// The followers that were asked for before, with where what they are told begins to count: with the last snapshot since. A client
    /// that had seen nothing of what was lost need not notice, and gives them none. They only have to end with what the
    /// store has.
    fn followers(&mut self) -> BTreeMap<u64, usize> {
        let mut followers = BTreeMap::new();
        let mut known = BTreeMap::<u64, Known>::new();
        let mut asked = BTreeSet::new();
        for (at, event) in self.all.iter().enumerate() {
            match &event.what {
                What::AsksToWatch { watcher } if at < self.last => drop(asked.insert(*watcher)),
                // Its first snapshot may have been read before.
                What::Watches { watcher, scope } if at < self.last || asked.contains(watcher) => {
                    followers.insert(*watcher, usize::MAX);
                    if *scope != Covers::Instances {
                        known.insert(*watcher, Known { scope: scope.clone(), values: BTreeMap::new() });
                    }
                }
                What::Unwatches { watcher } => {
                    let counts = |from: usize| from < at && self.all[from].at >= self.heard;
                    if at < self.last {
                        followers.insert(*watcher, usize::MAX);
                    } else if let Some(from) = followers.get_mut(watcher).filter(|from| !counts(**from)) {
                        // It may have had enough before its client heard.
                        *from = usize::MAX;
                    }
                    known.remove(watcher);
                }
                What::Told { watcher, item: Item::Snapshot(..) } if at > self.last => {
                    followers.entry(*watcher).and_modify(|from| *from = at);
                    known.remove(watcher);
                }
                What::Told { watcher, item } => {
                    if let Some(known) = known.get_mut(watcher) {
                        known.take(item);
                    }
                }
                What::Sees { watcher, item: Seen::All(_) } => {
                    followers.entry(*watcher).and_modify(|from| *from = at);
                }
                What::End { values, .. } => {
                    for (watcher, known) in &known {
                        self.found.extend(known.differs(*watcher, values));
                    }
                    // Later items are compared with nothing.
                    break;
                }
                _ => {}
            }
        }
        self.out.retain(|event| {
            !matches!(&event.what, What::Watches { watcher, .. } if followers.get(watcher) == Some(&usize::MAX))
        });
        followers
    }

    fn take(&mut self, event: &Event) {
        if matches!(&event.what, What::Answers { call, .. } if self.settled.contains(call)) {
            return;
        }
        let has_heard = event.at >= self.heard;
        match &event.what {
            What::Asks { hold, .. } => {
                self.asked.insert(*hold);
                self.push(event, event.what.clone());
            }
            What::Acquires { place, hold, token } => {
                self.holds.insert(*hold, event.at);
                let token = token.filter(|_| self.asked.contains(hold));
                self.push(event, What::Acquires { place: place.clone(), hold: *hold, token });
            }
            What::Believes { place, hold } if has_heard => {
                if !self.holds.contains_key(hold) {
                    let detail = format!(
                        "{:?} {place}: process {} believes in hold {hold}, which began before the restore",
                        event.at, event.process
                    );
                    self.found.push(Violation { promise: Promise::OneHolder, detail });
                }
                self.push(event, event.what.clone());
            }
            What::Number { hold, .. } => {
                if self.holds.get(hold).is_some_and(|begun| *begun >= self.heard) {
                    self.push(event, event.what.clone());
                }
            }
            What::Believes { .. } | What::Fenced { .. } => {}
            // The counter may have been read before.
            What::Calls { call, key, op: Op::Guarded(value) } if !has_heard => {
                self.push(event, What::Calls { call: *call, key: key.clone(), op: Op::Set(*value) });
            }
            // The answer may be that of before.
            What::Published { .. } | What::Left { .. } if !has_heard => {}
            What::Answers { call, answer } if self.begun.contains_key(call) => {
                let answer = of_before(*answer);
                self.push(event, What::Answers { call: *call, answer });
            }
            _ => self.push(event, event.what.clone()),
        }
    }
}

/// Returns what the answer to a call says of the restored store, if the call began before. It may have been given before, too.
fn of_before(answer: Answer) -> Answer {
    match answer {
        Answer::Wrote(value, _) => Answer::Unknown(Some(value)),
        Answer::Deleted(_, true) => Answer::Unknown(None),
        Answer::Unknown(value) => Answer::Unknown(value),
        Answer::Found(_) | Answer::Conflict(_) | Answer::Deleted(_, false) | Answer::Refused => {
            Answer::Refused
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::promises;

    fn key() -> Name {
        "p/a".into()
    }

    fn value(id: u64) -> Value {
        Value { id, n: 0 }
    }

    fn restored(ids: &[u64]) -> What {
        let values = ids.iter().map(|id| (key(), value(*id), *id)).collect();
        What::Restored { values, unheard: Duration::from_millis(3) }
    }

    fn sets(call: u64, id: u64, version: u64) -> [What; 2] {
        let asked = What::Calls { call, key: key(), op: Op::Set(value(id)) };
        [asked, What::Answers { call, answer: Answer::Wrote(value(id), version) }]
    }

    fn gets(call: u64, found: Option<(u64, u64)>) -> [What; 2] {
        let found = found.map(|(id, version)| (value(id), version));
        [What::Calls { call, key: key(), op: Op::Get }, What::Answers { call, answer: Answer::Found(found) }]
    }

    fn all(parts: impl IntoIterator<Item = Vec<What>>) -> Vec<Promise> {
        promises(parts.into_iter().flatten())
    }

    #[test]
    fn values_count_from_the_restore_on() {
        let before = || [sets(1, 1, 1).to_vec(), sets(2, 2, 2).to_vec()];
        let after =
            |parts: Vec<Vec<What>>| all(before().into_iter().chain([vec![restored(&[1])]]).chain(parts));
        assert_eq!(after(vec![gets(3, Some((1, 1))).to_vec(), sets(4, 4, 2).to_vec()]), []);
        assert_eq!(after(vec![gets(3, Some((2, 2))).to_vec()]), [Promise::Linearizable]);
        assert_eq!(after(vec![gets(3, None).to_vec()]), [Promise::Linearizable]);
        assert_eq!(after(vec![sets(3, 3, 1).to_vec()])[..1], [Promise::Versions]);
        assert_eq!(all([sets(1, 1, 1).to_vec(), vec![restored(&[])], gets(2, None).to_vec()]), []);
    }

    #[test]
    fn writes_of_before_may_take_effect_after_it() {
        let [asks, wrote] = sets(1, 1, 5);
        let late =
            |seen| all([vec![asks.clone(), restored(&[])], vec![wrote.clone()], gets(2, seen).to_vec()]);
        assert_eq!(late(Some((1, 1))), []);
        assert_eq!(late(None), []);
        let lost = What::Answers { call: 1, answer: Answer::Unknown(Some(value(1))) };
        assert_eq!(all([vec![asks, lost, restored(&[])], gets(2, Some((1, 1))).to_vec()]), []);
    }

    #[test]
    fn what_was_broken_before_is_seen() {
        let broken = gets(1, Some((1, 1))).to_vec();
        assert_eq!(all([broken, vec![restored(&[])]]), [Promise::Linearizable]);
    }

    fn acquires(hold: u64, token: u64) -> What {
        What::Acquires { place: "lock a".into(), hold, token: Some(token) }
    }

    fn believes(hold: u64) -> What {
        What::Believes { place: "lock a".into(), hold }
    }

    /// Something that takes a millisecond.
    fn tick() -> What {
        What::Discovers { call: 0 }
    }

    #[test]
    fn two_may_believe_until_they_have_heard() {
        let before = || [acquires(1, 7), believes(1), restored(&[]), acquires(2, 7), believes(1)];
        assert_eq!(promises(before()), []);
        assert_eq!(promises(before().into_iter().chain([believes(1)])), [Promise::OneHolder; 2]);
        let alone = [acquires(1, 7), restored(&[]), tick(), tick(), believes(1)];
        assert_eq!(promises(alone), [Promise::OneHolder], "every hold of before ends");
        let since = [restored(&[]), acquires(1, 7), acquires(2, 8), tick(), believes(1)];
        assert_eq!(promises(since), [Promise::OneHolder]);
    }

    #[test]
    fn followers_end_with_what_the_store_has() {
        let watches = || What::Watches { watcher: 1, scope: Covers::Below("p".into()) };
        let told = |item| What::Told { watcher: 1, item };
        let snapshot = |id: u64| told(Item::Snapshot(id, vec![(key(), value(id), id)]));
        let end = || What::End { values: vec![(key(), value(1), 1)], instances: Vec::new() };
        let history = |items: Vec<What>| {
            let before = [sets(1, 1, 1).to_vec(), sets(2, 2, 2).to_vec(), vec![watches(), snapshot(2)]];
            all(before.into_iter().chain([vec![restored(&[1])], items, vec![end()]]))
        };
        assert_eq!(history(vec![snapshot(1)]), []);
        assert_eq!(history(vec![snapshot(2), snapshot(1)]), [], "the answer may have been on its way");
        assert_eq!(history(vec![]), [Promise::EndState]);
        assert_eq!(history(vec![snapshot(2)]), [Promise::EndState]);

        let answered_after_it = |items: Vec<What>| {
            let before =
                [sets(1, 1, 1).to_vec(), sets(2, 2, 2).to_vec(), vec![What::AsksToWatch { watcher: 1 }]];
            let began = vec![restored(&[1]), watches(), snapshot(2)];
            all(before.into_iter().chain([began, items, vec![end()]]))
        };
        assert_eq!(answered_after_it(vec![snapshot(1)]), []);
        assert_eq!(answered_after_it(vec![]), [Promise::EndState]);
        let enough = answered_after_it(vec![What::Unwatches { watcher: 1 }]);
        assert_eq!(enough, [], "it had enough before its client heard");
        let again = answered_after_it(vec![snapshot(1), end(), snapshot(1)]);
        assert_eq!(again, [], "the snapshot before the end counts");
        let asked_after_it = [
            sets(1, 1, 1).to_vec(),
            sets(2, 2, 2).to_vec(),
            vec![restored(&[1]), What::AsksToWatch { watcher: 1 }, watches(), snapshot(2), end()],
        ];
        assert_eq!(all(asked_after_it), [Promise::EndState], "it is held to what the store has from then on");
    }
}
