//! Service registration and discovery.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Error, InstanceId, Result, ServiceName, Version, Watch, backend::registration::Registration};

/// The largest metadata of one instance: keys and values together, in bytes.
pub const MAX_METADATA_BYTES: usize = 4096;

/// The metadata key under which an instance's weight for load balancing is kept: a positive number.
pub const WEIGHT: &str = "weight";

/// Where the instances of each service are.
///
/// # Contract
/// - A registration lives on a lease of `ttl` that coord renews. When the lease is lost, or the entry is
///   deleted from outside, it is registered again, with its latest metadata, for as long as its
///   [`Registration`] lives; [`Registration::status`] tells.
/// - An instance id belongs to the client that registered it. Another client is refused
///   ([`Error::AlreadyRegistered`]); the same client takes its own over.
/// - [`discover`](Self::discover) is linearizable: it sees every registration that was answered before.
/// - Services `im-logic` and `im-logic-2`, or `a` and `a/b`, never see each other's instances.
///
/// # Cancel safety
/// Every future here may be dropped at any point: an unfinished registration leaves nothing behind.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use coord_api::{Provider, ServiceInfo, ServiceRegistry};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let store = coord_memory::Store::new();
/// let registry = store.client().registry();
/// let me = ServiceInfo::new("im-logic", "im-logic-1", "10.0.1.10", 8080).with("region", "us-east-1");
/// let registration = registry.register(me, Duration::from_secs(30)).await?;
/// for instance in registry.discover("im-logic").await? {
///     println!("{} at {}", instance.id, instance.authority());
/// }
/// registration.deregister().await?;
/// # Ok(()) }
/// ```
#[async_trait]
pub trait ServiceRegistry: fmt::Debug + Send + Sync {
    /// Registers an instance and keeps it registered until the [`Registration`] is dropped.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] or [`Error::TooLarge`] before anything is sent;
    /// [`Error::AlreadyRegistered`] with the owner; [`Error::Closed`], [`Error::Unavailable`],
    /// [`Error::Timeout`], after which nothing stays behind.
    async fn register(&self, service: ServiceInfo, ttl: Duration) -> Result<Registration>;

    /// The instances that are registered now, ordered by id. Records that can not be decoded are left out,
    /// with a warning in the log; [`watch`](Self::watch) reports them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Closed`], [`Error::Unavailable`], [`Error::Timeout`].
    async fn discover(&self, service: &str) -> Result<Vec<ServiceInfo>>;

    /// Watches the instances of a service; see [`Watch`] for what is promised.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>>;
}

/// One change of a service's instances.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ServiceEvent {
    /// All instances at one moment, ordered by id; replaces all that was known.
    Snapshot {
        /// The store's revision of the snapshot.
        version: Version,
        /// The instances.
        instances: Vec<ServiceInfo>,
    },
    /// A new instance.
    Added(ServiceInfo),
    /// An instance changed its record.
    Updated {
        /// The record before.
        old: ServiceInfo,
        /// The record now.
        new: ServiceInfo,
    },
    /// An instance is gone; this was its last record.
    Removed(ServiceInfo),
}

/// One instance of a service.
///
/// Stored as JSON `{"id","name","address","port","metadata"}`; fields that other programs add survive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceInfo {
    /// The id of the instance, unique within the service.
    pub id: String,
    /// The name of the service.
    pub name: String,
    /// A host name or an IP address (IPv6 without brackets) that clients can connect to.
    pub address: String,
    /// The TCP port.
    pub port: u16,
    /// Whatever clients should know, at most [`MAX_METADATA_BYTES`].
    #[serde(default, deserialize_with = "null_is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    foreign: serde_json::Map<String, serde_json::Value>,
}

fn null_is_empty<'de, D: Deserializer<'de>>(json: D) -> Result<BTreeMap<String, String>, D::Error> {
    Ok(Option::deserialize(json)?.unwrap_or_default())
}

impl ServiceInfo {
    /// An instance without metadata. It is checked when it is registered.
    pub fn new(
        name: impl Into<String>,
        id: impl Into<String>,
        address: impl Into<String>,
        port: u16,
    ) -> Self {
        Self {
            id: id.into(),
            name: name.into(),
            address: address.into(),
            port,
            metadata: BTreeMap::new(),
            foreign: serde_json::Map::new(),
        }
    }

