//! Transactions, as etcd makes them. First come all conditions, of nested ones as well. Then the taken branches are checked,
//! and then their operations are made, at one revision.

use std::collections::BTreeSet;

use coord_api::{BoxError, Error, LossReason};
use coord_kv::store::{
    Compare, CompareOp, Effect, Failure, GetAnswer, GetOptions, Header, Op, OpResult, Revision,
    RevisionError, Target, Txn, TxnAnswer,
};

use super::{
    faults::Permission,
    pairs::Pair,
    state::{ClientId, State},
};

/// The most operations of a transaction, its nested ones included.
pub(crate) const MOST_OPERATIONS: usize = 128;

/// The branches that a transaction takes: of itself, and of the nested ones of that branch in their order.
struct Taken {
    succeeded: bool,
    nested: Vec<Taken>,
}

/// Returns the failure of a request that was refused.
pub(crate) fn refused(operation: &'static str, source: impl Into<BoxError>) -> Failure {
    Failure { error: Error::Backend { operation, source: source.into() }, effect: Effect::None }
}

/// Returns the failure of a read at a revision.
pub(super) fn bad_revision(operation: &'static str, error: RevisionError) -> Failure {
    refused(operation, Box::new(error) as BoxError)
}

/// Returns the failure of a request about a lease that is gone.
pub(super) fn lease_gone() -> Failure {
    Failure { error: Error::Lost { reason: LossReason::Revoked }, effect: Effect::None }
}

/// Returns the operations of the branch that is taken.
fn branch(txn: &Txn, succeeded: bool) -> &[Op] {
    if succeeded { &txn.operations } else { &txn.otherwise }
}

fn both_branches(txn: &Txn) -> impl Iterator<Item = &Op> {
    txn.operations.iter().chain(&txn.otherwise)
}

/// Returns whether a transaction has not more operations than it may.
fn is_small(txn: &Txn, most: usize) -> bool {
    let own = txn.conditions.len().max(txn.operations.len()).max(txn.otherwise.len());
    let Some(left) = most.checked_sub(own) else { return false };
    both_branches(txn).all(|op| match op {
        Op::Txn(nested) => is_small(nested, left),
        _ => true,
    })
}

/// Returns whether an operation that is meant is in one of the branches.
fn has(txn: &Txn, is_meant: &impl Fn(&Op) -> bool) -> bool {
    both_branches(txn).any(|op| match op {
        Op::Txn(nested) => has(nested, is_meant),
        op => is_meant(op),
    })
}

/// The keys that operations write and delete.
#[derive(Default)]
struct Touched<'a> {
    puts: BTreeSet<&'a [u8]>,
    deletes: BTreeSet<&'a [u8]>,
}

impl<'a> Touched<'a> {
    /// Collects the keys of one branch, nested ones included. As in etcd, no key is written twice in it, or written and
    /// deleted; the two branches of a nested transaction may write the same.
    fn by(ops: &'a [Op]) -> Option<Self> {
        let mut touched = Self::default();
        touched.deletes.extend(ops.iter().filter_map(|op| match op {
            Op::Delete { key } => Some(&key[..]),
            _ => None,
        }));
        for op in ops {
            let Op::Txn(nested) = op else { continue };
            let (then, otherwise) = (Self::by(&nested.operations)?, Self::by(&nested.otherwise)?);
            let mut all = then.puts.union(&otherwise.puts);
            if all.any(|key| touched.puts.contains(key) || touched.deletes.contains(key)) {
                return None;
            }
            for branch in [then, otherwise] {
                touched.puts.extend(branch.puts);
                touched.deletes.extend(branch.deletes);
            }
        }
        for op in ops {
            let Op::Put { key, .. } = op else { continue };
            if touched.deletes.contains(&key[..]) || !touched.puts.insert(key) {
                return None;
            }
        }
        Some(touched)
    }
}

impl State {
    /// Makes a transaction.
    ///
    /// # Errors
    /// As the store refuses it: then nothing is changed.
    pub(crate) fn txn(
        &mut self,
        operation: &'static str,
        client: ClientId,
        txn: &Txn,
    ) -> Result<TxnAnswer, Failure> {
        let writes = has(txn, &|op| matches!(op, Op::Put { .. } | Op::Delete { .. }));
        self.check_permission(operation, if writes { Permission::Everything } else { Permission::Reading })?;
        if has(txn, &|op| matches!(op, Op::Put { .. })) {
            self.check_space()?;
        }
        if !is_small(txn, MOST_OPERATIONS) {
            return Err(refused(operation, "too many operations in a transaction"));
        }
        if [&txn.operations, &txn.otherwise].into_iter().any(|branch| Touched::by(branch).is_none()) {
            return Err(refused(operation, "duplicate key given in a transaction"));
        }
        let taken = self.choose(txn);
        // As etcd does: first what is written, then what is read.
        check(txn, &taken, &|op| match op {
            Op::Put { options, .. } if options.lease != 0 && !self.leases.contains_key(&options.lease) => {
                Err(lease_gone())
            }
            _ => Ok(()),
        })?;
        check(txn, &taken, &|op| match op {
            Op::Get { options, .. } => self
                .check_revision(options.revision, self.revision)
                .map_err(|error| bad_revision(operation, error)),
            _ => Ok(()),
        })?;
        let at = self.revision + 1;
        let mut answer = self.make(txn, &taken, at, Some(client));
        self.commit(at);
        answer.header = self.header();
        Ok(answer)
    }

