//! Tasks of one client that update the same value take turns, instead of refusing each other's writes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::OwnedMutexGuard;

use crate::{Entry, timer};

/// How long one waits for its turn. After that it goes out of turn, which is slower and not wrong: the store refuses whoever
/// wrote over what it had not read. So one update that hangs does not hold up others for as long.
const PATIENCE: Duration = Duration::from_millis(500);

/// The turns of all updates that are under way in one client. Every [`ConfigCenter`](crate::ConfigCenter) has one.
#[derive(Debug, Default)]
pub struct Turns(Mutex<HashMap<String, Queue>>);

/// Those who update one value.
#[derive(Debug, Default)]
struct Queue {
    members: usize,
    /// What the last one wrote, for the next one, which need not read it then.
    turn: Arc<tokio::sync::Mutex<Option<Entry>>>,
}

impl Turns {
    /// None is under way.
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for the turn of an update of `key`.
    pub(crate) async fn take<'a>(&'a self, key: &'a str) -> Turn<'a> {
        let turn = {
            let mut queues = self.queues();
            let queue = queues.entry(key.to_owned()).or_default();
            queue.members += 1;
            queue.turn.clone()
        };
        // Whoever gives up while it waits is counted out as well.
        let mut member = Turn { turns: self, key, last: None };
        member.last = timer::within(PATIENCE, turn.lock_owned()).await;
        member
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<String, Queue>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to update a value before others of this client do, until it is dropped.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    turns: &'a Turns,
    key: &'a str,
    last: Option<OwnedMutexGuard<Option<Entry>>>,
}

impl Turn<'_> {
    /// What is probably stored: what the one before wrote.
    pub(crate) fn guess(&mut self) -> Option<Entry> {
        self.last.as_mut()?.take()
    }

    /// Ends the turn with what it wrote.
    pub(crate) fn wrote(mut self, entry: Option<Entry>) {
        if let Some(last) = &mut self.last {
            **last = entry;
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.last = None;
        let mut queues = self.turns.queues();
        if let Some(queue) = queues.get_mut(self.key) {
            queue.members -= 1;
            if queue.members == 0 {
                queues.remove(self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::Version;

    fn entry(version: u64) -> Entry {
        Entry::new("a", Version::new(version), "1")
    }

    #[tokio::test]
    async fn each_waits_for_the_one_before_and_learns_what_it_wrote() {
        let turns = Turns::new();
        let mut first = turns.take("a").await;
        assert_eq!(first.guess(), None);
        let mut second = Box::pin(turns.take("a"));
        assert!(second.as_mut().now_or_never().is_none());
        assert!(turns.take("b").now_or_never().is_some(), "another value has turns of its own");
        first.wrote(Some(entry(7)));
        let mut second = second.now_or_never().expect("it is its turn");
        assert_eq!(second.guess(), Some(entry(7)));
        assert_eq!(second.guess(), None, "once");
        drop(second);
        assert!(turns.queues().is_empty());
    }

    #[tokio::test]
    async fn nothing_stays_of_those_who_left() {
        let turns = Turns::new();
        turns.take("a").await.wrote(Some(entry(7)));
        assert_eq!(turns.take("a").await.guess(), None, "nobody knows how long ago that was");
        let first = turns.take("a").await;
        let waiting = turns.take("a");
        assert!(waiting.now_or_never().is_none());
        assert!(turns.take("a").now_or_never().is_none());
        drop(first);
        assert!(turns.queues().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_hangs_is_passed() {
        let turns = Turns::new();
        let first = turns.take("a").await;
        let mut second = turns.take("a").await;
        assert_eq!(second.guess(), None);
        second.wrote(Some(entry(7)));
        drop(first);
        assert!(turns.queues().is_empty());
    }
}
