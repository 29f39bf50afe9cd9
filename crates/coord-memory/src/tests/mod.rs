//! Clients of one store, with faults and without.

mod faults;
mod leases;
mod queues;
mod restarts;

use std::time::Duration;

use coord_api::ServiceInfo;

use crate::Store;

const TTL: Duration = Duration::from_secs(3);

fn info() -> ServiceInfo {
    ServiceInfo::new("svc", "1", "10.0.0.1", 80)
}

/// Lets all tasks of this runtime run that can.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Returns whether the store says so of itself.
fn shows(store: &Store, what: &str) -> bool {
    format!("{store:?}").contains(what)
}
