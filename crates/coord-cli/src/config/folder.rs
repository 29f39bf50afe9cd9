//! A folder of values, for version control: the value of `common/mq` is `common/mq.json` below it.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use coord_api::ConfigKey;
use serde_json::value::RawValue;

use crate::json;

/// The largest file that is read: more than any value, also with a line for each number in it.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// A value that was read, and where.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) path: PathBuf,
    pub(super) value: Box<RawValue>,
}

/// All that a folder has.
#[derive(Debug, Default)]
pub(super) struct Folder {
    /// By key.
    pub(super) values: BTreeMap<String, Found>,
    /// A line for each file that can not be used, which names it.
    pub(super) bad: Vec<String>,
    /// The folders that are being read, to see a link that leads back.
    open: HashSet<PathBuf>,
}

impl Folder {
    /// Reads all files `*.json`, whose keys begin with `prefix`. Others are left alone, and so are names that begin with a
    /// dot.
    pub(super) fn read(folder: &Path, prefix: &str) -> Self {
        let mut all = Self::default();
        all.add(folder, prefix);
        all
    }

    fn add(&mut self, folder: &Path, below: &str) {
        let real = match folder.canonicalize() {
            Ok(real) => real,
            Err(error) => return self.refuse(folder, &error),
        };
        // A link in a circle has nothing that is not read already.
        if !self.open.insert(real.clone()) {
            return;
        }
        match fs::read_dir(folder) {
            Ok(entries) => {
                for entry in entries {
                    match entry {
                        Ok(entry) => self.add_entry(&entry.path(), below),
                        Err(error) => self.refuse(folder, &error),
                    }
                }
            }
            Err(error) => self.refuse(folder, &error),
        }
        self.open.remove(&real);
    }

    fn add_entry(&mut self, path: &Path, below: &str) {
        let name = path.file_name().unwrap_or_default();
        if name.as_encoded_bytes().starts_with(b".") {
            return;
        }
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        // Also where it can not be decoded: then no file below it can have a key.
        let at = |name: &str| if below.is_empty() { name.to_owned() } else { format!("{below}/{name}") };
        if path.is_dir() {
            self.add(path, &at(&name.to_string_lossy()));
        } else if is_json {
            let key = name.to_str().and_then(|name| name.strip_suffix(".json"));
            let Some(key) = key else { return self.refuse(path, &"its name is not UTF-8") };
            match ConfigKey::parse(&at(key)) {
                Ok(key) => match read_value(path) {
                    Ok(value) => {
                        let found = Found { path: path.to_owned(), value };
                        self.values.insert(key.as_str().to_owned(), found);
                    }
                    Err(reason) => self.refuse(path, &reason),
                },
                Err(error) => self.refuse(path, &error),
            }
        }
    }

    fn refuse(&mut self, path: &Path, reason: &dyn std::fmt::Display) {
        self.bad.push(format!("`{}`: {reason}", path.display()));
    }
}

fn read_value(path: &Path) -> Result<Box<RawValue>, String> {
    let told = |error: io::Error| error.to_string();
    // A pipe would be waited for.
    if !fs::metadata(path).map_err(told)?.is_file() {
        return Err("it is no file".into());
    }
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(told)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(told)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(format!("it has more than {MAX_FILE_BYTES} bytes"));
    }
    let text = String::from_utf8(bytes).map_err(|_| "it is not UTF-8")?;
    json::parse(&text).map_err(|failure| failure.message)
}

/// Writes a file below a folder, or none. Nothing is written through a link, and a reader sees the old text or the new one.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> io::Result<PathBuf> {
    let mut place = folder.to_owned();
    let mut parts = name.split('/').peekable();
    while let Some(part) = parts.next() {
        let last = parts.peek().is_none();
        place.push(if last { format!("{part}.json") } else { part.to_owned() });
        match fs::symlink_metadata(&place) {
            Ok(there) if there.is_symlink() => return Err(refused(&place, "is a link")),
            Ok(there) if last && !there.is_file() => return Err(refused(&place, "is no file")),
            Ok(there) if !last && !there.is_dir() => return Err(refused(&place, "is no folder")),
            Ok(_) => {}
            Err(_) if last => {}
            Err(_) => fs::create_dir(&place)?,
        }
    }
    let parent = place.parent().expect("is below the folder");
    let mut file = tempfile::Builder::new();
    file.prefix(".coord-export-");
    #[cfg(unix)]
    file.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut file = file.tempfile_in(parent)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    // A link that was put there meanwhile is replaced, and what is behind it stays.
    file.persist(&place).map_err(|error| error.error)?;
    Ok(place)
}

fn refused(place: &Path, reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::AlreadyExists, format!("`{}` {reason}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(folder: &Folder) -> Vec<&str> {
        folder.values.keys().map(String::as_str).collect()
    }

    #[test]
    fn files_become_keys_and_bad_ones_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("common/.git")).unwrap();
        fs::create_dir_all(at("not a key % at all/deep")).unwrap();
        fs::write(at("limits.json"), "\u{feff}10\n").unwrap();
        fs::write(at("common/mq.json"), r#"{"retries": 3}"#).unwrap();
        fs::write(at("common/.git/x.json"), "no JSON").unwrap();
        fs::write(at("not a key % at all/README.md"), "no value").unwrap();
        let read = Folder::read(folder.path(), "");
        assert_eq!((keys(&read), read.bad.len()), (vec!["common/mq", "limits"], 0));
        assert_eq!(keys(&Folder::read(folder.path(), "shop/eu")), ["shop/eu/common/mq", "shop/eu/limits"]);

        fs::write(at("bad.json"), "{").unwrap();
        fs::write(at("a%.json"), "1").unwrap();
        fs::create_dir(at("gone")).unwrap();
        std::os::unix::fs::symlink(at("nowhere"), at("gone/link.json")).unwrap();
        let mut bad = Folder::read(folder.path(), "").bad;
        bad.sort();
        assert_eq!(bad.len(), 3, "{bad:?}");
        for (line, words) in
            bad.iter().zip([["a%.json", "`%`"], ["bad.json", "not JSON"], ["link.json", "No such"]])
        {
            assert!(words.iter().all(|word| line.contains(word)), "{line}");
        }
    }

    #[test]
    fn link_in_a_circle_makes_no_copies() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        fs::write(folder.path().join("a/x.json"), "1").unwrap();
        std::os::unix::fs::symlink(folder.path(), folder.path().join("a/b/top")).unwrap();
        std::os::unix::fs::symlink("..", folder.path().join("a/b/up")).unwrap();
        let read = Folder::read(folder.path(), "");
        assert_eq!((keys(&read), read.bad.len()), (vec!["a/x"], 0));
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        fs::write(&secret, "kept").unwrap();
        std::os::unix::fs::symlink(&secret, folder.path().join("a.json")).unwrap();
        std::os::unix::fs::symlink(outside.path(), folder.path().join("below")).unwrap();
        for name in ["a", "below/x"] {
            let error = write(folder.path(), name, "1").expect_err(name);
            assert!(error.to_string().contains("is a link"), "{error}");
        }
        assert_eq!(fs::read_to_string(&secret).unwrap(), "kept");
        assert_eq!(outside.path().read_dir().unwrap().count(), 1);
        let written = write(folder.path(), "c/d", "1").unwrap();
        assert_eq!(fs::read_to_string(written).unwrap(), "1\n");
        assert!(write(folder.path(), "c.json/d", "1").is_ok() && write(folder.path(), "c", "1").is_err());
    }
}
