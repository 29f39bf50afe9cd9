//! Watches of the config: a snapshot, then every change once and in order, never back, and the right end.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{ByName, Promise, Violations, config::versions};
use crate::history::{Answer, Covers, Event, Item, Name, Op, Value, What};

/// What was written, as far as anybody knows.
#[derive(Default)]
struct Commits {
    /// The value that each key got with a version; `None` for a deletion.
    by_version: BTreeMap<(u64, Name), Option<Value>>,
    by_key: ByName<BTreeMap<u64, Option<Value>>>,
    /// Keys that may have been deleted without anyone knowing when.
    unknown: HashSet<Name>,
}

impl Commits {
    fn of(events: &[Event]) -> Self {
        let mut commits = Self::default();
        // What is wrong with the versions themselves is told elsewhere.
        let versions = versions(events, &mut Violations::default());
        let mut calls = BTreeMap::new();
        let mut values = BTreeMap::new();
        for event in events {
            match &event.what {
                What::Calls { call, key, op: Op::Delete } => drop(calls.insert(*call, key)),
                What::Answers { call, answer } => match answer {
                    Answer::Deleted(version, true) => {
                        if let Some(key) = calls.remove(call) {
                            commits.add(key, *version, None);
                        }
                    }
                    Answer::Deleted(_, false) | Answer::Refused => drop(calls.remove(call)),
                    Answer::Found(Some((value, _))) | Answer::Wrote(value, _) => {
                        values.insert(value.id, *value);
                    }
                    _ => {}
                },
                What::Told { item: Item::Deleted(key, version), .. } => commits.add(key, *version, None),
                What::Told { item: Item::Set(_, value, _), .. } => {
                    values.insert(value.id, *value);
                }
                What::Told { item: Item::Snapshot(_, all), .. } | What::End { values: all, .. } => {
                    values.extend(all.iter().map(|(_, value, _)| (value.id, *value)));
                }
                _ => {}
            }
        }
        commits.unknown = calls.into_values().cloned().collect();
        for (key, sightings) in versions {
            for (id, seen) in sightings {
                commits.add(&key, seen.version, values.get(&id).copied());
            }
        }
        commits
    }

    fn add(&mut self, key: &Name, version: u64, value: Option<Value>) {
        self.by_version.insert((version, key.clone()), value);
        self.by_key.entry(key.clone()).or_default().insert(version, value);
    }

    /// What a key had at a version.
    fn at(&self, key: &Name, version: u64) -> Option<(u64, Value)> {
        let (at, value) = self.by_key.get(key)?.range(..=version).next_back()?;
        Some((*at, (*value)?))
    }
}

/// What one watch has told.
struct Told<'a> {
    scope: &'a Covers,
    /// The version of the last snapshot.
    snapshot: Option<u64>,
    /// The version of the last item.
    last: u64,
    /// Everything of versions below was told, or is covered by a snapshot.
    complete: u64,
    /// The changes since the last snapshot.
    changes: BTreeSet<(u64, Name)>,
    known: BTreeMap<Name, (Value, u64)>,
}

pub(super) fn check(events: &[Event], found: &mut Violations) {
    let commits = Commits::of(events);
    let mut watches = BTreeMap::new();
    for (at, event) in events.iter().enumerate() {
        let complain = |found: &mut Violations, watcher: u64, detail: String| {
            found
                .add(Promise::Watch, format!("#{at} watch {watcher} of process {}: {detail}", event.process));
        };
        match &event.what {
            What::Watches { watcher, scope } => {
                let (known, changes) = (BTreeMap::new(), BTreeSet::new());
                let told = Told { scope, snapshot: None, last: 0, complete: 0, changes, known };
                watches.insert(*watcher, told);
            }
            What::Unwatches { watcher } => drop(watches.remove(watcher)),
            What::Told { watcher, item } => {
                if let Some(told) = watches.get_mut(watcher)
                    && let Err(detail) = told.take(item, &commits)
                {
                    complain(found, *watcher, detail);
                }
            }
            What::End { values, .. } => {
                for (watcher, told) in &watches {
                    let covered = values.iter().filter(|(key, ..)| told.scope.covers(key));
                    let stored: BTreeMap<_, _> =
                        covered.map(|(key, value, version)| (key.clone(), (*value, *version))).collect();
                    if stored != told.known {
                        let detail =
                            format!("#{at} watch {watcher}: {:?}, but there is {stored:?}", told.known);
                        found.add(Promise::EndState, detail);
                    }
                }
            }
            _ => {}
        }
    }
}

