//! How a connection is made.

#[cfg(feature = "tls")]
use std::sync::Arc;
use std::{collections::BTreeMap, fmt, time::Duration};

use coord_api::{BoxError, Error, Result};
#[cfg(feature = "tls")]
use futures::future::BoxFuture;
use http::{HeaderName, uri::PathAndQuery};
#[cfg(feature = "tls")]
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;

use crate::{
    OutlierDetection, Policy,
    health::MAX_SERVICE_BYTES,
    outcome::Failures,
    outlier::FAR,
    roster::{LONGEST_PAUSE, Plan},
    slow_start::SlowStart,
};

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
    longest_pause: Duration,
    pub(crate) probe: Option<Probe>,
    pub(crate) keep_when_empty: bool,
    pub(crate) hash_header: Option<String>,
    pub(crate) retry_buffer: usize,
    policy: Policy,
    zone: Option<String>,
    only: BTreeMap<String, String>,
    subset: Option<usize>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) failures: Failures,
    pub(crate) health_check: Option<String>,
    slow_start: Option<SlowStart>,
    pub(crate) keep_alive: Option<KeepAlive>,
    tls: Option<Tls>,
}

/// How an instance that is silent is asked whether it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Probe {
    pub(crate) path: String,
    /// After so much silence.
    pub(crate) after: Duration,
    /// How long it has to say anything.
    pub(crate) limit: Duration,
}

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
    /// The path of a method that needs no permission, and that servers need not have: that there is none is an answer as
    /// well.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_grpc::ConnectOptions;
    /// let second = Duration::from_secs(1);
    /// let options = ConnectOptions::new().probe(ConnectOptions::ANY_METHOD, second, second);
    /// ```
    pub const ANY_METHOD: &str = "/grpc.health.v1.Health/Check";

    /// The defaults: 5 s to connect; no limit on one try; [`Policy::PeakEwma`] among all instances; the outlier
    /// detection of [`OutlierDetection::new`]; while calls are in flight a ping after 20 s, to be answered within 5 s.
    pub fn new() -> Self {
        Self::default()
    }

    /// How long a call waits for an instance while none is ready, and how long one try to connect may take.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long an instance has to begin its answer. After that the call fails with `DeadlineExceeded`, and an
    /// instance from which nothing at all has come meanwhile is ejected. Choose it above the slowest method:
    /// only with it can an instance that hangs be told from a slow one before its pings fail.
    #[must_use]
    pub fn try_timeout(mut self, timeout: Duration) -> Self {
        self.try_timeout = Some(timeout);
        self
    }

    /// How long a call waits for an instance while none is ready, where that is not the
    /// [`connect_timeout`](Self::connect_timeout).
    #[must_use]
    pub fn wait_timeout(mut self, timeout: Duration) -> Self {
        self.wait_timeout = Some(timeout);
        self
    }

    /// The longest pause between two tries to reach an instance, 5 s by default. The first ones are shorter; all
    /// vary by a fifth.
    #[must_use]
    pub fn longest_pause(mut self, pause: Duration) -> Self {
        self.longest_pause = pause;
        self
    }

    /// Asks an instance from which nothing has come for the time of `after`, while calls or streams are in flight to
    /// it, with an empty message to `path`. Whatever it answers is good; if nothing at all comes within `limit` it
    /// is ejected, and its connection is given up with all that is on it. So streams are not left waiting on an
    /// instance that is frozen or cut off. It needs a server that answers any method at once, also an unknown one
    /// such as [`ANY_METHOD`](Self::ANY_METHOD) may be. Not by default: then only pings find that out.
    ///
    /// With this, whoever is found silent by a [`try_timeout`](Self::try_timeout) loses its connection as well.
    #[must_use]
    pub fn probe(mut self, path: impl Into<String>, after: Duration, limit: Duration) -> Self {
        self.probe = Some(Probe { path: path.into(), after, limit });
        self
    }

    /// How many bytes of a request are kept until it is answered, 64 KiB by default, so that it can be sent again if the
    /// server says that it did not process it. They are shared with the connection, not copied. A request of which more
    /// was read fails then with `Unavailable`. With 0 only requests of which nothing was read are sent again.
    #[must_use]
    pub fn retry_buffer(mut self, bytes: usize) -> Self {
        self.retry_buffer = bytes;
        self
    }

    /// How an instance is chosen.
    #[must_use]
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Prefers instances whose metadata [`ZONE`](coord_api::ZONE) is this. When fewer than 70 % of those are
    /// ready, the others get what is missing.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Uses only instances with this metadata. May be given several times; all have to match.
    #[must_use]
    pub fn only(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.only.insert(key.into(), value.into());
        self
    }

    /// Connects to so many instances only, each client to others, those of its own zone first: for services
    /// with so many instances and clients that a connection from each to each is too much.
    #[must_use]
    pub fn subset(mut self, instances: usize) -> Self {
        self.subset = Some(instances);
        self
    }

    /// For [`Policy::ConsistentHash`]: the key is the value of this header where a request has no
    /// [`HashKey`](crate::HashKey).
    #[must_use]
    pub fn hash_header(mut self, name: impl Into<String>) -> Self {
        self.hash_header = Some(name.into());
        self
    }

    /// When an instance whose calls fail gets none for a while. One from which nothing comes at all is ejected at once.
    #[must_use]
    pub fn outlier_detection(mut self, detection: OutlierDetection) -> Self {
        self.outlier_detection = Some(detection);
        self
    }

    /// As [`OutlierDetection::consecutive_failures`].
    #[must_use]
    pub fn eject_after(self, failures: u32) -> Self {
        self.detecting(|detection| detection.consecutive_failures(failures))
    }

    /// As [`OutlierDetection::base_ejection_time`] and [`OutlierDetection::max_ejection_time`].
    #[must_use]
    pub fn cool_off(self, first: Duration, longest: Duration) -> Self {
        self.detecting(|detection| detection.base_ejection_time(first).max_ejection_time(longest))
    }

    /// The part of the instances that is never ejected, in percent, at least one: what
    /// [`OutlierDetection::max_ejection_percent`] leaves of 100.
    #[must_use]
    pub fn keep_in_use(self, percent: u8) -> Self {
        self.detecting(|mut detection| {
            detection.max_ejection_percent = 100 - i16::from(percent);
            detection
        })
    }

    /// Ejects nobody. Instances that can not be reached get no calls all the same, and those whose calls fail get few.
    #[must_use]
    pub fn without_ejection(mut self) -> Self {
        self.outlier_detection = None;
        self
    }

    fn detecting(mut self, change: impl FnOnce(OutlierDetection) -> OutlierDetection) -> Self {
        self.outlier_detection = Some(change(self.outlier_detection.take().unwrap_or_default()));
        self
    }

    /// Only answers with these codes are failures of an instance, and all others are as good as success: for services
    /// that answer with other codes in the course of their work. By default [`OutlierDetection`] says what a failure is.
    #[must_use]
    pub fn failure_codes(mut self, codes: impl IntoIterator<Item = tonic::Code>) -> Self {
        self.failures = Failures::only(codes);
        self
    }

    /// Follows what the health service of each instance (`Watch` of `grpc.health.v1`) says of `service`; the empty name
    /// is the whole server. Calls go only to instances that say `SERVING`. Those without a health service are taken as
    /// serving. Not by default: it costs a stream on every connection.
    #[must_use]
    pub fn health_check(mut self, service: impl Into<String>) -> Self {
        self.health_check = Some(service.into());
        self
    }

    /// A new instance gets its share of the calls gradually, over `window`: it begins with 10 %, which grows evenly.
    /// New is one that comes while others have been there for longer, that could not be reached for a while, or that
    /// did not serve. Consistent hashing takes no heed of it. Not by default.
    #[must_use]
    pub fn slow_start(mut self, window: Duration) -> Self {
        self.starting().window = window;
        self
    }

    /// How the share of a [`slow_start`](Self::slow_start) grows, in thousandths: after a part `t` of the window it is `t`
    /// to the power of `1000 / thousandths`. 1000 by default, which is evenly.
    #[must_use]
    pub fn slow_start_aggression(mut self, thousandths: u32) -> Self {
        self.starting().aggression = thousandths;
        self
    }

    /// The share that a [`slow_start`](Self::slow_start) begins with, in percent: 10 by default.
    #[must_use]
    pub fn slow_start_min_weight_percent(mut self, percent: u8) -> Self {
        self.starting().min_weight_percent = percent;
        self
    }

    fn starting(&mut self) -> &mut SlowStart {
        self.slow_start.get_or_insert(SlowStart::DEFAULT)
    }

    /// Goes on with the last instances when the registry says that there is none, until there is one again.
    /// Protects against a store that lost its data; in turn the last instance that is deregistered gets calls
    /// until it ends.
    #[must_use]
    pub fn keep_when_empty(mut self) -> Self {
        self.keep_when_empty = true;
        self
    }

    /// Pings an instance with calls in flight after `interval` in which nothing came, and drops the connection when
    /// `timeout` passes without an answer.
    ///
    /// Servers may take frequent pings for an attack, and end the connection: those written in Go allow one in five
    /// minutes, unless they answer in between or their `keepalive.EnforcementPolicy` allows more. All instances of the
    /// service are then pinged every 330 s at most. Over TLS this is not seen: choose a longer interval there.
    #[must_use]
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keep_alive = Some(KeepAlive { interval, timeout });
        self
    }

    /// Sends no pings. Calls to an instance that vanished without closing its connections then hang until
    /// their own deadline, or the [`try_timeout`](Self::try_timeout).
    #[must_use]
    pub fn without_keep_alive(mut self) -> Self {
        self.keep_alive = None;
        self
    }

    /// Encrypts all connections of this service. Instances are checked against their registered address;
    /// where certificates carry a name instead, give it with `domain_name`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, config: ClientTlsConfig) -> Self {
        self.tls = Some(Tls::Fixed(Arc::new(config)));
        self
    }

    /// As [`tls`](Self::tls), with a configuration that is asked for anew whenever an instance is connected, so that
    /// certificates can be replaced while the process runs. While it can not be had, no connection is made.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_from<F, A>(mut self, source: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<ClientTlsConfig, BoxError>> + Send + 'static,
    {
        self.tls = Some(Tls::Asked(Arc::new(move || Box::pin(source()))));
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let positive = |field, time: Duration| match time {
            Duration::ZERO => Err(Error::invalid(field, "is 0")),
            _ => Ok(()),
        };
        positive("connect_timeout", self.connect_timeout)?;
        self.try_timeout.map_or(Ok(()), |time| positive("try_timeout", time))?;
        self.wait_timeout.map_or(Ok(()), |time| positive("wait_timeout", time))?;
        positive("longest_pause", self.longest_pause)?;
        if let Some(Probe { path, after, limit }) = &self.probe {
            positive("probe after", *after)?;
            positive("probe limit", *limit)?;
            if !path.starts_with('/') || PathAndQuery::try_from(path.as_str()).is_err() {
                return Err(Error::invalid("probe path", "is no path of a method"));
            }
        }
        if let Some(KeepAlive { interval, timeout }) = self.keep_alive {
            positive("keep_alive interval", interval)?;
            positive("keep_alive timeout", timeout)?;
        }
        self.outlier_detection.as_ref().map_or(Ok(()), OutlierDetection::check)?;
        if let Some(service) = &self.health_check
            && (service.len() > MAX_SERVICE_BYTES || service.chars().any(char::is_control))
        {
            let reason = format!("is longer than {MAX_SERVICE_BYTES} bytes, or has control characters");
            return Err(Error::invalid("health_check", reason));
        }
        if let Some(SlowStart { window, aggression, min_weight_percent }) = &self.slow_start {
            positive("slow_start", *window)?;
            if *aggression == 0 {
                return Err(Error::invalid("slow_start_aggression", "is 0, it needs 1 or more thousandths"));
            }
            if !(1..=100).contains(min_weight_percent) {
                let reason = format!("{min_weight_percent} is not within 1 and 100 percent");
                return Err(Error::invalid("slow_start_min_weight_percent", reason));
            }
        }
        if self.zone.as_deref() == Some("") {
            return Err(Error::invalid("zone", "is empty"));
        }
        match self.subset {
            Some(0) => return Err(Error::invalid("subset", "is 0, it needs 1 or more instances")),
            Some(_) if self.policy == Policy::ConsistentHash => {
                let reason = "each client would have other instances for the same key: leave out one of \
                              subset and ConsistentHash";
                return Err(Error::invalid("subset", reason));
            }
            _ => {}
        }
        if let Some(name) = &self.hash_header {
            if HeaderName::from_lowercase(name.as_bytes()).is_err() {
                return Err(Error::invalid("hash_header", "is no header name in lower case"));
            }
            if self.policy != Policy::ConsistentHash {
                return Err(Error::invalid("hash_header", "needs the policy ConsistentHash"));
            }
        }
        // Certificates are parsed here, so that a bad one is told at once.
        let probe = self.apply(Endpoint::from_static("http://localhost"));
        probe.map(drop).map_err(|error| Error::invalid("tls", shown(error.as_ref())))
    }

    pub(crate) fn plan(&self) -> Plan {
        let Self {
            policy,
            zone,
            only,
            subset,
            outlier_detection,
            longest_pause,
            health_check,
            slow_start,
            ..
        } = self.clone();
        Plan { policy, zone, only, subset, outlier_detection, longest_pause, health_check, slow_start }
    }

    /// The interval over which outcomes are counted.
    pub(crate) fn interval(&self) -> Duration {
        self.outlier_detection.as_ref().map_or(OutlierDetection::INTERVAL, |detection| detection.interval)
    }

    /// How long a call waits for an instance.
    pub(crate) fn wait(&self) -> Duration {
        self.wait_timeout.unwrap_or(self.connect_timeout)
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    /// Whether everything is known now that a connection needs.
    pub(crate) fn check_fixed(&self) -> Result<()> {
        #[cfg(feature = "tls")]
        if let Some(Tls::Asked(_)) = self.tls {
            return Err(Error::invalid("tls", "is asked for anew, which channels of one's own can not"));
        }
        Ok(())
    }

    /// The endpoint with all that the options say, as it is now.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unused_async, reason = "TLS may be asked for"))]
    pub(crate) async fn apply_now(&self, endpoint: Endpoint) -> Result<Endpoint, BoxError> {
        let endpoint = self.apply(endpoint)?;
        #[cfg(feature = "tls")]
        if let Some(Tls::Asked(source)) = &self.tls {
            return Ok(endpoint.tls_config(source().await?)?);
        }
        Ok(endpoint)
    }

    #[cfg_attr(not(feature = "tls"), allow(clippy::unnecessary_wraps, reason = "TLS can fail"))]
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, BoxError> {
        // hyper adds these to instants, and a sum that no clock reaches ends its task.
        let mut endpoint = endpoint.connect_timeout(self.connect_timeout.min(FAR));
        if let Some(KeepAlive { interval, timeout }) = &self.keep_alive {
            let (interval, timeout) = ((*interval).min(FAR), (*timeout).min(FAR));
            endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(timeout);
        }
        #[cfg(feature = "tls")]
        if let Some(Tls::Fixed(config)) = &self.tls {
            endpoint = endpoint.tls_config(config.as_ref().clone())?;
        }
        Ok(endpoint)
    }
}

