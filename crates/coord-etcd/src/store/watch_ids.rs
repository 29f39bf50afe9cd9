//! The watches that one stream is asked for, and the numbers by which the server knows them. No I/O.
//!
//! The client chooses the ids of its watches, where the server is etcd, so watches are asked for without
//! waiting for each other. The gRPC proxy of etcd numbers watches itself, and may answer the second request
//! before the first. The first answer on a stream tells which of both the server is. A stream whose server
//! numbers watches has one request in flight at a time, and learns the number from the answer.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

/// The number in answers that belong to no watch.
const NO_WATCH: i64 = -1;

/// Longest time that a server that numbers watches may take to answer a request. All later requests wait for
/// the answer.
const LONGEST: Duration = Duration::from_secs(5);

/// The side that numbers the watches of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Numbering {
    /// Unknown before the first answer.
    #[default]
    Unknown,
    /// The server takes our ids.
    Ours,
    /// The server numbers watches itself.
    Theirs,
}

/// The requests of one stream, by our ids of their watches.
#[derive(Debug, Default)]
pub(super) struct Asked {
    numbering: Numbering,
    /// Watches that the stream is not asked for yet.
    wanted: VecDeque<i64>,
    /// Requests without an answer, in their order, which is the order of the answers.
    unanswered: VecDeque<i64>,
    /// The moment of the last request.
    last: Option<Instant>,
    /// Our ids by the server's numbers, where these differ.
    by_number: HashMap<i64, i64>,
}

impl Asked {
    /// Starts with a new stream, which is to be asked for these watches.
    pub(super) fn new(wanted: impl IntoIterator<Item = i64>) -> Self {
        Self { wanted: wanted.into_iter().collect(), ..Self::default() }
    }

    /// Adds a watch to ask for.
    pub(super) fn want(&mut self, id: i64) {
        self.wanted.push_back(id);
    }

    /// Returns the next watch to ask for now, if there is one; the request has to follow.
    pub(super) fn next(&mut self, now: Instant) -> Option<i64> {
        if self.numbering != Numbering::Ours && !self.unanswered.is_empty() {
            return None;
        }
        let id = self.wanted.pop_front()?;
        self.unanswered.push_back(id);
        self.last = Some(now);
        Some(id)
    }

    /// Takes the answer that a watch was created, or refused, with the server's number; returns our id.
    pub(super) fn created(&mut self, number: i64) -> Option<i64> {
        let id = self.unanswered.pop_front();
        if number == NO_WATCH {
            return id;
        }
        if self.numbering == Numbering::Unknown {
            self.numbering = if id == Some(number) { Numbering::Ours } else { Numbering::Theirs };
        }
        match self.numbering {
            Numbering::Theirs => {
                self.by_number.insert(number, id?);
                id
            }
            _ => Some(number),
        }
    }

    /// Returns our id of the watch that an answer is about.
    pub(super) fn id(&self, number: i64) -> Option<i64> {
        match self.numbering {
            Numbering::Theirs => self.by_number.get(&number).copied(),
            _ => Some(number),
        }
    }

    /// Forgets a watch that is over; returns the number to cancel at the server, if it may go on there.
    pub(super) fn end(&mut self, id: i64) -> Option<i64> {
        if let Some(at) = self.wanted.iter().position(|wanted| *wanted == id) {
            self.wanted.remove(at);
            return None;
        }
        if self.numbering == Numbering::Ours {
            return Some(id);
        }
        // Its number is not known before it is answered, and its end is noticed then.
        let number = self.by_number.iter().find(|(_, ours)| **ours == id).map(|(number, _)| *number)?;
        self.by_number.remove(&number);
        Some(number)
    }

    /// Returns until when the stream is given for an answer that others wait for.
    pub(super) fn overdue_at(&self) -> Option<Instant> {
        let waits = self.numbering == Numbering::Theirs && !self.unanswered.is_empty();
        self.last.filter(|_| waits).map(|last| last + LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(asked: &mut Asked) -> Vec<i64> {
        std::iter::from_fn(|| asked.next(Instant::now())).collect()
    }

    #[test]
    fn server_that_takes_ids_is_asked_for_all_at_once() {
        let mut asked = Asked::new([5, 6, 7]);
        assert_eq!(ask(&mut asked), [5], "nobody knows yet who numbers");
        assert_eq!(asked.created(5), Some(5));
        assert_eq!(ask(&mut asked), [6, 7]);
        assert_eq!(asked.overdue_at(), None);
        assert_eq!(asked.created(NO_WATCH), Some(6), "refused in the order of the requests");
        assert_eq!((asked.created(7), asked.id(7)), (Some(7), Some(7)));
        assert_eq!(asked.end(7), Some(7));
    }

    #[test]
    fn server_that_numbers_is_asked_for_one_at_a_time() {
        let mut asked = Asked::new([5, 6]);
        assert_eq!(ask(&mut asked), [5]);
        assert_eq!(asked.created(0), Some(5));
        asked.want(1);
        assert_eq!(ask(&mut asked), [6]);
        assert!(asked.overdue_at().is_some());
        assert_eq!(asked.id(1), None, "our id is none of its numbers");
        assert_eq!(asked.created(1), Some(6));
        assert_eq!((asked.id(0), asked.id(1)), (Some(5), Some(6)));
        assert_eq!(ask(&mut asked), [1]);
        assert_eq!(asked.created(NO_WATCH), Some(1));
        assert_eq!(asked.end(6), Some(1));
        assert_eq!((asked.id(1), asked.end(6)), (None, None));
    }

    #[test]
    fn watch_that_ends_before_its_answer_is_cancelled_by_its_number() {
        let mut asked = Asked::new([5, 6]);
        ask(&mut asked);
        assert_eq!(asked.end(5), None, "its number is not known");
        assert_eq!(asked.created(0), Some(5));
        assert_eq!(asked.end(5), Some(0));
        assert_eq!(asked.end(6), None, "nobody was asked for it");
        assert_eq!(ask(&mut asked), [0; 0]);
    }
}
