//! The pauses between attempts at a request.

use std::time::Duration;

use coord_api::backend::Backoff;

/// Returns the backoff between attempts. Keys that the store lost are written again soon after it is back.
pub(crate) fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(20), Duration::from_millis(500))
}
