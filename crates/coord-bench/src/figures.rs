//! From samples to figures: quantiles within a round, medians over rounds.

use anyhow::{Context, Result};
use serde_json::Value;

use crate::plan::Numbers;

/// An interval of at least this is a stall: etcd serves a watch that began in the past every 100 ms.
const STALL_US: u64 = 80_000;

/// The figures of one measurement, from what the processes of a contender reported.
pub(crate) fn of_reports(reports: &[Value]) -> Result<Numbers> {
    let mut numbers = Numbers::new();
    let seconds = reports.iter().filter_map(|report| report["seconds"].as_f64()).fold(0.0, f64::max);
    let mut samples = list(reports, "latencies_us");
    let mut operations = samples.len();
    let turns = reports.iter().any(|report| report.get("turns_us").is_some());
    if turns {
        let mut got = list(reports, "turns_us");
        got.sort_unstable();
        operations = got.len();
        samples = got.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let stalls = samples.iter().filter(|&&interval| interval >= STALL_US).count();
        numbers.insert("stalls_percent".into(), ratio(100 * stalls, samples.len()));
    }
    samples.sort_unstable();
    for (name, share) in [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("max_ms", 1.0)] {
        if let Some(sample) = quantile(&samples, share) {
            numbers.insert(name.into(), sample / 1e3);
        }
    }
    // Of an operation that is a write and its way to those who wait for it: the way alone.
    let mut after = list(reports, "after_answer_us");
    after.sort_unstable();
    if let Some(sample) = quantile(&after, 0.5) {
        numbers.insert("after_answer_p50_ms".into(), sample / 1e3);
    }
    // Where single operations are too short to be timed.
    let counted: usize = reports.iter().filter_map(|report| report["count"].as_u64()).sum::<u64>() as usize;
    operations += counted;
    if !samples.is_empty() || turns || counted > 0 {
        numbers.insert("operations".into(), ratio(operations, 1));
        numbers.insert("per_second".into(), ratio(operations, 1) / seconds);
    }
    if let Some([before, after]) =
        reports.first().and_then(|report| report["bytes"].as_array()).map(Vec::as_slice)
    {
        let bytes = |value: &Value| value.as_f64().context("not a number of bytes");
        numbers.insert("bytes".into(), bytes(after)? - bytes(before)?);
    }
    // What is neither a rate nor a time nor growth.
    for (name, value) in reports.iter().filter_map(|report| report["figures"].as_object()).flatten() {
        numbers.insert(name.clone(), value.as_f64().context("not a number")?);
    }
    numbers.insert("seconds".into(), seconds);
    Ok(numbers)
}

fn list(reports: &[Value], name: &str) -> Vec<u64> {
    reports.iter().filter_map(|report| report[name].as_array()).flatten().filter_map(Value::as_u64).collect()
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn ratio(part: usize, whole: usize) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// The sample below which `share` of all are.
#[expect(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "counts are small and positive")]
fn quantile(sorted: &[u64], share: f64) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    Some(sorted[(last as f64 * share) as usize] as f64)
}

/// What a median would hide: for these the worst round counts.
const WORST: [&str; 3] = ["max_ms", "stalls_percent", "each.slow_writes"];

/// The median of each figure over the rounds; a figure that a round does not have is 0 there.
pub(crate) fn medians(rounds: &[Numbers]) -> Numbers {
    let names = rounds.iter().flat_map(|round| round.keys());
    names
        .map(|name| {
            let mut values: Vec<f64> =
                rounds.iter().map(|round| round.get(name).copied().unwrap_or_default()).collect();
            values.sort_by(f64::total_cmp);
            if WORST.contains(&name.as_str()) {
                return (name.clone(), values[values.len() - 1]);
            }
            let middle = values.len() / 2;
            let median = if values.len() % 2 == 1 {
                values[middle]
            } else {
                f64::midpoint(values[middle - 1], values[middle])
            };
            (name.clone(), median)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn turns_of_several_processes_are_one_sequence() {
        let reports = [
            json!({ "seconds": 2.0, "turns_us": [1_000, 3_000] }),
            json!({ "seconds": 2.0, "turns_us": [2_000, 103_000] }),
        ];
        let numbers = of_reports(&reports).expect("is complete");
        assert!((numbers["per_second"] - 2.0).abs() < 1e-9);
        assert!((numbers["p50_ms"] - 1.0).abs() < 1e-9);
        assert!((numbers["max_ms"] - 100.0).abs() < 1e-9);
        assert!((numbers["stalls_percent"] - 100.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn the_median_is_the_middle_one() {
        let rounds = [3.0, 1.0, 2.0].map(|value| Numbers::from([("a".to_owned(), value)]));
        assert_eq!(medians(&rounds)["a"].to_string(), "2");
        assert_eq!(medians(&rounds[..2])["a"].to_string(), "2");
    }
}
