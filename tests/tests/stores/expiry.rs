//! Leases that end by themselves: which keys are gone then, and when.

use std::{collections::BTreeMap, time::Duration};

use coord_kv::store::{Op, PutOptions, Range, Txn, WatchRequest};
use tokio::time::{Instant, sleep_until, timeout};

use crate::side::{LIMIT, Side, call};

/// The time that a store may take to notice that a lease is over.
const SLACK: Duration = Duration::from_secs(4);

/// Keys that went together, in the order in which that happened.
pub(crate) type Gone = Vec<Vec<String>>;

/// Request about the lease of a number, or about a key; `None` is no lease.
enum Deed {
    Grant(usize, i64),
    Put(&'static str, Option<usize>),
    Delete(&'static str),
    Renew(usize),
    Revoke(usize),
}

/// Requests, each with its tenth of a second. The keys `stays` and `deleted` are on no lease in the end.
const DEEDS: [(u64, Deed); 18] = [
    (0, Deed::Grant(0, 2)),
    (0, Deed::Grant(1, 4)),
    (0, Deed::Grant(2, 3)),
    (0, Deed::Grant(3, 60)),
    (0, Deed::Put("short", Some(0))),
    (0, Deed::Put("short too", Some(0))),
    (0, Deed::Put("deleted", Some(0))),
    (0, Deed::Put("from short to long", Some(0))),
    (0, Deed::Put("stays", Some(0))),
    (0, Deed::Put("from long to short", Some(1))),
    (0, Deed::Put("renewed", Some(2))),
    (0, Deed::Put("revoked", Some(3))),
    (5, Deed::Put("from short to long", Some(1))),
    (5, Deed::Put("stays", None)),
    (5, Deed::Put("from long to short", Some(0))),
    (5, Deed::Delete("deleted")),
    (15, Deed::Renew(2)),
    (18, Deed::Revoke(3)),
];

/// Ends of the leases, in tenths of a second, with the keys that go.
const ENDS: [(u64, &[&str]); 3] =
    [(20, &["from long to short", "short", "short too"]), (40, &["from short to long"]), (45, &["renewed"])];

/// Returns the keys that have to be gone together.
pub(crate) fn expected() -> Gone {
    let by_hand = ["deleted", "revoked"].map(|key| vec![key.to_owned()]);
    let by_time = ENDS.iter().map(|(_, keys)| keys.iter().map(|key| (*key).to_owned()).collect());
    by_hand.into_iter().chain(by_time).collect()
}

/// Runs the deeds, and returns which keys were gone together.
///
/// # Panics
/// If a key goes before its lease is over, or long after.
pub(crate) async fn run(side: &Side) -> Gone {
    let store = &side.store;
    let attempts = store.attempts(None);
    let watch = WatchRequest { id: 1, range: Range::Prefix(side.key("").into()), from: None };
    let mut stream = store.watch(&*attempts, vec![watch]).await.expect("a stream can be opened");
    let begun = timeout(LIMIT, stream.next()).await.expect("in time").expect("is whole").expect("goes on");
    assert!(begun.is_created);

    let start = Instant::now();
    let at = |tenths: u64| start + Duration::from_millis(tenths * 100);
    let one = async |op: Op| {
        let attempts = store.attempts(None);
        store.txn(call(&*attempts), Txn::new().and_then([op])).await.expect("the store writes");
    };
    for (tenths, deed) in &DEEDS {
        sleep_until(at(*tenths)).await;
        let attempts = store.attempts(None);
        match deed {
            Deed::Grant(lease, ttl) => {
                let granted = store.grant(call(&*attempts), side.lease(*lease), *ttl).await;
                assert_eq!(granted.expect("is granted").ttl, *ttl);
            }
            Deed::Put(key, lease) => {
                let lease = lease.map_or(0, |lease| side.lease(lease));
                one(Op::put(side.key(key), "", Some(PutOptions { lease }))).await;
            }
            Deed::Delete(key) => one(Op::delete(side.key(key))).await,
            Deed::Renew(lease) => {
                let renewed = store.renewals().renew(side.lease(*lease)).await;
                assert!(matches!(renewed, Ok(Some(_))), "{renewed:?}");
            }
            Deed::Revoke(lease) => {
                store.revoke(call(&*attempts), side.lease(*lease)).await.expect("is revoked");
            }
        }
    }

    let mut gone = BTreeMap::<i64, Vec<String>>::new();
    let limit = at(ENDS[ENDS.len() - 1].0) + SLACK;
    let all = 2 + ENDS.iter().map(|(_, keys)| keys.len()).sum::<usize>();
    while gone.values().map(Vec::len).sum::<usize>() < all {
        let answer = tokio::time::timeout_at(limit, stream.next()).await;
        let answer = answer.unwrap_or_else(|_| panic!("gone in time are only {gone:?}"));
        let changes = answer.expect("is whole").expect("goes on").changes;
        for change in changes.into_iter().filter(|change| change.value.is_none()) {
            let key = side.shown_key(change.key.as_bytes());
            if let Some((tenths, _)) = ENDS.iter().find(|(_, keys)| keys.contains(&&*key)) {
                let now = Instant::now();
                assert!(now >= at(*tenths), "{key} was gone after {:?}", now - start);
                assert!(now <= at(*tenths) + SLACK, "{key} was gone after {:?} only", now - start);
            }
            gone.entry(change.revision).or_default().push(key);
        }
    }
    let mut gone: Gone = gone.into_values().collect();
    for keys in &mut gone {
        keys.sort();
    }
    gone
}
