//! The registry: lists tell what was answered, and those who follow them never go back.

use std::collections::{BTreeMap, HashMap};

use super::{ByName, Promise, Violations};
use crate::history::{Covers, Event, Name, Seen, What};

/// What is known of one instance.
#[derive(Clone, Copy, Debug, Default)]
struct Known {
    /// The last update that somebody asked for.
    asked: u64,
    /// The last update that was answered.
    answered: Option<u64>,
    /// Where it was answered that it has left.
    left: Option<usize>,
}

/// What one follower has seen.
#[derive(Default)]
struct Follower {
    now: Option<BTreeMap<Name, u64>>,
    /// The largest count of each instance, also of those that are gone.
    counts: HashMap<Name, u64>,
}

pub(super) fn check(events: &[Event], found: &mut Violations) {
    let mut known = ByName::<Known>::new();
    let mut asked = BTreeMap::new();
    let mut followers = BTreeMap::<u64, Follower>::new();
    for (at, event) in events.iter().enumerate() {
        match &event.what {
            What::Publishes { instance, n } => known.entry(instance.clone()).or_default().asked = *n,
            What::Published { instance, n } => {
                known.entry(instance.clone()).or_default().answered = Some(*n);
            }
            What::Left { instance } => known.entry(instance.clone()).or_default().left = Some(at),
            What::Discovers { call } => drop(asked.insert(*call, known.clone())),
            What::Discovered { call, instances } => {
                let before = asked.remove(call).unwrap_or_default();
                for (id, n) in instances {
                    if let Err(detail) = listed(id, *n, before.get(id), known.get(id)) {
                        found.add(Promise::Registry, format!("#{at}: {detail}"));
                    }
                }
            }
            What::Watches { watcher, scope: Covers::Instances } => {
                followers.insert(*watcher, Follower::default());
            }
            What::Unwatches { watcher } => drop(followers.remove(watcher)),
            What::Sees { watcher, item } => {
                let follower = followers.entry(*watcher).or_default();
                if let Err(detail) = follower.take(item, &known) {
                    let process = event.process;
                    found
                        .add(Promise::Watch, format!("#{at} watch {watcher} of process {process}: {detail}"));
                }
            }
            What::End { instances, .. } => {
                let stored: BTreeMap<_, _> = instances.iter().cloned().collect();
                for (watcher, follower) in &followers {
                    if follower.now.as_ref() != Some(&stored) {
                        let detail =
                            format!("#{at} watch {watcher}: {:?}, there is {stored:?}", follower.now);
                        found.add(Promise::EndState, detail);
                    }
                }
                for (id, n) in instances {
                    if let Err(detail) = listed(id, *n, known.get(id), known.get(id)) {
                        found.add(Promise::Registry, format!("#{at}, in the end: {detail}"));
                    }
                }
            }
            What::Stays { instance } => {
                let is_listed = events[at..].iter().any(|event| match &event.what {
                    What::End { instances, .. } => instances.iter().any(|(id, _)| id == instance),
                    _ => false,
                });
                if !is_listed {
                    found.add(Promise::Registry, format!("#{at}: {instance} is not listed in the end"));
                }
            }
            _ => {}
        }
    }
}

/// Whether a list may have an instance with a count, by what was known before the list was asked for and now.
fn listed(id: &Name, n: u64, before: Option<&Known>, now: Option<&Known>) -> Result<(), String> {
    let Some(now) = now.filter(|now| n <= now.asked) else {
        return Err(format!("{id} is listed with update {n}, which nobody asked for"));
    };
    let before = before.copied().unwrap_or_default();
    if before.left.is_some() {
        return Err(format!("{id} is listed, though it had left: {now:?}"));
    }
    match before.answered {
        Some(answered) if answered > n => Err(format!("{id} is listed with update {n}, not {answered}")),
        _ => Ok(()),
    }
}

