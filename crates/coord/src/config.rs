//! Which backend to use, and how: from a URL or from a service's own configuration.

use serde::Deserialize;

use crate::{Error, Result};

/// Which backend to use, and how. Deserializable, so that it can be a part of a service's own configuration
/// in JSON, TOML, YAML or environment variables: the field `backend` says which, the other fields are that
/// backend's. Unknown fields are refused.
///
/// ```
/// use coord::{Config, Coordinator};
///
/// #[derive(serde::Deserialize)]
/// struct Service {
///     listen: String,
///     coord: Config,
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let service: Service = serde_json::from_str(r#"{
///     "listen": "0.0.0.0:8080",
///     "coord": { "backend": "memory", "name": "shop", "instance_id_ttl": "10s" }
/// }"#)?;
/// let coordinator = Coordinator::connect_with(service.coord).await?;
/// # let _ = (service.listen, coordinator);
/// # Ok(()) }
/// ```
///
/// For etcd, as TOML:
/// ```toml
/// [coord]
/// backend = "etcd"
/// endpoints = ["https://etcd-1:2379", "https://etcd-2:2379", "https://etcd-3:2379"]
/// namespace = "shop"
/// username = "shop"
/// password = "…"
/// request_timeout = "3s"
/// tls = { ca_file = "/etc/shop/etcd-ca.pem" }
/// ```
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "backend", rename_all = "lowercase")]
#[non_exhaustive]
#[cfg_attr(
    all(feature = "memory", feature = "etcd"),
    expect(clippy::large_enum_variant, reason = "made once per process, and a box would show in its type")
)]
pub enum Config {
    /// A store in this process.
    #[cfg(feature = "memory")]
    Memory(MemoryConfig),
    /// An etcd cluster.
    #[cfg(feature = "etcd")]
    Etcd(crate::etcd::EtcdConfig),
}

/// A store in this process.
#[cfg(feature = "memory")]
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// Coordinators that give the same name at the same time share one store. Without a name the store is
    /// the coordinator's own.
    pub name: Option<String>,
    /// What operators call this client, for example the name of the service. It is shown to whoever asks who
    /// holds a lock or an instance id of a service.
    pub label: Option<String>,
    /// The time to live of instance ids. Default: 30 s.
    #[serde(with = "humantime_serde")]
    pub instance_id_ttl: std::time::Duration,
}

#[cfg(feature = "memory")]
impl Default for MemoryConfig {
    fn default() -> Self {
        Self { name: None, label: None, instance_id_ttl: std::time::Duration::from_secs(30) }
    }
}

impl Config {
    /// Reads a URL, as [`Coordinator::connect`](crate::Coordinator::connect) does, without any I/O.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with what to change. What may be a password is never repeated.
    pub fn from_url(url: &str) -> Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else {
            return Err(refuse(format!("has no scheme: {SCHEMES}")));
        };
        match scheme {
            "memory" => memory(rest),
            "etcd" => etcd(url),
            // Anything else may be a misplaced password.
            _ if scheme.len() <= 16 && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+') => {
                Err(refuse(format!("has the unknown scheme `{scheme}`: {SCHEMES}")))
            }
            _ => Err(refuse(format!("has an unknown scheme: {SCHEMES}"))),
        }
    }
}

impl Config {
    /// Lets [`connect_with`](crate::Coordinator::connect_with) succeed while the store is away. Calls fail until
    /// it is there; a live config with a snapshot file starts with what it knew last. A memory store is always
    /// there.
    ///
    /// ```
    /// use coord::{Config, Coordinator};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord::Result<()> {
    /// let url = "memory://"; // or "etcd://10.0.0.1:2379/shop"
    /// let coordinator = Coordinator::connect_with(Config::from_url(url)?.lazily()).await?;
    /// # let _ = coordinator;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn lazily(self) -> Self {
        match self {
            #[cfg(feature = "etcd")]
            Self::Etcd(config) => Self::Etcd(config.connect(crate::etcd::Connect::Lazily)),
            #[cfg(feature = "memory")]
            memory @ Self::Memory(_) => memory,
        }
    }
}

const SCHEMES: &str = "write `memory://`, `memory://name` or `etcd://host:port,host:port/namespace`";

fn refuse(reason: impl Into<String>) -> Error {
    Error::InvalidArgument { field: "url", reason: reason.into() }
}

#[cfg(feature = "memory")]
fn memory(name: &str) -> Result<Config> {
    if name.contains('@') {
        return Err(refuse(
            "contains `@`, but a memory store has neither hosts nor users: write `memory://name`",
        ));
    }
    if name.contains(['?', '#']) {
        return Err(refuse("contains `?` or `#`: options are fields of `Config`, not parts of a URL"));
    }
    if name.is_empty() {
        return Ok(Config::Memory(MemoryConfig::default()));
    }
    check_name(name).map_err(|reason| refuse(format!("names the memory store badly: {reason}")))?;
    Ok(Config::Memory(MemoryConfig { name: Some(name.into()), ..MemoryConfig::default() }))
}

