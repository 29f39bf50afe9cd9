//! Transactions: conditions, the operations if all of them hold, and the operations if a condition does not.

use super::{GetAnswer, GetOptions, Header, LeaseId, Revision};

/// A transaction. Its nested ones are nested once, or more often where each is the only operation beside.
///
/// A store evaluates the conditions of nested transactions before it makes any operation of the outer one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions, all of which have to hold.
    pub conditions: Vec<Compare>,
    /// The operations if they hold.
    pub operations: Vec<Op>,
    /// The operations if one does not.
    pub otherwise: Vec<Op>,
}

impl Txn {
    /// Begins a transaction that does nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the conditions.
    #[must_use]
    pub fn when(self, conditions: impl Into<Vec<Compare>>) -> Self {
        Self { conditions: conditions.into(), ..self }
    }

    /// Sets the operations if the conditions hold.
    #[must_use]
    pub fn and_then(self, operations: impl Into<Vec<Op>>) -> Self {
        Self { operations: operations.into(), ..self }
    }

    /// Sets the operations if one does not.
    #[must_use]
    pub fn or_else(self, otherwise: impl Into<Vec<Op>>) -> Self {
        Self { otherwise: otherwise.into(), ..self }
    }
}

/// A condition on a key, or on each key with a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key.
    pub key: Vec<u8>,
    /// Whether it is about all keys that begin so. If there are none, it is compared as a key that is not there.
    pub is_prefix: bool,
    /// Relation of the store's side to the target.
    pub op: CompareOp,
    /// Property that is compared, with the value that it is compared to.
    pub target: Target,
}

/// Relation of the two sides of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompareOp {
    /// Both are the same.
    Equal,
    /// Both sides differ.
    NotEqual,
    /// The store's side is larger.
    Greater,
    /// The store's side is smaller.
    Less,
}

/// Property of a key that is compared, with the other side. A key that is not there has only zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The revision at which it was created.
    CreateRevision(Revision),
    /// The revision at which it was written last.
    ModRevision(Revision),
    /// Its value. No value is equal to the value of a key that is not there.
    Value(Vec<u8>),
    /// The lease that it lives on.
    Lease(LeaseId),
}

impl Compare {
    fn of(key: impl Into<Vec<u8>>, op: CompareOp, target: Target) -> Self {
        Self { key: key.into(), is_prefix: false, op, target }
    }

    /// Compares the revision at which a key was created; the revision of a key that is not there is zero.
    pub fn create_revision(key: impl Into<Vec<u8>>, op: CompareOp, revision: Revision) -> Self {
        Self::of(key, op, Target::CreateRevision(revision))
    }

    /// Compares the revision at which a key was written last; the revision of a key that is not there is
    /// zero.
    pub fn mod_revision(key: impl Into<Vec<u8>>, op: CompareOp, revision: Revision) -> Self {
        Self::of(key, op, Target::ModRevision(revision))
    }

    /// Compares a value.
    pub fn value(key: impl Into<Vec<u8>>, op: CompareOp, value: impl Into<Vec<u8>>) -> Self {
        Self::of(key, op, Target::Value(value.into()))
    }

    /// Compares the lease that a key lives on.
    pub fn lease(key: impl Into<Vec<u8>>, op: CompareOp, lease: LeaseId) -> Self {
        Self::of(key, op, Target::Lease(lease))
    }

    /// Makes it about all keys that begin so.
    #[must_use]
    pub fn with_prefix(self) -> Self {
        Self { is_prefix: true, ..self }
    }
}

/// Options of a write of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// The lease that the key lives on from now on; zero for none.
    pub lease: LeaseId,
}

impl PutOptions {
    /// Writes on no lease.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes on a lease.
    #[must_use]
    pub fn with_lease(self, lease: LeaseId) -> Self {
        Self { lease }
    }
}

/// Operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Reads.
    Get {
        /// The key, or where a range begins.
        key: Vec<u8>,
        /// Options of the read.
        options: GetOptions,
    },
    /// Writes a key.
    Put {
        /// The key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
        /// Options of the write.
        options: PutOptions,
    },
    /// Deletes a key, if it is there.
    Delete {
        /// The key.
        key: Vec<u8>,
    },
    /// Makes a transaction within this one.
    Txn(Txn),
}

impl Op {
    /// Reads a key, or what the options say.
    pub fn get(key: impl Into<Vec<u8>>, options: Option<GetOptions>) -> Self {
        Self::Get { key: key.into(), options: options.unwrap_or_default() }
    }

    /// Writes a key.
    pub fn put(key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>, options: Option<PutOptions>) -> Self {
        Self::Put { key: key.into(), value: value.into(), options: options.unwrap_or_default() }
    }

    /// Deletes a key, if it is there.
    pub fn delete(key: impl Into<Vec<u8>>) -> Self {
        Self::Delete { key: key.into() }
    }

    /// Makes a transaction within another.
    pub fn txn(txn: Txn) -> Self {
        Self::Txn(txn)
    }
}

/// The result of one operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpResult {
    /// Of a read.
    Get(GetAnswer),
    /// Of a write.
    Put,
    /// Of a deletion: how many keys were deleted.
    Delete(i64),
    /// Of a nested transaction.
    Txn(TxnAnswer),
}

/// The answer to a transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnAnswer {
    /// The origin of the answer, with the revision at which it was made; empty for a nested one.
    pub header: Header,
    /// Whether all conditions held.
    pub succeeded: bool,
    /// The results of the operations that were made, in their order.
    pub results: Vec<OpResult>,
}
