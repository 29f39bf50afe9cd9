//! Results for people.

use crate::plan::{Bound, Numbers, Plan, Target};
use crate::run::Measured;

/// One scenario as a table.
pub(crate) fn print(measured: &Measured) {
    let scenario = &measured.scenario;
    println!("\n{} ({})", scenario.title, scenario.id);
    let Some(first) = measured.rows.first() else { return };
    let get = |numbers: &Numbers, name: &str| numbers.get(name).copied().unwrap_or_default();
    if first.median.contains_key("bytes_each") {
        println!("  {:<30} {:>12} {:>10}", "", "bytes each", "coord/it");
        let ours = get(&first.median, "bytes_each");
        for row in &measured.rows {
            let theirs = get(&row.median, "bytes_each");
            println!("  {:<30} {theirs:>12.0} {:>10}", row.contender.title, times(ours, theirs));
        }
        return;
    }
    println!(
        "  {:<30} {:>11} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>7} {:>7} {:>7} {:>7} {:>7}",
        "",
        scenario.unit,
        "coord/it",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "max ms",
        "stalls",
        "requests",
        "commits",
        "events",
        "cpu us",
        "etcd us"
    );
    let ours = get(&first.median, "per_second");
    for row in &measured.rows {
        let figure = |name| get(&row.median, name);
        let sum = |prefix: &str| -> f64 {
            row.median.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value).sum()
        };
        println!(
            "  {:<30} {:>11.0} {:>8} {:>8.2} {:>8.2} {:>8.2} {:>8.1} {:>6.1}% {:>8.2} {:>7.2} {:>7.2} {:>7.0} {:>7.0}",
            row.contender.title,
            figure("per_second"),
            times(ours, figure("per_second")),
            figure("p50_ms"),
            figure("p90_ms"),
            figure("p99_ms"),
            figure("max_ms"),
            figure("stalls_percent"),
            sum("each.requests."),
            figure("each.commits"),
            figure("each.answers.Watch"),
            figure("each.client_cpu_seconds") * 1e6,
            figure("each.server_cpu_seconds") * 1e6,
        );
        if figure("stalls_percent") > 0.0 {
            let slow = figure("each.slow_writes") * 100.0;
            println!("  (for each 100 of them, {slow:.2} writes of etcd to disk took 64 ms or more)");
        }
    }
}

/// Nothing for one that did nothing in the measured time.
pub(crate) fn times(ours: f64, theirs: f64) -> String {
    if theirs > 0.0 { format!("{:.2}x", ours / theirs) } else { "-".into() }
}

/// What came of a target.
pub(crate) struct Verdict {
    pub(crate) target: Target,
    /// The figure, or its ratio to the peer's.
    pub(crate) value: f64,
}

impl Verdict {
    pub(crate) fn is_met(&self) -> bool {
        self.target.bound.is_met(self.value)
    }
}

/// The targets of what was measured; without Go there are none against it.
pub(crate) fn verdicts(plan: &Plan, all: &[Measured]) -> Vec<Verdict> {
    let value = |target: &Target| {
        let measured = all.iter().find(|measured| measured.scenario.id == target.scenario)?;
        let figure = |contender| Some(*measured.of(contender)?.get(target.figure)?);
        let peer = match target.against {
            Some(peer) => Some(figure(peer)?),
            None => None,
        };
        Some(target.bound.value(figure(target.of)?, peer))
    };
    let verdict = |target: &Target| Some(Verdict { target: *target, value: value(target)? });
    plan.targets.iter().filter_map(verdict).collect()
}

/// What is aimed at, and whether it is met.
pub(crate) fn print_targets(plan: &Plan, all: &[Measured]) {
    println!("\ntargets");
    for verdict in verdicts(plan, all) {
        let Target { scenario, of, figure, against, bound } = verdict.target;
        let beside = if let Bound::Excess(_) = bound { "than" } else { "times" };
        let bound = bound.to_string();
        let peer = against.map(|peer| format!("{beside} {peer}'s")).unwrap_or_default();
        let met = if verdict.is_met() { "met" } else { "MISSED" };
        println!(
            "  {scenario:<12} {of:<7} {figure:<15} {:>9.3}  {bound:<13} {peer:<17} {met}",
            verdict.value
        );
    }
}
