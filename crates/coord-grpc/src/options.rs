//! How a connection is made.

use std::time::Duration;

use tonic::transport::Endpoint;

/// Options of a [`Connection`](crate::Connection).
///
/// ```
/// use std::time::Duration;
/// use coord_grpc::ConnectOptions;
/// let options = ConnectOptions::new().connect_timeout(Duration::from_secs(2)).without_keep_alive();
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    pub(crate) connect_timeout: Duration,
    keep_alive: Option<KeepAlive>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeepAlive {
    interval: Duration,
    timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            keep_alive: Some(KeepAlive {
                interval: Duration::from_secs(20),
                timeout: Duration::from_secs(5),
            }),
        }
    }
}

impl ConnectOptions {
    /// The defaults: 5 s to connect; while calls are in flight a ping after 20 s, to be answered within 5 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long to wait for a first instance while none is registered, and how long to try to open a TCP
    /// connection to one.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Pings an instance with calls in flight after `interval`, and drops the connection when `timeout`
    /// passes without an answer. Servers may refuse frequent pings: those written in Go take one in five
    /// minutes unless their `keepalive.EnforcementPolicy` allows more.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive = Some(KeepAlive { interval, timeout });
        self
    }

    /// Sends no pings. Calls to an instance that vanished without closing its connections then hang until
    /// their own deadline.
    #[must_use]
    pub fn without_keep_alive(mut self) -> Self {
        self.keep_alive = None;
        self
    }

    pub(crate) fn apply(&self, endpoint: Endpoint) -> Endpoint {
        let endpoint = endpoint.connect_timeout(self.connect_timeout);
        match &self.keep_alive {
            Some(KeepAlive { interval, timeout }) => {
                endpoint.http2_keep_alive_interval(*interval).keep_alive_timeout(*timeout)
            }
            None => endpoint,
        }
    }
}
