//! Options of a connection.

mod check;
mod tls;

use std::{collections::BTreeMap, time::Duration};

use self::tls::Tls;
use crate::{
    outcome::Failures,
    pick::{OutlierDetection, Policy, slow_start::SlowStart},
};

/// Longest backoff between attempts to connect, by default.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Options of a [`Connection`](crate::Connection). They are checked when it is made, before anything is sent.
///
/// ```
/// use std::time::Duration;
/// use coord_grpc::{ConnectOptions, Policy};
/// let options = ConnectOptions::new()
///     .connect_timeout(Duration::from_secs(2))
///     .try_timeout(Duration::from_millis(500))
///     .zone("eu-1a")
///     .policy(Policy::LeastPending);
/// # let _ = options;
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectOptions {
    pub(crate) connect_timeout: Duration,
    pub(crate) try_timeout: Option<Duration>,
    wait_timeout: Option<Duration>,
    pub(crate) longest_pause: Duration,
    pub(crate) probe: Option<Probe>,
    pub(crate) keep_when_empty: bool,
    pub(crate) hash_header: Option<String>,
    pub(crate) retry_buffer: usize,
    pub(crate) policy: Policy,
    pub(crate) zone: Option<String>,
    pub(crate) only: BTreeMap<String, String>,
    pub(crate) subset: Option<usize>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) failures: Failures,
    pub(crate) health_check: Option<String>,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) keep_alive: Option<KeepAlive>,
    tls: Option<Tls>,
}

/// Probe of a silent instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) path: String,
    /// Time of silence after which it is sent.
    pub(crate) after: Duration,
    /// Time within which anything has to arrive.
    pub(crate) limit: Duration,
}

/// Keep-alive pings of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KeepAlive {
    pub(crate) interval: Duration,
    pub(crate) timeout: Duration,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            try_timeout: None,
            wait_timeout: None,
            longest_pause: LONGEST_PAUSE,
            probe: None,
            keep_when_empty: false,
            hash_header: None,
            retry_buffer: 64 << 10,
            policy: Policy::default(),
            zone: None,
            only: BTreeMap::new(),
            subset: None,
            outlier_detection: Some(OutlierDetection::default()),
            failures: Failures::default(),
            health_check: None,
            slow_start: None,
            keep_alive: Some(KeepAlive {
                interval: Duration::from_secs(20),
                timeout: Duration::from_secs(5),
            }),
            tls: None,
        }
    }
}

impl ConnectOptions {
    /// Path of a method that needs no permission. Servers need not have it: "unimplemented" is an answer as well.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_grpc::ConnectOptions;
    /// let second = Duration::from_secs(1);
    /// let options = ConnectOptions::new().probe(ConnectOptions::ANY_METHOD, second, second);
    /// ```
    pub const ANY_METHOD: &str = "/grpc.health.v1.Health/Check";

    /// Returns the defaults: 5 s to connect, no limit on one attempt, and [`Policy::PeakEwma`] among all instances.
    ///
    /// Outlier detection is as in [`OutlierDetection::new`]. While calls are in flight there is a ping after 20 s of silence,
    /// to be answered within 5 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets how long a call waits for an instance while none is ready, and how long one attempt to connect may take.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets how long an instance has to begin its answer. After that the call fails with `DeadlineExceeded`. The instance is
    /// ejected if nothing at all has arrived from it meanwhile.
    ///
    /// Choose it above the slowest method. Only with it can a hanging instance be told from a slow one before its pings fail.
    #[must_use]
    pub fn try_timeout(mut self, timeout: Duration) -> Self {
        self.try_timeout = Some(timeout);
        self
    }

