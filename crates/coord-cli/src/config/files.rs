//! Values as files, for version control: the value of `common/mq` is `common/mq.json` below the folder.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;
use coord_api::{ConfigCenter, ConfigExt, ConfigKey, Entry};
use serde_json::{Value, json, value::RawValue};

use super::{Why, values::parse};
use crate::{
    exit::{Exit, Failure},
    out::{Out, shown},
};

#[derive(Args, Debug)]
pub(super) struct Import {
    /// The folder
    dir: PathBuf,
    /// Below which path the values are written [default: as the files are named]
    #[arg(long, default_value = "", value_name = "PATH")]
    prefix: String,
    /// Only say what would be written
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    why: Why,
}

#[derive(Args, Debug)]
pub(super) struct Export {
    /// The folder; created if it does not exist, files of the same names are replaced
    dir: PathBuf,
    /// Only the keys below this path; the files are named without it
    #[arg(long, default_value = "", value_name = "PATH")]
    prefix: String,
}

impl Import {
    /// All files are read and checked before anything is written. Each value is a write of its own.
    pub(super) async fn call(self, center: &Arc<dyn ConfigCenter>, out: Out) -> Result<Exit, Failure> {
        let prefix = self.prefix.trim_end_matches('/');
        let mut values = BTreeMap::new();
        read_folder(&self.dir, prefix, &mut values)?;
        let stored = center.list(prefix).await?;
        let mut results = Vec::new();
        for (key, value) in values {
            let found = stored.iter().find(|entry| entry.key() == key);
            let state = match found {
                Some(found) if is_same(found, &value) => "unchanged",
                Some(_) => "changed",
                None => "added",
            };
            let mut version = found.map(Entry::version);
            if state != "unchanged" && !self.dry_run {
                let mut recorder = self.why.record(center, &key);
                if self.why.comment.is_none() {
                    recorder = recorder.comment(format!("import of {}", self.dir.display()));
                }
                version = Some(recorder.set(&*value).await?);
            }
            results.push((key, state, version));
        }
        let json: Vec<Value> = results
            .iter()
            .map(|(key, state, version)| json!({ "key": key, "state": state, "version": version }))
            .collect();
        out.result(&json.into(), |to| {
            for (key, state, _) in results.iter().filter(|(_, state, _)| *state != "unchanged") {
                writeln!(to, "{state} {key}")?;
            }
            let changed = results.iter().filter(|(_, state, _)| *state != "unchanged").count();
            let verb = if self.dry_run { "would be written" } else { "written" };
            writeln!(to, "{changed} of {} values {verb}", results.len())
        })?;
        Ok(Exit::OK)
    }
}

fn is_same(found: &Entry, value: &RawValue) -> bool {
    let new = serde_json::from_str::<Value>(value.get());
    new.is_ok_and(|new| found.decode::<Value>().is_ok_and(|old| old == new))
}

/// Collects the values of all files `*.json` below a folder; others are left alone, and so is what is hidden.
fn read_folder(
    folder: &Path,
    below: &str,
    values: &mut BTreeMap<String, Box<RawValue>>,
) -> Result<(), Failure> {
    let failed = |path: &Path, error: &dyn std::fmt::Display| {
        Failure::usage(format!("can not import `{}`: {error}", path.display()))
    };
    for entry in fs::read_dir(folder).map_err(|error| failed(folder, &error))? {
        let path = entry.map_err(|error| failed(folder, &error))?.path();
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| failed(&path, &"its name is not UTF-8"))?;
        if name.starts_with('.') {
            continue;
        }
        let at = |name: &str| if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if path.is_dir() {
            // No key is deeper, so a link in a circle ends here as well.
            let key = ConfigKey::parse(&at(name)).map_err(|error| failed(&path, &error))?;
            read_folder(&path, key.as_str(), values)?;
        } else if let Some(name) = name.strip_suffix(".json") {
            let key = ConfigKey::parse(&at(name)).map_err(|error| failed(&path, &error))?;
            let text = fs::read_to_string(&path).map_err(|error| failed(&path, &error))?;
            let value = parse(&text).map_err(|failure| failed(&path, &failure))?;
            values.insert(key.as_str().to_owned(), value);
        }
    }
    Ok(())
}

impl Export {
    pub(super) async fn call(self, center: &Arc<dyn ConfigCenter>, out: Out) -> Result<Exit, Failure> {
        let prefix = self.prefix.trim_end_matches('/');
        fs::create_dir_all(&self.dir).map_err(|error| not_exported(&self.dir, &error))?;
        let (mut exported, mut left_out) = (Vec::new(), Vec::new());
        for entry in center.list(prefix).await? {
            // Another program may have written any key and any value: neither leaves the folder.
            match (ConfigKey::parse(entry.key()), entry.decode::<Value>()) {
                (Ok(key), Ok(value)) => {
                    let name = key.as_str().strip_prefix(prefix).unwrap_or(key.as_str());
                    let path = self.dir.join(format!("{}.json", name.trim_start_matches('/')));
                    write_file(&path, &value).map_err(|error| not_exported(&path, &error))?;
                    exported.push(json!({ "key": entry.key(), "version": entry.version(), "file": path }));
                }
                (Err(error), _) | (_, Err(error)) => left_out.push((entry.key().to_owned(), error)),
            }
        }
        for (key, error) in &left_out {
            let json = json!({ "event": "left_out", "key": key, "error": error.to_string() });
            out.note(&json, &format!("`{}` is left out: {error}", shown(key)));
        }
        let count = exported.len();
        let dir = self.dir.display();
        out.result(&exported.into(), |to| writeln!(to, "{count} values are in {dir}"))?;
        Ok(if left_out.is_empty() { Exit::OK } else { Exit::FAILED })
    }
}

fn not_exported(path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("can not export to `{}`: {error}", path.display()))
}

/// Pretty, so that version control shows what has changed.
fn write_file(path: &Path, value: &Value) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let mut file = fs::File::create(path)?;
    writeln!(file, "{value:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_keys_and_bad_ones_are_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("common/.git")).unwrap();
        fs::write(folder.path().join("limits.json"), "10\n").unwrap();
        fs::write(folder.path().join("common/mq.json"), r#"{"retries": 3}"#).unwrap();
        fs::write(folder.path().join("common/.git/x.json"), "no JSON").unwrap();
        fs::write(folder.path().join("README.md"), "no value").unwrap();
        let mut values = BTreeMap::new();
        read_folder(folder.path(), "", &mut values).unwrap();
        assert_eq!(values.keys().collect::<Vec<_>>(), ["common/mq", "limits"]);

        let mut below = BTreeMap::new();
        read_folder(folder.path(), "shop/eu", &mut below).unwrap();
        assert_eq!(below.keys().collect::<Vec<_>>(), ["shop/eu/common/mq", "shop/eu/limits"]);

        for (name, content, reason) in [("bad.json", "{", "not JSON"), ("a%.json", "1", "`%`")] {
            let path = folder.path().join(name);
            fs::write(&path, content).unwrap();
            let failure = read_folder(folder.path(), "", &mut BTreeMap::new()).expect_err(name);
            assert!(failure.message.contains(name) && failure.message.contains(reason), "{failure}");
            fs::remove_file(path).unwrap();
        }
    }
}
