//! What a client counts and times, through the facade of the `metrics` crate: nothing, where a program installs no recorder.
//! `docs/production.md` lists the names.

use std::time::Duration;

use coord_api::LossReason;

/// A request with all its tries is over.
pub(crate) fn requested(operation: &'static str, took: Duration, succeeded: bool) {
    let outcome = if succeeded { "ok" } else { "error" };
    metrics::histogram!("coord_etcd_request_seconds", "operation" => operation, "outcome" => outcome)
        .record(took);
}

/// A lock was acquired, by a call that waited this long.
pub(crate) fn acquired(waited: Duration) {
    metrics::histogram!("coord_etcd_lock_wait_seconds").record(waited);
}

/// A renewal was not acknowledged; others follow until the lease's deadline.
pub(crate) fn renewal_failed() {
    metrics::counter!("coord_etcd_renewals_failed_total").increment(1);
}

/// A lease was lost, with all that was held on it.
pub(crate) fn lease_lost(reason: LossReason) {
    let reason = format!("{reason:?}").to_lowercase();
    metrics::counter!("coord_etcd_leases_lost_total", "reason" => reason).increment(1);
}

/// The stream of all watches broke; they go on over another.
pub(crate) fn watch_stream_broken() {
    metrics::counter!("coord_etcd_watch_streams_broken_total").increment(1);
}

/// A watch missed changes, as after a compaction, and reads all anew.
pub(crate) fn watch_gap() {
    metrics::counter!("coord_etcd_watch_gaps_total").increment(1);
}
