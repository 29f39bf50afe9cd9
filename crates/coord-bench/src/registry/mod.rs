//! The registry: registering and discovering, what 10,000 registrations cost, reads of a view, and changes on their
//! way to many views.

mod child;
mod raw;

use crate::plan::{Bound::AtMost, Contender, Plan, Scenario, Target};

pub(crate) use child::run as child;

const COORD: Contender = Contender { id: "coord", title: "coord", in_go: false };
/// Puts on a lease, and one read of the prefix, decoded.
const RAW: Contender = Contender { id: "raw", title: "bare requests", in_go: false };
const LOOK: Contender = Contender { id: "look", title: "coord's look", in_go: false };
const VIEWS: Contender = Contender { id: "coord", title: "views of coord", in_go: false };
const ONE: Contender = Contender { id: "one", title: "one view of coord", in_go: false };
const WATCH: Contender = Contender { id: "raw", title: "one bare watch", in_go: false };

/// What is measured.
pub(crate) fn plan() -> Plan {
    let of = |shape: &'static str, tasks: usize, title: &str, contenders: Vec<Contender>| Scenario {
        id: format!("{shape}-{tasks}"),
        title: title.to_owned(),
        unit: match shape {
            "register" => "registered/s",
            "discover" => "lists/s",
            "kept" => "TTLs/s",
            "read" => "reads/s",
            _ => "changes/s",
        },
        contenders,
        processes: 1,
        tasks,
        shape,
        after_keys: None,
    };
    let peers = || vec![COORD, RAW];
    let scenarios = vec![
        of("register", 1, "register, one at a time", peers()),
        of("register", 1000, "register 1000 instances, 64 at once", peers()),
        of("register", 10_000, "register 10,000 instances, 64 at once", peers()),
        of("kept", 10_000, "10,000 registrations from one process, and their first TTL of 10 s", vec![COORD]),
        of("discover", 1000, "discover 1000 instances", peers()),
        of("read", 1, "read a view of 1000 instances, one thread", vec![COORD, LOOK]),
        of("read", 2, "the same, two threads", vec![COORD, LOOK]),
        of("event", 100, "a change, until 100 views of 1000 instances have it", vec![VIEWS, ONE, WATCH]),
        of("views", 10_000, "memory of 10,000 views of one service", vec![COORD]),
        of("registrations", 10_000, "memory of 10,000 registrations", vec![COORD]),
    ];
    Plan { area: "registry", scenarios, targets: targets() }
}

fn targets() -> Vec<Target> {
    let alone = |scenario, figure, bound| Target { scenario, of: "coord", figure, against: None, bound };
    let beside =
        |scenario, figure, peer, bound| Target { scenario, of: "coord", figure, against: Some(peer), bound };
    vec![
        alone("kept-10000", "each.requests.LeaseKeepAlive", AtMost(3.0)),
        alone("kept-10000", "each.streams.LeaseKeepAlive", AtMost(1.0)),
        Target::reads("read-1", "coord", 1.0),
        Target::reads("read-2", "look", 2.0),
        beside("event-100", "after_answer_p50_ms", "one", AtMost(2.0)),
        beside("event-100", "p50_ms", "one", AtMost(2.0)),
    ]
}