/// Names of stores follow the rule of namespaces, which they stand for.
#[cfg(feature = "memory")]
pub(crate) fn check_name(name: &str) -> Result<(), String> {
    match coord_api::Namespace::parse(name) {
        Ok(_) => Ok(()),
        Err(Error::InvalidArgument { reason, .. }) => Err(reason),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(not(feature = "memory"))]
fn memory(_name: &str) -> Result<Config> {
    Err(refuse("this build has no memory backend: enable the cargo feature `memory` of the crate `coord`"))
}

#[cfg(feature = "etcd")]
fn etcd(url: &str) -> Result<Config> {
    Ok(Config::Etcd(crate::etcd::EtcdConfig::from_url(url)?))
}

#[cfg(not(feature = "etcd"))]
fn etcd(_url: &str) -> Result<Config> {
    Err(refuse("this build has no etcd backend: enable the cargo feature `etcd` of the crate `coord`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(url: &str) -> String {
        let error = Config::from_url(url).expect_err(url);
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("s3cret"), "{shown}");
        error.to_string()
    }

    #[test]
    fn bad_schemes_are_refused_with_what_to_write() {
        let table = [
            ("", "has no scheme"),
            ("memory", "has no scheme"),
            ("memory:name", "has no scheme"),
            ("127.0.0.1:2379", "has no scheme"),
            ("root:s3cret@127.0.0.1:2379", "has no scheme"),
            ("http://127.0.0.1:2379", "unknown scheme `http`"),
            ("Memory://", "unknown scheme `Memory`"),
            ("://x", "unknown scheme ``"),
            ("root:s3cret@etcd://h:1", "has an unknown scheme: "),
            (" etcd://h:1", "has an unknown scheme: "),
        ];
        for (url, reason) in table {
            let message = refused(url);
            assert!(message.starts_with("invalid url: ") && message.contains(reason), "{message}");
            assert!(message.contains("`etcd://host:port,host:port/namespace`"), "{message}");
        }
    }

    #[cfg(feature = "memory")]
    #[test]
    fn memory_urls() {
        let name = |url| match Config::from_url(url) {
            Ok(Config::Memory(config)) => config.name,
            other => panic!("{url}: {other:?}"),
        };
        assert_eq!(name("memory://"), None);
        assert_eq!(name("memory://shop"), Some("shop".into()));
        assert_eq!(name("memory://shop/eu"), Some("shop/eu".into()));

        let table = [
            ("memory:///", "begins or ends with `/`"),
            ("memory://shop/", "begins or ends with `/`"),
            ("memory://a//b", "empty segment"),
            ("memory://..", "`.` or `..`"),
            ("memory://a\nb", "control character"),
            ("memory://root:s3cret@shop", "contains `@`"),
            ("memory://shop?password=s3cret", "contains `?` or `#`"),
        ];
        for (url, reason) in table {
            let message = refused(url);
            assert!(message.starts_with("invalid url: ") && message.contains(reason), "{message}");
        }
    }

    #[cfg(not(feature = "memory"))]
    #[test]
    fn without_memory_the_feature_is_named() {
        assert!(refused("memory://").contains("enable the cargo feature `memory`"));
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn etcd_urls() {
        match Config::from_url("etcd://h1:2379,h2:2379/shop") {
            Ok(Config::Etcd(config)) => {
                assert_eq!(config.endpoints, ["h1:2379", "h2:2379"]);
                assert_eq!(config.namespace, "shop");
            }
            other => panic!("{other:?}"),
        }
        refused("etcd://");
        refused("etcd://root:s3cret@h1:2379/shop");
    }

    #[cfg(not(feature = "etcd"))]
    #[test]
    fn without_etcd_the_feature_is_named() {
        assert!(refused("etcd://root:s3cret@h:1").contains("enable the cargo feature `etcd`"));
    }

    #[cfg(feature = "memory")]
    #[test]
    fn unknown_fields_and_backends_are_refused() {
        let read = |json: &str| serde_json::from_str::<Config>(json).map_err(|error| error.to_string());
        assert!(
            matches!(read(r#"{"backend":"memory"}"#), Ok(Config::Memory(config)) if config.name.is_none())
        );
        match read(r#"{"backend":"memory","instance_id_ttl":"90s","label":"checkout"}"#) {
            Ok(Config::Memory(config)) => {
                assert_eq!(config.instance_id_ttl.as_secs(), 90);
                assert_eq!(config.label.as_deref(), Some("checkout"));
            }
            other => panic!("{other:?}"),
        }
        for (json, reason) in [
            (r#"{"backend":"memory","nmae":"shop"}"#, "unknown field `nmae`"),
            (r#"{"backend":"memory","instance_id_ttl":"soon"}"#, "invalid value"),
            (r#"{"backend":"zookeeper"}"#, "unknown variant `zookeeper`"),
            (r#"{"name":"shop"}"#, "missing field `backend`"),
        ] {
            let error = read(json).expect_err(json);
            assert!(error.contains(reason), "{error}");
        }
    }

    #[cfg(feature = "etcd")]
    #[test]
    fn etcd_fields_are_read_and_the_password_is_not_shown() {
        let json =
            r#"{"backend":"etcd","endpoints":["h:1"],"username":"u","password":"s3cret","label":"checkout"}"#;
        let config: Config = serde_json::from_str(json).expect("is good");
        let shown = format!("{config:?}");
        assert!(shown.contains("checkout") && !shown.contains("s3cret"), "{shown}");
        let unknown = r#"{"backend":"etcd","endpoints":["h:1"],"requst_timeout":"3s"}"#;
        assert!(serde_json::from_str::<Config>(unknown).is_err());
    }
}
