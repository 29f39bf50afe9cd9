//! Reading, writing and watching values.

use std::{io::Read, sync::Arc};

use coord_api::{ConfigCenter, ConfigExt, Entry, EntryEvent, Scope, Version};
use coord_config::HistoryExt;
use serde::Serialize;
use serde_json::{
    json,
    value::{RawValue, to_raw_value},
};

use super::{EntryJson, Write, absent, entry_json, written};
use crate::{
    exit::{Exit, Failure},
    json::{compact, parse, text_of},
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
    out.stored(&entry_json(&entry), entry.as_bytes())?;
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
    out.result(&json, |to| writeln!(to, "{} is deleted, at version {version}", shown(key)))?;
    Ok(Exit::OK)
}

pub(super) async fn list(center: &Arc<dyn ConfigCenter>, prefix: &str, out: Out) -> Result<Exit, Failure> {
    let entries = center.list(prefix.trim_end_matches('/')).await?;
    let json: Vec<EntryJson<'_>> = entries.iter().map(entry_json).collect();
    out.result(&json, |to| {
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
    let text = match text_of(entry.as_bytes()) {
        Some(text) => shown(&compact(text)),
        None => shown(&String::from_utf8_lossy(entry.as_bytes())),
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

/// An event as it is documented.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
enum EventJson<'a> {
    Snapshot { version: Version, entries: Vec<EntryJson<'a>> },
    Set { entry: EntryJson<'a> },
    Deleted { key: &'a str, version: Version },
}

fn event_line(event: &EntryEvent) -> (Box<RawValue>, String) {
    let line = |entry: &Entry| {
        let text = shown(&String::from_utf8_lossy(entry.as_bytes()));
        format!("{} at version {}: {text}", shown(entry.key()), entry.version())
    };
    let (json, text) = match event {
        EntryEvent::Snapshot { version, entries } => {
            let lines: Vec<String> = entries.iter().map(line).collect();
            let text = if lines.is_empty() { "nothing is stored".into() } else { lines.join("\n") };
            let entries = entries.iter().map(entry_json).collect();
            (EventJson::Snapshot { version: *version, entries }, text)
        }
        EntryEvent::Put(entry) => (EventJson::Set { entry: entry_json(entry) }, line(entry)),
        EntryEvent::Deleted { key, version } => {
            let text = format!("{} at version {version}: deleted", shown(key));
            (EventJson::Deleted { key, version: *version }, text)
        }
    };
    (to_raw_value(&json).expect("has text as keys"), text)
}
