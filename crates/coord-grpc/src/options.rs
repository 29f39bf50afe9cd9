//! How a connection is made.

use std::{collections::BTreeMap, fmt, time::Duration};

use coord_api::{BoxError, Error, Result};
use http::HeaderName;
use tonic::transport::Endpoint;

use crate::{Policy, eject::Rules, roster::Plan};

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
    pub(crate) keep_when_empty: bool,
    pub(crate) hash_header: Option<String>,
    policy: Policy,
    zone: Option<String>,
    only: BTreeMap<String, String>,
    subset: Option<usize>,
    rules: Option<Rules>,
    keep_alive: Option<KeepAlive>,
    tls: Option<Tls>,
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
            try_timeout: None,
            keep_when_empty: false,
            hash_header: None,
            policy: Policy::default(),
            zone: None,
            only: BTreeMap::new(),
            subset: None,
            rules: Some(Rules::DEFAULT),
            keep_alive: Some(KeepAlive {
                interval: Duration::from_secs(20),
                timeout: Duration::from_secs(5),
            }),
            tls: None,
        }
    }
}

impl ConnectOptions {
    /// The defaults: 5 s to connect; no limit on one try; [`Policy::PeakEwma`] among all instances; five
    /// failures in a row eject an instance for 1 s, and for up to 60 s if it goes on; while calls are in
    /// flight a ping after 20 s, to be answered within 5 s.
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

    /// Ejects an instance after so many failures in a row: answers `Unavailable`, broken calls, exceeded
    /// [`try_timeout`](Self::try_timeout)s. One from which nothing comes at all is ejected at once.
    #[must_use]
    pub fn eject_after(mut self, failures: u32) -> Self {
        self.rules.get_or_insert(Rules::DEFAULT).after = failures;
        self
    }

    /// The time without calls after an ejection, and how far it grows: it doubles with each that follows,
    /// and varies by a fifth.
    #[must_use]
    pub fn cool_off(mut self, first: Duration, longest: Duration) -> Self {
        let rules = self.rules.get_or_insert(Rules::DEFAULT);
        (rules.first, rules.longest) = (first, longest);
        self
    }

    /// The part of the instances that is never ejected, in percent, at least one: 33 by default.
    #[must_use]
    pub fn keep_in_use(mut self, percent: u8) -> Self {
        self.rules.get_or_insert(Rules::DEFAULT).keep = percent;
        self
    }

    /// Ejects nobody. Instances that can not be reached get no calls all the same.
    #[must_use]
    pub fn without_ejection(mut self) -> Self {
        self.rules = None;
        self
    }

    /// Goes on with the last instances when the registry says that there is none, until there is one again.
    /// Protects against a store that lost its data; in turn the last instance that is deregistered gets calls
    /// until it ends.
    #[must_use]
    pub fn keep_when_empty(mut self) -> Self {
        self.keep_when_empty = true;
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
    pub fn tls(mut self, config: tonic::transport::ClientTlsConfig) -> Self {
        self.tls = Some(Tls(std::sync::Arc::new(config)));
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let positive = |field, time: Duration| match time {
            Duration::ZERO => Err(Error::invalid(field, "is 0")),
            _ => Ok(()),
        };
        positive("connect_timeout", self.connect_timeout)?;
        self.try_timeout.map_or(Ok(()), |time| positive("try_timeout", time))?;
        if let Some(KeepAlive { interval, timeout }) = self.keep_alive {
            positive("keep_alive interval", interval)?;
            positive("keep_alive timeout", timeout)?;
        }
        if let Some(rules) = &self.rules {
            positive("cool_off", rules.first)?;
            if rules.longest < rules.first {
                let reason =
                    format!("its longest time {:?} is below its first, {:?}", rules.longest, rules.first);
                return Err(Error::invalid("cool_off", reason));
            }
            if rules.after == 0 {
                return Err(Error::invalid("eject_after", "is 0, it needs 1 or more failures"));
            }
            if rules.keep > 100 {
                return Err(Error::invalid("keep_in_use", format!("{} is above 100 percent", rules.keep)));
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
        let Self { policy, zone, only, subset, rules, .. } = self.clone();
        Plan { policy, zone, only, subset, rules }
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    #[cfg_attr(not(feature = "tls"), allow(clippy::unnecessary_wraps, reason = "TLS can fail"))]
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, BoxError> {
        let mut endpoint = endpoint.connect_timeout(self.connect_timeout);
        if let Some(KeepAlive { interval, timeout }) = &self.keep_alive {
            endpoint = endpoint.http2_keep_alive_interval(*interval).keep_alive_timeout(*timeout);
        }
        #[cfg(feature = "tls")]
        if let Some(Tls(config)) = &self.tls {
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
struct Tls(#[cfg(feature = "tls")] std::sync::Arc<tonic::transport::ClientTlsConfig>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Two configurations can not be compared, so only the very same one is equal.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        #[cfg(feature = "tls")]
        return std::sync::Arc::ptr_eq(&self.0, &other.0);
        #[cfg(not(feature = "tls"))]
        matches!((self, other), (Self(), Self()))
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
            (good().cool_off(zero, second), "invalid cool_off: is 0"),
            (good().cool_off(second * 2, second), "invalid cool_off: its longest time 1s is below"),
            (good().eject_after(0), "invalid eject_after: is 0"),
            (good().keep_in_use(101), "invalid keep_in_use: 101 is above 100"),
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
    }
}
