//! Steps on a store, in a form that is the same for each store.
//!
//! Keys are without their namespace, revisions are distances, and leases are numbers of the run.

use proptest::{collection::vec, option, prelude::*, sample::select};

use coord_kv::store::{CompareOp, Detail, Order};

const KEYS: [&str; 6] = ["a", "a/b", "ab", "b", "b/c", "c"];
const PREFIXES: [&str; 6] = ["", "a", "a/", "b", "c", "no"];
const VALUES: [&str; 4] = ["", "0", "1", "long value"];
/// The number of leases that a run may grant; the last one is never granted. None ends while others run: revisions are counted.
pub(crate) const LEASES: usize = 4;

/// A revision.
#[derive(Clone, Copy, Debug)]
pub(crate) enum At {
    Zero,
    /// So many revisions before the present one, but not before the run.
    Ago(i64),
    Ahead(i64),
}

/// Keys that a read is about.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Keys {
    Key(&'static str),
    Prefix(&'static str),
    Until(&'static str, &'static str),
}

#[derive(Clone, Debug)]
pub(crate) struct Get {
    pub(crate) keys: Keys,
    pub(crate) detail: Detail,
    pub(crate) limit: i64,
    pub(crate) at: At,
    pub(crate) order: Order,
    pub(crate) max_create: At,
    pub(crate) is_serializable: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Target {
    Create(At),
    Mod(At),
    Value(&'static str),
    /// `None` for no lease.
    Lease(Option<usize>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct If {
    pub(crate) key: &'static str,
    pub(crate) is_prefix: bool,
    pub(crate) op: CompareOp,
    pub(crate) target: Target,
}

#[derive(Clone, Debug)]
pub(crate) enum Op {
    Get(Get),
    Put(&'static str, &'static str, Option<usize>),
    Delete(&'static str),
    Txn(Txn),
}

#[derive(Clone, Debug)]
pub(crate) struct Txn {
    pub(crate) when: Vec<If>,
    pub(crate) then: Vec<Op>,
    pub(crate) otherwise: Vec<Op>,
}

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Txn(Txn),
    Range(Get),
    Grant(usize, i64),
    Revoke(usize),
    Renew(usize),
    Lease(usize),
    /// A key or a prefix, and the first revision.
    Watch(Keys, Option<At>),
    /// The watch that began so many steps after the first one.
    Cancel(usize),
    Compact,
}

fn key() -> impl Strategy<Value = &'static str> {
    select(&KEYS[..])
}

fn prefix() -> impl Strategy<Value = &'static str> {
    select(&PREFIXES[..])
}

fn value() -> impl Strategy<Value = &'static str> {
    select(&VALUES[..])
}

fn lease() -> impl Strategy<Value = Option<usize>> {
    prop_oneof![2 => Just(None), 3 => (0..LEASES).prop_map(Some)]
}

fn at() -> impl Strategy<Value = At> {
    prop_oneof![3 => Just(At::Zero), 4 => (0..8_i64).prop_map(At::Ago), 1 => (1..4_i64).prop_map(At::Ahead)]
}

fn keys() -> impl Strategy<Value = Keys> {
    prop_oneof![
        3 => key().prop_map(Keys::Key),
        3 => prefix().prop_map(Keys::Prefix),
        1 => (prefix(), key()).prop_map(|(from, to)| Keys::Until(from, to)),
    ]
}

fn get() -> impl Strategy<Value = Get> {
    let detail = select(vec![Detail::Pairs, Detail::Pairs, Detail::Keys, Detail::Count]);
    let order = select(vec![Order::ByKey, Order::ByKey, Order::LatestFirst]);
    let max_create = prop_oneof![3 => Just(At::Zero), 1 => at()];
    let revision = prop_oneof![2 => Just(At::Zero), 1 => at()];
    (keys(), detail, 0..4_i64, revision, order, max_create, any::<bool>()).prop_map(
        |(keys, detail, limit, at, order, max_create, is_serializable)| Get {
            keys,
            detail,
            limit,
            at,
            order,
            max_create,
            is_serializable,
        },
    )
}

fn condition() -> impl Strategy<Value = If> {
    let op = select(vec![CompareOp::Equal, CompareOp::NotEqual, CompareOp::Greater, CompareOp::Less]);
    let target = prop_oneof![
        at().prop_map(Target::Create),
        at().prop_map(Target::Mod),
        value().prop_map(Target::Value),
        lease().prop_map(Target::Lease),
    ];
    let whom = prop_oneof![3 => (key(), Just(false)), 2 => (prefix(), Just(true))];
    (whom, op, target).prop_map(|((key, is_prefix), op, target)| If { key, is_prefix, op, target })
}

fn simple() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => get().prop_map(Op::Get),
        5 => (key(), value(), lease()).prop_map(|(key, value, lease)| Op::Put(key, value, lease)),
        2 => key().prop_map(Op::Delete),
    ]
}

fn txn(op: BoxedStrategy<Op>, most: usize) -> impl Strategy<Value = Txn> {
    let ops = vec(op, 0..most);
    (vec(condition(), 0..3), ops.clone(), ops).prop_map(|(when, then, otherwise)| Txn {
        when,
        then,
        otherwise,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![6 => simple(), 1 => txn(simple().boxed(), 3).prop_map(Op::Txn)]
}

/// Writes one key and no more, as most of coord's writes.
fn write() -> impl Strategy<Value = Txn> {
    let op = simple().prop_filter("a read is no write", |op| !matches!(op, Op::Get(_)));
    (option::of(condition()), op).prop_map(|(when, op)| Txn {
        when: when.into_iter().collect(),
        then: vec![op],
        otherwise: Vec::new(),
    })
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let watched = keys().prop_map(|keys| match keys {
        Keys::Until(..) => Keys::Prefix(""),
        other => other,
    });
    let step = prop_oneof![
        6 => write().prop_map(Step::Txn),
        6 => txn(op().boxed(), 4).prop_map(Step::Txn),
        3 => get().prop_map(Step::Range),
        3 => (0..LEASES - 1, 86_400..86_500_i64).prop_map(|(lease, ttl)| Step::Grant(lease, ttl)),
        1 => (0..LEASES).prop_map(Step::Revoke),
        1 => (0..LEASES).prop_map(Step::Renew),
        1 => (0..LEASES).prop_map(Step::Lease),
        2 => (watched, option::of(at())).prop_map(|(keys, from)| Step::Watch(keys, from)),
        1 => (0..4_usize).prop_map(Step::Cancel),
        1 => Just(Step::Compact),
    ];
    vec(step, 1..30)
}
