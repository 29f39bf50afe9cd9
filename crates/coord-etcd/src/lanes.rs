//! Which waiting requests may travel in one transaction. No I/O.
//!
//! Two writes of one key can not. And places that are created in one transaction have the same create revision, so two
//! contenders for one queue in one transaction would have no order. Hence a lane for each queue, or key of a value: its
//! requests are sent in their order, never two batches at the same time, and at most one that enters in one
//! transaction.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// The most operations of one transaction, as etcd is configured by default.
pub(crate) const MAX_OPERATIONS: usize = 128;

/// What a lane has to know of a request.
pub(crate) trait Lined {
    /// What names a queue.
    type Name: Clone + Eq + Hash;

    /// The queue it is about.
    fn lane(&self) -> &Self::Name;
    /// The key that it writes or deletes.
    fn key(&self) -> &str;
    /// Whether it enters the queue, so that what it finds there matters.
    fn enters(&self) -> bool;
    /// How many operations it takes.
    fn operations(&self) -> usize;
}

/// The requests that wait, by lane, and which lanes have one under way.
#[derive(Debug)]
pub(crate) struct Lanes<R: Lined> {
    by_name: HashMap<R::Name, Lane<R>>,
    /// The lanes that have something to send, in the order in which they came.
    ready: VecDeque<R::Name>,
    /// How many operations all that wait would take.
    waiting: usize,
    /// The most operations of one transaction here.
    most: usize,
}

#[derive(Debug)]
struct Lane<R> {
    waiting: VecDeque<R>,
    under_way: bool,
}

impl<R> Lane<R> {
    fn idle() -> Self {
        Self { waiting: VecDeque::new(), under_way: false }
    }
}

impl<R: Lined> Lanes<R> {
    /// For transactions of at most this many operations.
    pub(crate) fn of(most: usize) -> Self {
        Self { by_name: HashMap::new(), ready: VecDeque::new(), waiting: 0, most }
    }

    /// Takes note of a request.
    pub(crate) fn push(&mut self, request: R) {
        let name = request.lane();
        let lane = self.by_name.entry(name.clone()).or_insert_with(Lane::idle);
        if lane.waiting.is_empty() && !lane.under_way {
            self.ready.push_back(name.clone());
        }
        self.waiting += request.operations();
        lane.waiting.push_back(request);
    }

    /// How many operations all that wait would take.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The requests of the next transaction; empty when nothing can be sent now.
    pub(crate) fn next_batch(&mut self) -> Vec<R> {
        let mut batch = Vec::new();
        let mut room = self.most;
        while let Some(name) = self.ready.front() {
            let lane = self.by_name.get_mut(name).expect("a lane that is ready exists");
            let first = batch.len();
            while let Some(next) = lane.waiting.front()
                && next.operations() <= room
                && fits(&batch[first..], next)
            {
                room -= next.operations();
                batch.extend(lane.waiting.pop_front());
            }
            if batch.len() == first {
                break;
            }
            lane.under_way = true;
            self.ready.pop_front();
        }
        self.waiting -= self.most - room;
        batch
    }

    /// Takes note that the request of `lane` is answered.
    pub(crate) fn answered(&mut self, name: &R::Name) {
        let Some(lane) = self.by_name.get_mut(name).filter(|lane| lane.under_way) else { return };
        lane.under_way = false;
        if lane.waiting.is_empty() {
            self.by_name.remove(name);
        } else {
            self.ready.push_back(name.clone());
        }
    }
}

/// Whether a request may travel with others of its lane.
fn fits<R: Lined>(together: &[R], next: &R) -> bool {
    let one_enters = together.iter().any(Lined::enters);
    !(next.enters() && one_enters) && together.iter().all(|other| other.key() != next.key())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Request(&'static str, &'static str);

    impl Lined for Request {
        type Name = &'static str;

        fn lane(&self) -> &&'static str {
            &self.0
        }
        fn key(&self) -> &str {
            self.1.trim_start_matches('+')
        }
        fn enters(&self) -> bool {
            self.1.starts_with('+')
        }
        fn operations(&self) -> usize {
            if self.enters() { 2 } else { 1 }
        }
    }

    fn lanes(requests: &[Request]) -> Lanes<Request> {
        let mut lanes = Lanes::of(MAX_OPERATIONS);
        for request in requests {
            lanes.push(request.clone());
        }
        lanes
    }

    #[test]
    fn different_lanes_travel_together() {
        let requests = [Request("a", "+1"), Request("b", "+2"), Request("c", "3")];
        let mut lanes = lanes(&requests);
        assert_eq!(lanes.next_batch(), requests);
        assert!(lanes.next_batch().is_empty());
    }

    #[test]
    fn one_lane_keeps_its_order_and_never_has_two_under_way() {
        let mut lanes =
            lanes(&[Request("a", "+1"), Request("a", "+2"), Request("a", "9"), Request("b", "+3")]);
        assert_eq!(lanes.next_batch(), [Request("a", "+1"), Request("b", "+3")]);
        lanes.push(Request("b", "4"));
        assert!(lanes.next_batch().is_empty(), "both are under way");
        lanes.answered(&"a");
        assert_eq!(lanes.next_batch(), [Request("a", "+2"), Request("a", "9")]);
        lanes.answered(&"b");
        assert_eq!(lanes.next_batch(), [Request("b", "4")]);
    }

    #[test]
    fn leaving_follows_entering_with_the_same_key() {
        let mut lanes = lanes(&[Request("a", "7"), Request("a", "+1"), Request("a", "1")]);
        assert_eq!(lanes.next_batch(), [Request("a", "7"), Request("a", "+1")]);
        lanes.answered(&"a");
        assert_eq!(lanes.next_batch(), [Request("a", "1")]);
    }

    #[test]
    fn a_transaction_is_bounded_and_nothing_is_forgotten() {
        let names: Vec<_> = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split(' ').collect();
        let mut lanes = Lanes::of(MAX_OPERATIONS);
        for key in ["1", "2", "3", "4", "+5", "1", "+2"] {
            for lane in &names {
                lanes.push(Request(lane, key));
            }
        }
        let mut sent = Vec::new();
        while let batch = lanes.next_batch()
            && !batch.is_empty()
        {
            sent.push(batch.iter().map(Lined::operations).sum());
            for lane in &names {
                lanes.answered(lane);
            }
        }
        assert_eq!(sent.iter().sum::<usize>(), 9 * names.len());
        assert_eq!(sent.iter().max(), Some(&MAX_OPERATIONS));
        assert_eq!(lanes.waiting(), 0);
        assert!(lanes.by_name.is_empty(), "an idle lane costs nothing");
    }
}
