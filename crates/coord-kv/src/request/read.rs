//! Reading a key, everything below a prefix, or several things at one moment; always as of now.

use std::hash::{DefaultHasher, Hash, Hasher};

use coord_api::{Entry, Result, Version};

use crate::{
    request::Rpc,
    store::{Compare, Failure, GetOptions, KeyValue, Op, OpResult, Range, Revision, Txn},
};

/// Most pairs of one answer.
const PAGE: i64 = 200;

impl Rpc {
    /// Reads the pairs of `range`, ordered by key, and the revision at which they were so. Linearizable.
    pub(crate) async fn read(
        &self,
        operation: &'static str,
        range: &Range,
    ) -> Result<(i64, Vec<KeyValue>), Failure> {
        match range {
            Range::Key(key) => {
                let answer = self.get(operation, &**key, None).await?;
                Ok((answer.header.revision, answer.kvs))
            }
            Range::Prefix(prefix) => self.read_pages(operation, prefix).await,
        }
    }

    async fn read_pages(
        &self,
        operation: &'static str,
        prefix: &str,
    ) -> Result<(i64, Vec<KeyValue>), Failure> {
        let end = end_of(prefix);
        let mut from = prefix.as_bytes().to_vec();
        let mut pairs = Vec::new();
        let mut at = 0;
        loop {
            let options = GetOptions::new().with_range(end.clone()).with_limit(PAGE).with_revision(at);
            let mut page = match self.get(operation, &from, Some(options)).await {
                // The revision of the first page was compacted meanwhile: begin again.
                Err(failure) if at != 0 && failure.is_compacted() => {
                    from = prefix.as_bytes().to_vec();
                    pairs.clear();
                    at = 0;
                    continue;
                }
                page => page?,
            };
            if at == 0 {
                at = page.header.revision;
            }
            let more = page.more;
            pairs.append(&mut page.kvs);
            match pairs.last() {
                Some(last) if more => {
                    from.clear();
                    from.extend_from_slice(&last.key);
                    from.push(0);
                }
                _ => return Ok((at, pairs)),
            }
        }
    }
}

/// A transaction that only reads, by which something is decided.
///
/// etcd lets any member answer a transaction by itself, from a state of any age, if all its gets are
/// serializable. This is also so for a transaction without gets, which has only conditions. Both branches
/// count, taken or not. So each look has a linearizable get in the branch that is taken when a condition is
/// not met.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    conditions: Vec<Compare>,
    gets: Vec<Op>,
}

impl Look {
    /// Reads several things at one moment.
    pub(crate) fn of(gets: impl Into<Vec<Op>>) -> Self {
        Self { conditions: Vec::new(), gets: gets.into() }
    }

    /// Tells whether all conditions are met, as `TxnAnswer::succeeded`.
    pub(crate) fn whether(conditions: impl Into<Vec<Compare>>) -> Self {
        Self { conditions: conditions.into(), gets: Vec::new() }
    }

    /// Builds the transaction; `probe` is a key that this client may read.
    pub(crate) fn txn(self, probe: &str) -> Txn {
        let now = Op::get(probe, Some(GetOptions::new().with_count_only()));
        Txn::new().when(self.conditions).and_then(self.gets).or_else([now])
    }
}

/// Returns the pairs in the answer to a get of a transaction.
pub(crate) fn pairs(answer: Option<&OpResult>) -> &[KeyValue] {
    match answer {
        Some(OpResult::Get(found)) => &found.kvs,
        _ => &[],
    }
}

/// The keys that a user has read, at a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) revision: Revision,
    print: u64,
}

impl Read {
    /// Makes a print of keys and of when each was written last; values are not needed for it.
    pub(crate) fn of(revision: Revision, pairs: &[KeyValue]) -> Self {
        let mut hasher = DefaultHasher::new();
        for kv in pairs {
            (&kv.key, kv.mod_revision).hash(&mut hasher);
        }
        Self { revision, print: hasher.finish() }
    }
}

/// Returns a revision of the store as a version.
pub(crate) fn version(revision: Revision) -> Version {
    Version::new(u64::try_from(revision).expect("revisions are not negative"))
}

/// Returns a stored pair as an entry, under the user's name of the key.
pub(crate) fn entry(kv: &KeyValue, name: String) -> Entry {
    Entry::new(name, version(kv.mod_revision), kv.value.clone())
}

/// Returns the first key after all that begin with `prefix`, which ends in `/`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    let last = end.last_mut().expect("a prefix is never empty");
    *last += 1;
    end
}

#[cfg(test)]
mod tests {
    use crate::store::CompareOp;

    use super::*;

    #[test]
    fn no_member_answers_a_look_by_itself() {
        let unchanged = || Compare::mod_revision("a", CompareOp::Equal, 7);
        let serializable = || Op::get("b", Some(GetOptions::new().with_serializable()));
        let looks = [
            Look::whether([unchanged()]),
            Look::of([]),
            Look::of([serializable()]),
            Look { conditions: vec![unchanged()], gets: vec![serializable()] },
        ];
        for look in looks {
            // The client library shows its requests in no other way.
            let request = format!("{:?}", look.txn("probe"));
            assert_eq!(request.matches("serializable: false").count(), 1, "{request}");
        }
    }
}