    /// Sets how long a call waits for an instance while none is ready, instead of the
    /// [`connect_timeout`](Self::connect_timeout).
    #[must_use]
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = Some(timeout);
        self
    }

    /// Sets the longest backoff between two attempts to connect to an instance, 5 s by default. It begins shorter, and varies
    /// by a fifth.
    #[must_use]
    pub fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }

    /// Probes an instance that has been silent for the time of `after` with calls in flight: sends an empty message to `path`.
    ///
    /// Any answer is a good one. If nothing arrives within `limit`, the instance is ejected and its connection is aborted with
    /// all calls on it. So streams do not wait for an instance that is frozen or cut off. The server has to answer any method at
    /// once, also an unknown one, as [`ANY_METHOD`](Self::ANY_METHOD) may be.
    ///
    /// Off by default: then only pings detect such an instance. With it, an instance that a
    /// [`try_timeout`](Self::try_timeout) finds silent loses its connection as well.
    #[must_use]
    pub fn probe(mut self, path: impl Into<String>, after: Duration, limit: Duration) -> Self {
        self.probe = Some(Probe { path: path.into(), after, limit });
        self
    }

    /// Sets how many bytes of a request are buffered until it is answered, 64 KiB by default. They are shared with the
    /// connection, not copied.
    ///
    /// A buffered request is sent again if the server says that it did not process it. A request of which more was read fails
    /// then with `Unavailable`. With 0 only requests of which nothing was read are sent again.
    #[must_use]
    pub fn retry_buffer(mut self, bytes: usize) -> Self {
        self.retry_buffer = bytes;
        self
    }

    /// Sets the rule by which an instance is chosen.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Prefers instances with this zone in their metadata [`ZONE`](coord_api::ZONE). If fewer than 70 % of them are ready,
    /// other zones get the missing share.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Uses only instances with this metadata. If it is called several times, all have to match.
    #[must_use]
    pub fn only(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.only.insert(key.into(), value.into());
        self
    }

    /// Connects to so many instances only, each client to others, and to its own zone first.
    ///
    /// It is for services with many instances and clients, where a connection from each to each is too much.
    #[must_use]
    pub fn subset(mut self, instances: usize) -> Self {
        self.subset = Some(instances);
        self
    }

    /// Names the header whose value is the key of [`Policy::ConsistentHash`], for requests without a
    /// [`HashKey`](crate::HashKey).
    #[must_use]
    pub fn hash_header(mut self, name: impl Into<String>) -> Self {
        self.hash_header = Some(name.into());
        self
    }

    /// Sets when an instance whose calls fail is ejected. A silent instance is ejected at once.
    #[must_use]
    pub fn outlier_detection(mut self, detection: OutlierDetection) -> Self {
        self.outlier_detection = Some(detection);
        self
    }

    /// Sets [`OutlierDetection::consecutive_failures`].
    #[must_use]
    pub fn eject_after(self, failures: u32) -> Self {
        self.detecting(|detection| detection.consecutive_failures(failures))
    }

    /// Sets [`OutlierDetection::base_ejection_time`] and [`OutlierDetection::max_ejection_time`].
    #[must_use]
    pub fn cool_off(self, first: Duration, longest: Duration) -> Self {
        self.detecting(|detection| detection.base_ejection_time(first).max_ejection_time(longest))
    }

    /// Sets the part of the instances that is never ejected, in percent: 100 less
    /// [`OutlierDetection::max_ejection_percent`].
    #[must_use]
    pub fn keep_in_use(self, percent: u8) -> Self {
        self.detecting(|mut detection| {
            detection.max_ejection_percent = 100 - i16::from(percent);
            detection
        })
    }

    /// Turns ejections off. Unreachable instances get no calls all the same, and failing instances get few.
    #[must_use]
    pub fn without_ejection(mut self) -> Self {
        self.outlier_detection = None;
        self
    }

    fn detecting(mut self, change: impl FnOnce(OutlierDetection) -> OutlierDetection) -> Self {
        self.outlier_detection = Some(change(self.outlier_detection.take().unwrap_or_default()));
        self
    }

    /// Counts only answers with these codes as failures of an instance, and all others as success.
    ///
    /// It is for services that answer with other codes in the course of their work. By default [`OutlierDetection`] says what
    /// a failure is.
    #[must_use]
    pub fn failure_codes(mut self, codes: impl IntoIterator<Item = tonic::Code>) -> Self {
        self.failures = Failures::only(codes);
        self
    }

    /// Watches the health of `service` at each instance (`Watch` of `grpc.health.v1`). The empty name is the whole server.
    ///
    /// Calls go only to instances that say `SERVING`. Instances without a health service are taken as serving. Off by default,
    /// since it costs a stream on every connection.
    #[must_use]
    pub fn health_check(mut self, service: impl Into<String>) -> Self {
        self.health_check = Some(service.into());
        self
    }

    /// Gives a new instance its share of the calls gradually, over `window`: it begins with 10 %, which grows evenly.
    ///
    /// An instance is new if it comes while others have been there for longer. So is one that was unreachable for a while, or
    /// did not serve. Consistent hashing ignores it. Off by default.
    #[must_use]
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.starting().window = window;
        self
    }

    /// Sets how the share of a [`slow_start`](Self::slow_start) grows. After a part `t` of the window it is `t` to the power
    /// of `1000 / thousandths`. By default it is 1000, which is evenly.
    #[must_use]
    pub fn slow_start_aggression(mut self, thousandths: u32) -> Self {
        self.starting().aggression = thousandths;
        self
    }

    /// Sets the first share of a [`slow_start`](Self::slow_start), in percent: 10 by default.
    #[must_use]
    pub fn slow_start_min_weight_percent(mut self, percent: u8) -> Self {
        self.starting().min_weight_percent = percent;
        self
    }

    fn starting(&mut self) -> &mut SlowStart {
        self.slow_start.get_or_insert(SlowStart::DEFAULT)
    }

    /// Keeps the last instances when the registry says that there is none, until there is one again.
    ///
    /// It protects against a store that lost its data. In turn the last instance that is deregistered gets calls until it
    /// ends.
    #[must_use]
    pub fn keep_when_empty(mut self) -> Self {
        self.keep_when_empty = true;
        self
    }

    /// Pings an instance with calls in flight after a silence of `interval`. Drops the connection if `timeout` passes without
    /// an answer.
    ///
    /// Servers may take frequent pings for an attack, and end the connection. Servers in Go allow one in five minutes, unless
    /// they answer in between or their `keepalive.EnforcementPolicy` allows more. All instances of the service are then pinged
    /// every 330 s at most. Over TLS this is not seen: choose a longer interval there.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive = Some(KeepAlive { interval, timeout });
        self
    }

    /// Turns pings off. If an instance vanishes without closing its connections, calls to it then hang until their own
    /// deadline, or the [`try_timeout`](Self::try_timeout).
    #[must_use]
    pub fn without_keep_alive(mut self) -> Self {
        self.keep_alive = None;
        self
    }

    /// Returns the interval over which outcomes are counted.
    pub(crate) fn interval(&self) -> Duration {
        self.outlier_detection.as_ref().map_or(OutlierDetection::INTERVAL, |detection| detection.interval)
    }

    /// Returns how long a call waits for an instance.
    pub(crate) fn wait(&self) -> Duration {
        self.wait_timeout.unwrap_or(self.connect_timeout)
    }
}
