//! Who changed a value, and the way back.

use std::sync::Arc;

use coord_api::{ConfigCenter, Version};
use coord_config::{HistoryExt, Record};
use serde_json::{Value, json};

use super::{Write, written};
use crate::{
    exit::{Exit, Failure},
    out::{Out, rfc3339, shown, table},
};

pub(super) async fn history(center: &Arc<dyn ConfigCenter>, key: &str, out: Out) -> Result<Exit, Failure> {
    let records = center.history(key).await?;
    let json: Vec<Value> = records.iter().map(record_json).collect();
    out.result(&json, |to| {
        if records.is_empty() {
            return writeln!(to, "no version of `{}` is recorded", shown(key));
        }
        let rows: Vec<[String; 4]> = records.iter().map(row).collect();
        table(to, ["VERSION", "AT", "AUTHOR", "COMMENT"], &rows)
    })?;
    Ok(Exit::OK)
}

fn record_json(record: &Record) -> Value {
    json!({
        "version": record.version, "at": rfc3339(record.at), "author": record.author,
        "comment": record.comment, "deleted": record.deleted,
    })
}

fn row(record: &Record) -> [String; 4] {
    let at = rfc3339(record.at).unwrap_or_else(|| "-".into());
    let author = record.author.as_deref().map_or_else(|| "unknown".into(), shown);
    let comment = record.comment.as_deref().map(shown).unwrap_or_default();
    let comment = if record.deleted { format!("(deleted) {comment}") } else { comment };
    [record.version.to_string(), at, author, comment]
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
