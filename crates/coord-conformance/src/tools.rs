//! Waiting for what must happen, with a limit and a message that names the place.

use std::{
    future::poll_fn,
    panic::{Location, resume_unwind},
    pin::pin,
    task::Poll,
    time::Duration,
};

use tokio::task::JoinHandle;

use crate::World;

/// How long something may take that should happen at once. Generous: on a real store all tests of the suite
/// run at the same time. On a paused clock it costs nothing.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// For tests that send thousands of requests.
pub(crate) const LONG_LIMIT: Duration = Duration::from_secs(90);

/// The TTL of what a test wants to see expire: the shortest that every store grants.
pub(crate) const SHORT: Duration = Duration::from_secs(2);

/// The TTL of what must not expire during a test, so that nothing can be explained by an expiry.
pub(crate) const LONG: Duration = Duration::from_secs(60);

/// Waits for `future` and panics after `limit`.
#[track_caller]
pub(crate) fn within<F: Future>(limit: Duration, future: F) -> impl Future<Output = F::Output> {
    let place = Location::caller();
    async move {
        tokio::time::timeout(limit, future)
            .await
            .unwrap_or_else(|_| panic!("what {place} waits for did not happen within {limit:?}"))
    }
}

/// Looks again and again until `check` is true and panics after `limit`.
#[track_caller]
pub(crate) fn eventually<C, F>(limit: Duration, mut check: C) -> impl Future<Output = ()>
where
    C: FnMut() -> F,
    F: Future<Output = bool>,
{
    let place = Location::caller();
    async move {
        let looking = async {
            while !check().await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(limit, looking).await.is_ok();
        assert!(in_time, "what {place} looks for did not come true within {limit:?}");
    }
}

/// Waits until exactly `count` keys are stored: the event by which a waiter is known to be queued, or a
/// cancelled one to be gone.
#[track_caller]
pub(crate) fn keys_become(world: &dyn World, count: usize) -> impl Future<Output = ()> {
    let place = Location::caller();
    async move {
        let mut keys = Vec::new();
        let looking = async {
            loop {
                keys = world.keys().await;
                if keys.len() == count {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = tokio::time::timeout(LIMIT, looking).await.is_ok();
        assert!(in_time, "{place} waits for {count} keys, but there are {keys:?}");
    }
}

/// Polls `future` at most `times` times and then drops it; `None` if it was not ready by then. A future that
/// waits for something that does not happen is dropped after a moment.
pub(crate) async fn poll_at_most<F: Future>(times: usize, future: F) -> Option<F::Output> {
    if times == 0 {
        return None;
    }
    let mut future = pin!(future);
    let mut polls = 0;
    let polling = poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            polls += 1;
            if polls == times { Poll::Ready(None) } else { Poll::Pending }
        }
    });
    tokio::time::timeout(Duration::from_millis(200), polling).await.unwrap_or(None)
}

/// A task of a test. Dropping it cancels it, as a caller does that gives up.
pub(crate) struct Task<T>(JoinHandle<T>);

/// Starts a task.
pub(crate) fn spawn<F>(future: F) -> Task<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    Task(tokio::spawn(future))
}

impl<T> Task<T> {
    /// Waits for the task's output; a panic in it is the test's.
    #[track_caller]
    pub(crate) fn join(self) -> impl Future<Output = T> {
        self.join_within(LIMIT)
    }

    /// As [`join`](Self::join), for tasks that have more to do.
    #[track_caller]
    pub(crate) fn join_within(mut self, limit: Duration) -> impl Future<Output = T> {
        let place = Location::caller();
        async move {
            let Ok(outcome) = tokio::time::timeout(limit, &mut self.0).await else {
                panic!("the task that {place} waits for did not end within {limit:?}");
            };
            match outcome {
                Ok(output) => output,
                Err(failure) => resume_unwind(failure.into_panic()),
            }
        }
    }

    /// Cancels the task and waits until its future is dropped.
    pub(crate) async fn cancel(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }

    /// Whether the task is over.
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}
