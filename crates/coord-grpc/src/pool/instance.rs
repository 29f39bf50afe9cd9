//! Instance: an entry of the pool with the state of its connection.

use std::{sync::Arc, time::Duration};

use coord_api::ServiceInfo;
use tokio::time::Instant;

use crate::pick::{outlier::EjectionHistory, stats::InstanceStats};

/// Backoff after the first failed attempt to connect. It doubles with each attempt that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(50);

/// State of an instance's connection.
#[derive(Clone, Debug)]
pub(crate) enum Phase<C> {
    /// To be connected at this time.
    Due(Instant),
    Connecting,
    Ready(C),
}

/// Whether an instance wants calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serving {
    Yes,
    /// Health service was asked and has not answered yet.
    Unknown,
    No,
}

/// Instance that may be connected.
#[derive(Debug)]
pub(crate) struct Instance<C> {
    pub(crate) stats: Arc<InstanceStats>,
    pub(crate) phase: Phase<C>,
    /// End of its ejection. Afterwards it is connected anew and on trial.
    pub(crate) ejected: Option<Instant>,
    pub(super) info: ServiceInfo,
    /// Number of its connection in the pool: events of earlier connections are late.
    pub(super) generation: u64,
    /// Time at which its connection was made, if there is one.
    pub(super) since: Instant,
    /// Failed attempts to connect, without a connection that lasted between them.
    pub(super) failed_dials: u32,
    pub(super) ejection_history: EjectionHistory,
    /// Last answer of its health service.
    pub(super) health: Serving,
    /// Time from which calls may go to it, for the slow start.
    pub(super) started: Option<Instant>,
}

impl<C> Instance<C> {
    /// Returns an instance that is to be connected now.
    pub(super) fn new(id: String, info: ServiceInfo, generation: u64, health: Serving, now: Instant) -> Self {
        Self {
            stats: Arc::new(InstanceStats::new(id, info.authority())),
            phase: Phase::Due(now),
            ejected: None,
            info,
            generation,
            since: now,
            failed_dials: 0,
            ejection_history: EjectionHistory::default(),
            health,
            started: None,
        }
    }

    /// Returns whether calls may go to it.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready(_)) && self.serving() == Serving::Yes
    }

    /// Returns whether it wants calls, by its record and by its health service.
    pub(crate) fn serving(&self) -> Serving {
        if self.info.is_serving() { self.health } else { Serving::No }
    }

    /// Returns whether it has calls, or soon may: it is not ejected, and nothing is known that speaks against it.
    pub(super) fn may_have_calls(&self) -> bool {
        let may_be_reached = matches!(self.phase, Phase::Ready(_)) || self.failed_dials == 0;
        self.ejected.is_none() && may_be_reached && self.serving() != Serving::No
    }

    /// Starts the slow start, if calls may go to it from now on.
    pub(super) fn start(&mut self, now: Instant) {
        if self.is_ready() {
            self.started.get_or_insert(now);
        } else if self.serving() == Serving::No {
            self.started = None;
        }
    }

    /// Returns the backoff before the next attempt to connect; `None` before the first failure.
    pub(super) fn backoff(&self, longest: Duration) -> Option<Duration> {
        let doublings = self.failed_dials.checked_sub(1)?.min(16);
        Some(FIRST_PAUSE.saturating_mul(1 << doublings).min(longest).mul_f64(0.8 + 0.4 * fastrand::f64()))
    }
}