impl Follower {
    fn take(&mut self, item: &Seen, known: &ByName<Known>) -> Result<(), String> {
        let outcome = match (item, &self.now) {
            (Seen::All(_), _) => Ok(()),
            (_, None) => Err("does not begin with a snapshot".to_owned()),
            (Seen::Added(id, _), Some(now)) if now.contains_key(id) => Err(format!("{id} is added twice")),
            (Seen::Updated(id, old, _) | Seen::Removed(id, old), Some(now)) if now.get(id) != Some(old) => {
                Err(format!("{item:?}, but it was {:?}", now.get(id)))
            }
            _ => Ok(()),
        };
        let mut counts = Ok(());
        let mut sees = |id: &Name, n: u64| {
            let largest = self.counts.entry(id.clone()).or_default();
            if n < *largest {
                counts = Err(format!("{id} goes back from update {largest} to {n}"));
            }
            if known.get(id).is_none_or(|known| n > known.asked) {
                counts = Err(format!("{id} has update {n}, which nobody asked for"));
            }
            *largest = n.max(*largest);
        };
        let now = self.now.get_or_insert_default();
        match item {
            Seen::All(all) => {
                for (id, n) in all {
                    sees(id, *n);
                }
                *now = all.iter().cloned().collect();
            }
            Seen::Added(id, n) | Seen::Updated(id, _, n) => {
                sees(id, *n);
                now.insert(id.clone(), *n);
            }
            Seen::Removed(id, n) => {
                sees(id, *n);
                now.remove(id);
            }
        }
        outcome.and(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::promises;

    fn id() -> Name {
        "i1".into()
    }

    fn published(n: u64) -> [What; 2] {
        [What::Publishes { instance: id(), n }, What::Published { instance: id(), n }]
    }

    fn listed(instances: &[u64]) -> [What; 2] {
        let instances = instances.iter().map(|n| (id(), *n)).collect();
        [What::Discovers { call: 1 }, What::Discovered { call: 1, instances }]
    }

    fn left() -> [What; 2] {
        [What::Left { instance: id() }, What::Believes { place: "none".into(), hold: 0 }]
    }

    fn all<const N: usize>(parts: [[What; 2]; N]) -> Vec<Promise> {
        promises(parts.into_iter().flatten())
    }

    #[test]
    fn lists_that_are_behind_are_seen() {
        assert_eq!(all([published(0), listed(&[0]), published(1), listed(&[1]), left(), listed(&[])]), []);
        assert_eq!(all([published(0), published(1), listed(&[0])]), [Promise::Registry]);
        assert_eq!(all([published(0), left(), listed(&[0])]), [Promise::Registry]);
        assert_eq!(all([published(0), listed(&[1])]), [Promise::Registry]);
    }

    fn seen(items: impl IntoIterator<Item = Seen>) -> Vec<Promise> {
        let known = [published(0), published(1), published(2)].into_iter().flatten();
        let items = items.into_iter().map(|item| What::Sees { watcher: 1, item });
        let items = [What::Watches { watcher: 1, scope: Covers::Instances }].into_iter().chain(items);
        let end = What::End { values: Vec::new(), instances: vec![(id(), 2)] };
        promises(known.chain(items).chain([end]))
    }

    #[test]
    fn watches_that_go_back_or_leave_something_out_are_seen() {
        let (added, updated) = (|n| Seen::Added(id(), n), |from, to| Seen::Updated(id(), from, to));
        assert_eq!(seen([Seen::All(vec![]), added(0), updated(0, 2)]), []);
        assert_eq!(seen([Seen::All(vec![]), added(1), Seen::Removed(id(), 1), added(2)]), []);
        assert_eq!(seen([Seen::All(vec![(id(), 2)])]), []);
        let back = seen([Seen::All(vec![(id(), 2)]), Seen::All(vec![(id(), 1)]), Seen::All(vec![(id(), 2)])]);
        assert_eq!(back, [Promise::Watch]);
        assert_eq!(seen([Seen::All(vec![]), updated(0, 2)]), [Promise::Watch]);
        assert_eq!(seen([Seen::All(vec![(id(), 0)]), updated(1, 2)]), [Promise::Watch]);
        assert_eq!(seen([Seen::All(vec![(id(), 1)]), added(2)]), [Promise::Watch]);
        assert_eq!(seen([added(2)]), [Promise::Watch]);
        assert_eq!(seen([Seen::All(vec![]), added(0)]), [Promise::EndState]);
        assert_eq!(seen([]), [Promise::EndState], "a watch that tells nothing");
    }

    #[test]
    fn one_that_stays_is_listed_in_the_end() {
        let end = |instances| What::End { values: Vec::new(), instances };
        let stays = || What::Stays { instance: id() };
        let known = || published(0).into_iter();
        assert_eq!(promises(known().chain([stays(), end(vec![(id(), 0)])])), []);
        assert_eq!(promises(known().chain([stays(), end(vec![])])), [Promise::Registry]);
    }
}
