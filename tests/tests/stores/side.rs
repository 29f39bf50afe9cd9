//! A store under comparison, and how the steps of a run become its requests.

use std::{fmt, sync::Arc, time::Duration};

use coord_api::Error;
use coord_kv::store::{
    Call, Compare, Detail, Effect, Extent, Failure, GetAnswer, GetOptions, KeyValue, Op, OpResult,
    PutOptions, Revision, RevisionError, Route, Store, Target, Txn, TxnAnswer,
};
use futures::future::BoxFuture;

use crate::steps::{self, At, Get, If, Keys};

/// Longest time that one request may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Makes the store forget all before its present revision.
pub(crate) type Compact = Box<dyn Fn(Revision) -> BoxFuture<'static, ()> + Send + Sync>;

/// A store, with a namespace and leases of the run's own.
pub(crate) struct Side {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) compact: Compact,
    namespace: String,
    first_lease: i64,
    /// The revision at which the run began.
    base: Revision,
    /// The last revision that an answer told.
    pub(crate) now: Revision,
}

impl Side {
    /// Makes a write, whose revision is where the run begins.
    pub(crate) async fn new(store: Arc<dyn Store>, compact: Compact) -> Self {
        let unique = fastrand::u64(..) >> 2;
        let namespace = format!("/stores-{unique:016x}/");
        let first_lease = i64::try_from(unique).expect("was shifted");
        let mut side = Self { store, compact, namespace, first_lease, base: 0, now: 0 };
        let first = Txn::new().and_then([Op::put(format!("{}!", side.namespace), "", None)]);
        let attempts = side.store.attempts(None);
        let answer = side.store.txn(call(&*attempts), first).await.expect("the store can be written");
        side.base = answer.header.revision;
        side.now = side.base;
        side
    }

    pub(crate) fn key(&self, key: &str) -> String {
        format!("{}{key}", self.namespace)
    }

    pub(crate) fn shown_key(&self, key: &[u8]) -> String {
        let key = String::from_utf8_lossy(key);
        key.strip_prefix(&self.namespace).map_or_else(|| format!("foreign {key}"), str::to_owned)
    }

    pub(crate) fn lease(&self, number: usize) -> i64 {
        self.first_lease + i64::try_from(number).expect("is small")
    }

    fn shown_lease(&self, lease: i64) -> String {
        if lease == 0 { "none".into() } else { format!("lease {}", lease - self.first_lease) }
    }

    pub(crate) fn at(&self, at: At) -> Revision {
        match at {
            At::Zero => 0,
            At::Ago(n) => (self.now - n).max(self.base),
            At::Ahead(n) => self.now + n,
        }
    }

    pub(crate) fn shown(&self, revision: Revision) -> Shown {
        Shown((revision != 0).then(|| revision - self.base))
    }

    pub(crate) fn get(&self, get: &Get) -> (Vec<u8>, GetOptions) {
        let (key, extent) = match get.keys {
            Keys::Key(key) => (key, Extent::Key),
            Keys::Prefix(prefix) => (prefix, Extent::Prefix),
            Keys::Until(from, end) => (from, Extent::Until(self.key(end).into())),
        };
        let options = GetOptions {
            extent,
            detail: get.detail,
            limit: get.limit,
            revision: self.at(get.at),
            order: get.order,
            max_create_revision: self.at(get.max_create),
            is_serializable: get.is_serializable,
        };
        (self.key(key).into(), options)
    }

    fn condition(&self, condition: &If) -> Compare {
        let If { key, is_prefix, op, target } = *condition;
        let target = match target {
            steps::Target::Create(at) => Target::CreateRevision(self.at(at)),
            steps::Target::Mod(at) => Target::ModRevision(self.at(at)),
            steps::Target::Value(value) => Target::Value(value.into()),
            steps::Target::Lease(lease) => Target::Lease(lease.map_or(0, |lease| self.lease(lease))),
        };
        Compare { key: self.key(key).into(), is_prefix, op, target }
    }

