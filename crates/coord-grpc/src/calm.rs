//! Servers that take pings for an attack, and end connections for that.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use crate::options::KeepAlive;

/// Whether an instance of a service did. All of them are taken to be alike.
#[derive(Debug, Default)]
pub(crate) struct Calm(AtomicBool);

impl Calm {
    /// How often to ping then. Servers in Go, Java and C++ allow it every five minutes, unless they are told otherwise.
    const INTERVAL: Duration = Duration::from_secs(330);

    /// The pings that were asked for, or fewer.
    pub(crate) fn allowed(&self, asked: KeepAlive) -> KeepAlive {
        let interval = if self.0.load(Relaxed) { asked.interval.max(Self::INTERVAL) } else { asked.interval };
        KeepAlive { interval, ..asked }
    }

    /// A connection has ended with `error`.
    pub(crate) fn heed(&self, error: &h2::Error, address: &str) {
        if error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM) && !self.0.swap(true, Relaxed) {
            tracing::warn!(
                address,
                "a server takes pings for an attack and gets fewer of them from now on; let it allow them \
                 (keepalive.EnforcementPolicy in Go), or see `ConnectOptions::keep_alive`"
            );
        }
    }
}
