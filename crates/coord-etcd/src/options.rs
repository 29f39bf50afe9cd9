//! How to reach etcd, and where in it to work.

use std::{fmt, path::PathBuf, time::Duration};

use coord_api::{Error, Owner, Result, Ttl};
use secrecy::SecretString;
use serde::Deserialize;

use crate::{
    endpoint::{self, Endpoints},
    layout::{CheckedRoots, Layout},
};

/// How to reach etcd, and where in it to work; deserializable, so that it can be a part of a service's own
/// configuration.
///
/// ```
/// use coord_etcd::EtcdConfig;
/// let config: EtcdConfig = serde_json::from_str(r#"{
///     "endpoints": ["https://etcd-1:2379", "https://etcd-2:2379", "https://etcd-3:2379"],
///     "namespace": "shop",
///     "username": "shop", "password": "…",
///     "tls": { "ca_file": "/etc/shop/etcd-ca.pem" },
///     "request_timeout": "3s"
/// }"#)?;
/// assert_eq!(config.namespace, "shop");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct EtcdConfig {
    /// The members, as `http://host:port`, `https://host:port` or `host:port`.
    pub endpoints: Vec<String>,
    /// The part of etcd to work in: every key begins with `/<namespace>/`. Default: `coord`.
    #[serde(default = "default_namespace")]
    pub namespace: String,
    /// Under which roots the areas live, where not all under the namespace.
    #[serde(default)]
    pub layout: Layout,
    /// The user, where authentication is enabled.
    #[serde(default)]
    pub username: Option<String>,
    /// The user's password; never printed.
    #[serde(default)]
    pub password: Option<SecretString>,
    /// Files for TLS. Without it, `https` endpoints are checked against the system's certificates.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// What operators call this client, for example the service or the pod: shown to who asks who holds a lock.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether etcd has to answer at the start. Default: it has to.
    #[serde(default)]
    pub connect: Connect,
    /// How long connecting may take. Default: 5 s.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// How long one request may take. Default: 5 s.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub request_timeout: Duration,
    /// How long `close` may take. Default: 5 s.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub close_timeout: Duration,
    /// The time to live of instance ids. Default: 30 s.
    #[serde(default = "default_id_ttl", with = "humantime_serde")]
    pub instance_id_ttl: Duration,
}

/// Whether etcd has to answer when a client connects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Connect {
    /// Connecting waits for etcd, authenticates and reads once, so that mistakes are told at the start.
    #[default]
    AtOnce,
    /// Connecting succeeds without etcd, and the connection is made as soon as etcd is there. Until then calls
    /// answer [`Unavailable`](coord_api::Error::Unavailable) or [`Timeout`](coord_api::Error::Timeout). For
    /// services that can start with what they knew last, such as the snapshot file of a live config.
    Lazily,
}

/// PEM files for TLS.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[non_exhaustive]
pub struct TlsFiles {
    /// The certificate authority that signed the servers' certificates.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The client's certificate, where the servers ask for one.
    #[serde(default)]
    pub cert_file: Option<PathBuf>,
    /// The client's private key.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// The name in the servers' certificates, where it is not the endpoint's host.
    #[serde(default)]
    pub server_name: Option<String>,
}

fn default_namespace() -> String {
    "coord".into()
}

fn default_timeout() -> Duration {
    Duration::from_secs(5)
}

fn default_id_ttl() -> Duration {
    Duration::from_secs(30)
}

