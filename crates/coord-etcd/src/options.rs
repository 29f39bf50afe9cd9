//! Configuration: how to reach etcd, and where in it to work.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use coord_api::{Error, Owner, Result, Ttl};
use coord_kv::{CheckedRoots, Layout};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use crate::transport::{
    credentials::{Credentials, CredentialsProvider, Source},
    endpoint::{self, Endpoints, Scheme},
};

/// Configuration of how to reach etcd, and where in it to work; deserializable, so that it can be a part of a
/// service's own configuration.
///
/// ```
/// use coord_etcd::EtcdConfig;
/// let config: EtcdConfig = serde_json::from_str(r#"{
///     "endpoints": ["https://etcd-1:2379", "https://etcd-2:2379", "https://etcd-3:2379"],
///     "namespace": "shop",
///     "username": "shop", "password_file": "/run/secrets/etcd-password",
///     "tls": { "ca_file": "/etc/shop/etcd-ca.pem" },
///     "request_timeout": "3s"
/// }"#)?;
/// assert_eq!(config.namespace, "shop");
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Clone, Deserialize)]
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
    /// The user's password; never printed. A password that may be replaced while the service runs belongs
    /// into `password_file`, or comes from a [provider](Self::credentials).
    #[serde(default)]
    pub password: Option<SecretString>,
    /// A file with the user's password, read again before each authentication. Line ends after the password are no part
    /// of it.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Whether a password may cross the network where everyone on the way can read it. Default: it may not.
    #[serde(default)]
    pub plaintext_password: PlaintextPassword,
    #[serde(skip)]
    provider: Option<Provider>,
    /// Files for TLS. Without it, `https` endpoints are checked against the system's certificates.
    #[serde(default)]
    pub tls: Option<TlsFiles>,
    /// Name that operators call this client by, for example the service or the pod. Shown to anybody who asks
    /// who holds a lock.
    #[serde(default)]
    pub label: Option<String>,
    /// Whether etcd has to answer at the start. Default: it has to.
    #[serde(default)]
    pub connect: Connect,
    /// Longest time that connecting may take. Default: 5 s.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub connect_timeout: Duration,
    /// Longest time that one request may take. Default: 5 s.
    #[serde(default = "default_timeout", with = "humantime_serde")]
    pub request_timeout: Duration,
    /// Longest time that `close` may take. Default: 5 s.
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

/// Whether a password may be sent to `http` endpoints.
///
/// There is no exception for loopback. A listener on a port of this machine need not be etcd, and an address
/// that is loopback in a test is another in production.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlaintextPassword {
    /// Connecting with a password to `http` endpoints is refused before anything is sent.
    #[default]
    Refused,
    /// The password is sent. For tests, and for networks that encrypt by themselves.
    Allowed,
}

#[derive(Clone)]
struct Provider(Arc<dyn CredentialsProvider>);

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialsProvider")
    }
}

/// PEM files for TLS, read again for each new connection: replacing them needs no restart.
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