/// An error with all that is behind it, in one line.
fn shown(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Certificates and keys stay out of logs.
#[derive(Clone)]
enum Tls {
    #[cfg(feature = "tls")]
    Fixed(Arc<ClientTlsConfig>),
    #[cfg(feature = "tls")]
    Asked(TlsSource),
}

#[cfg(feature = "tls")]
type TlsSource = Arc<dyn Fn() -> BoxFuture<'static, Result<ClientTlsConfig, BoxError>> + Send + Sync>;

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Two configurations can not be compared, so only the very same one is equal.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            #[cfg(feature = "tls")]
            (Self::Fixed(one), Self::Fixed(other)) => Arc::ptr_eq(one, other),
            #[cfg(feature = "tls")]
            (Self::Asked(one), Self::Asked(other)) => Arc::ptr_eq(one, other),
            #[allow(unreachable_patterns, reason = "there is no TLS without the feature")]
            _ => false,
        }
    }
}

impl Eq for Tls {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_options_are_refused_by_name() {
        let (good, zero, second) = (ConnectOptions::new, Duration::ZERO, Duration::from_secs(1));
        let hash = || good().policy(Policy::ConsistentHash);
        let table = [
            (good().connect_timeout(zero), "invalid connect_timeout: is 0"),
            (good().try_timeout(zero), "invalid try_timeout: is 0"),
            (good().keep_alive(zero, second), "invalid keep_alive interval: is 0"),
            (good().keep_alive(second, zero), "invalid keep_alive timeout: is 0"),
            (good().cool_off(zero, second), "invalid base_ejection_time: is 0"),
            (good().cool_off(second * 2, second), "invalid max_ejection_time: 1s is below"),
            (good().eject_after(0), "invalid consecutive_failures: is 0"),
            (good().keep_in_use(101), "invalid max_ejection_percent: -1 is not"),
            (good().wait_timeout(zero), "invalid wait_timeout: is 0"),
            (good().longest_pause(zero), "invalid longest_pause: is 0"),
            (good().probe("/a/b", zero, second), "invalid probe after: is 0"),
            (good().probe("/a/b", second, zero), "invalid probe limit: is 0"),
            (good().probe("a/b", second, second), "invalid probe path: is no path"),
            (good().health_check("x".repeat(256)), "invalid health_check: is longer than 255 bytes"),
            (good().health_check("a\n"), "invalid health_check: "),
            (good().slow_start(zero), "invalid slow_start: is 0"),
            (good().slow_start_aggression(0), "invalid slow_start_aggression: is 0"),
            (good().slow_start_min_weight_percent(0), "invalid slow_start_min_weight_percent: 0 is not"),
            (good().slow_start_min_weight_percent(101), "invalid slow_start_min_weight_percent: 101 is"),
            (good().zone(""), "invalid zone: is empty"),
            (good().subset(0), "invalid subset: is 0"),
            (hash().subset(5), "invalid subset: each client"),
            (hash().hash_header("X-User"), "invalid hash_header: is no header name"),
            (good().hash_header("x-user"), "invalid hash_header: needs the policy"),
        ];
        for (options, expected) in table {
            let error = options.check().expect_err(expected).to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        good().without_ejection().without_keep_alive().subset(5).check().expect("is good");
        hash().hash_header("x-user").only("version", "2").zone("a").check().expect("is good");
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_bad_configuration_is_told_and_a_good_one_is_not_shown() {
        use tonic::transport::{Certificate, ClientTlsConfig};
        let with = |config| ConnectOptions::new().tls(config);
        let bad = with(ClientTlsConfig::new().domain_name("a b"));
        let error = bad.check().expect_err("is no domain").to_string();
        assert!(error.starts_with("invalid tls: "), "{error}");

        let secret = with(ClientTlsConfig::new().ca_certificate(Certificate::from_pem("secret")));
        assert!(!format!("{secret:?}").contains("secret"));
        assert_eq!(secret, secret.clone());
        assert_ne!(secret, with(ClientTlsConfig::new()));

        let asked = ConnectOptions::new().tls_from(|| async { Err("not now".into()) });
        asked.check().expect("it is asked later");
        assert!(asked.is_tls() && asked == asked.clone() && asked != secret);
        assert!(asked.check_fixed().is_err());
    }
}
