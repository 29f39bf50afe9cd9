//! The watches of one stream, each with the users that share it. No I/O.

use std::collections::{BTreeMap, HashMap};

use coord_api::Error;

use super::{hub::Delivery, inbox::Sink, progress::ResumePoint};
use crate::{
    request::Read,
    store::{Range, WatchRequest},
};

/// Every watch by its id on the stream. An id is used once, since the server may still answer for an ended watch.
#[derive(Debug, Default)]
pub(super) struct Watches {
    by_id: BTreeMap<i64, Watched>,
    ids: HashMap<Range, i64>,
    last_id: i64,
}

/// Watch with the users that share it.
#[derive(Debug)]
pub(super) struct Watched {
    range: Range,
    pub(super) progress: ResumePoint,
    /// Latest read of the watched keys by a user.
    read: Option<Read>,
    /// Sinks of its users, in no order.
    sinks: Vec<(u64, Sink)>,
}

impl Watches {
    pub(super) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(super) fn get(&self, id: i64) -> Option<&Watched> {
        self.by_id.get(&id)
    }

    pub(super) fn get_mut(&mut self, id: i64) -> Option<&mut Watched> {
        self.by_id.get_mut(&id)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, &Watched)> {
        self.by_id.iter().map(|(id, watched)| (*id, watched))
    }

    /// Adds a user; the id of the watch if it is a new one.
    pub(super) fn add(&mut self, range: Range, user: u64, sink: Sink) -> Option<i64> {
        if let Some(watched) = self.ids.get(&range).and_then(|id| self.by_id.get_mut(id)) {
            if let Some(from) = watched.progress.next().filter(|_| watched.progress.has_started()) {
                // Also while the stream is broken: it resumes where it stood, which is before now.
                let _ = sink.put(Delivery::Started { from });
            }
            watched.sinks.push((user, sink));
            return None;
        }
        self.last_id += 1;
        let sinks = vec![(user, sink)];
        let watched = Watched { range: range.clone(), progress: ResumePoint::default(), read: None, sinks };
        self.ids.insert(range, self.last_id);
        self.by_id.insert(self.last_id, watched);
        Some(self.last_id)
    }

    /// Removes a user; the id of the watch if it was the last one.
    pub(super) fn remove(&mut self, range: &Range, user: u64) -> Option<i64> {
        let id = *self.ids.get(range)?;
        let sinks = &mut self.by_id.get_mut(&id)?.sinks;
        if let Some(at) = sinks.iter().position(|(other, _)| *other == user) {
            sinks.swap_remove(at);
        }
        self.end_if_unused(id)
    }

    /// Forgets a watch that nobody uses; its id if so.
    pub(super) fn end_if_unused(&mut self, id: i64) -> Option<i64> {
        self.by_id.get(&id)?.sinks.is_empty().then(|| self.end(id)).flatten().map(|_| id)
    }

    /// Forgets a watch. Dropping the returned watch tells its users that changes may have been missed.
    pub(super) fn end(&mut self, id: i64) -> Option<Watched> {
        let ended = self.by_id.remove(&id)?;
        self.ids.remove(&ended.range);
        Some(ended)
    }

    /// Takes note of a user's read of the watched keys.
    pub(super) fn has_read(&mut self, range: &Range, read: Read) {
        if let Some(watched) = self.ids.get(range).and_then(|id| self.by_id.get_mut(id)) {
            watched.read = watched.read.filter(|last| last.revision > read.revision).or(Some(read));
        }
    }

    /// Returns the watches whose users know more than the store is known to have had, its revision `shown`.
    /// Each comes with the read that would show it.
    pub(super) fn beyond(&self, shown: i64) -> Vec<(i64, Range, Option<Read>)> {
        let started = self.iter().filter(|(_, watched)| watched.progress.has_started());
        let beyond = started.filter_map(|(id, watched)| {
            let delivered = watched.progress.delivered_to();
            let last = watched.read.filter(|read| read.revision > shown);
            let proof = last.filter(|read| delivered <= read.revision.max(shown));
            (delivered > shown || last.is_some()).then(|| (id, watched.range.clone(), proof))
        });
        beyond.collect()
    }

    /// Forgets every watch.
    pub(super) fn end_all(&mut self) -> Vec<(i64, Watched)> {
        self.end_where(|_| true)
    }

    fn end_where(&mut self, ends: impl Fn(&Watched) -> bool) -> Vec<(i64, Watched)> {
        let ending: Vec<_> = self.iter().filter(|(_, watched)| ends(watched)).map(|(id, _)| id).collect();
        ending.into_iter().filter_map(|id| Some((id, self.end(id)?))).collect()
    }

    /// Forgets every watch that has not begun.
    pub(super) fn end_unbegun(&mut self) -> Vec<Watched> {
        let unbegun = self.end_where(|watched| !watched.progress.has_started());
        unbegun.into_iter().map(|(_, watched)| watched).collect()
    }
}

impl Watched {
    /// Returns the request for it from where it stands.
    pub(super) fn request(&self, id: i64) -> WatchRequest {
        WatchRequest { id, range: self.range.clone(), from: self.progress.next() }
    }

