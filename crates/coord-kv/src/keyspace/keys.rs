//! Every key that coord uses in the store. No other file builds or takes apart a key.

use coord_api::{ConfigKey, Covered, InstanceId, LockName, Scope, ServiceName};

use crate::{keyspace::CheckedRoots, store::Range};

/// The keys under the roots of a layout.
#[derive(Clone, Debug)]
pub(crate) struct Keys(CheckedRoots);

impl Keys {
    /// Makes the keys under these roots.
    pub(crate) fn below(roots: CheckedRoots) -> Self {
        Self(roots)
    }

    /// Returns a key that may be read with least privilege, to see whether the store answers.
    pub(crate) fn probe(&self) -> String {
        self.0.probe()
    }

    /// Returns the prefix of the queue of a lock. `etcdctl lock <prefix without the last slash>` stands in
    /// the same queue.
    pub(crate) fn lock_queue(&self, name: &LockName) -> String {
        format!("{}{}/", self.0.locks, escaped(name.as_str()))
    }

    /// Returns the prefix of all queues.
    pub(crate) fn lock_queues(&self) -> &str {
        &self.0.locks
    }

    /// Returns the lock in whose queue a key stands: all keys below the queue's key stand in it.
    pub(crate) fn lock_of(&self, key: &str) -> Option<LockName> {
        LockName::parse(&first_segment(&self.0.locks, key)?).ok()
    }

    /// Returns the key of an entry in a queue.
    pub(crate) fn place_in(queue: &str, lease: i64, attempt: u64) -> String {
        format!("{queue}{lease:x}-{attempt:x}")
    }

    /// Returns the prefix of all services.
    pub(crate) fn services(&self) -> &str {
        &self.0.services
    }

    /// Returns the service that a key is below.
    pub(crate) fn service_of(&self, key: &str) -> Option<ServiceName> {
        ServiceName::parse(&first_segment(&self.0.services, key)?).ok()
    }

    /// Returns the prefix of all instances of a service.
    pub(crate) fn instances(&self, service: &ServiceName) -> String {
        format!("{}{}/", self.0.services, escaped(service.as_str()))
    }

    /// Returns the key of an instance of a service.
    pub(crate) fn instance(&self, service: &ServiceName, id: &InstanceId) -> String {
        format!("{}{}", self.instances(service), escaped(id.as_str()))
    }

    /// Returns `service/id` in the user's spelling, from a key below [`instances`](Self::instances). Returns
    /// `None` for a key with another `/`, which coord never writes: it belongs to another program's longer
    /// name.
    pub(crate) fn instance_name(&self, service: &ServiceName, key: &str) -> Option<String> {
        let id = key.strip_prefix(&self.instances(service)).filter(|id| !id.contains('/'))?;
        Some(format!("{service}/{}", id.replace("%2F", "/")))
    }

    /// Returns the key of a config value, or of a value that is kept beside it.
    pub(crate) fn config(&self, key: &ConfigKey) -> String {
        if key.is_beside() {
            format!("{}config/{key}", self.0.internal)
        } else {
            format!("{}{key}", self.0.config)
        }
    }

    /// Returns the prefix of all config values.
    pub(crate) fn config_root(&self) -> &str {
        &self.0.config
    }

    /// Returns the keys that a config read or watch covers.
    pub(crate) fn config_scope(&self, scope: Scope<'_>) -> coord_api::Result<Range> {
        Ok(match scope.parse()? {
            Covered::One(key) => Range::Key(self.config(&key).into()),
            Covered::Below(prefix) => {
                Range::Prefix(format!("{}{}", self.0.config, prefix.as_key_start()).into())
            }
        })
    }

    /// Returns the user's spelling of a config key, or the path of a sidecar key.
    pub(crate) fn config_name(&self, key: &str) -> String {
        let beside = || key.strip_prefix(&self.0.internal)?.strip_prefix("config/");
        key.strip_prefix(&self.0.config).or_else(beside).unwrap_or(key).into()
    }

    /// Returns the prefix of one part of the keys about the ids of a service. The Go original reads and
    /// writes only the keys below `ids/`.
    fn ids_of(&self, service: &ServiceName, part: &str) -> String {
        format!("{}{}/{part}/", self.0.ids, escaped(service.as_str()))
    }

    /// Returns the prefix of the ids of a service that are held or rest.
    pub(crate) fn ids(&self, service: &ServiceName) -> String {
        self.ids_of(service, "ids")
    }

    /// Returns the key of an id of a service.
    pub(crate) fn id(&self, service: &ServiceName, id: u32) -> String {
        format!("{}{id}", self.ids(service))
    }

    /// Returns the prefix of the marks of ids that somebody may believe to hold. They have no lease.
    pub(crate) fn id_marks(&self, service: &ServiceName) -> String {
        self.ids_of(service, "held")
    }

    /// Returns the key of the mark of one id.
    pub(crate) fn id_mark(&self, service: &ServiceName, id: u32) -> String {
        format!("{}{id}", self.id_marks(service))
    }

    /// Returns the prefix of the identities that had the ids of a service last.
    pub(crate) fn id_identities(&self, service: &ServiceName) -> String {
        self.ids_of(service, "identity")
    }

    /// Returns the key of the identity that had an id last.
    pub(crate) fn id_identity(&self, service: &ServiceName, id: u32) -> String {
        format!("{}{id}", self.id_identities(service))
    }

    /// Returns the prefix of the high-water marks of the ids of a service: up to when data may have been
    /// stamped with each.
    pub(crate) fn id_stamps(&self, service: &ServiceName) -> String {
        self.ids_of(service, "stamped")
    }

