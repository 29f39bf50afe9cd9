//! Instance ids: a claim when some of 1023 are taken, 64 claims at once, and the numbers made with one.

mod child;

use crate::plan::{Bound::AtLeast, Bound::AtMost, Contender, Plan, Scenario, Target};

pub(crate) use child::run as child;

const COORD: Contender = Contender { id: "coord", title: "coord", in_go: false };
/// One conditional write for each id from 1 on, until one succeeds.
const SCAN: Contender = Contender { id: "scan", title: "the Go original's scan", in_go: false };

/// What is measured.
pub(crate) fn plan() -> Plan {
    let claims = |shape: &'static str, tasks: usize, title: &str| Scenario {
        id: if tasks == 1 { shape.to_owned() } else { format!("{shape}-{tasks}") },
        title: title.to_owned(),
        unit: "claims/s",
        contenders: vec![COORD, SCAN],
        processes: 1,
        tasks,
        shape,
        after_keys: None,
    };
    let numbers = |tasks: usize, title: &str| Scenario {
        id: format!("numbers-{tasks}"),
        title: title.to_owned(),
        unit: "numbers/s",
        contenders: vec![COORD],
        processes: 1,
        tasks,
        shape: "numbers",
        after_keys: None,
    };
    let scenarios = vec![
        claims("taken-0", 1, "claim an id, none of 1023 taken"),
        claims("taken-500", 1, "claim an id, 500 of 1023 taken"),
        claims("taken-1000", 1, "claim an id, 1000 of 1023 taken"),
        claims("taken-0", 64, "64 claim an id at once, none of 1023 taken"),
        claims("taken-500", 64, "64 claim an id at once, 500 of 1023 taken"),
        numbers(1, "numbers made with one id, one thread; 12 bits of sequence allow 4,096,000 a second"),
        numbers(2, "the same, two threads"),
    ];
    let rate = |scenario, times| Target {
        scenario,
        of: "coord",
        figure: "per_second",
        against: Some("scan"),
        bound: AtLeast(times),
    };
    let targets = vec![
        rate("taken-500", 50.0),
        rate("taken-1000", 100.0),
        // With the one that gives the id back.
        Target {
            scenario: "taken-0",
            of: "coord",
            figure: "each.requests.Txn",
            against: None,
            bound: AtMost(2.01),
        },
        Target {
            scenario: "taken-1000",
            of: "coord",
            figure: "each.requests.Txn",
            against: None,
            bound: AtMost(3.01),
        },
        Target {
            scenario: "numbers-1",
            of: "coord",
            figure: "per_second",
            against: None,
            bound: AtLeast(2e6),
        },
    ];
    Plan { area: "ids", scenarios, targets }
}