    /// Delivers to every user. A user whose queue is full is dropped: it drains the queue, sees the end of
    /// the stream, and reads the state again.
    pub(super) fn deliver(&mut self, delivery: impl Fn() -> Delivery) {
        let range = &self.range;
        // A sink that nobody takes from any more is removed by the command that its subscription sends.
        self.sinks.retain(|(_, sink)| {
            let has_room = sink.put(delivery()).is_ok();
            if !has_room {
                tracing::debug!(?range, "watch consumer is behind, it will read the state anew");
            }
            has_room
        });
    }

    pub(super) fn range(&self) -> &Range {
        &self.range
    }

    /// Tells every user that the server does not allow the watch.
    pub(super) fn refuse(self, error: &Error) {
        for (_, sink) in self.sinks {
            let _ = sink.put(Delivery::Refused(Box::new(error.duplicate())));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use super::*;
    use crate::watch::inbox::{Inbox, inbox};

    fn range(key: &str) -> Range {
        Range::Prefix(key.into())
    }

    fn user(watches: &mut Watches, key: &str, user: u64) -> (Option<i64>, Inbox) {
        let (sink, inbox) = inbox(2);
        (watches.add(range(key), user, sink), inbox)
    }

    fn start(watches: &mut Watches, id: i64) {
        let watch = watches.get_mut(id).expect("is watched");
        watch.progress.step(true, false, 7);
        watch.deliver(|| Delivery::Started { from: 1 });
    }

    #[test]
    fn those_that_watch_the_same_share_one_watch_until_the_last_is_gone() {
        let mut watches = Watches::default();
        let (first, mut inbox) = user(&mut watches, "a", 1);
        let (second, mut other) = user(&mut watches, "a", 2);
        assert_eq!((first, second), (Some(1), None));
        assert!(inbox.poll().is_pending(), "it has not started");
        start(&mut watches, 1);
        let (third, mut late) = user(&mut watches, "a", 3);
        assert_eq!(third, None);
        for inbox in [&mut inbox, &mut other, &mut late] {
            assert!(matches!(inbox.poll(), Poll::Ready(Some(Delivery::Started { .. }))));
            assert!(inbox.poll().is_pending(), "told once");
        }
        assert_eq!(user(&mut watches, "b", 4).0, Some(2), "other keys are another watch");

        assert_eq!(watches.remove(&range("a"), 1), None);
        assert_eq!(watches.remove(&range("a"), 3), None);
        assert_eq!(watches.remove(&range("a"), 2), Some(1));
        assert_eq!(watches.remove(&range("a"), 2), None);
        assert_eq!(user(&mut watches, "a", 5).0, Some(3), "an id is used once");
    }

    #[test]
    fn watch_beyond_what_is_shown_is_told_with_the_read_that_shows_it() {
        let mut watches = Watches::default();
        let (_, _inbox) = user(&mut watches, "a", 1);
        let (_, _other) = user(&mut watches, "b", 2);
        assert!(watches.beyond(0).is_empty(), "nothing has begun");
        start(&mut watches, 1);
        assert_eq!(watches.beyond(7), []);
        assert_eq!(watches.beyond(6), [(1, range("a"), None)]);
        let read = Read::of(9, &[]);
        watches.has_read(&range("a"), read);
        watches.has_read(&range("a"), Read::of(8, &[]));
        assert_eq!(watches.beyond(9), []);
        for shown in [0, 8] {
            assert_eq!(watches.beyond(shown), [(1, range("a"), Some(read))]);
        }
        watches.get_mut(1).expect("is watched").progress.delivered(12);
        assert_eq!(watches.beyond(8), [(1, range("a"), None)], "changes after the read are not shown");
        assert_eq!(watches.beyond(12), []);
    }

    #[test]
    fn one_that_is_behind_loses_its_place_alone() {
        let mut watches = Watches::default();
        let (_, mut slow) = user(&mut watches, "a", 1);
        let (_, mut quick) = user(&mut watches, "a", 2);
        start(&mut watches, 1);
        for _ in 0..4 {
            assert!(matches!(quick.poll(), Poll::Ready(Some(_))), "was delivered");
            watches.get_mut(1).expect("is watched").deliver(|| Delivery::Changes([].into()));
        }
        assert_eq!(watches.end_if_unused(1), None);
        for _ in 0..2 {
            assert!(matches!(slow.poll(), Poll::Ready(Some(_))), "what waited is not lost");
        }
        assert!(matches!(slow.poll(), Poll::Ready(None)));
        assert!(matches!(quick.poll(), Poll::Ready(Some(_))));
        assert_eq!(watches.remove(&range("a"), 2), Some(1));
        assert!(watches.is_empty());
    }

    #[test]
    fn a_gap_or_a_refusal_ends_it_for_all() {
        let mut watches = Watches::default();
        let (_, mut one) = user(&mut watches, "a", 1);
        let (_, mut other) = user(&mut watches, "a", 2);
        let denied = Error::PermissionDenied { operation: "watch", source: "permission denied".into() };
        watches.end(1).expect("is watched").refuse(&denied);
        for inbox in [&mut one, &mut other] {
            let Poll::Ready(Some(Delivery::Refused(error))) = inbox.poll() else { panic!("is told") };
            assert!(matches!(*error, Error::PermissionDenied { .. }));
            assert!(matches!(inbox.poll(), Poll::Ready(None)));
        }
        assert_eq!(watches.remove(&range("a"), 1), None);
        assert_eq!(user(&mut watches, "a", 3).0, Some(2));
    }
}
