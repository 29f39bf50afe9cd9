//! Reading a key, everything below a prefix, or several things at one moment; always as of now.

use coord_api::Result;
use etcd_client::{Compare, GetOptions, KeyValue, Txn, TxnOp, TxnOpResponse};

use crate::{
    core::Core,
    error::{Failure, is_compacted},
    keys::Range,
};

/// How many pairs one answer may have.
const PAGE: i64 = 200;

impl Core {
    /// The pairs of `range`, ordered by key, and the revision at which they were so. Linearizable.
    pub(crate) async fn read(
        &self,
        operation: &'static str,
        range: &Range,
    ) -> Result<(i64, Vec<KeyValue>), Failure> {
        match range {
            Range::Key(key) => {
                let mut answer = self.get(operation, &**key, None).await?;
                Ok((revision(answer.header()), answer.take_kvs()))
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
                Err(failure) if at != 0 && is_compacted(&failure) => {
                    from = prefix.as_bytes().to_vec();
                    pairs.clear();
                    at = 0;
                    continue;
                }
                page => page?,
            };
            if at == 0 {
                at = revision(page.header());
            }
            let more = page.more();
            pairs.append(&mut page.take_kvs());
            match pairs.last() {
                Some(last) if more => {
                    from.clear();
                    from.extend_from_slice(last.key());
                    from.push(0);
                }
                _ => return Ok((at, pairs)),
            }
        }
    }
}

/// A transaction that only reads, by which something is decided.
///
/// etcd lets any member answer a transaction by itself, from a state of any age, whose gets are all serializable, or
/// which has none at all but only conditions. Both of its branches count, taken or not. So each look has a linearizable
/// get in the branch that is taken when a condition is not met.
#[derive(Clone, Debug)]
pub(crate) struct Look {
    conditions: Vec<Compare>,
    gets: Vec<TxnOp>,
}

impl Look {
    /// Reads several things at one moment.
    pub(crate) fn of(gets: impl Into<Vec<TxnOp>>) -> Self {
        Self { conditions: Vec::new(), gets: gets.into() }
    }

    /// Tells whether all conditions are met, as [`TxnResponse::succeeded`](etcd_client::TxnResponse::succeeded).
    pub(crate) fn whether(conditions: impl Into<Vec<Compare>>) -> Self {
        Self { conditions: conditions.into(), gets: Vec::new() }
    }

    /// The transaction; `probe` is a key that this client may read.
    pub(crate) fn txn(self, probe: &str) -> Txn {
        let now = TxnOp::get(probe, Some(GetOptions::new().with_count_only()));
        Txn::new().when(self.conditions).and_then(self.gets).or_else([now])
    }
}

/// The pairs in the answer to a get of a transaction.
pub(crate) fn pairs(answer: Option<&TxnOpResponse>) -> &[KeyValue] {
    match answer {
        Some(TxnOpResponse::Get(found)) => found.kvs(),
        _ => &[],
    }
}

/// The store's revision in an answer.
pub(crate) fn revision(header: Option<&etcd_client::ResponseHeader>) -> i64 {
    header.map_or(0, etcd_client::ResponseHeader::revision)
}

/// The first key after all that begin with `prefix`, which ends in `/`.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    let last = end.last_mut().expect("a prefix is never empty");
    *last += 1;
    end
}

#[cfg(test)]
mod tests {
    use etcd_client::CompareOp;

    use super::*;

    #[test]
    fn no_member_answers_a_look_by_itself() {
        let unchanged = || Compare::mod_revision("a", CompareOp::Equal, 7);
        let serializable = || TxnOp::get("b", Some(GetOptions::new().with_serializable()));
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
