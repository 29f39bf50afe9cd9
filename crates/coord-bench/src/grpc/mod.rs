//! Calls over a balanced connection: what it costs beside a plain channel to one instance.

mod child;

use crate::plan::{
    Bound::{AtLeast, Excess},
    Contender, Plan, Scenario, Target,
};

pub(crate) use child::run as child;

const COORD: Contender = Contender { id: "coord", title: "coord", in_go: false };
/// With the option for very many instances.
const SUBSET: Contender = Contender { id: "subset", title: "coord, subset(10)", in_go: false };
/// The measure of all: one connection, whatever the number of instances.
const PLAIN: Contender = Contender { id: "plain", title: "tonic, one instance", in_go: false };
const BALANCE: Contender = Contender { id: "balance", title: "tonic's balance_channel", in_go: false };
/// As many connections as instances and nothing else: what balancing costs at least.
const TURN: Contender = Contender { id: "turn", title: "tonic channels in turn", in_go: false };

/// What is measured.
pub(crate) fn plan() -> Plan {
    let calls = |tasks: usize, instances: usize, shape: &'static str| Scenario {
        id: format!("{shape}-{tasks}"),
        title: format!("{tasks} calls in flight, {instances} instances"),
        unit: "calls/s",
        contenders: vec![COORD, SUBSET, PLAIN, BALANCE, TURN],
        processes: 1,
        tasks,
        shape,
        after_keys: None,
    };
    let shapes = [(1, "1"), (10, "10"), (1000, "1000")];
    let scenarios = shapes.iter().flat_map(|(count, shape)| [64, 1].map(|tasks| calls(tasks, *count, shape)));
    Plan { area: "grpc", scenarios: scenarios.collect(), targets: targets() }
}

fn targets() -> Vec<Target> {
    let rate = |of| {
        move |scenario| Target {
            scenario,
            of,
            figure: "per_second",
            against: Some("plain"),
            bound: AtLeast(0.9),
        }
    };
    let latency = |scenario| Target {
        scenario,
        of: "coord",
        figure: "p50_ms",
        against: Some("plain"),
        bound: Excess(0.02),
    };
    let many = ["1-64", "10-64", "1000-64"].map(rate("coord"));
    let few = ["1000-64"].map(rate("subset"));
    many.into_iter().chain(few).chain(["1-1", "10-1", "1000-1"].map(latency)).collect()
}