impl EtcdConfig {
    /// A configuration with defaults for all but the endpoints.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            namespace: default_namespace(),
            layout: Layout::default(),
            username: None,
            password: None,
            tls: None,
            label: None,
            connect: Connect::default(),
            connect_timeout: default_timeout(),
            request_timeout: default_timeout(),
            close_timeout: default_timeout(),
            instance_id_ttl: default_id_ttl(),
        }
    }

    /// Parses `etcd://host:port[,host:port…][/namespace]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with what is wrong. Credentials do not belong in a URL, where logs and
    /// process lists show them: they are refused here and taken from the fields.
    ///
    /// ```
    /// use coord_etcd::EtcdConfig;
    /// let config = EtcdConfig::from_url("etcd://10.0.0.1:2379,10.0.0.2:2379/shop")?;
    /// assert_eq!(config.endpoints, ["10.0.0.1:2379", "10.0.0.2:2379"]);
    /// assert_eq!(config.namespace, "shop");
    /// # Ok::<(), coord_api::Error>(())
    /// ```
    pub fn from_url(url: &str) -> Result<Self> {
        let rest = url
            .strip_prefix("etcd://")
            .ok_or_else(|| Error::invalid("url", "does not begin with `etcd://`"))?;
        if rest.contains('@') {
            return Err(Error::invalid("url", "contains credentials: set `username` and `password` instead"));
        }
        let (hosts, namespace) = match rest.split_once('/') {
            Some((hosts, namespace)) => (hosts, namespace),
            None => (rest, ""),
        };
        let mut config = Self::new(hosts.split(','));
        if !namespace.is_empty() {
            config.namespace = namespace.into();
        }
        config.check()?;
        Ok(config)
    }

    /// Sets the namespace.
    #[must_use]
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Sets the layout.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets the label.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets whether etcd has to answer when the client connects.
    #[must_use]
    pub fn connect(mut self, connect: Connect) -> Self {
        self.connect = connect;
        self
    }

    /// Sets the request timeout.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets the time to live of instance ids.
    #[must_use]
    pub fn instance_id_ttl(mut self, ttl: Duration) -> Self {
        self.instance_id_ttl = ttl;
        self
    }

    /// Checks every field without any I/O.
    pub(crate) fn check(&self) -> Result<Checked> {
        let endpoints = endpoint::parse(&self.endpoints, self.tls.is_some())?;
        let roots = self.layout.check(&self.namespace)?;
        let instance_id_ttl = Ttl::parse(self.instance_id_ttl).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => Error::invalid("instance_id_ttl", reason),
            other => other,
        })?;
        if let Some(label) = &self.label {
            Owner::check_label(label)?;
        }
        if self.username.is_some() != self.password.is_some() {
            return Err(Error::invalid("username", "and `password` are only useful together"));
        }
        let timeouts = [
            ("connect_timeout", self.connect_timeout),
            ("request_timeout", self.request_timeout),
            ("close_timeout", self.close_timeout),
        ];
        for (field, timeout) in timeouts {
            if timeout < Duration::from_millis(1) || timeout > Duration::from_secs(3600) {
                return Err(Error::invalid(field, format!("{timeout:?} is not within 1ms and 1h")));
            }
        }
        if let Some(tls) = &self.tls
            && tls.cert_file.is_some() != tls.key_file.is_some()
        {
            return Err(Error::invalid("tls", "needs both `cert_file` and `key_file`, or neither"));
        }
        Ok(Checked { endpoints, roots, instance_id_ttl })
    }
}

/// What [`EtcdConfig::check`] parsed.
pub(crate) struct Checked {
    pub(crate) endpoints: Endpoints,
    pub(crate) roots: CheckedRoots,
    pub(crate) instance_id_ttl: Ttl,
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checked").field("roots", &self.roots).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_fields_are_refused_by_name() {
        let refused = |change: fn(&mut EtcdConfig)| {
            let mut config = EtcdConfig::new(["127.0.0.1:2379"]);
            config.check().expect("the defaults are good");
            change(&mut config);
            config.check().expect_err("is bad").to_string()
        };
        let table = [
            (refused(|c| c.namespace = "a/".into()), "invalid namespace: "),
            (refused(|c| c.username = Some("u".into())), "invalid username: "),
            (refused(|c| c.password = Some("p".into())), "invalid username: "),
            (refused(|c| c.request_timeout = Duration::ZERO), "invalid request_timeout: 0ns is not"),
            (refused(|c| c.close_timeout = Duration::MAX), "invalid close_timeout: "),
            (refused(|c| c.instance_id_ttl = Duration::ZERO), "invalid instance_id_ttl: "),
            (refused(|c| c.label = Some(String::new())), "invalid label: "),
            (refused(|c| c.endpoints.clear()), "invalid endpoints: "),
            (
                refused(|c| {
                    c.tls = Some(TlsFiles { key_file: Some("k".into()), ..TlsFiles::default() });
                }),
                "invalid tls: ",
            ),
        ];
        for (message, expected) in table {
            assert!(message.starts_with(expected), "{message}");
        }
    }

    #[test]
    fn bad_urls_are_refused_without_echoing_credentials() {
        for url in ["", "http://h:1", "etcd://", "etcd://h", "etcd://h:1,", "etcd://h:1/a//b", "etcd://h:1?x"]
        {
            assert!(EtcdConfig::from_url(url).is_err(), "{url}");
        }
        let error = EtcdConfig::from_url("etcd://root:s3cret@h:1/ns").expect_err("has credentials");
        assert!(!format!("{error} {error:?}").contains("s3cret"));
        assert_eq!(EtcdConfig::from_url("etcd://h:1").expect("is good").namespace, "coord");
        assert_eq!(EtcdConfig::from_url("etcd://h:1/").expect("is good").namespace, "coord");
        assert_eq!(EtcdConfig::from_url("etcd://[::1]:1/a/b").expect("is good").namespace, "a/b");
    }

    #[test]
    fn debug_hides_the_password() {
        let mut config = EtcdConfig::new(["h:1"]);
        config.password = Some("s3cret".into());
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