impl Told<'_> {
    fn take(&mut self, item: &Item, commits: &Commits) -> Result<(), String> {
        let version = match item {
            Item::Snapshot(version, _) | Item::Set(_, _, version) | Item::Deleted(_, version) => *version,
        };
        let last = self.last;
        self.last = last.max(version);
        let outcome = match item {
            Item::Snapshot(_, values) => {
                let outcome = self.snapshot(version, values, commits);
                self.known = values.iter().map(|(key, value, at)| (key.clone(), (*value, *at))).collect();
                (self.snapshot, self.complete) = (Some(version), version + 1);
                self.changes.clear();
                outcome
            }
            Item::Set(key, value, _) => {
                let outcome = self.change(version, key, commits);
                self.known.insert(key.clone(), (*value, version));
                outcome
            }
            Item::Deleted(key, _) => {
                let outcome = self.change(version, key, commits);
                self.known.remove(key);
                outcome
            }
        };
        if version < last {
            return Err(format!("goes back from version {last} to {version}"));
        }
        outcome
    }

    fn snapshot(&self, version: u64, values: &[(Name, Value, u64)], commits: &Commits) -> Result<(), String> {
        for (key, value, at) in values {
            if *at > version || !self.scope.covers(key) {
                return Err(format!("a snapshot of version {version} has {key} of version {at}"));
            }
            if commits.at(key, version) != Some((*at, *value)) {
                let stored = commits.at(key, version);
                return Err(format!("a snapshot of version {version} has {key}: {value:?}, not {stored:?}"));
            }
        }
        for key in commits.by_key.keys().filter(|key| self.scope.covers(key)) {
            if let Some(stored) = commits.at(key, version)
                && !values.iter().any(|(other, ..)| other == key)
                && !commits.unknown.contains(key)
            {
                return Err(format!("a snapshot of version {version} lacks {key}: {stored:?}"));
            }
        }
        Ok(())
    }

    fn change(&mut self, version: u64, key: &Name, commits: &Commits) -> Result<(), String> {
        let Some(snapshot) = self.snapshot else {
            return Err("does not begin with a snapshot".into());
        };
        if version <= snapshot {
            return Err(format!("a change of version {version} after a snapshot of version {snapshot}"));
        }
        if !self.changes.insert((version, key.clone())) {
            return Err(format!("version {version} of {key} is told twice"));
        }
        let start = (self.complete, Name::from(""));
        let missed = commits
            .by_version
            .range(start..(version, Name::from("")))
            .find(|((at, key), _)| self.scope.covers(key) && !self.changes.contains(&(*at, key.clone())));
        self.complete = self.complete.max(version);
        match missed {
            Some(((missed, key), _)) => Err(format!("version {missed} of {key} is missing before {version}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::promises;

    fn name(key: &str) -> Name {
        key.into()
    }

    fn value(id: u64) -> Value {
        Value { id, n: 0 }
    }

    /// Three writes, of which the last one deletes, and one elsewhere; and what a watch told of them.
    fn watched(items: impl IntoIterator<Item = Item>) -> Vec<Promise> {
        let mut all = Vec::new();
        let mut write = |call, key: &str, op, answer| {
            all.push(What::Calls { call, key: name(key), op });
            all.push(What::Answers { call, answer });
        };
        write(1, "p/a", Op::Set(value(1)), Answer::Wrote(value(1), 1));
        write(2, "p/b", Op::Set(value(2)), Answer::Wrote(value(2), 2));
        write(3, "p/a", Op::Delete, Answer::Deleted(3, true));
        write(4, "q", Op::Set(value(4)), Answer::Wrote(value(4), 4));
        all.push(What::Watches { watcher: 1, scope: Covers::Below("p".into()) });
        all.extend(items.into_iter().map(|item| What::Told { watcher: 1, item }));
        let values = vec![(name("p/b"), value(2), 2), (name("q"), value(4), 4)];
        all.push(What::End { values, instances: Vec::new() });
        promises(all)
    }

    fn snapshot(version: u64, ids: &[(&str, u64)]) -> Item {
        Item::Snapshot(version, ids.iter().map(|(key, id)| (name(key), value(*id), *id)).collect())
    }

    fn set(key: &str, id: u64) -> Item {
        Item::Set(name(key), value(id), id)
    }

    fn deleted(key: &str, version: u64) -> Item {
        Item::Deleted(name(key), version)
    }

    #[test]
    fn whole_watches_pass() {
        assert_eq!(watched([snapshot(0, &[]), set("p/a", 1), set("p/b", 2), deleted("p/a", 3)]), []);
        assert_eq!(watched([snapshot(1, &[("p/a", 1)]), snapshot(4, &[("p/b", 2)])]), []);
        assert_eq!(watched([snapshot(0, &[]), set("p/a", 1), snapshot(3, &[("p/b", 2)])]), []);
    }

    #[test]
    fn gaps_are_seen() {
        let gap = watched([snapshot(0, &[]), set("p/b", 2), deleted("p/a", 3)]);
        assert_eq!(gap, [Promise::Watch]);
        // Also before the end, and within what a later snapshot covers.
        assert_eq!(watched([snapshot(0, &[]), set("p/a", 1), set("p/b", 2)]), [Promise::EndState]);
        let healed = watched([snapshot(0, &[]), set("p/b", 2), snapshot(4, &[("p/b", 2)])]);
        assert_eq!(healed, [Promise::Watch]);
    }

    #[test]
    fn going_back_and_saying_twice_are_seen() {
        let back = watched([snapshot(3, &[("p/b", 2)]), snapshot(2, &[("p/a", 1), ("p/b", 2)])]);
        assert!(back.contains(&Promise::Watch), "{back:?}");
        let twice = watched([snapshot(1, &[("p/a", 1)]), set("p/b", 2), set("p/b", 2), deleted("p/a", 3)]);
        assert_eq!(twice, [Promise::Watch]);
        let before = watched([snapshot(1, &[("p/a", 1)]), set("p/a", 1), set("p/b", 2), deleted("p/a", 3)]);
        assert_eq!(before, [Promise::Watch]);
    }

    #[test]
    fn wrong_snapshots_are_seen() {
        let old = watched([snapshot(3, &[("p/a", 1), ("p/b", 2)]), snapshot(4, &[("p/b", 2)])]);
        assert_eq!(old, [Promise::Watch]);
        let lacking = watched([snapshot(2, &[("p/b", 2)]), deleted("p/a", 3)]);
        assert_eq!(lacking, [Promise::Watch]);
        let unasked = watched([set("p/a", 1), set("p/b", 2), deleted("p/a", 3)]);
        assert!(unasked.contains(&Promise::Watch), "{unasked:?}");
        assert_eq!(watched([]), [Promise::EndState], "a watch that tells nothing");
    }
}
