//! The keys of the store: the only place that builds and takes them apart.
//!
//! An inner `/` of a lock's, service's or instance's name is written `%2F`, so that what belongs to `a` never
//! shares a prefix with what belongs to `a/b`. Names contain no `%`, which makes this exact both ways.

use std::borrow::Cow;

use coord_api::{ConfigKey, ConfigPrefix, InstanceId, LockName, ServiceName};

const CONFIG: &str = "config/";
/// What is known about config values.
const BESIDE: &str = "internal/config/";
pub(crate) const SERVICES: &str = "services/";
/// After the name of a service, in which a `/` is escaped.
const STAMPED: &str = "/stamped";

fn escape(name: &str) -> Cow<'_, str> {
    if name.contains('/') { name.replace('/', "%2F").into() } else { name.into() }
}

pub(crate) fn unescape(name: &str) -> Cow<'_, str> {
    if name.contains('%') { name.replace("%2F", "/").into() } else { name.into() }
}

/// A config value, or what is kept beside it.
pub(crate) fn config(key: &ConfigKey) -> String {
    format!("{}{key}", if key.is_beside() { BESIDE } else { CONFIG })
}

/// What the keys of the config values below a prefix begin with.
pub(crate) fn config_below(prefix: &ConfigPrefix) -> String {
    format!("{CONFIG}{}", prefix.as_key_start())
}

/// The user's spelling of a config key, or the path of what is beside.
pub(crate) fn config_name(key: &str) -> &str {
    key.strip_prefix(CONFIG).or_else(|| key.strip_prefix(BESIDE)).unwrap_or(key)
}

/// The place of one contender in a lock's queue.
pub(crate) fn lock(name: &LockName, place: u64) -> String {
    let name = escape(name.as_str());
    let place = place.to_string();
    ["locks/", &*name, "/", &*place].concat()
}

/// What the keys of a service's instances begin with.
pub(crate) fn service(name: &ServiceName) -> String {
    format!("{SERVICES}{}/", escape(name.as_str()))
}

/// The service that a key belongs to.
pub(crate) fn service_of(key: &str) -> Option<ServiceName> {
    let (service, _) = key.strip_prefix(SERVICES)?.split_once('/')?;
    ServiceName::parse(&unescape(service)).ok()
}

/// The record of one instance.
pub(crate) fn instance(service: &ServiceName, id: &InstanceId) -> String {
    self::service(service) + &escape(id.as_str())
}

/// One taken id.
pub(crate) fn id(service: &ServiceName, id: u32) -> String {
    format!("ids/{}/{id}", escape(service.as_str()))
}

/// Up to when data may have been stamped with an id.
pub(crate) fn stamped(service: &ServiceName, id: u32) -> String {
    format!("ids/{}{STAMPED}/{id}", escape(service.as_str()))
}

/// Where in the store a key points.
pub(crate) enum Location {
    /// Into a lock's queue.
    Lock(LockName, u64),
    /// To a taken id.
    Id(ServiceName, u32),
    /// To the time up to which data may have been stamped with an id.
    Stamped(ServiceName, u32),
    /// To an entry of the services or the config.
    Entry,
    /// Nowhere.
    Nothing,
}

/// Takes a key apart.
pub(crate) fn locate(key: &str) -> Location {
    let numbered = |rest: &str| {
        let (name, number) = rest.rsplit_once('/')?;
        Some((unescape(name).into_owned(), number.parse::<u64>().ok()?))
    };
    if [SERVICES, CONFIG, BESIDE].iter().any(|root| key.starts_with(root)) {
        return Location::Entry;
    }
    if let Some((name, place)) = key.strip_prefix("locks/").and_then(numbered)
        && let Ok(name) = LockName::parse(&name)
    {
        return Location::Lock(name, place);
    }
    let stamped = |rest: &str| {
        let (service, id) = rest.rsplit_once('/')?;
        let service = unescape(service.strip_suffix(STAMPED).filter(|service| !service.contains('/'))?);
        Some((ServiceName::parse(&service).ok()?, id.parse().ok()?))
    };
    if let Some((service, id)) = key.strip_prefix("ids/").and_then(stamped) {
        return Location::Stamped(service, id);
    }
    if let Some((service, id)) = key.strip_prefix("ids/").and_then(numbered)
        && let (Ok(service), Ok(id)) = (ServiceName::parse(&service), id.try_into())
    {
        return Location::Id(service, id);
    }
    Location::Nothing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_slashes_get_keys_of_their_own_and_come_back() {
        let name = LockName::parse("a/b").unwrap();
        assert_eq!(lock(&name, 7), "locks/a%2Fb/7");
        assert!(matches!(locate("locks/a%2Fb/7"), Location::Lock(found, 7) if found == name));

        let service = ServiceName::parse("a/b").unwrap();
        assert_eq!(id(&service, 3), "ids/a%2Fb/3");
        assert!(matches!(locate("ids/a%2Fb/3"), Location::Id(found, 3) if found == service));
        assert_eq!(stamped(&service, 3), "ids/a%2Fb/stamped/3");
        assert!(matches!(locate("ids/a%2Fb/stamped/3"), Location::Stamped(found, 3) if found == service));
        let other = ServiceName::parse("a/stamped").unwrap();
        assert!(matches!(locate(&id(&other, 3)), Location::Id(found, 3) if found == other));
        let instance_id = InstanceId::parse("host/1").unwrap();
        assert_eq!(instance(&service, &instance_id), "services/a%2Fb/host%2F1");
        assert_eq!(unescape("host%2F1"), "host/1");
    }

    #[test]
    fn other_keys_point_nowhere() {
        for key in ["", "locks", "locks/a", "locks/a/x", "locks//1", "ids/a/-1", "other/a"] {
            assert!(matches!(locate(key), Location::Nothing), "{key}");
        }
    }
}
