//! Reading, writing and watching values.

use std::{io::Read, sync::Arc};

use coord_api::{ConfigCenter, ConfigExt, Entry, EntryEvent, Scope, Version};
use coord_config::HistoryExt;
use serde_json::{Value, json, value::RawValue};

use super::{Write, absent, entry_json, written};
use crate::{
    exit::{Exit, Failure},
    out::{Out, shown, table},
    watch,
};

pub(super) async fn get(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    version: Option<u64>,
    out: Out,
) -> Result<Exit, Failure> {
    let entry = match version {
        Some(version) => center.recorded(key, Version::new(version)).await?,
        None => center.get_entry(key).await?,
    };
    let entry = entry.ok_or_else(|| absent(key))?;
    out.result(&entry_json(&entry), |to| {
        // As it is stored, so that scripts get back what they wrote.
        to.write_all(entry.as_bytes())?;
        writeln!(to)
    })?;
    Ok(Exit::OK)
}

pub(super) async fn set(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    value: &str,
    write: &Write,
    out: Out,
) -> Result<Exit, Failure> {
    let mut stdin = String::new();
    let value = if value == "-" {
        std::io::stdin().read_to_string(&mut stdin)?;
        stdin.as_str()
    } else {
        value
    };
    let version = write.record(center, key).set(&*parse(value)?).await?;
    written(key, version, out)
}

/// Checks that a text is JSON, and keeps it as it is but for the white space around it.
pub(super) fn parse(text: &str) -> Result<Box<RawValue>, Failure> {
    serde_json::from_str::<Box<RawValue>>(text.trim()).map_err(|error| {
        let hint = "a text needs quotes: '\"text\"'";
        Failure::usage(format!("the value is not JSON: {error}\n  {hint}"))
    })
}

pub(super) async fn delete(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    write: &Write,
    out: Out,
) -> Result<Exit, Failure> {
    if center.get_entry(key).await?.is_none() {
        return Err(absent(key));
    }
    let version = write.record(center, key).delete().await?;
    let json = json!({ "key": key, "version": version, "deleted": true });
    out.result(&json, |to| writeln!(to, "{key} is deleted, at version {version}"))?;
    Ok(Exit::OK)
}

pub(super) async fn list(center: &Arc<dyn ConfigCenter>, prefix: &str, out: Out) -> Result<Exit, Failure> {
    let entries = center.list(prefix.trim_end_matches('/')).await?;
    let json: Vec<Value> = entries.iter().map(entry_json).collect();
    out.result(&json.into(), |to| {
        if entries.is_empty() {
            return writeln!(to, "no value is stored");
        }
        let rows: Vec<[String; 3]> = entries
            .iter()
            .map(|entry| [shown(entry.key()), entry.version().to_string(), short(entry)])
            .collect();
        table(to, ["KEY", "VERSION", "VALUE"], &rows)
    })?;
    Ok(Exit::OK)
}

/// A value in one line of bounded length.
fn short(entry: &Entry) -> String {
    const LIMIT: usize = 60;
    let text = String::from_utf8_lossy(entry.as_bytes());
    let text = match serde_json::from_str::<Value>(&text) {
        Ok(value) => value.to_string(),
        Err(_) => shown(&text),
    };
    match text.char_indices().nth(LIMIT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

pub(super) async fn watch(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    prefix: bool,
    out: Out,
) -> Result<Exit, Failure> {
    let scope = if prefix { Scope::Prefix(key.trim_end_matches('/')) } else { Scope::Key(key) };
    watch::show(center.watch_entries(scope), event_line, out).await
}

fn event_line(event: &EntryEvent) -> (Value, String) {
    let line = |entry: &Entry| {
        let text = shown(&String::from_utf8_lossy(entry.as_bytes()));
        format!("{} at version {}: {text}", shown(entry.key()), entry.version())
    };
    match event {
        EntryEvent::Snapshot { version, entries } => {
            let lines: Vec<String> = entries.iter().map(line).collect();
            let text = if lines.is_empty() { "nothing is stored".into() } else { lines.join("\n") };
            let entries: Vec<Value> = entries.iter().map(entry_json).collect();
            (json!({ "event": "snapshot", "version": version, "entries": entries }), text)
        }
        EntryEvent::Put(entry) => (json!({ "event": "set", "entry": entry_json(entry) }), line(entry)),
        EntryEvent::Deleted { key, version } => (
            json!({ "event": "deleted", "key": key, "version": version }),
            format!("{} at version {version}: deleted", shown(key)),
        ),
    }
}
