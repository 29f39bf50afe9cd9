//! Servers that take pings for an attack, and end connections for that.

use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};

use crate::carrier::chain;

/// Whether an instance of a service did. All of them are taken to be alike.
#[derive(Debug, Default)]
pub(crate) struct Calm(AtomicBool);

impl Calm {
    /// How often to ping then. Servers in Go, Java and C++ allow it every five minutes, unless they are told otherwise.
    const INTERVAL: Duration = Duration::from_secs(330);

    /// The interval at which to ping that was asked for, or a longer one.
    pub(crate) fn at_least(&self, interval: Duration) -> Duration {
        if self.0.load(Relaxed) { interval.max(Self::INTERVAL) } else { interval }
    }

    /// A connection has ended with `error`.
    pub(crate) fn heed(&self, error: &hyper::Error, address: &str) {
        let reasons = chain(error).filter_map(|error| error.downcast_ref::<h2::Error>()?.reason());
        if reasons.into_iter().any(|reason| reason == h2::Reason::ENHANCE_YOUR_CALM)
            && !self.0.swap(true, Relaxed)
        {
            tracing::warn!(
                address,
                "a server takes pings for an attack and gets fewer of them from now on; let it allow them \
                 (keepalive.EnforcementPolicy in Go), or see `ConnectOptions::keep_alive`"
            );
        }
    }
}
