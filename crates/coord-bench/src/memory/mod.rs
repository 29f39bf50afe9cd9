//! The memory backend: locks on one thread. What many leases cost that end is measured by `cargo bench -p coord-memory`, since
//! time has to stand still for it.

mod child;

use crate::plan::{Bound::AtLeast, Contender, Plan, Scenario, Target};

pub(crate) use child::run as child;

const COORD: Contender = Contender { id: "coord", title: "coord", in_go: false };
/// A mutex of the same process, which has no names, no leases and no queue to look at.
const MUTEX: Contender = Contender { id: "mutex", title: "tokio's Mutex", in_go: false };
/// What is measured.
pub(crate) fn plan() -> Plan {
    let pairs = Scenario {
        id: "pairs-1".into(),
        title: "lock and unlock, one thread".into(),
        unit: "pairs/s",
        contenders: vec![COORD, MUTEX],
        processes: 1,
        tasks: 1,
        shape: "pairs",
        after_keys: None,
    };
    let million =
        Target { scenario: "pairs-1", of: "coord", figure: "per_second", against: None, bound: AtLeast(1e6) };
    Plan { area: "memory", scenarios: vec![pairs], targets: vec![million] }
}
