//! `coord config export`: values as files, which have a line for each value so that version control shows what has changed.

use std::{collections::BTreeSet, fs, path::PathBuf, sync::Arc};

use clap::Args;
use coord_api::{ConfigCenter, ConfigExt, ConfigKey, Entry};
use serde_json::json;

use super::folder;
use crate::{
    exit::{Exit, Failure},
    json::{indented, text_of},
    out::{Out, shown},
};

#[derive(Args, Debug)]
pub(super) struct Export {
    /// The folder; created if it does not exist, files of the same names are replaced
    dir: PathBuf,
    /// Only the keys below this path; the files are named without it
    #[arg(long, default_value = "", value_name = "PATH")]
    prefix: String,
}

impl Export {
    /// Writes all values. A value that can not be a file is left out and told.
    pub(super) async fn call(self, center: &Arc<dyn ConfigCenter>, out: Out) -> Result<Exit, Failure> {
        let prefix = self.prefix.trim_end_matches('/');
        fs::create_dir_all(&self.dir).map_err(|error| {
            Failure::failed(format!("can not export to `{}`: {error}", self.dir.display()))
        })?;
        let entries = center.list(prefix).await?;
        let keys: BTreeSet<&str> = entries.iter().map(Entry::key).collect();
        let (mut exported, mut left_out) = (Vec::new(), 0);
        for entry in &entries {
            match self.write(entry, prefix, &keys) {
                Ok(path) => {
                    exported.push(json!({ "key": entry.key(), "version": entry.version(), "file": path }));
                }
                Err(reason) => {
                    left_out += 1;
                    let json = json!({ "event": "left_out", "key": entry.key(), "error": reason });
                    out.note(&json, &format!("`{}` is left out: {reason}", shown(entry.key())));
                }
            }
        }
        let count = exported.len();
        let dir = self.dir.display();
        out.result(&exported, |to| writeln!(to, "{count} values are in {dir}"))?;
        Ok(if left_out == 0 { Exit::OK } else { Exit::FAILED })
    }

    fn write(&self, entry: &Entry, prefix: &str, keys: &BTreeSet<&str>) -> Result<PathBuf, String> {
        // Another program may have written any key and any value: neither leaves the folder.
        let key = ConfigKey::parse(entry.key()).map_err(|error| error.to_string())?;
        let text = text_of(entry.as_bytes()).ok_or("the value is not JSON")?;
        if let Some(file) = file_in_the_way(key.as_str(), keys) {
            return Err(format!("its folder has the name of the file of `{file}`"));
        }
        let name = key.as_str().strip_prefix(prefix).unwrap_or(key.as_str()).trim_start_matches('/');
        folder::write(&self.dir, name, &indented(text)).map_err(|error| error.to_string())
    }
}

/// Returns the key whose file has the name of a folder that `key` needs, as of `a` and `a.json/b`.
fn file_in_the_way<'a>(key: &str, keys: &BTreeSet<&'a str>) -> Option<&'a str> {
    let folders = key.match_indices('/').map(|(end, _)| &key[..end]);
    folders.filter_map(|folder| folder.strip_suffix(".json")).find_map(|file| keys.get(file)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_whose_folder_is_the_file_of_another_is_found() {
        let keys = BTreeSet::from(["a", "a.json/b", "c/d", "c/d.json/e/f"]);
        assert_eq!(file_in_the_way("a.json/b", &keys), Some("a"));
        assert_eq!(file_in_the_way("c/d.json/e/f", &keys), Some("c/d"));
        assert_eq!(file_in_the_way("c/d", &keys), None);
        assert_eq!(file_in_the_way("b.json/b", &keys), None);
    }
}
