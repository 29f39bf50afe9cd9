//! Records as other programs write them, and what they mean by it.

use std::{collections::BTreeMap, net::Ipv6Addr};

use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};

use super::ServiceInfo;

/// A record as it is read.
#[derive(Deserialize)]
pub(super) struct Stored {
    #[serde(alias = "ID")]
    id: String,
    #[serde(alias = "Name")]
    name: String,
    #[serde(alias = "Address")]
    address: String,
    #[serde(default, alias = "Port", deserialize_with = "port")]
    port: Option<u16>,
    #[serde(default, alias = "Metadata", deserialize_with = "metadata")]
    metadata: BTreeMap<String, String>,
    #[serde(flatten)]
    foreign: Map<String, Value>,
}

impl TryFrom<Stored> for ServiceInfo {
    type Error = String;

    fn try_from(stored: Stored) -> Result<Self, String> {
        let Stored { id, name, address, port, metadata, foreign } = stored;
        let (address, port_in_address) = parts(address);
        let port = match (port, port_in_address) {
            (Some(port), Some(other)) if port != other && port != 0 => {
                return Err(format!("the address has the port {other}, and the port is {port}"));
            }
            (_, Some(port)) | (Some(port), None) => port,
            (None, None) => return Err("missing field `port`".into()),
        };
        Ok(Self { id, name, address, port, metadata, foreign, revision: None })
    }
}

/// The host, without brackets, and the port if it is there. Other text stays as it is.
fn parts(address: String) -> (String, Option<u16>) {
    let is_ip = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    if let Some(rest) = address.strip_prefix('[') {
        return match rest.split_once(']') {
            Some((ip, "")) if is_ip(ip) => (ip.to_owned(), None),
            Some((ip, rest)) if is_ip(ip) => match rest.strip_prefix(':').and_then(number) {
                Some(port) => (ip.to_owned(), Some(port)),
                None => (address, None),
            },
            _ => (address, None),
        };
    }
    match address.split_once(':') {
        Some((host, port)) if !host.is_empty() => match number(port) {
            Some(port) => (host.to_owned(), Some(port)),
            None => (address, None),
        },
        _ => (address, None),
    }
}

/// A port in digits alone: `+80` is a number to Rust.
fn number(text: &str) -> Option<u16> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

fn port<'de, D: Deserializer<'de>>(json: D) -> Result<Option<u16>, D::Error> {
    let port = match Value::deserialize(json)? {
        Value::Null => return Ok(None),
        Value::Number(port) => port.as_u64().and_then(|port| u16::try_from(port).ok()),
        Value::String(text) => number(&text),
        _ => None,
    };
    port.map(Some).ok_or_else(|| D::Error::custom("is no port (0 to 65535)"))
}

fn metadata<'de, D: Deserializer<'de>>(json: D) -> Result<BTreeMap<String, String>, D::Error> {
    let values: Option<BTreeMap<String, Value>> = Option::deserialize(json)?;
    let text = |value| match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    Ok(values.unwrap_or_default().into_iter().filter_map(|(key, value)| Some((key, text(value)?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(address: &str, port: &str) -> Result<String, String> {
        let json = format!(r#"{{"id":"1","name":"a","address":"{address}"{port}}}"#);
        let info: ServiceInfo = serde_json::from_str(&json).map_err(|error| error.to_string())?;
        Ok(format!("{} {}", info.address, info.port))
    }

    #[test]
    fn addresses_and_ports_of_other_programs_are_read_as_they_are_meant() {
        let table = [
            ("10.0.0.1", r#","port":80"#, "10.0.0.1 80"),
            ("10.0.0.1", r#","port":"80""#, "10.0.0.1 80"),
            ("10.0.0.1:80", "", "10.0.0.1 80"),
            ("10.0.0.1:80", r#","port":80"#, "10.0.0.1 80"),
            ("10.0.0.1:80", r#","port":0"#, "10.0.0.1 80"),
            ("10.0.0.1:80", r#","Port":null"#, "10.0.0.1 80"),
            ("host:80", "", "host 80"),
            ("[::1]", r#","port":80"#, "::1 80"),
            ("[::1]:80", "", "::1 80"),
            ("::1", r#","port":80"#, "::1 80"),
            // These are found out later, by the check of every address.
            ("[::1", r#","port":80"#, "[::1 80"),
            ("[host]:80", r#","port":80"#, "[host]:80 80"),
            ("host:+80", r#","port":80"#, "host:+80 80"),
            (":80", r#","port":80"#, ":80 80"),
            ("http://host:80", r#","port":80"#, "http://host:80 80"),
        ];
        for (address, port, expected) in table {
            assert_eq!(read(address, port).expect(address), expected);
        }
    }

    #[test]
    fn ports_that_are_none_or_contradict_are_told() {
        let table = [
            ("h", r#","port":"+80""#, "is no port"),
            ("h", r#","port":"80 ""#, "is no port"),
            ("h", r#","port":65536"#, "is no port"),
            ("h", r#","port":-1"#, "is no port"),
            ("h", r#","port":8.5"#, "is no port"),
            ("h", r#","port":[80]"#, "is no port"),
            ("h", "", "missing field `port`"),
            ("h:80", r#","port":81"#, "the address has the port 80, and the port is 81"),
        ];
        for (address, port, expected) in table {
            let error = read(address, port).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn metadata_of_any_kind_is_text() {
        let json = r#"{"id":"1","name":"a","address":"h","port":1,
            "metadata":{"text":"x","weight":2.5,"cores":16,"on":true,"none":null,"zones":["a","b"],"o":{"n":1}}}"#;
        let info: ServiceInfo = serde_json::from_str(json).expect("is a record");
        let expected = [
            ("cores", "16"),
            ("o", r#"{"n":1}"#),
            ("on", "true"),
            ("text", "x"),
            ("weight", "2.5"),
            ("zones", r#"["a","b"]"#),
        ];
        let found: Vec<_> = info.metadata.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(found, expected);
        assert!((info.weight() - 2.5).abs() < 1e-9);
        let list = r#"{"id":"1","name":"a","address":"h","port":1,"metadata":["x"]}"#;
        serde_json::from_str::<ServiceInfo>(list).expect_err("is no map");
    }
}