    /// Returns the key of the high-water mark of an id: up to when data may have been stamped with the id.
    pub(crate) fn id_stamped(&self, service: &ServiceName, id: u32) -> String {
        format!("{}{id}", self.id_stamps(service))
    }

    /// Returns the key of the note that the holder of an id was seen to have vanished.
    pub(crate) fn id_vanished(&self, service: &ServiceName, id: u32) -> String {
        format!("{}{id}", self.ids_of(service, "vanished"))
    }

    /// Returns the prefix of the queue for an id below `max_id` of a service.
    pub(crate) fn id_queue(&self, service: &ServiceName, max_id: u32) -> String {
        format!("{}{max_id}/", self.ids_of(service, "queue"))
    }

    /// Returns the number at the end of one of these keys. A number in another spelling, such as `+7` or `07`, is no id: the
    /// key is another program's, and no request about the id would find it.
    pub(crate) fn id_number(key: &str) -> Option<u32> {
        let written = key.rsplit('/').next()?;
        let number: u32 = written.parse().ok()?;
        (number.to_string() == written).then_some(number)
    }

    /// Returns the key of the marker that shows whether a commit took effect.
    pub(crate) fn commit_marker(&self, lease: i64, marker: u64) -> String {
        format!("{}commits/{lease:x}-{marker:x}", self.0.internal)
    }

    /// Returns the key of the epoch of a lease. Each request that takes something on the lease requires the
    /// epoch to be as it was.
    pub(crate) fn epoch(&self, lease: i64) -> String {
        format!("{}gates/{lease:x}", self.0.internal)
    }
}

/// Escapes a name. An inner `/` would make `a/b` a part of `a`; names never contain `%`, so nothing else
/// looks like this.
fn escaped(name: &str) -> String {
    name.replace('/', "%2F")
}

/// Returns the first name below a root, as it was before it was escaped.
fn first_segment(root: &str, key: &str) -> Option<String> {
    let (name, _) = key.strip_prefix(root)?.split_once('/')?;
    Some(name.replace("%2F", "/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keyspace::Layout;

    fn keys() -> Keys {
        Keys::below(Layout::Namespace.check("shop").expect("is valid"))
    }

    #[test]
    fn the_documented_layout() {
        let (keys, lock) = (keys(), LockName::parse("jobs").expect("is valid"));
        assert_eq!(Keys::place_in(&keys.lock_queue(&lock), 0x694d, 1), "/shop/locks/jobs/694d-1");
        let service = ServiceName::parse("im-logic").expect("is valid");
        let id = InstanceId::parse("host:80").expect("is valid");
        assert_eq!(keys.instance(&service, &id), "/shop/services/im-logic/host:80");
        assert_eq!(keys.config(&ConfigKey::parse("common/mq").expect("is valid")), "/shop/config/common/mq");
        assert_eq!(keys.id(&service, 7), "/shop/ids/im-logic/ids/7");
        assert_eq!(keys.id_queue(&service, 1023), "/shop/ids/im-logic/queue/1023/");
    }

    #[test]
    fn names_that_begin_alike_or_lie_below_never_meet() {
        let keys = keys();
        let names = ["a", "a/b", "a-2", "a/b/c", "ab"];
        for one in names {
            for other in names {
                let one_lock = keys.lock_queue(&LockName::parse(one).expect("is valid"));
                let other_lock = keys.lock_queue(&LockName::parse(other).expect("is valid"));
                assert_eq!(one_lock.starts_with(&other_lock), one == other, "{one} {other}");
                let one_service = ServiceName::parse(one).expect("is valid");
                let other_service = ServiceName::parse(other).expect("is valid");
                let meet = keys.instances(&one_service).starts_with(&keys.instances(&other_service));
                assert_eq!(meet, one == other, "{one} {other}");
                let meet = keys.ids(&one_service).starts_with(&keys.ids(&other_service));
                assert_eq!(meet, one == other, "{one} {other}");
            }
        }
    }

    #[test]
    fn what_is_built_can_be_taken_apart() {
        let keys = keys();
        let service = ServiceName::parse("a/b").expect("is valid");
        let id = InstanceId::parse("x/y").expect("is valid");
        let name = keys.instance_name(&service, &keys.instance(&service, &id));
        assert_eq!(name.as_deref(), Some("a/b/x/y"));
        assert_eq!(keys.instance_name(&service, &format!("{}x/y", keys.instances(&service))), None);
        assert_eq!(Keys::id_number(&keys.id(&service, 12)), Some(12));
        assert_eq!(Keys::id_number(&keys.id_mark(&service, 12)), Some(12));
        for other in ["x", "+12", "012", "-1", "", " 12", "4294967296"] {
            assert_eq!(Keys::id_number(&format!("{}{other}", keys.ids(&service))), None, "{other:?}");
        }
        let key = ConfigKey::parse("common/mq").expect("is valid");
        assert_eq!(keys.config_name(&keys.config(&key)), "common/mq");
        let beside = key.beside("history", "index");
        assert_eq!(keys.config(&beside), "/shop/internal/config/history/common%2Fmq/index");
        assert_eq!(keys.config_name(&keys.config(&beside)), beside.as_str());
        let below = keys.config_scope(Scope::Prefix("common")).expect("is valid");
        assert_eq!(below, Range::Prefix("/shop/config/common/".into()));
        assert_eq!(
            keys.config_scope(Scope::Prefix("")).expect("is valid"),
            Range::Prefix("/shop/config/".into())
        );
    }
}
