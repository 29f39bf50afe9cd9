//! The config center: reads and writes, updates of one value by many, and live values: reads, memory, and changes
//! on their way to many of them.

mod child;
mod raw;

use crate::plan::{
    Bound::{AtLeast, AtMost},
    Contender, Plan, Scenario, Target,
};

pub(crate) use child::run as child;

const COORD: Contender = Contender { id: "coord", title: "coord", in_go: false };
/// One request, and the same JSON.
const RAW: Contender = Contender { id: "raw", title: "bare requests", in_go: false };
/// Read, compare and write, and at once again.
const NAIVE: Contender = Contender { id: "naive", title: "a bare loop without back-off", in_go: false };
const HANDLES: Contender = Contender { id: "coord", title: "live values of coord", in_go: false };
/// They can not be one.
const RULED: Contender = Contender { id: "ruled", title: "live values with a validator each", in_go: false };
const ONE: Contender = Contender { id: "one", title: "one live value of coord", in_go: false };
const WATCH: Contender = Contender { id: "raw", title: "one bare watch", in_go: false };
const WATCHES: Contender = Contender { id: "watches", title: "watches of coord, a key each", in_go: false };
const RAWS: Contender = Contender { id: "raw", title: "bare watches, a key each", in_go: false };
const LOOK: Contender = Contender { id: "look", title: "coord's look", in_go: false };

/// What is measured.
pub(crate) fn plan() -> Plan {
    let of = |shape: &'static str, tasks: usize, title: &str, contenders: Vec<Contender>| Scenario {
        id: format!("{shape}-{tasks}"),
        title: title.to_owned(),
        unit: match shape {
            "get" | "read" => "reads/s",
            "set" => "writes/s",
            "update" => "updates/s",
            _ => "changes/s",
        },
        contenders,
        processes: 1,
        tasks,
        shape,
        after_keys: None,
    };
    let scenarios = vec![
        of("get", 1, "get, one at a time", vec![COORD, RAW]),
        of("get", 64, "get, 64 at once", vec![COORD, RAW]),
        of("set", 1, "set, one at a time", vec![COORD, RAW]),
        of("set", 64, "set, 64 at once, each a key of its own", vec![COORD, RAW]),
        of("update", 1, "update, one at a time", vec![COORD, NAIVE]),
        of("update", 16, "update of one value, 16 at once", vec![COORD, NAIVE]),
        of("read", 1, "read a live value, one thread", vec![COORD, LOOK]),
        of("read", 2, "the same, two threads", vec![COORD, LOOK]),
        of("event", 100, "a change, until 100 live values have it", vec![HANDLES, RULED, ONE, WATCH]),
        of("event", 1000, "a change, until 1000 live values have it", vec![HANDLES, RULED, ONE]),
        of(
            "live",
            1000,
            "memory of 1000 more of one key, or of as many keys",
            vec![HANDLES, RULED, WATCHES, RAWS],
        ),
    ];
    Plan { area: "config", scenarios, targets: targets() }
}

fn targets() -> Vec<Target> {
    let rate = |scenario, peer, times| Target {
        scenario,
        of: "coord",
        figure: "per_second",
        against: Some(peer),
        bound: AtLeast(times),
    };
    let beside_one =
        |of, scenario, figure| Target { scenario, of, figure, against: Some("one"), bound: AtMost(2.0) };
    let memory = |of, bytes| Target {
        scenario: "live-1000",
        of,
        figure: "bytes_each",
        against: None,
        bound: AtMost(bytes),
    };
    vec![
        rate("get-1", "raw", 0.95),
        rate("get-64", "raw", 0.95),
        rate("set-1", "raw", 0.95),
        rate("set-64", "raw", 0.95),
        rate("update-16", "naive", 2.0),
        Target::reads("read-1", "coord", 1.0),
        Target::reads("read-2", "look", 2.0),
        Target::counted("get-1", "each.requests", 1.02),
        Target::counted("set-1", "each.requests", 1.02),
        // Each learns what the one before it wrote.
        Target::counted("update-16", "each.requests", 1.1),
        beside_one("coord", "event-100", "after_answer_p50_ms"),
        beside_one("coord", "event-100", "p50_ms"),
        beside_one("coord", "event-1000", "after_answer_p50_ms"),
        beside_one("coord", "event-1000", "p50_ms"),
        memory("coord", 1024.0),
        memory("watches", 2048.0),
    ]
}
