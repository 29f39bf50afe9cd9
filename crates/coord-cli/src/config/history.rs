//! Who changed a value, and the way back.

use std::sync::Arc;

use coord_api::{ConfigCenter, Version};
use coord_config::{Difference, HistoryExt, Record};
use serde_json::{Value, json};

use super::{Write, written};
use crate::{
    exit::{Exit, Failure},
    out::{Out, shown, table},
};

pub(super) async fn history(center: &Arc<dyn ConfigCenter>, key: &str, out: Out) -> Result<Exit, Failure> {
    let records = center.history(key).await?;
    let json: Vec<Value> = records.iter().map(record_json).collect();
    out.result(&json.into(), |to| {
        if records.is_empty() {
            return writeln!(to, "no version of `{key}` is recorded");
        }
        let rows: Vec<[String; 4]> = records.iter().map(row).collect();
        table(to, ["VERSION", "AT", "AUTHOR", "COMMENT"], &rows)
    })?;
    Ok(Exit::OK)
}

fn at(record: &Record) -> String {
    humantime::format_rfc3339_seconds(record.at).to_string()
}

fn record_json(record: &Record) -> Value {
    json!({
        "version": record.version, "at": at(record), "author": record.author,
        "comment": record.comment, "deleted": record.deleted,
    })
}

fn row(record: &Record) -> [String; 4] {
    let author = record.author.as_deref().map_or_else(|| "unknown".into(), shown);
    let comment = record.comment.as_deref().map(shown).unwrap_or_default();
    let comment = if record.deleted { format!("(deleted) {comment}") } else { comment };
    [record.version.to_string(), at(record), author, comment]
}

pub(super) async fn diff(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    from: u64,
    to: Option<u64>,
    out: Out,
) -> Result<Exit, Failure> {
    let to = match to {
        Some(to) => Version::new(to),
        None => match center.history(key).await?.first() {
            Some(latest) => latest.version,
            None => return Err(Failure::absent(format!("no version of `{key}` is recorded"))),
        },
    };
    let differences = center.diff(key, Version::new(from), to).await?;
    let json: Vec<Value> = differences.iter().map(difference_json).collect();
    out.result(&json.into(), |to| {
        differences.iter().try_for_each(|difference| writeln!(to, "{difference}"))
    })?;
    Ok(Exit::OK)
}

/// What is not there is left out, since `null` is a value as any other.
fn difference_json(difference: &Difference) -> Value {
    let mut json = json!({ "pointer": difference.pointer });
    for (side, value) in [("old", &difference.old), ("new", &difference.new)] {
        if let Some(value) = value {
            json[side] = value.clone();
        }
    }
    json
}

pub(super) async fn rollback(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    version: u64,
    write: &Write,
    out: Out,
) -> Result<Exit, Failure> {
    let version = write.record(center, key).rollback(Version::new(version)).await?;
    written(key, version, out)
}
