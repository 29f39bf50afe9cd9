//! A page of every figure: for each area its scenarios as tables, and what became of the targets. Markdown.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{AREAS, plot::shown, table::times};

const BEGIN: &str = "\
# Every figure of one run

Written by a command, of what a run has left behind, and by nobody's hand:

```text
cargo xtask bench --json run.json
cargo xtask bench --tables run-*.json docs/figures.md
```

[performance.md](performance.md) says how this is measured, what bounds it, and how other machines differ. Figures are medians
over the rounds; of `max` and `stalls` the worst round counts. What is counted is for one operation, and so is processor time.
";

/// Figures as columns, each with what it is multiplied by for people.
const COLUMNS: [(&str, &str, f64); 13] = [
    ("p50_ms", "p50 ms", 1.0),
    ("p90_ms", "p90 ms", 1.0),
    ("p99_ms", "p99 ms", 1.0),
    ("max_ms", "max ms", 1.0),
    ("after_answer_p50_ms", "p50 after etcd's answer, ms", 1.0),
    ("stalls_percent", "stalls %", 1.0),
    ("each.requests", "requests", 1.0),
    ("each.commits", "commits", 1.0),
    ("each.events", "events", 1.0),
    ("each.client_cpu_seconds", "client µs", 1e6),
    ("each.server_cpu_seconds", "etcd µs", 1e6),
    ("bytes_each", "bytes each", 1.0),
    ("resident_mb", "resident MB", 1.0),
];

/// Makes the page that the last argument names, of the JSON files before it.
pub(crate) fn write(files: &[String]) -> Result<()> {
    let Some((page, runs)) = files.split_last().filter(|(_, runs)| !runs.is_empty()) else {
        bail!("`tables` takes files of JSON, and then one for the page");
    };
    let mut areas = Vec::new();
    for file in runs {
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
        let area = serde_json::from_str(&text).with_context(|| format!("{file} is not of `--json`"))?;
        areas.push(area);
    }
    std::fs::write(page, of(areas)?).with_context(|| format!("cannot write {page}"))
}

/// The page.
fn of(mut areas: Vec<Value>) -> Result<String> {
    areas.sort_by_key(|area| AREAS.iter().position(|name| area["about"]["area"] == *name));
    let mut page = BEGIN.to_owned();
    for area in &areas {
        let about = &area["about"];
        let note = |name: &str| about[name].as_str().unwrap_or("unknown");
        let _ = writeln!(page, "\n## `bench {}`\n", note("area"));
        let go = about["go"].as_str().map(|go| format!(", {go}")).unwrap_or_default();
        let _ = writeln!(
            page,
            "{}, commit {}, etcd {}{go}, {} cores, {} round(s) of {} s.",
            note("date"),
            note("commit"),
            note("etcd"),
            about["cores"],
            about["rounds"],
            about["seconds"]
        );
        for scenario in area["scenarios"].as_array().context("there are no scenarios")? {
            add_scenario(&mut page, scenario)?;
        }
        add_targets(&mut page, area);
    }
    Ok(page)
}

fn add_scenario(page: &mut String, scenario: &Value) -> Result<()> {
    let text = |name: &str| scenario[name].as_str().unwrap_or_default();
    let rows = scenario["contenders"].as_array().context("there are no contenders")?;
    // What is too small to be shown is none.
    let scaled = |row: &Value, name: &str, scale: f64| {
        row["median"][name].as_f64().map(|figure| figure * scale).filter(|figure| *figure >= 5e-5)
    };
    let has = |name: &str, scale| rows.iter().any(|row| scaled(row, name, scale).is_some());
    let columns: Vec<_> = COLUMNS.iter().filter(|(name, _, scale)| has(name, *scale)).collect();
    let per_second = |row: &Value| scaled(row, "per_second", 1.0);
    let rate = rows.iter().any(|row| per_second(row).is_some());

    let _ = writeln!(page, "\n**{}** (`{}`)\n", text("title"), text("id"));
    let mut head = String::from("| |");
    if rate {
        let _ = write!(head, " {} | coord to it |", text("unit"));
    }
    for (_, title, _) in &columns {
        let _ = write!(head, " {title} |");
    }
    let lines = "---|".repeat(head.matches('|').count() - 1);
    let _ = writeln!(page, "{head}\n|{lines}");
    let ours = rows.first().and_then(per_second).unwrap_or_default();
    for row in rows {
        let _ = write!(page, "| {} |", row["title"].as_str().unwrap_or_default());
        if rate {
            let theirs = per_second(row).unwrap_or_default();
            let _ = write!(page, " {} | {} |", shown(theirs), times(ours, theirs));
        }
        // What is counted for each operation means nothing where there was none.
        let is_idle = rate && per_second(row).is_none();
        for (name, _, scale) in &columns {
            let cell = scaled(row, name, *scale).filter(|_| !is_idle).map(shown).unwrap_or_default();
            let _ = write!(page, " {cell} |");
        }
        page.push('\n');
    }
    Ok(())
}

fn add_targets(page: &mut String, area: &Value) {
    let Some(targets) = area["targets"].as_array().filter(|targets| !targets.is_empty()) else { return };
    page.push_str("\n| target | of | figure | aim | beside | measured | |\n|---|---|---|---|---|---|---|\n");
    for target in targets {
        let text = |name: &str| target[name].as_str().unwrap_or_default();
        let measured = target["value"].as_f64().unwrap_or_default();
        let verdict = if target["met"] == true { "met" } else { "**missed**" };
        let _ = writeln!(
            page,
            "| `{}` | {} | {} | {} | {} | {} | {verdict} |",
            text("scenario"),
            text("of"),
            text("figure"),
            text("aim"),
            text("against"),
            shown(measured)
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn areas_come_in_their_order_and_columns_only_where_there_is_something() {
        let row = |title, rate: f64, cpu: f64| json!({ "title": title, "median": { "per_second": rate, "each.client_cpu_seconds": cpu } });
        let rows = [row("coord", 3_000.0, 25e-6), row("Go", 1_000.0, 0.0)];
        let scenario = json!({ "id": "own-64", "title": "64 names", "unit": "pairs/s", "contenders": rows });
        let target = json!({ "scenario": "own-64", "of": "coord", "figure": "per_second", "aim": "at least 3.5",
                             "against": "shared", "value": 3.0, "met": false });
        let area = |name| json!({ "about": { "area": name, "cores": 2 }, "scenarios": [scenario], "targets": [target] });
        let page = of(vec![area("memory"), area("lock")]).expect("is complete");
        assert!(page.find("bench lock") < page.find("bench memory"));
        assert!(page.contains("| | pairs/s | coord to it | client µs |\n|---|---|---|---|\n"), "{page}");
        assert!(page.contains("| coord | 3,000 | 1.00x | 25.00 |\n| Go | 1,000 | 3.00x |  |\n"), "{page}");
        assert!(
            page.contains("| `own-64` | coord | per_second | at least 3.5 | shared | 3.00 | **missed** |")
        );
        assert!(of(vec![json!({})]).is_err());
    }
}