    /// Reads.
    ///
    /// # Errors
    /// As the store refuses it.
    pub(crate) fn range(
        &self,
        operation: &'static str,
        key: &[u8],
        options: &GetOptions,
    ) -> Result<GetAnswer, Failure> {
        self.check_permission(operation, Permission::Reading)?;
        let checked = self.check_revision(options.revision, self.revision);
        checked.map_err(|error| bad_revision(operation, error))?;
        Ok(self.read(key, options, self.header()))
    }

    /// Evaluates all conditions.
    fn choose(&self, txn: &Txn) -> Taken {
        let succeeded = txn.conditions.iter().all(|condition| self.holds(condition));
        let nested = branch(txn, succeeded).iter().filter_map(|op| match op {
            Op::Txn(nested) => Some(self.choose(nested)),
            _ => None,
        });
        Taken { succeeded, nested: nested.collect() }
    }

    fn holds(&self, condition: &Compare) -> bool {
        let Compare { key, is_prefix, op, target } = condition;
        if *is_prefix {
            // Where there are none, they are compared as one key that is not there.
            return if self.keys_below(key).is_empty() {
                compares(None, *op, target)
            } else {
                self.all_below(key, |pair| compares(Some(pair), *op, target))
            };
        }
        compares(self.pair(key), *op, target)
    }

    /// Makes the operations of the taken branches at a new revision.
    fn make(&mut self, txn: &Txn, taken: &Taken, at: Revision, by: Option<ClientId>) -> TxnAnswer {
        let mut nested = taken.nested.iter();
        let mut results = Vec::with_capacity(branch(txn, taken.succeeded).len());
        for op in branch(txn, taken.succeeded) {
            results.push(match op {
                Op::Get { key, options } => OpResult::Get(self.read(key, options, Header::default())),
                Op::Put { key, value, options } => {
                    self.put(at, key, value.clone().into(), options.lease);
                    OpResult::Put
                }
                Op::Delete { key } => OpResult::Delete(self.delete(at, key, by).into()),
                Op::Txn(txn) => {
                    let taken = nested.next().expect("each nested transaction has chosen");
                    OpResult::Txn(self.make(txn, taken, at, by))
                }
            });
        }
        TxnAnswer { header: Header::default(), succeeded: taken.succeeded, results }
    }

    /// Ends a revision: if something was changed at it, it is the latest, and those who watch are told.
    pub(super) fn commit(&mut self, at: Revision) {
        if !self.log.has(at) {
            return;
        }
        self.revision = at;
        let Self { log, watchers, .. } = self;
        if !watchers.is_empty() {
            watchers.tell(log.since(at), Header { cluster: self.cluster, revision: at });
        }
        self.log.trim(at);
    }
}

/// Compares a property of a pair. A key that is not there has only zeros, and no value.
fn compares(pair: Option<&Pair>, op: CompareOp, target: &Target) -> bool {
    use std::cmp::Ordering;
    let number = |of: fn(&Pair) -> i64, to: &i64| pair.map_or(0, of).cmp(to);
    let order = match target {
        Target::CreateRevision(to) => number(|pair| pair.created, to),
        Target::ModRevision(to) => number(|pair| pair.modified, to),
        Target::Lease(to) => number(|pair| pair.lease, to),
        Target::Value(to) => match pair {
            Some(pair) => pair.value[..].cmp(&to[..]),
            None => return false,
        },
    };
    match op {
        CompareOp::Equal => order == Ordering::Equal,
        CompareOp::NotEqual => order != Ordering::Equal,
        CompareOp::Greater => order == Ordering::Greater,
        CompareOp::Less => order == Ordering::Less,
    }
}

