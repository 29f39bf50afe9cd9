//! Invariants of the parsers of this crate, for any input; for the fuzz targets and for tests.
//!
//! Each function panics if its invariant does not hold.

use coord_api::{ConfigKey, ElectionName, InstanceId, LockName, Owner, ServiceName};

use crate::{
    ids,
    keyspace::{Keys, Layout},
};

/// Checks that two names of a kind have the same keys if and only if they are the same name. No key of a name
/// is below the keys of another. A key that was built of a name gives the name back.
pub fn keys(one: &str, other: &str) {
    let keys = Keys::below(Layout::Namespace.check("shop").expect("is valid"));
    if let (Ok(one), Ok(other)) = (LockName::parse(one), LockName::parse(other)) {
        let (one_queue, other_queue) = (keys.lock_queue(&one), keys.lock_queue(&other));
        assert_eq!(one_queue.starts_with(&other_queue), one == other, "{one:?} {other:?}");
    }
    if let (Ok(one), Ok(other)) = (ElectionName::parse(one), ElectionName::parse(other)) {
        let (one_election, other_election) = (keys.election(&one), keys.election(&other));
        assert_eq!(one_election.starts_with(&other_election), one == other, "{one:?} {other:?}");
        assert_eq!(keys.election_of(&format!("{one_election}1f-0")), Some(one));
    }
    let owner = Owner::new(one, 7, Some(other.to_owned()), "9f3a");
    let candidate = Keys::place_in("/shop/elections/job/", 0x1f, 0, Some(&Keys::signature(&owner)));
    assert_eq!(Keys::owner_of(&candidate), Some(owner), "{one:?} {other:?}");
    let _ = Keys::owner_of(one);
    if let (Ok(one), Ok(other)) = (ServiceName::parse(one), ServiceName::parse(other)) {
        for of in [Keys::instances, Keys::ids, Keys::id_marks, Keys::id_identities] {
            assert_eq!(of(&keys, &one).starts_with(&of(&keys, &other)), one == other, "{one:?} {other:?}");
        }
        assert_eq!(keys.id(&one, 7) == keys.id(&other, 7), one == other, "{one:?} {other:?}");
        assert_eq!(Keys::id_number(&keys.id(&one, 7)), Some(7));
    }
    if let (Ok(service), Ok(id)) = (ServiceName::parse(one), InstanceId::parse(other)) {
        let name = keys.instance_name(&service, &keys.instance(&service, &id));
        assert_eq!(name, Some(format!("{service}/{id}")));
        keys.instance_name(&service, other);
    }
    if let (Ok(one), Ok(other)) = (ConfigKey::parse(one), ConfigKey::parse(other)) {
        assert_eq!(keys.config(&one) == keys.config(&other), one == other, "{one:?} {other:?}");
        assert_eq!(keys.config_name(&keys.config(&one)), one.as_str());
        let (one_beside, other_beside) = (one.beside("history", "1"), other.beside("history", "1"));
        assert_eq!(keys.config(&one_beside) == keys.config(&other_beside), one == other, "{one:?} {other:?}");
        assert_ne!(keys.config(&one_beside), keys.config(&other));
        assert_eq!(keys.config_name(&keys.config(&one_beside)), one_beside.as_str());
    }
    keys.config_name(one);
    let _ = Keys::id_number(one);
}

/// Checks that the value of an id's key is read, or is another program's. A value that is read is written and
/// read as the same again.
pub fn id_value(value: &[u8]) {
    ids::read_again(value);
}
