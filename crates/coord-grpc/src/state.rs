//! What a connection tells of itself.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use crate::{
    balancer::Balancer,
    roster::{Member, Phase, Serving},
    wire::Link,
};

/// A [`Connection`](crate::Connection) at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConnectionState {
    /// For how long nothing has come from the registry; `None` while changes arrive as they happen. The last
    /// instances stay in use meanwhile.
    pub stale_for: Option<Duration>,
    /// The instances in use, ordered by id.
    pub instances: Vec<InstanceState>,
}

impl ConnectionState {
    /// How many instances calls may go to.
    pub fn ready(&self) -> usize {
        self.instances.iter().filter(|instance| instance.status == InstanceStatus::Ready).count()
    }
}

/// One instance as its callers in this process see it. Counters begin when it is registered.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct InstanceState {
    /// Its id.
    pub id: String,
    /// Its `host:port`.
    pub address: String,
    /// Whether calls go to it.
    pub status: InstanceStatus,
    /// Calls that have not come to their end, streams included.
    pub in_flight: u32,
    /// Calls so far.
    pub calls: u64,
    /// Calls that failed by the instance's fault: see [`OutlierDetection`](crate::OutlierDetection).
    pub failures: u64,
    /// How often it was ejected.
    pub ejections: u64,
    /// How long an answer takes, as [`Policy::PeakEwma`](crate::Policy::PeakEwma) sees it.
    pub latency: Option<Duration>,
}

/// Whether calls go to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InstanceStatus {
    /// It is connected and has spoken.
    Ready,
    /// It is being connected, or will be tried again.
    Connecting,
    /// It wants no calls: its record has the mark for that, or its health service says so or has not answered.
    NotServing,
    /// It failed too often. It is connected anew when its ejection time is over.
    Ejected,
}

impl ConnectionState {
    pub(crate) fn of(balancer: &Balancer) -> Self {
        let stale_for = balancer.contact.as_ref().and_then(|contact| contact.freshness().stale_for());
        let now = Instant::now();
        let instances =
            balancer.read(|roster| roster.members().map(|member| instance(member, now)).collect());
        Self { stale_for, instances }
    }
}

fn instance(member: &Member<Link>, now: Instant) -> InstanceState {
    let node = &member.node;
    let status = match member.phase {
        Phase::Ready(_) if member.serving() == Serving::Yes => InstanceStatus::Ready,
        Phase::Ready(_) => InstanceStatus::NotServing,
        _ if member.ejected.is_some() => InstanceStatus::Ejected,
        _ => InstanceStatus::Connecting,
    };
    InstanceState {
        id: node.id.clone(),
        address: node.authority.clone(),
        status,
        in_flight: node.load.pending(),
        calls: node.calls.load(Relaxed),
        failures: node.failures.load(Relaxed),
        ejections: node.ejections.load(Relaxed),
        latency: node.load.latency(now),
    }
}
