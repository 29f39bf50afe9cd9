//! Conversion of requests and answers between coord's types and etcd's.

use bytes::Bytes;
use coord_kv::store::{
    Change, Compare, CompareOp, Detail, Extent, GetAnswer, GetOptions, Header, KeyValue, Op, OpResult, Order,
    PutOptions, Target, Txn, TxnAnswer,
};
use etcd_client::{Event, EventType, GetResponse, ResponseHeader, SortOrder, SortTarget, TxnOpResponse};

/// Whether an answer tells its own origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// The answer tells its own origin.
    Own,
    /// The answer of the transaction around it tells the origin.
    Outer,
}

/// Returns the origin of an answer.
pub(super) fn header(header: Option<&ResponseHeader>) -> Header {
    header.map_or_else(Header::default, |header| Header {
        cluster: header.cluster_id(),
        revision: header.revision(),
    })
}

pub(super) fn get_options(options: GetOptions) -> etcd_client::GetOptions {
    let GetOptions { extent, detail, limit, revision, order, max_create_revision, is_serializable } = options;
    let of_etcd = etcd_client::GetOptions::new()
        .with_limit(limit)
        .with_revision(revision)
        .with_max_create_revision(max_create_revision);
    let of_etcd = match extent {
        Extent::Key => of_etcd,
        Extent::Prefix => of_etcd.with_prefix(),
        Extent::Until(end) => of_etcd.with_range(end),
    };
    let mut of_etcd = match detail {
        Detail::Pairs => of_etcd,
        Detail::Keys => of_etcd.with_keys_only(),
        Detail::Count => of_etcd.with_count_only(),
    };
    if order == Order::LatestFirst {
        of_etcd = of_etcd.with_sort(SortTarget::Create, SortOrder::Descend);
    }
    if is_serializable {
        of_etcd = of_etcd.with_serializable();
    }
    of_etcd
}

pub(super) fn put_options(options: PutOptions) -> Option<etcd_client::PutOptions> {
    (options.lease != 0).then(|| etcd_client::PutOptions::new().with_lease(options.lease))
}

pub(super) fn txn(txn: Txn) -> etcd_client::Txn {
    let Txn { conditions, operations, otherwise } = txn;
    let mut of_etcd = etcd_client::Txn::new();
    if !conditions.is_empty() {
        of_etcd = of_etcd.when(conditions.into_iter().map(compare).collect::<Vec<_>>());
    }
    if !operations.is_empty() {
        of_etcd = of_etcd.and_then(operations.into_iter().map(op).collect::<Vec<_>>());
    }
    if !otherwise.is_empty() {
        of_etcd = of_etcd.or_else(otherwise.into_iter().map(op).collect::<Vec<_>>());
    }
    of_etcd
}

fn compare(condition: Compare) -> etcd_client::Compare {
    use etcd_client::Compare as Of;
    let Compare { key, is_prefix, op, target } = condition;
    let op = match op {
        CompareOp::Equal => etcd_client::CompareOp::Equal,
        CompareOp::NotEqual => etcd_client::CompareOp::NotEqual,
        CompareOp::Greater => etcd_client::CompareOp::Greater,
        CompareOp::Less => etcd_client::CompareOp::Less,
    };
    let of_etcd = match target {
        Target::CreateRevision(revision) => Of::create_revision(key, op, revision),
        Target::ModRevision(revision) => Of::mod_revision(key, op, revision),
        Target::Value(value) => Of::value(key, op, value),
        Target::Lease(lease) => Of::lease(key, op, lease),
    };
    if is_prefix { of_etcd.with_prefix() } else { of_etcd }
}

fn op(op: Op) -> etcd_client::TxnOp {
    use etcd_client::TxnOp as Of;
    match op {
        Op::Get { key, options } => Of::get(key, Some(get_options(options))),
        Op::Put { key, value, options } => Of::put(key, value, put_options(options)),
        Op::Delete { key } => Of::delete(key, None),
        Op::Txn(nested) => Of::txn(txn(nested)),
    }
}

fn key_value(kv: etcd_client::KeyValue) -> KeyValue {
    let (create_revision, mod_revision, lease) = (kv.create_revision(), kv.mod_revision(), kv.lease());
    let (key, value) = kv.into_key_value();
    KeyValue { key, value: value.into(), create_revision, mod_revision, lease }
}

pub(super) fn get_answer(mut answer: GetResponse, origin: Origin) -> GetAnswer {
    GetAnswer {
        header: if origin == Origin::Own { header(answer.header()) } else { Header::default() },
        kvs: answer.take_kvs().into_iter().map(key_value).collect(),
        more: answer.more(),
        count: answer.count(),
    }
}

pub(super) fn txn_answer(answer: &etcd_client::TxnResponse, origin: Origin) -> TxnAnswer {
    let result = |response| match response {
        TxnOpResponse::Get(found) => OpResult::Get(get_answer(found, Origin::Outer)),
        TxnOpResponse::Put(_) => OpResult::Put,
        TxnOpResponse::Delete(deleted) => OpResult::Delete(deleted.deleted()),
        TxnOpResponse::Txn(nested) => OpResult::Txn(txn_answer(&nested, Origin::Outer)),
    };
    TxnAnswer {
        header: if origin == Origin::Own { header(answer.header()) } else { Header::default() },
        succeeded: answer.succeeded(),
        results: answer.op_responses().into_iter().map(result).collect(),
    }
}

/// Returns a change as coord knows it; `None` for a key that is not UTF-8, which coord never writes and no one can ask for.
pub(super) fn change(event: &Event) -> Option<Change> {
    let kv = event.kv()?;
    let value = match event.event_type() {
        EventType::Put => Some(Bytes::copy_from_slice(kv.value())),
        EventType::Delete => None,
    };
    let key = kv.key_str().ok()?.into();
    Some(Change { key, revision: kv.mod_revision(), created: kv.create_revision(), value })
}
