//! Health of a store, for readiness probes.

use std::time::Duration;

use crate::LeaseHealth;

/// How long [`Provider::health`](crate::Provider::health) may take: a probe of Kubernetes waits one second.
pub const HEALTH_LIMIT: Duration = Duration::from_millis(900);

/// Health that [`Provider::health`](crate::Provider::health) found. Its existence says that the store
/// answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Health {
    /// How long the store took to answer one linearizable read.
    pub latency: Duration,
    /// How the leases of this provider are doing, as [`Provider::lease_health`](crate::Provider::lease_health) says.
    pub leases: LeaseHealth,
}

impl Health {
    /// For backends.
    pub fn new(latency: Duration, leases: LeaseHealth) -> Self {
        Self { latency, leases }
    }

    /// Returns whether nothing that this provider held is lost. With [`LeaseHealth::Suspect`] it still holds
    /// everything.
    pub fn is_ready(&self) -> bool {
        !matches!(self.leases, LeaseHealth::Lost(_))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LossReason;

    #[test]
    fn whoever_lost_something_is_not_ready() {
        let table = [
            (LeaseHealth::Healthy, true),
            (LeaseHealth::Suspect, true),
            (LeaseHealth::Lost(LossReason::Expired), false),
        ];
        for (leases, ready) in table {
            assert_eq!(Health::new(Duration::ZERO, leases).is_ready(), ready, "{leases:?}");
        }
    }
}
