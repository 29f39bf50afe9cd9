//! Callers that have asked for an entry in a queue and have no answer yet.
//!
//! Requests for entries on one lease may be in flight together, and one may overtake another. The caller that
//! asked first gets the first entry all the same (FIFO). An entry is assigned only when its request is
//! answered and no entry before it may still be heard of. Then it goes to the caller that asked first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tokio::sync::oneshot;

use crate::{queue::send::Outcome, store::Failure};

/// Entry that was asked for, as the client knows it, and the outcome of its request.
#[derive(Debug)]
pub(super) struct Assigned<P> {
    pub(super) place: P,
    pub(super) outcome: Result<Outcome, Failure>,
}

/// Callers that wait for an answer, in the order in which they asked, and the requests, which are as many.
#[derive(Debug)]
pub(super) struct Arrivals<P> {
    callers: VecDeque<Caller<P>>,
    /// Numbers of the requests without an answer.
    unanswered: BTreeSet<u64>,
    /// Number of requests that were made.
    made: u64,
    /// Number of requests that were sent, from the first on.
    sent: u64,
    /// Entries that may not be the first, by the revisions at which they were created.
    arrived: BTreeMap<i64, Arrived<P>>,
}

#[derive(Debug)]
struct Caller<P> {
    /// Number of the request that was made for this caller.
    number: u64,
    /// Lease that the entry is to be on; `None` if only this very request will do.
    lease: Option<i64>,
    reply: oneshot::Sender<Assigned<P>>,
}

#[derive(Debug)]
struct Arrived<P> {
    /// Number of requests that were sent before this entry was heard of. Requests sent later are for later
    /// entries.
    sent: u64,
    entered: Assigned<P>,
}

/// Answers to give now, each with the caller that gets it.
pub(super) type Replies<P> = Vec<(oneshot::Sender<Assigned<P>>, Assigned<P>)>;

impl<P> Default for Arrivals<P> {
    fn default() -> Self {
        let (callers, unanswered, arrived) = Default::default();
        Self { callers, unanswered, made: 0, sent: 0, arrived }
    }
}

impl<P> Arrivals<P> {
    /// Returns whether the entry that was asked for last would do as well for one on `lease`.
    pub(super) fn ends_with(&self, lease: i64) -> bool {
        self.callers.back().is_some_and(|last| last.lease == Some(lease))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }

    /// Adds a caller at the end. Returns the number of its request, and the receiver of the answer.
    pub(super) fn add(&mut self, lease: Option<i64>) -> (u64, oneshot::Receiver<Assigned<P>>) {
        let (reply, answer) = oneshot::channel();
        let number = self.made;
        self.callers.push_back(Caller { number, lease, reply });
        self.unanswered.insert(number);
        self.made += 1;
        (number, answer)
    }

    /// Takes note that the next request is sent: requests are sent in their order.
    pub(super) fn send(&mut self) {
        self.sent += 1;
    }

    /// Takes an answer. Returns the answers to give now.
    pub(super) fn answered(&mut self, number: u64, entered: Assigned<P>) -> Replies<P> {
        self.unanswered.remove(&number);
        let mut told = Vec::new();
        match &entered.outcome {
            Ok(outcome) if !outcome.condition => {
                self.arrived.insert(outcome.revision, Arrived { sent: self.sent, entered });
            }
            // Nobody else was in the queue, and so nobody before this entry.
            Ok(_) => told.push((self.first(), entered)),
            // A failure does not affect the entries of others.
            Err(_) => told.push((self.take(number), entered)),
        }
        self.hand_out(&mut told);
        told
    }

    /// Takes note that a request will never be answered. Returns its caller, which is told nothing, and the
    /// answers to give now.
    pub(super) fn forget(&mut self, number: u64) -> (oneshot::Sender<Assigned<P>>, Replies<P>) {
        self.unanswered.remove(&number);
        let (asked, mut told) = (self.take(number), Vec::new());
        self.hand_out(&mut told);
        (asked, told)
    }

    /// Gives the entries that are known to be the first to the callers that asked first.
    fn hand_out(&mut self, told: &mut Replies<P>) {
        let still_out = self.unanswered.first().copied().unwrap_or(u64::MAX);
        while let Some(place) = self.arrived.first_entry().filter(|place| place.get().sent <= still_out) {
            let entered = place.remove().entered;
            told.push((self.first(), entered));
        }
    }

    fn first(&mut self) -> oneshot::Sender<Assigned<P>> {
        self.callers.pop_front().expect("there are as many as requests").reply
    }

