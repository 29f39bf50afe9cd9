//! The deliveries that wait for one consumer. A process may have thousands of watches that seldom tell anything, so
//! that an empty one holds no memory for what may come.

use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Poll, Waker},
};

use coord_api::backend::lock;

use super::hub::Delivery;

/// Sender of deliveries. Dropping it ends the inbox, once the waiting deliveries were taken.
#[derive(Debug)]
pub(super) struct Sink(Arc<Shared>);

/// Receiver of deliveries.
#[derive(Debug)]
pub(super) struct Inbox(Arc<Shared>);

/// The consumer is behind: as many deliveries wait as may.
#[derive(Debug)]
pub(super) struct Full;

#[derive(Debug)]
struct Shared {
    limit: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Delivery>,
    consumer: Option<Waker>,
    has_ended: bool,
}

/// Makes an inbox with room for `limit` deliveries.
pub(super) fn inbox(limit: usize) -> (Sink, Inbox) {
    let shared = Arc::new(Shared { limit, state: Mutex::default() });
    (Sink(shared.clone()), Inbox(shared))
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

/// Wakes the consumer, which may look at the state at once.
fn wake(mut state: MutexGuard<'_, State>) {
    let consumer = state.consumer.take();
    drop(state);
    if let Some(consumer) = consumer {
        consumer.wake();
    }
}

impl Sink {
    /// Puts a delivery, and wakes the consumer.
    pub(super) fn put(&self, delivery: Delivery) -> Result<(), Full> {
        let mut state = self.0.lock();
        if state.waiting.len() >= self.0.limit {
            return Err(Full);
        }
        state.waiting.push_back(delivery);
        wake(state);
        Ok(())
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_ended = true;
        wake(state);
    }
}

impl Inbox {
    /// Waits for the next delivery; `None` when the sink is dropped and nothing waits any more.
    ///
    /// May be dropped and called again.
    pub(super) async fn next(&mut self) -> Option<Delivery> {
        // An inbox that never runs dry must not keep others from running.
        tokio::task::consume_budget().await;
        poll_fn(|cx| {
            let mut state = self.0.lock();
            let delivery = state.waiting.pop_front();
            if state.waiting.is_empty() {
                state.waiting = VecDeque::new();
            }
            if delivery.is_none() && !state.has_ended {
                let known = state.consumer.take().filter(|known| known.will_wake(cx.waker()));
                state.consumer = Some(known.unwrap_or_else(|| cx.waker().clone()));
                return Poll::Pending;
            }
            Poll::Ready(delivery)
        })
        .await
    }

    /// Returns the delivery that is there now, for tests.
    #[cfg(test)]
    pub(super) fn poll(&mut self) -> Poll<Option<Delivery>> {
        futures::FutureExt::now_or_never(self.next()).map_or(Poll::Pending, Poll::Ready)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(revision: i64) -> Delivery {
        Delivery::Started { from: revision }
    }

    fn next(inbox: &mut Inbox) -> Poll<Option<i64>> {
        inbox.poll().map(|next| {
            next.map(|delivery| match delivery {
                Delivery::Started { from } => from,
                other => panic!("nobody put {other:?}"),
            })
        })
    }

    #[test]
    fn what_is_put_is_taken_in_order_and_then_comes_the_end() {
        let (sink, mut inbox) = inbox(2);
        assert_eq!(next(&mut inbox), Poll::Pending);
        sink.put(from(1)).expect("has room");
        sink.put(from(2)).expect("has room");
        sink.put(from(3)).expect_err("has no room");
        assert_eq!(next(&mut inbox), Poll::Ready(Some(1)));
        sink.put(from(4)).expect("has room again");
        drop(sink);
        assert_eq!(next(&mut inbox), Poll::Ready(Some(2)));
        assert_eq!(next(&mut inbox), Poll::Ready(Some(4)));
        assert_eq!(next(&mut inbox), Poll::Ready(None));
        assert_eq!(next(&mut inbox), Poll::Ready(None));
    }

    #[test]
    fn an_empty_one_holds_no_memory_for_deliveries() {
        let (sink, mut inbox) = inbox(128);
        for n in 0..100 {
            sink.put(from(n)).expect("has room");
        }
        while next(&mut inbox).is_ready() {}
        assert_eq!(inbox.0.lock().waiting.capacity(), 0);
        drop(sink);
    }

    #[tokio::test]
    async fn a_consumer_that_waits_is_woken_also_in_another_task() {
        let (sink, mut inbox) = inbox(2);
        assert_eq!(next(&mut inbox), Poll::Pending);
        let waits = tokio::spawn(async move {
            let first = inbox.next().await;
            (first, inbox.next().await)
        });
        tokio::task::yield_now().await;
        sink.put(from(7)).expect("has room");
        tokio::task::yield_now().await;
        drop(sink);
        let (first, second) = waits.await.expect("does not panic");
        assert!(matches!(first, Some(Delivery::Started { from: 7 })), "{first:?}");
        assert!(second.is_none());
    }

    #[tokio::test]
    async fn one_that_never_runs_dry_lets_others_run() {
        let (sink, mut inbox) = inbox(2);
        let other = tokio::spawn(async {});
        while !other.is_finished() {
            sink.put(from(1)).expect("has room");
            inbox.next().await;
        }
    }
}