/// Checks the operations of the taken branches.
fn check(txn: &Txn, taken: &Taken, one: &impl Fn(&Op) -> Result<(), Failure>) -> Result<(), Failure> {
    let mut nested = taken.nested.iter();
    for op in branch(txn, taken.succeeded) {
        if let Op::Txn(txn) = op {
            check(txn, nested.next().expect("each nested transaction has chosen"), one)?;
        } else {
            one(op)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use coord_kv::store::PutOptions;

    use super::*;

    const TEST: &str = "test";

    fn put(key: &str) -> Op {
        Op::put(key, "1", None)
    }

    fn absent(key: &str) -> Compare {
        Compare::create_revision(key, CompareOp::Equal, 0)
    }

    fn make(state: &mut State, txn: &Txn) -> TxnAnswer {
        state.txn(TEST, 1, txn).expect("is made")
    }

    #[test]
    fn nested_conditions_come_before_operations_of_the_outer_one() {
        let mut state = State::default();
        let nested = Txn::new().when([absent("a")]).and_then([put("b")]);
        let answer = make(&mut state, &Txn::new().and_then([put("a"), Op::txn(nested)]));
        assert!(matches!(&answer.results[1], OpResult::Txn(nested) if nested.succeeded));
        let found = state.pair(b"b").expect("was written");
        assert_eq!((found.created, answer.header.revision, state.revision), (2, 2, 2));
    }

    #[test]
    fn get_sees_what_the_same_transaction_has_written() {
        let mut state = State::default();
        let get = Op::get("q/", Some(GetOptions::new().with_prefix().latest_first().with_limit(1)));
        make(&mut state, &Txn::new().and_then([put("q/1")]));
        let answer = make(&mut state, &Txn::new().and_then([put("q/0"), get]));
        let OpResult::Get(found) = &answer.results[1] else { panic!("is a get") };
        assert_eq!((found.kvs[0].key.as_slice(), found.more), (&b"q/0"[..], true));
    }

    #[test]
    fn transaction_without_a_change_has_no_revision() {
        let mut state = State::default();
        let answer = make(&mut state, &Txn::new().when([absent("a")]).and_then([Op::delete("a")]));
        assert!(answer.succeeded && answer.header.revision == 1);
        let answer = make(&mut state, &Txn::new().when([absent("a")]).or_else([put("a")]));
        assert_eq!(answer.header.revision, 1);
    }

    #[test]
    fn refused_transaction_changes_nothing() {
        let mut state = State::default();
        let on_lease = Op::put("b", "1", Some(PutOptions::new().with_lease(7)));
        let lost = state.txn(TEST, 1, &Txn::new().and_then([put("a"), on_lease]));
        assert!(matches!(lost, Err(Failure { error: Error::Lost { .. }, effect: Effect::None })));
        let future = Op::get("a", Some(GetOptions::new().with_revision(9)));
        assert!(state.txn(TEST, 1, &Txn::new().and_then([put("a"), future])).is_err());
        let many: Vec<_> = (0..=MOST_OPERATIONS).map(|n| put(&n.to_string())).collect();
        assert!(state.txn(TEST, 1, &Txn::new().and_then(many)).is_err());
        assert!(state.pairs.is_empty() && state.revision == 1);
    }

    #[test]
    fn key_that_is_not_there_has_zeros_and_no_value() {
        for (op, holds) in [(CompareOp::Equal, true), (CompareOp::Less, false), (CompareOp::NotEqual, false)]
        {
            assert_eq!(compares(None, op, &Target::ModRevision(0)), holds);
            assert!(!compares(None, op, &Target::Value(Vec::new())));
        }
        assert!(compares(None, CompareOp::Less, &Target::ModRevision(5)));
    }

    #[test]
    fn earlier_state_is_read_until_it_is_forgotten() {
        let mut state = State::default();
        make(&mut state, &Txn::new().and_then([put("a/1"), put("a/2")]));
        make(&mut state, &Txn::new().and_then([Op::delete("a/1"), Op::put("a/2", "2", None)]));
        make(&mut state, &Txn::new().and_then([put("a/3")]));
        let keys = |state: &State, at: i64| {
            let options = GetOptions::new().with_prefix().with_revision(at);
            state.check_revision(at, state.revision).ok()?;
            let found = state.read(b"a/", &options, state.header()).kvs;
            Some(found.iter().map(|kv| (kv.key[2], kv.value[0])).collect::<Vec<_>>())
        };
        assert_eq!(keys(&state, 1), Some(vec![]));
        assert_eq!(keys(&state, 2), Some(vec![(b'1', b'1'), (b'2', b'1')]));
        assert_eq!(keys(&state, 3), Some(vec![(b'2', b'2')]));
        assert_eq!(keys(&state, 5), None);
        state.compact();
        assert_eq!(keys(&state, 3), None);
        assert_eq!(keys(&state, 4), Some(vec![(b'2', b'2'), (b'3', b'1')]));
    }
}
