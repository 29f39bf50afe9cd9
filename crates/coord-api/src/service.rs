//! Instance of a service: its record, and what is checked before it is stored.

mod address;
mod stored;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use self::address::is_host;
use self::{address::check_address, stored::Stored};
use crate::{Error, InstanceId, Result, ServiceName, Version};

/// The largest metadata of one instance: keys and values together, in bytes.
pub const MAX_METADATA_BYTES: usize = 4096;

/// The metadata key of an instance's weight for load balancing: a number from [`MIN_WEIGHT`] to [`MAX_WEIGHT`], 1 where
/// there is none.
pub const WEIGHT: &str = "weight";

/// The metadata key of the zone that an instance runs in, as the operators call it.
pub const ZONE: &str = "zone";

/// The metadata key of the version of the program that an instance runs.
pub const VERSION: &str = "version";

/// The smallest [weight](WEIGHT).
pub const MIN_WEIGHT: f64 = 1e-6;

/// The largest [weight](WEIGHT), so that the weights of all instances can be summed.
pub const MAX_WEIGHT: f64 = 1e6;

/// The field of a record that marks its instance as one that clients leave out. It is there only while it is `false`.
const SERVING: &str = "serving";

/// Instance of a service.
///
/// Stored as JSON `{"id","name","address","port","metadata"}`, with `"serving":false` while clients shall leave it out.
/// Fields that other programs add survive, also an [`update`](crate::Registration::update). These are read as well, as
/// other programs write them:
/// - the names that Go gives to fields without tags: `"ID"`, `"Name"`, …;
/// - an address with its port (`"10.0.0.1:80"`, `"[::1]:80"`) or in brackets (`"[::1]"`);
/// - a port as text (`"80"`);
/// - metadata that are numbers, truth values, lists or objects: as their JSON text. `null` is no metadata.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
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
    pub metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    pub(crate) foreign: serde_json::Map<String, serde_json::Value>,
    #[serde(skip)]
    pub(crate) revision: Option<Version>,
}

/// Two records are equal when they say the same, whenever they were written.
impl PartialEq for ServiceInfo {
    fn eq(&self, other: &Self) -> bool {
        let Self { id, name, address, port, metadata, foreign, revision: _ } = self;
        (id, name, address) == (&other.id, &other.name, &other.address)
            && (port, metadata, foreign) == (&other.port, &other.metadata, &other.foreign)
    }
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
            revision: None,
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

    /// The [weight](WEIGHT), within [`MIN_WEIGHT`] and [`MAX_WEIGHT`]; 1 where there is none, or another program wrote one
    /// that is not a positive number.
    ///
    /// ```
    /// # use coord_api::ServiceInfo;
    /// let info = ServiceInfo::new("a", "1", "10.0.0.1", 80).with_weight(2.5).with_zone("eu-1");
    /// assert_eq!((info.weight(), info.zone(), info.version()), (2.5, Some("eu-1"), None));
    /// ```
    pub fn weight(&self) -> f64 {
        let weight = self.metadata.get(WEIGHT).and_then(|weight| positive(weight));
        weight.map_or(1.0, |weight| weight.clamp(MIN_WEIGHT, MAX_WEIGHT))
    }

    /// The [zone](ZONE).
    pub fn zone(&self) -> Option<&str> {
        self.metadata.get(ZONE).map(String::as_str)
    }

    /// The [version](VERSION) of its program.
    pub fn version(&self) -> Option<&str> {
        self.metadata.get(VERSION).map(String::as_str)
    }

    /// Marks the instance from its first record on as one that clients leave out, until
    /// [`Registration::serving`](crate::Registration::serving) says otherwise.
    #[must_use]
    pub fn not_serving(mut self) -> Self {
        self.mark(false);
        self
    }

    /// Returns whether clients may choose the instance: unless its record has the mark `"serving": false`.
    ///
    /// ```
    /// # use coord_api::ServiceInfo;
    /// let info = ServiceInfo::new("a", "1", "10.0.0.1", 80);
    /// assert!(info.is_serving() && !info.not_serving().is_serving());
    /// ```
    pub fn is_serving(&self) -> bool {
        self.foreign.get(SERVING) != Some(&serde_json::Value::Bool(false))
    }

    pub(crate) fn mark(&mut self, serving: bool) {
        if serving {
            self.foreign.remove(SERVING);
        } else {
            self.foreign.insert(SERVING.into(), false.into());
        }
    }

    /// Returns the revision of the store at which the record was written, if it was read from one. Of two
    /// records of one process the later one counts.
    pub fn revision(&self) -> Option<Version> {
        self.revision
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
        self.check_endpoint()?;
        check_metadata(&self.metadata)?;
        Ok((name, id))
    }

    /// Returns whether clients could connect to it.
    pub(crate) fn check_endpoint(&self) -> Result<()> {
        check_address(&self.address)?;
        if self.port == 0 {
            return Err(Error::invalid("port", "0 is not a port that clients can connect to (1 to 65535)"));
        }
        Ok(())
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
    match metadata.get(WEIGHT).map(|weight| positive(weight)) {
        Some(None) => Err(Error::invalid("metadata", "has a `weight` that is not a positive number")),
        Some(Some(weight)) if !(MIN_WEIGHT..=MAX_WEIGHT).contains(&weight) => {
            let reason = format!("has a `weight` that is not within {MIN_WEIGHT} and {MAX_WEIGHT}");
            Err(Error::invalid("metadata", reason))
        }
        _ => Ok(()),
    }
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
        for weight in ["1e308", "1000001", "1e-9"] {
            let error = instance().with(WEIGHT, weight).validate().expect_err(weight).to_string();
            assert_eq!(error, "invalid metadata: has a `weight` that is not within 0.000001 and 1000000");
        }
        for weight in ["2.5", "1000000", "0.000001"] {
            assert!(instance().with(WEIGHT, weight).validate().is_ok(), "{weight}");
        }
    }

    #[test]
    fn mark_of_what_does_not_serve_is_one_field_and_survives() {
        let json = |info: &ServiceInfo| serde_json::to_value(info).expect("serializes");
        let mut info = instance().not_serving();
        assert_eq!(json(&info)["serving"], false);
        let mut read: ServiceInfo = serde_json::from_value(json(&info)).expect("is a record");
        assert!(read == info && !read.is_serving());
        info.mark(true);
        read.mark(true);
        assert!(info == instance() && read == instance());
        assert!(json(&info).get("serving").is_none());
        // Whatever another program means by it, it is not ours.
        for other in [r#""no""#, "0", "null", "true"] {
            let text = format!(
                r#"{{"id":"1","name":"a","address":"h","port":1,"metadata":{{}},"serving":{other}}}"#
            );
            let info: ServiceInfo = serde_json::from_str(&text).expect("is a record");
            assert!(info.is_serving(), "{other}");
            assert_eq!(serde_json::to_string(&info).expect("serializes"), text);
        }
    }

    #[test]
    fn weights_that_are_none_are_one() {
        for (text, expected) in
            [("2.5", 2.5), ("0", 1.0), ("-1", 1.0), ("NaN", 1.0), ("inf", 1.0), ("x", 1.0), ("1e308", 1e6)]
        {
            assert!((instance().with(WEIGHT, text).weight() - expected).abs() < 1e-9, "{text}");
        }
    }
}
