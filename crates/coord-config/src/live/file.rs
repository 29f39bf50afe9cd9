//! The snapshot file: what is in use now, for a start without the store.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
};

use coord_api::{Entry, Error, Result, Version};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::current::count;

/// A file whose folder exists.
#[derive(Clone, Debug)]
pub(super) struct File(PathBuf);

#[derive(Serialize, Deserialize)]
struct Saved {
    entries: Vec<SavedEntry>,
}

#[derive(Serialize, Deserialize)]
struct SavedEntry {
    key: String,
    version: Version,
    value: Box<RawValue>,
}

impl File {
    pub(super) fn new(path: PathBuf) -> Result<Self> {
        let refuse =
            |reason: &str| Err(Error::invalid("snapshot_file", format!("{} {reason}", path.display())));
        if path.file_name().is_none() || path.is_dir() {
            return refuse("is no file");
        }
        if !folder(&path).is_dir() {
            return refuse("is in a folder that does not exist");
        }
        Ok(Self(path))
    }

    /// What was saved last; `None` if there is nothing that can be read.
    pub(super) async fn load(&self) -> Option<Vec<Entry>> {
        let path = self.0.clone();
        let read = tokio::task::spawn_blocking(move || {
            let saved: Saved = serde_json::from_slice(&fs::read(path)?)?;
            io::Result::Ok(saved)
        });
        match read.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(saved) => {
                let entry = |e: SavedEntry| Entry::new(e.key, e.version, e.value.get().to_owned());
                Some(saved.entries.into_iter().map(entry).collect())
            }
            Err(error) => {
                let file = self.0.display();
                tracing::warn!(kind = ?error.kind(), %file, "the snapshot file can not be read");
                None
            }
        }
    }

    /// Starts a task that writes what it is given; if more comes while it writes, the latest.
    pub(super) fn keep(self, errors: Arc<AtomicU64>) -> Saver {
        let (saver, mut latest) = watch::channel(Vec::new());
        tokio::spawn(async move {
            while latest.changed().await.is_ok() {
                let (path, entries) = (self.0.clone(), latest.borrow_and_update().clone());
                let written = tokio::task::spawn_blocking(move || write(&path, &entries)).await;
                if let Err(error) = written.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                    tracing::warn!(%error, file = %self.0.display(), "the snapshot file can not be written");
                    count(&errors);
                }
            }
        });
        Saver(saver)
    }
}

/// The way to the task that writes. It ends, after what it was given last, when this is dropped.
pub(super) struct Saver(watch::Sender<Vec<(String, Entry)>>);

impl Saver {
    pub(super) fn save(&self, entries: Vec<(String, Entry)>) {
        self.0.send_replace(entries);
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file beside it and renames that: whoever reads sees the old or the new, whatever happens.
fn write(path: &Path, entries: &[(String, Entry)]) -> io::Result<()> {
    let entries = entries.iter().filter_map(|(key, entry)| {
        // What is not JSON is in no value that is used.
        let text = String::from_utf8(entry.as_bytes().to_vec()).ok()?;
        let value = RawValue::from_string(text).ok()?;
        Some(SavedEntry { key: key.clone(), version: entry.version(), value })
    });
    let json = serde_json::to_vec_pretty(&Saved { entries: entries.collect() })?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:08x}.tmp", fastrand::u32(..)));
    let beside = path.with_file_name(name);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(&json)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    // So that the rename outlives a power cut; not every system can do it.
    let _ = fs::File::open(folder(path)).and_then(|folder| folder.sync_all());
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_of_its_own() -> PathBuf {
        let path = std::env::temp_dir().join(format!("coord-config-{:016x}", fastrand::u64(..)));
        fs::create_dir(&path).expect("can be made");
        path
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_private_and_whole() {
        let folder = folder_of_its_own();
        let file = File::new(folder.join("limits.json")).expect("is good");
        assert!(file.load().await.is_none());
        let entry = |version, json: &str| {
            ("limits".to_owned(), Entry::new("limits", Version::new(version), json.to_owned()))
        };
        write(&file.0, &[entry(7, r#"{"b": 1.0, "a":18446744073709551615}"#)]).expect("is written");
        let found = file.load().await.expect("is there");
        assert_eq!(found, [entry(7, r#"{"b": 1.0, "a":18446744073709551615}"#).1], "to the byte");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&file.0).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        fs::write(&file.0, "{\"entries\": [").expect("is written");
        assert!(file.load().await.is_none(), "half a file is none");
        write(&file.0, &[entry(8, "1")]).expect("is written");
        assert_eq!(fs::read_dir(&folder).expect("is read").count(), 1, "nothing is left beside it");
        fs::remove_dir_all(folder).expect("is removed");
    }

    #[test]
    fn bad_paths_are_refused() {
        for path in ["/", "/no/such/folder/x.json", "."] {
            let refused = File::new(path.into()).expect_err(path).to_string();
            assert!(refused.starts_with("invalid snapshot_file: "), "{refused}");
        }
    }
}
