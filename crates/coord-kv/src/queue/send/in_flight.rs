//! Transactions that are in flight.

use std::{collections::HashMap, time::Duration};

use tokio::{
    task::{Id, JoinSet},
    time::Instant,
};

/// Time after which a transaction is slow: it may not be answered for seconds, for example by an etcd member
/// that is frozen. Requests about other queues do not wait for it any more.
const SLOW: Duration = Duration::from_millis(100);

/// Transactions in flight, each with what is to be done with its answer. They end when this is dropped.
#[derive(Debug)]
pub(super) struct InFlight<T> {
    tasks: JoinSet<T>,
    sent: HashMap<Id, Instant>,
}

impl<T: Default + Send + 'static> InFlight<T> {
    pub(super) fn none() -> Self {
        Self { tasks: JoinSet::new(), sent: HashMap::new() }
    }

    /// Returns how many transactions are in flight.
    pub(super) fn count(&self) -> usize {
        self.sent.len()
    }

    /// Returns until when each transaction that is not slow is in time.
    fn in_time_until(&self) -> impl Iterator<Item = Instant> {
        let now = Instant::now();
        self.sent.values().map(|sent| *sent + SLOW).filter(move |slow| now < *slow)
    }

    /// Returns how many transactions are in flight that are not slow.
    pub(super) fn in_time(&self) -> usize {
        self.in_time_until().count()
    }

    /// Returns when one more transaction is slow.
    pub(super) fn next_slow(&self) -> Option<Instant> {
        self.in_time_until().min()
    }

    pub(super) fn send(&mut self, transaction: impl Future<Output = T> + Send + 'static) {
        let id = self.tasks.spawn(transaction).id();
        self.sent.insert(id, Instant::now());
    }

    /// Waits for the next answer and returns what came of it; `None` if nothing is in flight. May be dropped.
    pub(super) async fn answered(&mut self) -> Option<T> {
        let (id, answered) = match self.tasks.join_next_with_id().await? {
            Ok((id, answered)) => (id, answered),
            Err(error) => (error.id(), T::default()),
        };
        self.sent.remove(&id);
        Some(answered)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::{
        task::yield_now,
        time::{advance, sleep, sleep_until},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_is_late_until_it_is_answered() {
        let mut in_flight = InFlight::none();
        assert_eq!(in_flight.answered().await, None);
        in_flight.send(sleep(SLOW * 3).map(|()| 3));
        advance(SLOW / 2).await;
        in_flight.send(sleep(SLOW * 3).map(|()| 4));
        assert_eq!((in_flight.count(), in_flight.in_time()), (2, 2));
        sleep_until(in_flight.next_slow().expect("two are in time")).await;
        assert_eq!((in_flight.count(), in_flight.in_time()), (2, 1));
        sleep_until(in_flight.next_slow().expect("one is in time")).await;
        assert_eq!((in_flight.count(), in_flight.in_time()), (2, 0));
        assert_eq!(in_flight.next_slow(), None);
        assert_eq!(in_flight.answered().await, Some(3));
        assert_eq!(in_flight.count(), 1);
        assert_eq!(in_flight.answered().await, Some(4));
        assert_eq!(in_flight.count(), 0);
    }

    #[tokio::test]
    async fn one_that_panics_is_not_under_way_any_more() {
        async fn fails() {
            yield_now().await;
            panic!("is a bug");
        }
        let mut in_flight = InFlight::none();
        in_flight.send(fails());
        assert_eq!(in_flight.answered().await, Some(()));
        assert_eq!(in_flight.count(), 0);
    }
}
