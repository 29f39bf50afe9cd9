//! State of a connection: a snapshot for metrics and readiness probes.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use crate::{
    pool::{Balancer, Instance, Phase, Serving},
    transport::Connection,
};

/// Snapshot of a [`Connection`](crate::Connection).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionState {
    /// Time since the registry was last heard; `None` while changes arrive as they happen. The last instances stay in use
    /// meanwhile.
    pub stale_for: Option<Duration>,
    /// Instances in use, ordered by id.
    pub instances: Vec<InstanceState>,
}

impl ConnectionState {
    /// Returns how many instances calls may go to.
    pub fn ready(&self) -> usize {
        self.instances.iter().filter(|instance| instance.status == InstanceStatus::Ready).count()
    }
}

/// Snapshot of one instance as its callers in this process see it. Counters begin when it is registered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InstanceState {
    /// Id of the instance.
    pub id: String,
    /// `host:port` of the instance.
    pub address: String,
    /// Whether calls go to it.
    pub status: InstanceStatus,
    /// Calls in flight, streams included.
    pub in_flight: u32,
    /// Calls so far.
    pub calls: u64,
    /// Calls that failed by the instance's fault: see [`OutlierDetection`](crate::OutlierDetection).
    pub failures: u64,
    /// Number of ejections.
    pub ejections: u64,
    /// Latency of an answer, as [`Policy::PeakEwma`](crate::Policy::PeakEwma) estimates it.
    pub latency: Option<Duration>,
}

/// Status of an instance, which says whether calls go to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceStatus {
    /// Connected, and has spoken.
    Ready,
    /// Being connected, or waiting for the next attempt.
    Connecting,
    /// Wants no calls: its record is marked so, or its health service says so or has not answered.
    NotServing,
    /// Ejected, since it failed too often. It is connected anew when its ejection time is over.
    Ejected,
}

impl ConnectionState {
    pub(crate) fn of(balancer: &Balancer) -> Self {
        let stale_for =
            balancer.connectivity.as_ref().and_then(|connectivity| connectivity.freshness().stale_for());
        let now = Instant::now();
        let instances =
            balancer.read(|pool| pool.instances().map(|instance| instance_state(instance, now)).collect());
        Self { stale_for, instances }
    }
}

fn instance_state(instance: &Instance<Connection>, now: Instant) -> InstanceState {
    let counters = &instance.stats;
    let status = match instance.phase {
        Phase::Ready(_) if instance.serving() == Serving::Yes => InstanceStatus::Ready,
        Phase::Ready(_) => InstanceStatus::NotServing,
        _ if instance.ejected.is_some() => InstanceStatus::Ejected,
        _ => InstanceStatus::Connecting,
    };
    InstanceState {
        id: counters.id.clone(),
        address: counters.authority.clone(),
        status,
        in_flight: counters.load.pending(),
        calls: counters.calls.load(Relaxed),
        failures: counters.failures.load(Relaxed),
        ejections: counters.ejections.load(Relaxed),
        latency: counters.load.latency(now),
    }
}
