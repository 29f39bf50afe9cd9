//! Ping backoff: a longer interval of keep-alive pings after a GOAWAY with `ENHANCE_YOUR_CALM` (`too_many_pings`).

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use crate::options::KeepAlive;

/// Flag whether an instance of the service has refused pings. All its instances are taken to be alike.
#[derive(Debug, Default)]
pub(crate) struct PingBackoff(AtomicBool);

impl PingBackoff {
    /// Interval of pings then. By default servers in Go, Java and C++ allow one in five minutes.
    const INTERVAL: Duration = Duration::from_secs(330);

    /// Returns the keep-alive that was asked for, or one with fewer pings.
    pub(crate) fn allowed(&self, asked: KeepAlive) -> KeepAlive {
        let interval = if self.0.load(Relaxed) { asked.interval.max(Self::INTERVAL) } else { asked.interval };
        KeepAlive { interval, ..asked }
    }

    /// Looks at the error that ended a connection.
    pub(crate) fn observe(&self, error: &h2::Error, address: &str) {
        if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) && !self.0.swap(true, Relaxed) {
            tracing::warn!(
                address,
                "a server takes pings for an attack and gets fewer of them from now on; let it allow them \
                 (keepalive.EnforcementPolicy in Go), or see `ConnectOptions::keep_alive`"
            );
        }
    }
}
