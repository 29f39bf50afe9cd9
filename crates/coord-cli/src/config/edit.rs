//! A value in an editor. What was typed is never lost: if it can not be written, its file stays.

use std::{io::Write as _, sync::Arc};

use coord_api::{ConfigCenter, ConfigExt, Entry, Version};
use serde_json::value::RawValue;
use tempfile::NamedTempFile;
use tokio::process::Command;

use super::{Why, written};
use crate::{
    child::Signals,
    exit::{Exit, Failure},
    json::{Layout, parse, text_of},
    out::Out,
};

pub(super) async fn edit(
    center: &Arc<dyn ConfigCenter>,
    key: &str,
    why: &Why,
    out: Out,
) -> Result<Exit, Failure> {
    let entry = center.get_entry(key).await?;
    let version = entry.as_ref().map_or(Version::ABSENT, Entry::version);
    let stored = entry.as_ref().map_or(&b"null"[..], |entry| entry.as_bytes());
    let layout = text_of(stored).map_or(Layout::Own, Layout::of);
    let before = match text_of(stored) {
        Some(text) => format!("{}\n", layout.to_edit(text)),
        // A value that is not JSON is shown as it is.
        None => String::from_utf8_lossy(stored).into_owned(),
    };
    // Readable by its owner alone: a value may be a secret.
    let mut file = tempfile::Builder::new().prefix("coord-edit-").suffix(".json").tempfile()?;
    file.write_all(before.as_bytes())?;
    file.flush()?;
    open_editor(&file).await?;
    let after = std::fs::read_to_string(file.path())?;
    if after == before {
        out.detail(&serde_json::json!({ "event": "unchanged", "key": key }), "nothing was changed");
        return written(key, version, out);
    }
    let outcome = match parse(&after) {
        Ok(value) => {
            // The text that nobody has edited stays byte by byte.
            let text = layout.apply(value.get());
            let value = RawValue::from_string(text).expect("was JSON before it was laid out");
            why.record(center, key).expecting(version).set(&*value).await.map_err(Failure::from)
        }
        Err(failure) => Err(failure),
    };
    match outcome {
        Ok(version) => written(key, version, out),
        Err(failure) => Err(kept(file, failure)),
    }
}

/// As git does: the shell takes `$EDITOR` apart, which may have arguments.
async fn open_editor(file: &NamedTempFile) -> Result<(), Failure> {
    let set = |name| std::env::var(name).ok().filter(|editor: &String| !editor.trim().is_empty());
    let editor = set("VISUAL").or_else(|| set("EDITOR")).unwrap_or_else(|| "vi".into());
    let mut command = Command::new("sh");
    // Ctrl-C is for the editor; what was typed must not stay behind in a file that nobody knows of.
    let _not_for_us = Signals::listen()?;
    command.arg("-c").arg(format!("{editor} \"$@\"")).arg(&editor).arg(file.path()).kill_on_drop(true);
    let status = command.status().await?;
    if status.success() {
        return Ok(());
    }
    Err(Failure::failed(format!("`{editor}` ended with {status}; nothing was written, see $EDITOR")))
}

fn kept(file: NamedTempFile, mut failure: Failure) -> Failure {
    let place = file.path().to_owned();
    failure.message = match file.keep() {
        Ok(_) => format!("{failure}\n  what you typed is in {}", place.display()),
        Err(error) => format!("{failure}\n  what you typed could not be kept: {error}"),
    };
    failure
}
