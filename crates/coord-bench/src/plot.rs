//! A picture of one area's figures: for each scenario a bar for each contender. Plain SVG, in light and dark.

use std::fmt::Write as _;

use anyhow::{Context, Result, bail};
use serde_json::Value;

const WIDTH: f64 = 860.0;
/// Where bars begin and how long the longest is; names stand before them, numbers behind.
const LEFT: f64 = 260.0;
const LONGEST: f64 = 430.0;
const BAR: f64 = 18.0;
const STEP: f64 = 24.0;
const TITLE: f64 = 40.0;

const STYLE: &str = "\
text { font: 13px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: 600 } .name { text-anchor: end }
.ours { fill: #0969da } .theirs { fill: #8c959f }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 } .ours { fill: #58a6ff } .theirs { fill: #6e7681 }
}
";

/// Draws the JSON file of the first argument into the SVG file of the second.
pub(crate) fn write(files: &[String]) -> Result<()> {
    let [json, svg] = files else { bail!("`plot` takes a file of JSON, and one for the picture") };
    let text = std::fs::read_to_string(json).with_context(|| format!("cannot read {json}"))?;
    let picture = draw(&serde_json::from_str(&text)?)?;
    std::fs::write(svg, picture).with_context(|| format!("cannot write {svg}"))
}

/// The picture.
fn draw(figures: &Value) -> Result<String> {
    let scenarios = figures["scenarios"].as_array().context("there are no scenarios")?;
    let (mut bars, mut y) = (String::new(), 8.0);
    for scenario in scenarios {
        let rows = scenario["contenders"].as_array().context("there are no contenders")?;
        // Memory where there is no rate.
        let has_rate = rows.iter().any(|row| row["median"]["per_second"].is_f64());
        let (figure, unit) = match scenario["unit"].as_str() {
            Some(unit) if has_rate => ("per_second", unit),
            _ => ("bytes_each", "bytes each"),
        };
        let values: Vec<f64> =
            rows.iter().map(|row| row["median"][figure].as_f64().unwrap_or_default()).collect();
        let most = values.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        let title = scenario["title"].as_str().unwrap_or_default();
        let _ = writeln!(
            bars,
            "<text class=\"title\" x=\"8\" y=\"{:.0}\">{}: {unit}</text>",
            y + 22.0,
            plain(title)
        );
        y += TITLE - 8.0;
        for (row, value) in rows.iter().zip(values) {
            let whose = if row["contender"] == "coord" { "ours" } else { "theirs" };
            let (name, length) = (row["title"].as_str().unwrap_or_default(), LONGEST * value / most);
            let _ = writeln!(
                bars,
                "<text class=\"name\" x=\"{:.0}\" y=\"{:.0}\">{}</text><rect class=\"{whose}\" x=\"{LEFT}\" y=\"{y:.0}\" \
                 width=\"{length:.1}\" height=\"{BAR}\"/><text x=\"{:.1}\" y=\"{:.0}\">{}</text>",
                LEFT - 8.0,
                y + 14.0,
                plain(name),
                LEFT + length + 6.0,
                y + 14.0,
                shown(value)
            );
            y += STEP;
        }
        y += 8.0;
    }
    let about = &figures["about"];
    let note = |name: &str| plain(about[name].as_str().unwrap_or("unknown"));
    let _ = writeln!(
        bars,
        "<text x=\"8\" y=\"{:.0}\">{}, etcd {}, {} cores, {} round(s) of {} s, medians</text>",
        y + 20.0,
        note("date"),
        note("etcd"),
        about["cores"],
        about["rounds"],
        about["seconds"]
    );
    let height = y + 32.0;
    Ok(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\">\n\
         <style>{STYLE}</style>\n{bars}</svg>\n"
    ))
}

/// A number that a person reads: 22,427 or 0.83 or 0.0030.
pub(crate) fn shown(value: f64) -> String {
    if value.abs() < 0.1 && value.abs() >= 5e-5 {
        return format!("{value:.4}");
    }
    if value < 100.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Text without what XML takes for itself.
fn plain(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn bars_are_as_long_as_their_figures() {
        let row = |contender, title, rate| json!({ "contender": contender, "title": title, "median": { "per_second": rate } });
        let rows = [row("coord", "coord", 22_427.0), row("shared", "Go <one>", 11_213.5)];
        let scenario = json!({ "title": "64 names", "unit": "pairs/s", "contenders": rows });
        let svg = draw(&json!({ "about": { "cores": 2 }, "scenarios": [scenario] })).expect("is complete");
        assert!(svg.contains("width=\"430.0\"") && svg.contains("width=\"215.0\""), "{svg}");
        assert!(svg.contains("22,427") && svg.contains("Go &lt;one&gt;"), "{svg}");
        assert!(draw(&json!({})).is_err());
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            [0.0, -0.003, 0.834, 99.0, 999.6, 1_234_567.0].map(shown),
            ["0.00", "-0.0030", "0.83", "99.00", "1,000", "1,234,567"]
        );
    }
}
