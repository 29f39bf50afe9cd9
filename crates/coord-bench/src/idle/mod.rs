//! What a process costs that holds much and does nothing: its renewals, its processor time, its memory, and its end.

mod child;

use crate::plan::{Bound::AtMost, Contender, Plan, Scenario, Target};

pub(crate) use child::run as child;

const COORD: Contender = Contender { id: "coord", title: "coord", in_go: false };

/// What is measured.
pub(crate) fn plan() -> Plan {
    let of = |shape: &'static str, title: &str, unit| Scenario {
        id: format!("{shape}-1"),
        title: title.to_owned(),
        unit,
        contenders: vec![COORD],
        processes: 1,
        tasks: 1,
        shape,
        after_keys: None,
    };
    let scenarios = vec![
        of("large", "10,000 registrations and 1,000 locks in one process: each second", "seconds/s"),
        of("close", "the same process closes its client", "closes/s"),
        of("small", "100 locks, 100 registrations and 100 watches: each second", "seconds/s"),
    ];
    let target = |scenario, figure, bound| Target {
        scenario,
        of: "coord",
        figure,
        against: None,
        bound: AtMost(bound),
    };
    let targets = vec![
        target("large-1", "each.requests.LeaseKeepAlive", 1.0),
        target("large-1", "each.client_cpu_seconds", 0.02),
        target("large-1", "resident_mb", 64.0),
        target("close-1", "max_ms", 2000.0),
        target("small-1", "each.requests.LeaseKeepAlive", 1.0),
        target("small-1", "each.client_cpu_seconds", 0.02),
    ];
    Plan { area: "idle", scenarios, targets }
}
