//! Service registration and discovery.

use std::{collections::BTreeMap, fmt, net::IpAddr, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    Error, InstanceId, Result, ServiceName, ServiceView, Version, Watch, backend::registration::Registration,
};

/// The largest metadata of one instance: keys and values together, in bytes.
pub const MAX_METADATA_BYTES: usize = 4096;

/// The metadata key of an instance's weight for load balancing: a positive number, 1 where there is none.
pub const WEIGHT: &str = "weight";

/// The metadata key of the zone that an instance runs in, as the operators call it.
pub const ZONE: &str = "zone";

/// The metadata key of the version of the program that an instance runs.
pub const VERSION: &str = "version";

/// Where the instances of each service are.
///
/// # Contract
/// - A registration lives on a lease of `ttl` that coord renews. When the lease is lost, or the entry is
///   deleted from outside, it is registered again, with its latest metadata, for as long as its
///   [`Registration`] lives; [`Registration::status`] tells.
/// - An instance id belongs to the client that registered it. Another client is refused
///   ([`Error::AlreadyRegistered`]); the same client takes its own over.
/// - A [`view`](Self::view) and a [`watch`](Self::watch) keep the last known instances while the store is away.
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

    /// Every service that has an instance now, with its instances as [`discover`](Self::discover) tells them, as they
    /// were at one moment. For people who look after a store: it reads all records of all services.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    async fn services(&self) -> Result<BTreeMap<String, Vec<ServiceInfo>>>;

    /// Watches the instances of a service; see [`Watch`] for what is promised.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>>;

    /// The instances of a service, kept up to date; see [`ServiceView`] for what is promised. The first view of a
    /// service reads the instances, those after it share its list.
    ///
    /// # Errors
    /// As [`discover`](Self::discover).
    async fn view(&self, service: &str) -> Result<ServiceView>;
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
/// Stored as JSON `{"id","name","address","port","metadata"}`. Fields that other programs add survive, also an
/// [`update`](Registration::update). Names that Go gives to fields without tags (`"ID"`, `"Name"`, …) are read as
/// well.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ServiceInfo {
    /// The id of the instance, unique within the service.
    #[serde(alias = "ID")]
    pub id: String,
    /// The name of the service.
    #[serde(alias = "Name")]
    pub name: String,
    /// A host name or an IP address (IPv6 without brackets) that clients can connect to.
    #[serde(alias = "Address")]
    pub address: String,
    /// The TCP port.
    #[serde(alias = "Port")]
    pub port: u16,
    /// Whatever clients should know, at most [`MAX_METADATA_BYTES`].
    #[serde(default, alias = "Metadata", deserialize_with = "null_is_empty")]
    pub metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(crate) foreign: serde_json::Map<String, serde_json::Value>,
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

    /// Sets the [weight](WEIGHT): an instance of weight 2 should get twice the calls of one of weight 1.
    #[must_use]
    pub fn with_weight(self, weight: f64) -> Self {
        self.with(WEIGHT, weight.to_string())
    }

    /// Sets the [zone](ZONE).
    #[must_use]
    pub fn with_zone(self, zone: impl Into<String>) -> Self {
        self.with(ZONE, zone)
    }

    /// Sets the [version](VERSION).
    #[must_use]
    pub fn with_version(self, version: impl Into<String>) -> Self {
        self.with(VERSION, version)
    }

    /// The [weight](WEIGHT); 1 where there is none, or another program wrote one that is not a positive number.
    ///
    /// ```
    /// # use coord_api::ServiceInfo;
    /// let info = ServiceInfo::new("a", "1", "10.0.0.1", 80).with_weight(2.5).with_zone("eu-1");
    /// assert_eq!((info.weight(), info.zone(), info.version()), (2.5, Some("eu-1"), None));
    /// ```
    pub fn weight(&self) -> f64 {
        self.metadata.get(WEIGHT).and_then(|weight| positive(weight)).unwrap_or(1.0)
    }

    /// The [zone](ZONE).
    pub fn zone(&self) -> Option<&str> {
        self.metadata.get(ZONE).map(String::as_str)
    }

    /// The [version](VERSION) of its program.
    pub fn version(&self) -> Option<&str> {
        self.metadata.get(VERSION).map(String::as_str)
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
    if metadata.get(WEIGHT).is_some_and(|weight| positive(weight).is_none()) {
        return Err(Error::invalid("metadata", "has a `weight` that is not a positive number"));
    }
    Ok(())
}

fn positive(number: &str) -> Option<f64> {
    number.parse().ok().filter(|number: &f64| number.is_finite() && *number > 0.0)
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
    fn what_go_writes_with_and_without_tags_is_read() {
        let tables = [
            r#"{"id":"1","name":"a","address":"::1","port":80}"#,
            r#"{"id":"1","name":"a","address":"::1","port":80,"metadata":null}"#,
            r#"{"ID":"1","Name":"a","Address":"::1","Port":80,"Metadata":null}"#,
            r#"{"ID":"1","Name":"a","Address":"::1","Port":80,"Metadata":{}}"#,
        ];
        for json in tables {
            let info: ServiceInfo = serde_json::from_str(json).expect(json);
            assert_eq!(info, ServiceInfo::new("a", "1", "::1", 80));
            assert_eq!(info.authority(), "[::1]:80");
        }
    }

    #[test]
    fn documented_metadata_is_typed_and_bad_foreign_weights_count_as_one() {
        let info = instance().with_weight(0.5).with_zone("eu-1").with_version("1.2.3");
        assert!(info.validate().is_ok());
        assert_eq!((info.weight(), info.zone(), info.version()), (0.5, Some("eu-1"), Some("1.2.3")));
        assert_eq!((instance().weight(), instance().zone(), instance().version()), (1.0, None, None));
        for bad in ["", "heavy", "0", "-1", "NaN", "inf"] {
            assert_eq!(instance().with(WEIGHT, bad).weight().to_string(), "1", "{bad}");
        }
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            assert!(instance().with_weight(bad).validate().is_err(), "{bad}");
        }
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

    #[test]
    fn weights_that_are_none_are_one() {
        for (text, expected) in
            [("2.5", 2.5), ("0", 1.0), ("-1", 1.0), ("NaN", 1.0), ("inf", 1.0), ("x", 1.0)]
        {
            assert!((instance().with(WEIGHT, text).weight() - expected).abs() < 1e-9, "{text}");
        }
    }
}
