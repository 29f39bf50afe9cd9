//! The choice of waiting requests that travel in one transaction: batches. No I/O.
//!
//! Two writes of one key can not share a transaction. Places that are created in one transaction have the
//! same create revision. So two contenders for one queue in one transaction would have no order.
//!
//! Hence there is a lane for each queue, or key of a value:
//!
//! - The requests of a lane are sent in their order.
//! - At most one request that enters is in one transaction.
//! - No request is sent while an earlier one of its lane is in flight, unless the later one says that it may
//!   be.
//! - A request with a condition on its queue never travels with others of its lane. The store checks the
//!   conditions of nested transactions before it makes any operation of the outer one.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// Properties of a request that its lane has to know.
pub(crate) trait Lined {
    /// Name of a queue.
    type Name: Clone + Eq + Hash;

    /// Returns the queue that the request is about.
    fn lane(&self) -> &Self::Name;
    /// Returns the key that the request writes or deletes.
    fn key(&self) -> &str;
    /// Returns whether the request enters the queue, so that the entries it finds there matter.
    fn enters(&self) -> bool;
    /// Returns whether the effect of the request depends on the state of the queue, by a condition of its
    /// own.
    fn is_conditional(&self) -> bool;
    /// Returns how many operations the request takes.
    fn operations(&self) -> usize;
    /// Returns whether the request may be sent while others of its lane are in flight, and so be done before
    /// them.
    fn overlaps(&self) -> bool;
}

/// The requests that wait, by lane, and which lanes have some in flight.
#[derive(Debug)]
pub(crate) struct Lanes<R: Lined> {
    by_name: HashMap<R::Name, Lane<R>>,
    /// The lanes that have something to send, in the order in which they came.
    ready: VecDeque<R::Name>,
    /// Number of operations that all waiting requests would take.
    waiting: usize,
    /// Number of waiting requests that enter a queue and may overlap with others.
    overlapping: usize,
    /// The most operations of one transaction here.
    most: usize,
}

#[derive(Debug)]
struct Lane<R> {
    waiting: VecDeque<R>,
    /// Number of batches in flight.
    under_way: usize,
}

impl<R: Lined> Lane<R> {
    fn idle() -> Self {
        Self { waiting: VecDeque::new(), under_way: 0 }
    }

    /// Returns whether the lane has something that can be sent.
    fn is_ready(&self) -> bool {
        self.waiting.front().is_some_and(|next| self.under_way == 0 || next.overlaps())
    }
}

fn needs_its_own<R: Lined>(request: &R) -> usize {
    usize::from(request.enters() && request.overlaps())
}

impl<R: Lined> Lanes<R> {
    /// Makes lanes for transactions of at most this many operations.
    pub(crate) fn of(most: usize) -> Self {
        Self { by_name: HashMap::new(), ready: VecDeque::new(), waiting: 0, overlapping: 0, most }
    }

    /// Takes note of a request.
    pub(crate) fn push(&mut self, request: R) {
        let name = request.lane();
        let lane = self.by_name.entry(name.clone()).or_insert_with(Lane::idle);
        let was_empty = lane.waiting.is_empty();
        let name = name.clone();
        self.waiting += request.operations();
        self.overlapping += needs_its_own(&request);
        lane.waiting.push_back(request);
        if was_empty && lane.is_ready() {
            self.ready.push_back(name);
        }
    }

    /// Returns how many operations all waiting requests would take.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Returns whether a request waits that need not: it enters a queue, and so needs a transaction that no
    /// other one enters in.
    pub(crate) fn has_one_that_overlaps(&self) -> bool {
        self.overlapping > 0
    }

    /// Takes the requests of the next transaction; empty when nothing can be sent now.
    pub(crate) fn next_batch(&mut self) -> Vec<R> {
        let mut batch = Vec::new();
        let mut room = self.most;
        // The lanes whose next request needs another transaction, which may be sent as well.
        let mut again = Vec::new();
        while let Some(name) = self.ready.front() {
            let lane = self.by_name.get_mut(name).expect("a lane that is ready exists");
            let first = batch.len();
            while lane.is_ready()
                && let Some(next) = lane.waiting.front()
                && next.operations() <= room
                && fits(&batch[first..], next)
            {
                room -= next.operations();
                self.overlapping -= needs_its_own(next);
                batch.extend(lane.waiting.pop_front());
            }
            if batch.len() == first {
                break;
            }
            lane.under_way += 1;
            let is_ready = lane.is_ready();
            again.extend(self.ready.pop_front().filter(|_| is_ready));
        }
        self.ready.extend(again);
        self.waiting -= self.most - room;
        batch
    }

    /// Takes note that a batch is answered which had requests of `lane`.
    pub(crate) fn answered(&mut self, name: &R::Name) {
        let lane = self.by_name.get_mut(name).expect("a lane with a batch in flight exists");
        let was_ready = lane.is_ready();
        lane.under_way -= 1;
        if lane.under_way == 0 && lane.waiting.is_empty() {
            self.by_name.remove(name);
        } else if lane.is_ready() && !was_ready {
            self.ready.push_back(name.clone());
        }
    }
}

