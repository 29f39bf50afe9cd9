//! Events that a client tells of its work, for a backend that counts and times it.

use std::time::Duration;

use coord_api::LossReason;

/// Something that happened in a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// A request with all its attempts is over.
    Requested {
        /// Name of the operation.
        operation: &'static str,
        /// Time that the request took.
        took: Duration,
        /// Whether it was answered.
        succeeded: bool,
    },
    /// A lock was acquired.
    Acquired {
        /// Time that its caller waited.
        waited: Duration,
    },
    /// A renewal was not acknowledged; others follow until the deadline of the lease.
    RenewalFailed,
    /// A lease was lost, with all that was held on it.
    LeaseLost(LossReason),
    /// The stream of all watches broke; they go on over another.
    WatchStreamBroken,
    /// A watch missed changes, as after a compaction, and reads all anew.
    WatchGap,
}