    /// Adds one piece of metadata.
    #[must_use]
    pub fn with(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// `address:port` as a URL wants it, with brackets around an IPv6 address.
    ///
    /// ```
    /// # use coord_api::ServiceInfo;
    /// assert_eq!(ServiceInfo::new("a", "1", "2001:db8::1", 80).authority(), "[2001:db8::1]:80");
    /// assert_eq!(ServiceInfo::new("a", "1", "db.local", 80).authority(), "db.local:80");
    /// ```
    pub fn authority(&self) -> String {
        if self.address.contains(':') {
            format!("[{}]:{}", self.address, self.port)
        } else {
            format!("{}:{}", self.address, self.port)
        }
    }

    /// Checks everything that the registry stores, and returns the parsed names.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] or [`Error::TooLarge`] with the field and the limit.
    pub fn validate(&self) -> Result<(ServiceName, InstanceId)> {
        let name = ServiceName::parse(&self.name)?;
        let id = InstanceId::parse(&self.id)?;
        check_address(&self.address)?;
        if self.port == 0 {
            return Err(Error::invalid("port", "0 is not a port that clients can connect to (1 to 65535)"));
        }
        check_metadata(&self.metadata)?;
        Ok((name, id))
    }
}

fn check_address(address: &str) -> Result<()> {
    let refuse = |reason: &str| Err(Error::invalid("address", reason));
    if address.is_empty() {
        return refuse("is empty, it needs a host name or an IP address");
    }
    if address.len() > 253 {
        return refuse("is longer than 253 bytes");
    }
    match address.parse::<IpAddr>() {
        Ok(ip) if ip.is_unspecified() => {
            refuse("is the unspecified address: servers listen there, clients can not connect to it")
        }
        Ok(_) => Ok(()),
        Err(_) if address.starts_with('[') || address.contains(':') => {
            refuse("is not an IP address; write IPv6 without brackets, and the port in its own field")
        }
        Err(_) if address.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) => Ok(()),
        Err(_) => refuse("is neither an IP address nor a host name"),
    }
}

pub(crate) fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<()> {
    let size = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_METADATA_BYTES {
        return Err(Error::TooLarge { field: "metadata", size, limit: MAX_METADATA_BYTES });
    }
    if metadata.keys().any(|key| key.is_empty() || key.chars().any(char::is_control)) {
        return Err(Error::invalid("metadata", "has a key that is empty or contains a control character"));
    }
    if let Some(weight) = metadata.get(WEIGHT) {
        let positive = weight.parse::<f64>().is_ok_and(|weight| weight.is_finite() && weight > 0.0);
        if !positive {
            return Err(Error::invalid("metadata", "has a `weight` that is not a positive number"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance() -> ServiceInfo {
        ServiceInfo::new("im-logic", "im-logic-1", "10.0.1.10", 8080)
    }

    #[test]
    fn json_is_the_documented_one_and_foreign_fields_survive() {
        let json = serde_json::to_value(instance().with("region", "us")).expect("serializes");
        let expected = serde_json::json!({"id": "im-logic-1", "name": "im-logic", "address": "10.0.1.10",
            "port": 8080, "metadata": {"region": "us"}});
        assert_eq!(json, expected);

        let foreign = r#"{"id":"1","name":"a","address":"h","port":1,"metadata":null,"zone":{"n":1}}"#;
        let info: ServiceInfo = serde_json::from_str(foreign).expect("null metadata is what Go writes");
        assert!(info.metadata.is_empty());
        assert_eq!(serde_json::to_value(&info).expect("serializes")["zone"]["n"], 1);
    }

    #[test]
    fn every_bad_field_is_refused_by_its_name() {
        let change = |change: fn(&mut ServiceInfo)| {
            let mut info = instance();
            change(&mut info);
            info.validate().expect_err("is bad").to_string()
        };
        let table = [
            (change(|i| i.name = "a//b".into()), "invalid service name: "),
            (change(|i| i.id = String::new()), "invalid instance id: "),
            (change(|i| i.port = 0), "invalid port: 0 "),
            (change(|i| i.address = String::new()), "invalid address: is empty"),
            (change(|i| i.address = "0.0.0.0".into()), "invalid address: is the unspecified"),
            (change(|i| i.address = "::".into()), "invalid address: is the unspecified"),
            (change(|i| i.address = "[::1]".into()), "invalid address: is not an IP address"),
            (change(|i| i.address = "host:80".into()), "invalid address: is not an IP address"),
            (change(|i| i.address = "a\nb".into()), "invalid address: is neither"),
            (change(|i| i.address = "a".repeat(254)), "invalid address: is longer"),
            (
                change(|i| drop(i.metadata.insert("k".into(), "v".repeat(4096)))),
                "metadata has 4097 bytes, the limit is 4096",
            ),
            (
                change(|i| drop(i.metadata.insert(WEIGHT.into(), "NaN".into()))),
                "invalid metadata: has a `weight`",
            ),
            (
                change(|i| drop(i.metadata.insert(WEIGHT.into(), "-1".into()))),
                "invalid metadata: has a `weight`",
            ),
            (change(|i| drop(i.metadata.insert(String::new(), "v".into()))), "invalid metadata: has a key"),
        ];
        for (message, expected) in table {
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(instance().with(WEIGHT, "2.5").validate().is_ok());
    }
}