/// Returns whether a request may travel with others of its lane.
fn fits<R: Lined>(together: &[R], next: &R) -> bool {
    let two_enter = next.enters() && together.iter().any(Lined::enters);
    let is_conditional = next.is_conditional() || together.iter().any(Lined::is_conditional);
    let shares_a_key = together.iter().any(|other| other.key() == next.key());
    together.is_empty() || !(two_enter || is_conditional || shares_a_key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX_OPERATIONS: usize = 128;

    /// Its lane, and its key: with a `+` it enters, with a `?` on a condition, with a `~` before that it overlaps.
    #[derive(Debug, Clone, PartialEq)]
    struct Request(&'static str, &'static str);

    impl Lined for Request {
        type Name = &'static str;

        fn lane(&self) -> &&'static str {
            &self.0
        }
        fn key(&self) -> &str {
            self.1.trim_start_matches(['~', '+', '?'])
        }
        fn enters(&self) -> bool {
            self.1.contains(['+', '?'])
        }
        fn is_conditional(&self) -> bool {
            self.1.contains('?')
        }
        fn operations(&self) -> usize {
            if self.enters() { 2 } else { 1 }
        }
        fn overlaps(&self) -> bool {
            self.1.starts_with('~')
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
        assert!(lanes.next_batch().is_empty(), "both are in flight");
        lanes.answered(&"a");
        assert_eq!(lanes.next_batch(), [Request("a", "+2"), Request("a", "9")]);
        lanes.answered(&"b");
        assert_eq!(lanes.next_batch(), [Request("b", "4")]);
    }

    #[test]
    fn what_overlaps_is_sent_while_others_are_under_way_and_enters_in_a_transaction_of_its_own() {
        let mut lanes =
            lanes(&[Request("a", "+1"), Request("a", "~+2"), Request("a", "~3"), Request("b", "4")]);
        assert!(lanes.has_one_that_overlaps());
        assert_eq!(lanes.next_batch(), [Request("a", "+1"), Request("b", "4")]);
        assert_eq!(lanes.next_batch(), [Request("a", "~+2"), Request("a", "~3")]);
        assert!(!lanes.has_one_that_overlaps());
        for request in [Request("a", "+5"), Request("a", "~+6"), Request("b", "~7")] {
            lanes.push(request);
        }
        assert_eq!(
            lanes.next_batch(),
            [Request("b", "~7")],
            "the fifth has to wait, and the sixth is behind it"
        );
        lanes.answered(&"a");
        assert!(lanes.next_batch().is_empty(), "one batch is still in flight");
        lanes.answered(&"a");
        assert_eq!(lanes.next_batch(), [Request("a", "+5")]);
        assert_eq!(lanes.next_batch(), [Request("a", "~+6")]);
        for lane in ["a", "a", "b", "b"] {
            lanes.answered(&lane);
        }
        assert!(lanes.by_name.is_empty() && lanes.waiting() == 0);
    }

    #[test]
    fn leaving_follows_entering_with_the_same_key() {
        let mut lanes = lanes(&[Request("a", "7"), Request("a", "+1"), Request("a", "1")]);
        assert_eq!(lanes.next_batch(), [Request("a", "7"), Request("a", "+1")]);
        lanes.answered(&"a");
        assert_eq!(lanes.next_batch(), [Request("a", "1")]);
    }

    #[test]
    fn conditional_request_travels_alone_in_its_lane() {
        let mut lanes = lanes(&[
            Request("a", "~7"),
            Request("a", "?1"),
            Request("a", "~8"),
            Request("a", "+2"),
            Request("b", "?3"),
        ]);
        assert_eq!(lanes.next_batch(), [Request("a", "~7"), Request("b", "?3")]);
        assert!(lanes.next_batch().is_empty(), "not before that is done which it may depend on");
        lanes.answered(&"a");
        lanes.answered(&"b");
        assert_eq!(lanes.next_batch(), [Request("a", "?1")]);
        assert_eq!(lanes.next_batch(), [Request("a", "~8")], "by itself it may overlap");
        lanes.answered(&"a");
        lanes.answered(&"a");
        assert_eq!(lanes.next_batch(), [Request("a", "+2")]);
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
            for of_lane in batch.chunk_by(|one, next| one.lane() == next.lane()) {
                lanes.answered(of_lane[0].lane());
            }
        }
        assert_eq!(sent.iter().sum::<usize>(), 9 * names.len());
        assert_eq!(sent.iter().max(), Some(&MAX_OPERATIONS));
        assert_eq!(lanes.waiting(), 0);
        assert!(lanes.by_name.is_empty(), "an idle lane costs nothing");
    }
}
