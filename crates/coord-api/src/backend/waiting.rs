//! Waiting in the queue of a lock: within the caller's time, and through the loss of a place.
//!
//! A waiter holds nothing that could be lost. Its place may go: an outage was longer than the TTL, or an
//! operator revoked the lease or deleted the key. Then it takes another one, behind those who came meanwhile.
//! And a time-out of the caller's is no answer of the store: that others are before is told only if the store
//! has said so.

use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::{Error, LossReason, Result};

/// How long the store has for its first word at least, however short the caller's wait is.
pub const FIRST_WORD: Duration = Duration::from_millis(500);

/// The queue of one lock, as a backend lets one caller stand in it.
pub trait Queue: Sync {
    /// A place in it. Dropping it leaves the queue.
    type Place: QueuedPlace;

    /// Takes the last place. If the future is dropped or fails, nothing stays behind.
    fn enter(&self) -> impl Future<Output = Result<Self::Place>> + Send;

    /// Waits until it is of use to try again after an error.
    fn pause(&self) -> impl Future<Output = ()> + Send;
}

/// A place in a queue.
pub trait QueuedPlace: Send {
    /// Waits until the place is at the head. May be dropped and called again.
    ///
    /// # Errors
    /// [`Error::Lost`] if the place is gone.
    fn turn(&mut self) -> impl Future<Output = Result<()>> + Send;

    /// Returns whether the store has said that somebody else's place is before this one.
    fn is_behind(&self) -> bool;
}

/// Waits in `queue` until a place is at the head. The first place is had within the time of a request or not
/// at all. From then on lost places are replaced for as long as the caller waits.
///
/// # Errors
/// Errors of the first [`enter`](Queue::enter), later only errors that waiting does not mend. [`Error::Lost`]
/// is never among them; a closed client gives [`Error::Closed`].
pub async fn wait_for_turn<Q: Queue>(queue: &Q) -> Result<Q::Place> {
    let time = Time { wait: None, end: None, word: None };
    let had = stand(queue, &time).await?;
    had.ok_or_else(|| time.over())
}

/// Waits in `queue` for `wait` at most; `None` if the store has said that others are before. The store has at least
/// [`FIRST_WORD`] to say so.
///
/// # Errors
/// As [`wait_for_turn`], and for a store that does not answer in time [`Error::Unavailable`] or [`Error::Timeout`].
pub async fn wait_within<Q: Queue>(queue: &Q, wait: Duration) -> Result<Option<Q::Place>> {
    let now = Instant::now();
    // A moment that the clock can not count does not come.
    let (end, word) = (now.checked_add(wait), now.checked_add(wait.max(FIRST_WORD)));
    stand(queue, &Time { wait: Some(wait), end, word }).await
}

/// Name of the operation in errors.
const OPERATION: &str = "lock";

/// The caller's time.
struct Time {
    /// As the caller said it; `None` for no limit.
    wait: Option<Duration>,
    /// When waiting ends.
    end: Option<Instant>,
    /// Until when the store may say something.
    word: Option<Instant>,
}

impl Time {
    fn over(&self) -> Error {
        Error::Timeout { operation: OPERATION, after: self.wait.unwrap_or(Duration::MAX).max(FIRST_WORD) }
    }
}

/// Waits for `future` until a moment, if there is one; `None` if that comes first. Without one no timer is needed.
pub(crate) async fn until<F: Future>(moment: Option<Instant>, future: F) -> Option<F::Output> {
    match moment {
        Some(moment) => timeout_at(moment, future).await.ok(),
        None => Some(future.await),
    }
}

async fn stand<Q: Queue>(queue: &Q, time: &Time) -> Result<Option<Q::Place>> {
    // Why there is no place now, as far as that is of use to the caller.
    let mut reason = None;
    let mut has_stood = false;
    loop {
        let error = match until(time.word, queue.enter()).await {
            Some(Ok(mut place)) => {
                has_stood = true;
                match until_turn(&mut place, time).await {
                    Some(Ok(())) => return Ok(Some(place)),
                    Some(Err(error)) => error,
                    None if place.is_behind() => return Ok(None),
                    None => return Err(time.over()),
                }
            }
            Some(Err(error)) => error,
            None => return Err(reason.unwrap_or_else(|| time.over())),
        };
        match Next::after(error, has_stood, time.wait.is_some()) {
            Next::Tell(error) => return Err(error),
            Next::Again(error) => {
                tracing::debug!(error = error.as_ref().map(tracing::field::display), "queues anew");
                reason = error;
            }
        }
        if until(time.end, queue.pause()).await.is_none() {
            return Err(reason.unwrap_or_else(|| time.over()));
        }
    }
}

/// Waits for the turn of a place; `None` if the time is over. The time is over only when the store has said
/// where the place stands, or had its time to do so.
async fn until_turn(place: &mut impl QueuedPlace, time: &Time) -> Option<Result<()>> {
    match until(time.end, place.turn()).await {
        Some(turn) => Some(turn),
        None if place.is_behind() => None,
        None => until(time.word, place.turn()).await,
    }
}

/// Step after an error.
#[derive(Debug)]
enum Next {
    /// The caller is told.
    Tell(Error),
    /// A new place is taken. With the error, if that says more than that a place was lost.
    Again(Option<Error>),
}

impl Next {
    /// A caller that has stood in the queue outlasts any error that passes by itself or by an operator's
    /// doing. A caller that asks for the first time is told at once. With a time of its own it outlasts
    /// errors that pass by themselves.
    fn after(error: Error, has_stood: bool, has_time: bool) -> Self {
        match error {
            Error::Lost { reason: LossReason::Closed } => Self::Tell(Error::Closed),
            Error::Lost { .. } => Self::Again(None),
            Error::Unauthenticated { .. } | Error::NoSpace { .. } if has_stood => Self::Again(Some(error)),
            error if error.is_retryable() && (has_stood || has_time) => Self::Again(Some(error)),
            error => Self::Tell(error),
        }
    }
}

#[cfg(test)]
mod tests;
