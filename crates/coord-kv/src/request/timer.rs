//! Timers that callers on any executor may wait for.

use std::time::Duration;

use coord_api::backend::after;
use tokio::time::Instant;

pub(crate) use coord_api::backend::{sleep, sleep_until};

/// The time of a future was over before it was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Elapsed;

/// Waits for `future` until a moment. May be dropped, and `future` with it.
pub(crate) async fn timeout_at<F: Future>(deadline: Instant, future: F) -> Result<F::Output, Elapsed> {
    tokio::select! {
        biased;
        output = future => Ok(output),
        () = sleep_until(deadline) => Err(Elapsed),
    }
}

/// Waits for `future` for a time from now on. May be dropped, and `future` with it.
pub(crate) fn timeout<F: Future>(
    limit: Duration,
    future: F,
) -> impl Future<Output = Result<F::Output, Elapsed>> {
    timeout_at(after(limit), future)
}
