//! What must hold of every parser, whatever it is given. Each of these panics if it does not hold.
//!
//! `tests/tests/parsers.rs` holds them to random inputs in every `cargo test`, and the fuzz targets beside this file to
//! inputs that a fuzzer finds.

use coord::{Config, GrayExt, HistoryExt, SchemaExt};
use coord_api::{
    Batch, ConfigExt, ConfigKey, ConfigPrefix, Entry, Error, InstanceId, LockName, Namespace, Provider,
    Scope, ServiceInfo, ServiceName, Version,
};
use coord_memory::Store;
use futures::executor::block_on;

/// A refusal is one line that a terminal survives.
fn is_readable(error: &Error) {
    let text = error.to_string();
    assert!(!text.chars().any(char::is_control) && text.len() < 400, "{text:?}");
}

/// A name is taken as it is, or refused.
pub(crate) fn names(text: &str) {
    macro_rules! same {
        ($($type:ident),*) => {$(
            match $type::parse(text) {
                Ok(name) => {
                    assert_eq!(name.as_str(), text);
                    assert_eq!(name.to_string(), text);
                    assert!(!text.is_empty() && text.len() <= 255 && !text.contains(['%', '\0', '\n']));
                }
                Err(error) => is_readable(&error),
            }
        )*};
    }
    same!(LockName, ServiceName, InstanceId, Namespace, ConfigKey);
    match ConfigPrefix::parse(text) {
        Ok(prefix) if text.is_empty() => assert_eq!(prefix.as_key_start(), ""),
        Ok(prefix) => assert_eq!(prefix.as_key_start(), format!("{text}/")),
        Err(error) => is_readable(&error),
    }
}

/// Two names never share what is stored, and a key finds back to its name.
pub(crate) fn keys(one: &str, other: &str) {
    coord_etcd::fuzz::keys(one, other);
    let store = Store::new();
    let client = store.client();
    let set = |key: &str, value: u32| block_on(client.config().set(key, &value)).is_ok();
    if set(one, 1) && set(other, 2) {
        let found = block_on(client.config().get::<u32>(one)).expect("is good");
        assert_eq!(found.map(|found| found.value), Some(if one == other { 2 } else { 1 }));
        let keys = block_on(client.config().list("")).expect("is good");
        assert!(keys.iter().all(|entry| entry.key() == one || entry.key() == other));
    }
    // Any key can be asked for, and what is no key is not there.
    store.delete_raw(one);
}

/// A URL is a configuration that can be written as a URL again, or is refused without being repeated as a whole.
pub(crate) fn urls(text: &str) {
    match Config::from_url(text) {
        Ok(Config::Memory(config)) => {
            assert_eq!(format!("memory://{}", config.name.unwrap_or_default()), text);
        }
        Ok(Config::Etcd(config)) => {
            let again = format!("etcd://{}/{}", config.endpoints.join(","), config.namespace);
            let Ok(Config::Etcd(same)) = Config::from_url(&again) else { panic!("{again} is refused") };
            assert_eq!((same.endpoints, same.namespace), (config.endpoints, config.namespace));
        }
        Ok(_) => {}
        Err(error) => is_readable(&error),
    }
    coord_etcd::fuzz::endpoints(text);
}

/// What is taken as an address is one that clients can connect to: the resolver sees the same IP address in it, or a name.
pub(crate) fn addresses(text: &str) {
    let info = ServiceInfo::new("svc", "1", text, 80);
    match info.validate() {
        Ok(_) => {
            assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte)));
            // The system reads numbers in several forms; of these only the whole one is taken.
            let last = text.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
            let is_numeric = !text.contains(':') && last.bytes().all(|byte| byte.is_ascii_digit());
            assert_eq!(is_numeric, text.parse::<std::net::Ipv4Addr>().is_ok(), "{text}");
        }
        Err(error) => is_readable(&error),
    }
    let json = serde_json::json!({ "id": "1", "name": "svc", "address": text, "port": "80" }).to_string();
    stored(json.as_bytes());
}

/// A configuration in JSON is read or refused.
pub(crate) fn config_json(bytes: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<Config>(bytes) {
        let _ = format!("{config:?}");
    }
}

/// Whatever another program has stored, everything that reads it goes on.
pub(crate) fn stored(bytes: &[u8]) {
    coord_etcd::fuzz::id_value(bytes);
    if let Ok(info) = serde_json::from_slice::<ServiceInfo>(bytes) {
        let again = serde_json::to_vec(&info).expect("was read from JSON");
        assert_eq!(serde_json::from_slice::<ServiceInfo>(&again).expect("was just written"), info);
        assert!((coord_api::MIN_WEIGHT..=coord_api::MAX_WEIGHT).contains(&info.weight()));
        let _ = (info.authority(), info.validate(), info.is_serving());
    }
    let entry = Entry::new("k", Version::new(1), bytes.to_vec());
    if let Err(error) = entry.decode::<serde_json::Value>() {
        is_readable(&error);
    }
    if Batch::new().set_json("k", bytes.to_vec()).is_ok() {
        assert!(entry.decode::<serde_json::Value>().is_ok(), "what can be written can be read");
    }
    through_a_store(bytes);
}

/// The readers of records, which nobody can call but through a store.
fn through_a_store(bytes: &[u8]) {
    let store = Store::new();
    let places = [
        "services/svc/1",
        "config/a/b",
        "internal/config/history/a%2Fb/index",
        "internal/config/gray/a%2Fb",
        "internal/config/schemas/all",
    ];
    for place in places {
        store.put_raw(place, bytes.to_vec());
    }
    let client = store.client();
    let (config, registry) = (client.config(), client.registry());
    let reading = async {
        let found = registry.discover("svc").await.expect("bad records are left out");
        assert!(found.iter().all(|info| info.id == "1" && info.name == "svc"));
        // Whoever connects to it takes it as well.
        let callable = |info: &ServiceInfo| ServiceInfo::new("svc", "1", &info.address, info.port).validate();
        assert!(found.iter().all(|info| callable(info).is_ok()));
        let mut watch = registry.watch("svc").await.expect("is there");
        assert!(watch.next().await.expect("goes on").is_ok(), "the snapshot comes, without bad records");
        let _ = config.get::<u64>("a/b").await;
        let _ = config.history("a/b").await;
        let _ = config.recorded("a/b", Version::new(1)).await;
        let _ = config.gray("a/b").current().await;
        let _ = config.checked().set("a/b", &1).await;
        let _ = config.read(Scope::Prefix("")).await.expect("raw reads decode nothing");
    };
    block_on(reading);
}
