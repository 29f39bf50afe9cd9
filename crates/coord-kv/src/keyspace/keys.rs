//! Every key that coord uses in the store. No other file builds or takes apart a key.

use coord_api::{ConfigKey, Covered, ElectionName, InstanceId, LockName, Owner, Scope, ServiceName};

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
    pub(crate) fn place_in(queue: &str, lease: i64, attempt: u64, signature: Option<&str>) -> String {
        format!("{queue}{lease:x}-{attempt:x}{}", signature.unwrap_or_default())
    }

    /// Returns the prefix of the candidates of an election. `etcdctl elect <prefix without the last slash>` stands in
    /// the same election.
    pub(crate) fn election(&self, name: &ElectionName) -> String {
        format!("{}{}/", self.0.elections, escaped(name.as_str()))
    }

    /// Returns the prefix of all elections.
    pub(crate) fn elections(&self) -> &str {
        &self.0.elections
    }

    /// Returns the election in which a key is a candidate.
    pub(crate) fn election_of(&self, key: &str) -> Option<ElectionName> {
        ElectionName::parse(&first_segment(&self.0.elections, key)?).ok()
    }

    /// Returns the end of the key of a candidate, which tells its owner: `@client:pid:host`, and `:label` if there is one.
    /// The value is the candidate's own.
    pub(crate) fn signature(owner: &Owner) -> String {
        let Owner { host, pid, label, client, .. } = owner;
        let label = label.as_ref().map(|label| format!(":{}", quoted(label))).unwrap_or_default();
        format!("@{}:{pid}:{}{label}", quoted(client), quoted(host))
    }

    /// Returns the owner of a candidate, from its key. Returns `None` for a candidate of another program.
    pub(crate) fn owner_of(key: &str) -> Option<Owner> {
        let (_, candidate) = key.rsplit_once('/')?;
        let (_, signature) = candidate.split_once('@')?;
        let mut parts = signature.split(':').map(unquoted);
        let (client, pid, host) = (parts.next()??, parts.next()??, parts.next()??);
        let label = match parts.next() {
            Some(label) => Some(label?),
            None => None,
        };
        parts.next().is_none().then_some(())?;
        Some(Owner::new(host, pid.parse().ok()?, label, client))
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

    /// Returns the number at the end of one of these keys. A number in another spelling, such as `+7` or `07`, is no id. The
    /// key is another program's then: no request about the id would find it.
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

/// Quotes a part of a signature: the characters that divide signatures and keys, and those that nobody can read.
fn quoted(part: &str) -> String {
    let mut quoted = String::with_capacity(part.len());
    for letter in part.chars() {
        if matches!(letter, '%' | '/' | ':' | '@') || letter.is_control() {
            let mut bytes = [0; 4];
            quoted.extend(letter.encode_utf8(&mut bytes).bytes().map(|byte| format!("%{byte:02X}")));
        } else {
            quoted.push(letter);
        }
    }
    quoted
}

/// Returns a part of a signature as it was before it was quoted; `None` if nobody quotes like this.
fn unquoted(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut pieces = part.split('%');
    bytes.extend_from_slice(pieces.next()?.as_bytes());
    for piece in pieces {
        let (code, rest) = piece.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(code, 16).ok()?);
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).ok()
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
        assert_eq!(Keys::place_in(&keys.lock_queue(&lock), 0x694d, 1, None), "/shop/locks/jobs/694d-1");
        let election = keys.election(&ElectionName::parse("jobs").expect("is valid"));
        let signature = Keys::signature(&Owner::new("web-1", 42, Some("blue".into()), "9f3a"));
        let candidate = Keys::place_in(&election, 0x694d, 1, Some(&signature));
        assert_eq!(candidate, "/shop/elections/jobs/694d-1@9f3a:42:web-1:blue");
        let service = ServiceName::parse("im-logic").expect("is valid");
        let id = InstanceId::parse("host:80").expect("is valid");
        assert_eq!(keys.instance(&service, &id), "/shop/services/im-logic/host:80");
        assert_eq!(keys.config(&ConfigKey::parse("common/mq").expect("is valid")), "/shop/config/common/mq");
        assert_eq!(keys.id(&service, 7), "/shop/ids/im-logic/ids/7");
        assert_eq!(keys.id_queue(&service, 1023), "/shop/ids/im-logic/queue/1023/");
    }

    #[test]
    fn owner_is_read_from_the_key_of_its_candidate() {
        let labels = [None, Some(""), Some("blue"), Some("a/b:c@d%2F"), Some("büro\u{7f}")];
        for (host, label) in ["web-1", "fe80::1%eth0", "", "日报"].into_iter().zip(labels) {
            let owner = Owner::new(host, 42, label.map(ToOwned::to_owned), "9f3a");
            let signature = Keys::signature(&owner);
            assert!(!signature.contains('/') && !signature.contains('\u{7f}'), "{signature}");
            let key = Keys::place_in("/shop/elections/a%2Fb/", 0x694d, 1, Some(&signature));
            assert_eq!(Keys::owner_of(&key), Some(owner), "{key}");
        }
        let of_others =
            ["694d", "694d@", "694d@a:b", "694d@a:b:c", "694d@a:1:c:d:e", "694d@a:1:%", "694d@a:1:%zz"];
        for other in of_others {
            assert_eq!(Keys::owner_of(&format!("/shop/elections/job/{other}")), None, "{other}");
        }
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
                let one_election = keys.election(&ElectionName::parse(one).expect("is valid"));
                let other_election = keys.election(&ElectionName::parse(other).expect("is valid"));
                assert_eq!(one_election.starts_with(&other_election), one == other, "{one} {other}");
                assert_eq!(keys.election_of(&format!("{one_election}x")).expect("is one").as_str(), one);
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
