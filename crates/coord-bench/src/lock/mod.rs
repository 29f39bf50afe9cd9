//! Locks: one at a time, many names at once, hand-offs, and the memory of those that wait.

mod child;
mod contenders;

use crate::plan::{
    Bound::{AtLeast, AtMost},
    Contender, Plan, Scenario, Target,
};

pub(crate) use child::run as child;

const COORD: Contender = Contender { id: "coord", title: "coord", in_go: false };
const GO_SHARED: Contender = Contender { id: "shared", title: "Go clientv3, one session", in_go: true };
const GO_PER_LOCK: Contender =
    Contender { id: "per-lock", title: "Go clientv3, session per lock", in_go: true };
const RPC: Contender = Contender { id: "rpc", title: "etcd's lock service", in_go: false };
const RAW: Contender = Contender { id: "raw", title: "bare requests, no queue", in_go: false };
/// In a queue each of Go's waiters has a session of its own, as clientv3 demands.
const GO_QUEUE: Contender = Contender { id: "shared", title: "Go clientv3", in_go: true };

/// With 1000 waiters etcd's lock service (3.5.30) stops for good, and answers nobody until etcd is restarted.
const LOCK_SERVICE_STOPS: usize = 999;

/// What is measured.
pub(crate) fn plan() -> Plan {
    let own = |names: usize, title: &str, contenders: Vec<Contender>| Scenario {
        id: format!("own-{names}"),
        title: title.to_owned(),
        unit: "pairs/s",
        contenders,
        processes: 1,
        tasks: names,
        shape: "own",
        after_keys: None,
    };
    let one = |waiters: usize| Scenario {
        id: format!("one-{waiters}"),
        title: format!("hand-off, {waiters} waiters in one process"),
        unit: "hand-offs/s",
        contenders: if waiters > LOCK_SERVICE_STOPS {
            vec![COORD, GO_QUEUE]
        } else {
            vec![COORD, GO_QUEUE, RPC]
        },
        processes: 1,
        tasks: waiters,
        shape: "one",
        after_keys: None,
    };
    let apart = Scenario {
        id: "apart-100".into(),
        title: "hand-off, one waiter in each of 100 processes".into(),
        processes: 100,
        tasks: 1,
        ..one(1)
    };
    let queued = |waiters: usize, holder_and_waiters: i64, contenders: Vec<Contender>| Scenario {
        id: format!("queued-{waiters}"),
        title: format!("memory of {waiters} who wait in one process"),
        unit: "",
        contenders,
        processes: 1,
        tasks: waiters,
        shape: "queued",
        after_keys: Some(holder_and_waiters),
    };
    let scenarios = vec![
        own(1, "lock and unlock, one at a time", vec![COORD, GO_SHARED, GO_PER_LOCK, RPC, RAW]),
        own(64, "lock and unlock, 64 names at once", vec![COORD, GO_SHARED, RPC, RAW]),
        one(2),
        one(10),
        one(100),
        one(1000),
        apart,
        queued(1000, 1001, vec![COORD, GO_QUEUE]),
        // Go's client takes minutes to queue as many.
        queued(5000, 5001, vec![COORD]),
    ];
    Plan { area: "lock", scenarios, targets: targets() }
}

fn targets() -> Vec<Target> {
    let rate = |scenario, peer, times| Target {
        scenario,
        of: "coord",
        figure: "per_second",
        against: Some(peer),
        bound: AtLeast(times),
    };
    let mut targets = vec![
        rate("own-1", "shared", 1.0),
        rate("own-1", "per-lock", 2.0),
        rate("own-64", "shared", 3.5),
        rate("one-2", "shared", 6.0),
        rate("one-10", "shared", 6.0),
        rate("one-100", "shared", 2.5),
        rate("one-1000", "shared", 5.0),
        rate("apart-100", "shared", 1.0),
    ];
    let queues = ["one-2", "one-10", "one-100", "one-1000"];
    targets.extend(queues.map(|scenario| Target {
        scenario,
        of: "coord",
        figure: "p50_ms",
        against: Some("shared"),
        bound: AtMost(0.5),
    }));
    targets.extend(["one-2", "one-10", "one-100", "one-1000", "apart-100"].map(|scenario| Target {
        scenario,
        of: "coord",
        figure: "stalls_percent",
        against: None,
        bound: AtMost(0.0),
    }));
    // A pair is one transaction to acquire and one to release; 64 at once share theirs, and a release hands over. Whoever
    // gave the lock back queues again: in the transaction of the next release, if it comes quickly enough, which on a
    // slow machine it does not always without optimisation.
    let turn = if cfg!(debug_assertions) { 2.05 } else { 1.5 };
    targets.extend(
        [("own-1", 2.05), ("own-64", 0.5), ("one-2", turn), ("one-10", turn), ("one-100", turn)]
            .map(|(scenario, most)| Target::counted(scenario, "each.requests", most)),
    );
    targets.push(Target {
        scenario: "queued-5000",
        of: "coord",
        figure: "bytes_each",
        against: None,
        bound: AtMost(8192.0),
    });
    targets
}
