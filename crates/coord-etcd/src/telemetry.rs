//! Counters and timers of a client, through the facade of the `metrics` crate. Nothing is counted where a
//! program installs no recorder. `docs/production.md` lists the names.

use coord_kv::store::Observation;

/// Counts or times something that happened.
pub(crate) fn record(observation: Observation) {
    match observation {
        Observation::Requested { operation, took, succeeded } => {
            let outcome = if succeeded { "ok" } else { "error" };
            metrics::histogram!("coord_etcd_request_seconds", "operation" => operation, "outcome" => outcome)
                .record(took);
        }
        Observation::Acquired { waited } => {
            metrics::histogram!("coord_etcd_lock_wait_seconds").record(waited);
        }
        Observation::RenewalFailed => metrics::counter!("coord_etcd_renewals_failed_total").increment(1),
        Observation::LeaseLost(reason) => {
            let reason = format!("{reason:?}").to_lowercase();
            metrics::counter!("coord_etcd_leases_lost_total", "reason" => reason).increment(1);
        }
        Observation::WatchStreamBroken => {
            metrics::counter!("coord_etcd_watch_streams_broken_total").increment(1);
        }
        Observation::WatchGap => metrics::counter!("coord_etcd_watch_gaps_total").increment(1),
    }
}