    /// Removes the caller that made a request. It has no entry before the request is answered.
    fn take(&mut self, number: u64) -> oneshot::Sender<Assigned<P>> {
        let at = self.callers.iter().position(|caller| caller.number == number);
        let caller = self.callers.remove(at.unwrap_or(0));
        caller.expect("there are as many as requests").reply
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns arrivals of requests on one lease, and the receivers of the callers that wait.
    fn arrivals(requests: usize) -> (Arrivals<u64>, Vec<oneshot::Receiver<Assigned<u64>>>) {
        let mut arrivals = Arrivals::default();
        let waiting = (0..requests).map(|_| arrivals.add(Some(1)).1).collect();
        (arrivals, waiting)
    }

    /// Answers the request of this number: its entry was created at a revision.
    fn came(arrivals: &mut Arrivals<u64>, number: u64, revision: i64, condition: bool) {
        let outcome = Ok(Outcome { condition, other: None, predecessor: None, revision });
        tell(arrivals.answered(number, Assigned { place: number, outcome }));
    }

    fn tell(told: Replies<u64>) {
        for (first, entered) in told {
            drop(first.send(entered));
        }
    }

    /// Returns the numbers of the requests whose entries the callers got.
    fn got(waiting: &mut [oneshot::Receiver<Assigned<u64>>]) -> Vec<Option<u64>> {
        waiting.iter_mut().map(|answer| answer.try_recv().ok().map(|entered| entered.place)).collect()
    }

    #[test]
    fn the_first_gets_the_first_place_in_whatever_order_they_are_made_and_heard_of() {
        for heard in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            for made in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
                let (mut arrivals, mut waiting) = arrivals(3);
                (0..3).for_each(|_| arrivals.send());
                for number in heard {
                    came(&mut arrivals, number, 7 + made[number as usize], false);
                }
                let first = |place| made.iter().position(|at| *at == place).map(|number| number as u64);
                assert_eq!(got(&mut waiting), [first(0), first(1), first(2)], "{heard:?} {made:?}");
                assert!(arrivals.is_empty() && arrivals.arrived.is_empty() && arrivals.unanswered.is_empty());
            }
        }
    }

    #[test]
    fn what_is_sent_later_is_not_waited_for() {
        let (mut arrivals, mut waiting) = arrivals(3);
        (0..2).for_each(|_| arrivals.send());
        came(&mut arrivals, 1, 8, false);
        assert_eq!(got(&mut waiting), [None, None, None], "the first may have come before it");
        arrivals.send();
        came(&mut arrivals, 0, 7, false);
        assert_eq!(got(&mut waiting), [None, None, None], "the third may have come before it");
        came(&mut arrivals, 2, 9, false);
        assert_eq!(got(&mut waiting), [Some(0), Some(1), Some(2)]);

        let (mut arrivals, mut waiting) = self::arrivals(3);
        (0..2).for_each(|_| arrivals.send());
        came(&mut arrivals, 0, 7, false);
        arrivals.send();
        came(&mut arrivals, 1, 8, false);
        assert_eq!(got(&mut waiting)[..1], [Some(0)], "the third was sent when the first was there");
    }

    #[test]
    fn who_is_alone_in_the_queue_is_before_all_others() {
        let (mut arrivals, mut waiting) = arrivals(2);
        (0..2).for_each(|_| arrivals.send());
        came(&mut arrivals, 1, 8, true);
        assert_eq!(got(&mut waiting), [Some(1), None]);
    }

    #[test]
    fn what_failed_is_told_to_whoever_asked_for_it_and_keeps_nobody_waiting() {
        let (mut arrivals, mut waiting) = arrivals(4);
        (0..4).for_each(|_| arrivals.send());
        came(&mut arrivals, 1, 8, false);
        let failed = Assigned { place: 2, outcome: Err(Failure::closed()) };
        tell(arrivals.answered(2, failed));
        let told = waiting[2].try_recv().expect("is told");
        assert!(told.outcome.is_err() && told.place == 2);
        let (gone, told) = arrivals.forget(0);
        assert!(told.is_empty(), "the fourth may have come before the second");
        drop(gone);
        came(&mut arrivals, 3, 9, false);
        assert_eq!(got(&mut waiting), [None, Some(1), None, Some(3)]);
        assert!(arrivals.is_empty() && arrivals.arrived.is_empty());
    }

    #[test]
    fn only_places_on_the_same_lease_are_exchanged() {
        let (mut arrivals, _waiting) = arrivals(1);
        assert!(arrivals.ends_with(1) && !arrivals.ends_with(2));
        let (number, _try) = arrivals.add(None);
        assert_eq!(number, 1);
        assert!(!arrivals.ends_with(1));
    }
}