/// Shows no password, also none that was put where it does not belong.
impl fmt::Debug for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after_user = |endpoint: &String| endpoint.rsplit('@').next().unwrap_or_default().to_owned();
        f.debug_struct("EtcdConfig")
            .field("endpoints", &self.endpoints.iter().map(after_user).collect::<Vec<_>>())
            .field("namespace", &self.namespace)
            .field("layout", &self.layout)
            .field("username", &self.username)
            .field("password", &self.password)
            .field("password_file", &self.password_file)
            .field("plaintext_password", &self.plaintext_password)
            .field("provider", &self.provider)
            .field("tls", &self.tls)
            .field("label", &self.label)
            .field("connect", &self.connect)
            .field("connect_timeout", &self.connect_timeout)
            .field("request_timeout", &self.request_timeout)
            .field("close_timeout", &self.close_timeout)
            .field("instance_id_ttl", &self.instance_id_ttl)
            .finish()
    }
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
    /// Makes a configuration with defaults for all but the endpoints.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            namespace: default_namespace(),
            layout: Layout::default(),
            username: None,
            password: None,
            password_file: None,
            plaintext_password: PlaintextPassword::default(),
            provider: None,
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
    /// [`Error::InvalidArgument`] with the mistake. Credentials do not belong in a URL, where logs and
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

    /// Sets the user, and its password as it is now and stays.
    #[must_use]
    pub fn user(mut self, username: impl Into<String>, password: impl Into<SecretString>) -> Self {
        (self.username, self.password) = (Some(username.into()), Some(password.into()));
        self
    }

    /// Takes user and password from a provider, in place of `username` and `password`.
    #[must_use]
    pub fn credentials(mut self, provider: impl CredentialsProvider + 'static) -> Self {
        self.provider = Some(Provider(Arc::new(provider)));
        self
    }

    /// Sets the files for TLS.
    #[must_use]
    pub fn tls(mut self, files: TlsFiles) -> Self {
        self.tls = Some(files);
        self
    }

    /// Sets whether a password may be sent unencrypted.
    #[must_use]
    pub fn plaintext_password(mut self, plaintext_password: PlaintextPassword) -> Self {
        self.plaintext_password = plaintext_password;
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
        let roots = CheckedRoots::of(&self.layout, &self.namespace)?;
        let instance_id_ttl = Ttl::parse(self.instance_id_ttl).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => Error::invalid("instance_id_ttl", reason),
            other => other,
        })?;
        if let Some(label) = &self.label {
            Owner::check_label(label)?;
        }
        let credentials = self.check_credentials()?;
        if credentials.is_some()
            && endpoints.scheme == Scheme::Http
            && self.plaintext_password == PlaintextPassword::Refused
        {
            return Err(Error::invalid(
                "password",
                "would cross the network unencrypted: use https endpoints, \
                 or allow it with `plaintext_password`: \"allowed\"",
            ));
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
        Ok(Checked { endpoints, roots, instance_id_ttl, credentials })
    }

    fn check_credentials(&self) -> Result<Option<Source>> {
        let source = match (&self.username, &self.password, &self.password_file, &self.provider) {
            (None, None, None, None) => return Ok(None),
            (None, None, None, Some(Provider(provider))) => Source::Provider(provider.clone()),
            (_, _, _, Some(_)) => {
                return Err(Error::invalid(
                    "username",
                    "is the provider's: leave `username` and the password out",
                ));
            }
            (_, Some(_), Some(_), _) => {
                return Err(Error::invalid("password_file", "and `password` are given both: leave one out"));
            }
            (Some(user), Some(password), None, None) => {
                Source::Fixed(Credentials::new(user.as_str(), password.clone()))
            }
            (Some(user), None, Some(path), None) => Source::file(user, path),
            _ => {
                let reason = "and one of `password` and `password_file` are only useful together";
                return Err(Error::invalid("username", reason));
            }
        };
        if self.username.as_deref() == Some("") {
            return Err(Error::invalid("username", "is empty"));
        }
        if self.password.as_ref().is_some_and(|password| password.expose_secret().is_empty()) {
            return Err(Error::invalid("password", "is empty"));
        }
        Ok(Some(source))
    }
}

/// Result of [`EtcdConfig::check`], parsed.
pub(crate) struct Checked {
    pub(crate) endpoints: Endpoints,
    pub(crate) roots: CheckedRoots,
    pub(crate) instance_id_ttl: Ttl,
    pub(crate) credentials: Option<Source>,
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
            (refused(|c| c.password_file = Some("/p".into())), "invalid username: "),
            (refused(|c| *c = c.clone().user("", "p")), "invalid username: is empty"),
            (refused(|c| *c = c.clone().user("u", "")), "invalid password: is empty"),
            (refused(|c| *c = c.clone().user("u", "s3cret")), "invalid password: would cross the network"),
            (
                refused(|c| *c = c.clone().credentials(async || Ok(Credentials::new("u", "s3cret")))),
                "invalid password: would cross the network",
            ),
            (
                refused(|c| {
                    *c = c.clone().user("u", "s3cret");
                    c.password_file = Some("/p".into());
                }),
                "invalid password_file: ",
            ),
            (
                refused(|c| {
                    *c = c.clone().user("u", "s3cret").credentials(async || Err("no".into()));
                }),
                "invalid username: is the provider's",
            ),
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
            assert!(!message.contains("s3cret"), "{message}");
        }
    }

    #[test]
    fn a_password_is_for_encrypted_endpoints_unless_allowed_by_name() {
        let with = |endpoint: &str| EtcdConfig::new([endpoint]).user("u", "p");
        assert!(with("https://h:1").check().is_ok());
        assert!(with("h:1").tls(TlsFiles::default()).check().is_ok(), "tls means https");
        for endpoint in ["http://h:1", "h:1", "127.0.0.1:1", "localhost:1", "[::1]:1"] {
            assert!(with(endpoint).check().is_err(), "{endpoint}");
            assert!(with(endpoint).plaintext_password(PlaintextPassword::Allowed).check().is_ok());
        }
        let json =
            r#"{"endpoints":["h:1"],"username":"u","password_file":"/p","plaintext_password":"allowed"}"#;
        assert!(serde_json::from_str::<EtcdConfig>(json).expect("is good").check().is_ok());
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
        let config = EtcdConfig::new(["h:1"]).user("u", "s3cret");
        assert!(!format!("{config:?}").contains("s3cret"));
        let config = EtcdConfig::new(["http://u:s3cret@h:1"]);
        assert!(!format!("{config:?}").contains("s3cret"));
        let config = EtcdConfig::new(["h:1"]).credentials(async || Ok(Credentials::new("u", "s3cret")));
        assert!(!format!("{config:?} {:?}", config.check_credentials()).contains("s3cret"));
    }
}