    fn op(&self, op: &steps::Op) -> Op {
        match op {
            steps::Op::Get(get) => {
                let (key, options) = self.get(get);
                Op::Get { key, options }
            }
            steps::Op::Put(key, value, lease) => {
                let options = PutOptions { lease: lease.map_or(0, |lease| self.lease(lease)) };
                Op::put(self.key(key), *value, Some(options))
            }
            steps::Op::Delete(key) => Op::delete(self.key(key)),
            steps::Op::Txn(nested) => Op::Txn(self.txn(nested)),
        }
    }

    pub(crate) fn txn(&self, txn: &steps::Txn) -> Txn {
        let ops = |ops: &[steps::Op]| ops.iter().map(|op| self.op(op)).collect::<Vec<_>>();
        let conditions: Vec<_> = txn.when.iter().map(|condition| self.condition(condition)).collect();
        Txn::new().when(conditions).and_then(ops(&txn.then)).or_else(ops(&txn.otherwise))
    }

    fn shown_pair(&self, kv: &KeyValue) -> String {
        let KeyValue { key, value, create_revision, mod_revision, lease } = kv;
        let (created, written) = (self.shown(*create_revision), self.shown(*mod_revision));
        format!("{}={value:?} c{created} m{written} {}", self.shown_key(key), self.shown_lease(*lease))
    }

    pub(crate) fn shown_get(&self, answer: &GetAnswer, get: &Get) -> String {
        if get.detail == Detail::Count {
            return format!("{} keys, {} pairs, more {}", answer.count, answer.kvs.len(), answer.more);
        }
        let pairs: Vec<_> = answer.kvs.iter().map(|kv| self.shown_pair(kv)).collect();
        let is_enough = answer.count >= i64::try_from(answer.kvs.len()).expect("are few");
        format!("{pairs:?} more {} counted {is_enough}", answer.more)
    }

    pub(crate) fn shown_txn(&self, answer: &TxnAnswer, txn: &steps::Txn) -> String {
        let made = if answer.succeeded { &txn.then } else { &txn.otherwise };
        assert_eq!(answer.results.len(), made.len(), "each operation has a result");
        let results = answer.results.iter().zip(made).map(|(result, op)| self.shown_result(result, op));
        format!("{} {:?}", answer.succeeded, results.collect::<Vec<_>>())
    }

    fn shown_result(&self, result: &OpResult, op: &steps::Op) -> String {
        match (result, op) {
            (OpResult::Get(answer), steps::Op::Get(get)) => self.shown_get(answer, get),
            (OpResult::Put, steps::Op::Put(..)) => "put".into(),
            (OpResult::Delete(count), steps::Op::Delete(_)) => format!("deleted {count}"),
            (OpResult::Txn(answer), steps::Op::Txn(txn)) => self.shown_txn(answer, txn),
            (result, op) => format!("{result:?} of {op:?}"),
        }
    }
}

/// A revision as a distance from the start of the run.
pub(crate) struct Shown(Option<Revision>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            None => f.write_str("0"),
            Some(distance) => write!(f, "{distance:+}"),
        }
    }
}

/// Returns an attempt at a request.
pub(crate) fn call(attempts: &dyn coord_kv::store::Attempts) -> Call<'_> {
    Call { operation: "test", limit: LIMIT, attempts, route: Route::Main }
}

/// Returns the kind of a failure, which has to be the same on each store.
pub(crate) fn kind(failure: &Failure) -> String {
    let effect = match failure.effect {
        Effect::None => "no effect",
        Effect::Unknown => "unknown effect",
    };
    format!("{}, {effect}", error_kind(&failure.error))
}

fn error_kind(error: &Error) -> String {
    let shown = format!("{error:?}");
    let variant = shown.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    let detail = match error {
        Error::Lost { reason } => format!(" {reason:?}"),
        Error::Backend { source, .. } => match source.downcast_ref() {
            Some(RevisionError::Compacted(_)) => " compacted".into(),
            Some(RevisionError::Future(_)) => " future".into(),
            None => String::new(),
        },
        _ => String::new(),
    };
    format!("{variant}{detail}")
}
