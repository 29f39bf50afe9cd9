//! The snapshot file: what is in use now, for a start without the store.
//!
//! It says whose it is: the store and namespace, the key, and the instance that a gray value was for. A file of another is
//! not used. Within a process a file belongs to one live value at a time. The one that had it before may still have
//! something to write, until the next has it.

use std::{
    collections::HashMap,
    ffi::OsString,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, Weak, atomic::AtomicU64},
};

use coord_api::{Entry, Error, Home, Result, Version, backend::lock};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::current::count;
use crate::Instance;

/// The form of the file. Files of the first form did not say whose they were, and are not used.
const FORM: u32 = 2;

/// How often a file is written anew whose beginning another process has taken for that of a process that was killed.
const TRIES: usize = 3;

/// State that was last in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// Whether the key was deleted: then the entries are those of the value that is kept, if it is.
    pub(super) deleted: bool,
    /// Entries that the value was made of; none for the default.
    pub(super) entries: Vec<Part>,
}

/// Entry that a value was made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Whether it is the gray value of the key.
    pub(super) gray: bool,
    pub(super) entry: Entry,
}

/// For whom a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Audience {
    pub(super) home: Option<Home>,
    pub(super) key: String,
    pub(super) instance: Option<Instance>,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    form: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    home: Option<Home>,
    key: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<Instance>,
    deleted: bool,
    entries: Vec<SavedEntry>,
}

#[derive(Serialize, Deserialize)]
struct SavedEntry {
    key: String,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    gray: bool,
    version: Version,
    value: Box<RawValue>,
}

/// The files that live values of this process have.
static FILES: LazyLock<Mutex<HashMap<PathBuf, Weak<Mutex<Owner>>>>> = LazyLock::new(Mutex::default);

/// The live value that a file belongs to. Locked while the file is written.
#[derive(Debug, Default)]
struct Owner {
    number: u64,
    /// Whether it still has the file; if not, it may end what it has begun.
    is_there: bool,
}

/// A file whose folder exists, and which no other live value of this process has.
#[derive(Clone, Debug)]
pub(super) struct File {
    path: PathBuf,
    owner: Arc<Mutex<Owner>>,
    number: u64,
}

/// Gives the file free when it is dropped.
#[derive(Debug)]
pub(super) struct Claim(File);

impl Drop for Claim {
    fn drop(&mut self) {
        let mut owner = lock(&self.0.owner);
        if owner.number == self.0.number {
            owner.is_there = false;
        }
    }
}

impl File {
    /// Takes the file, and removes what processes that were killed have left beside it.
    pub(super) async fn open(path: PathBuf) -> Result<Claim> {
        let refuse = |reason: &str| Error::invalid("snapshot_file", format!("{} {reason}", path.display()));
        let Some(name) = path.file_name().filter(|_| !path.is_dir()).map(ToOwned::to_owned) else {
            return Err(refuse("is no file"));
        };
        let Ok(folder) = folder(&path).canonicalize() else {
            return Err(refuse("is in a folder that does not exist"));
        };
        if !folder.is_dir() {
            return Err(refuse("is in a folder that does not exist"));
        }
        let path = folder.join(name);
        let opened = tokio::task::spawn_blocking(move || Self::take(path));
        match opened.await {
            Ok(Some(claim)) => Ok(claim),
            Ok(None) => Err(refuse("is the file of another live value of this process")),
            Err(error) => Err(refuse(&format!("can not be used: {error}"))),
        }
    }

    fn take(path: PathBuf) -> Option<Claim> {
        let owner = {
            let mut files = lock(&FILES);
            files.retain(|_, owner| owner.strong_count() > 0);
            let found = files.get(&path).and_then(Weak::upgrade);
            found.unwrap_or_else(|| {
                let owner = Arc::default();
                files.insert(path.clone(), Arc::downgrade(&owner));
                owner
            })
        };
        let mut claimed = lock(&owner);
        if claimed.is_there {
            return None;
        }
        *claimed = Owner { number: claimed.number + 1, is_there: true };
        let number = claimed.number;
        remove_leftovers(&path);
        drop(claimed);
        Some(Claim(Self { path, owner, number }))
    }
}

impl Claim {
    /// Returns the state that was last saved for this audience; `None` if there is nothing that can be used.
    pub(super) async fn load(&self, audience: Audience) -> Option<State> {
        let path = self.0.path.clone();
        let read = tokio::task::spawn_blocking(move || {
            let saved: Saved = serde_json::from_slice(&fs::read(path)?)?;
            io::Result::Ok(saved)
        });
        let file = self.0.path.display();
        match read.await.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
            Ok(saved) => {
                let state = saved.for_audience(&audience);
                if state.is_none() {
                    tracing::warn!(%file, key = audience.key, "the snapshot file is that of another store or key");
                }
                state
            }
            Err(error) => {
                tracing::warn!(kind = ?error.kind(), %file, "the snapshot file can not be read");
                None
            }
        }
    }

    /// Starts a task that writes what it is given; if more comes while it writes, the latest.
    pub(super) fn keep(&self, errors: Arc<AtomicU64>) -> Saver {
        let (saver, mut latest) = watch::channel(None);
        let file = self.0.clone();
        tokio::spawn(async move {
            while latest.changed().await.is_ok() {
                let Some((audience, state)) = latest.borrow_and_update().clone() else { continue };
                let file = file.clone();
                let path = file.path.clone();
                let written = tokio::task::spawn_blocking(move || file.write(audience, &state)).await;
                if let Err(error) = written.unwrap_or_else(|panic| Err(io::Error::other(panic))) {
                    tracing::warn!(%error, file = %path.display(), "the snapshot file can not be written");
                    count(&errors);
                }
            }
        });
        Saver(saver)
    }
}

impl Saved {
    fn new(audience: Audience, state: &State) -> Self {
        let Audience { home, key, instance } = audience;
        let entries = state.entries.iter().filter_map(|Part { gray, entry }| {
            // Text that is not JSON is in no value that is used.
            let text = String::from_utf8(entry.as_bytes().to_vec()).ok()?;
            let value = RawValue::from_string(text).ok()?;
            Some(SavedEntry { key: entry.key().to_owned(), gray: *gray, version: entry.version(), value })
        });
        Self { form: FORM, home, key, instance, deleted: state.deleted, entries: entries.collect() }
    }

    /// Returns the part that counts for this audience.
    fn for_audience(self, audience: &Audience) -> Option<State> {
        let is_at_home = match (&self.home, &audience.home) {
            (Some(home), Some(own)) => home.is_same(own),
            // A config center that can not tell.
            (home, own) => home.is_none() && own.is_none(),
        };
        if self.form != FORM || self.key != audience.key || !is_at_home {
            return None;
        }
        let is_for_this_instance = self.instance == audience.instance;
        let entries = self.entries.into_iter().filter(|saved| !saved.gray || is_for_this_instance);
        let entries = entries.map(|saved| Part {
            gray: saved.gray,
            entry: Entry::new(saved.key, saved.version, saved.value.get().to_owned()),
        });
        Some(State { deleted: self.deleted, entries: entries.collect() })
    }
}

/// The way to the task that writes. It ends, after what it was given last, when this is dropped.
pub(super) struct Saver(watch::Sender<Option<(Audience, State)>>);

impl Saver {
    pub(super) fn save(&self, audience: Audience, state: State) {
        self.0.send_replace(Some((audience, state)));
    }
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name of a file that is being written.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:08x}.tmp", fastrand::u32(..)));
    path.with_file_name(name)
}

/// Removes files that were being written when their process was killed.
fn remove_leftovers(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let is_leftover = |found: &OsString| {
        let rest = found.as_encoded_bytes().strip_prefix(name.as_encoded_bytes());
        let number = rest.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(b".tmp"));
        number.is_some_and(|number| number.len() == 8 && number.iter().all(u8::is_ascii_hexdigit))
    };
    let Ok(found) = fs::read_dir(folder(path)) else { return };
    for file in found.flatten().filter(|file| is_leftover(&file.file_name())) {
        if let Err(error) = fs::remove_file(file.path()) {
            tracing::warn!(%error, file = %file.path().display(), "what was left of a snapshot file stays");
        }
    }
}

impl File {
    /// Writes the file, unless it belongs to another live value by now.
    fn write(&self, audience: Audience, state: &State) -> io::Result<()> {
        let owner = lock(&self.owner);
        if owner.number != self.number {
            return Ok(());
        }
        let json = serde_json::to_vec_pretty(&Saved::new(audience, state))?;
        let mut written = Ok(());
        for _ in 0..TRIES {
            written = replace(&self.path, &json);
            if !matches!(&written, Err(error) if error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        written
    }
}

/// Writes a file beside it and renames that: whoever reads sees the old or the new, whatever happens.
fn replace(path: &Path, json: &[u8]) -> io::Result<()> {
    let beside = beside(path);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&beside).and_then(|mut file| {
        file.write_all(json)?;
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

    fn audience() -> Audience {
        let home = Home::new("/shop/config/", ["etcd-1:2379".to_owned()]);
        Audience { home: Some(home), key: "limits".into(), instance: None }
    }

    fn part(gray: bool, version: u64, json: &str) -> Part {
        Part { gray, entry: Entry::new("limits", Version::new(version), json.to_owned()) }
    }

    fn state(version: u64, json: &str) -> State {
        State { deleted: false, entries: vec![part(false, version, json)] }
    }

    #[tokio::test]
    async fn what_is_written_is_read_and_private_and_whole() {
        let folder = folder_of_its_own();
        let claim = File::open(folder.join("limits.json")).await.expect("is good");
        assert!(claim.load(audience()).await.is_none());
        let first = state(7, r#"{"b": 1.0, "a":18446744073709551615}"#);
        claim.0.write(audience(), &first).expect("is written");
        assert_eq!(claim.load(audience()).await, Some(first), "to the byte");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = fs::metadata(&claim.0.path).expect("is there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
        for useless in ["{\"entries\": [", "{\"entries\": []}"] {
            fs::write(&claim.0.path, useless).expect("is written");
            assert!(claim.load(audience()).await.is_none(), "half a file, and one of the first form");
        }
        let gone = State { deleted: true, entries: vec![] };
        claim.0.write(audience(), &gone).expect("is written");
        assert_eq!(claim.load(audience()).await, Some(gone));
        assert_eq!(fs::read_dir(&folder).expect("is read").count(), 1, "nothing is left beside it");
        fs::remove_dir_all(folder).expect("is removed");
    }

    #[tokio::test]
    async fn a_file_is_used_for_its_own_audience_alone() {
        let folder = folder_of_its_own();
        let claim = File::open(folder.join("limits.json")).await.expect("is good");
        let eu = Instance::new("im-1").with("region", "eu");
        let own = Audience { instance: Some(eu.clone()), ..audience() };
        let both = State { deleted: false, entries: vec![part(false, 7, "1"), part(true, 8, "2")] };
        claim.0.write(own.clone(), &both).expect("is written");
        assert_eq!(claim.load(own.clone()).await, Some(both));
        let home = |namespace, address: &str| Some(Home::new(namespace, [address.to_owned()]));
        let others = [
            Audience { key: "other".into(), ..own.clone() },
            Audience { home: home("/shop/config/", "staging:2379"), ..own.clone() },
            Audience { home: home("/forum/config/", "etcd-1:2379"), ..own.clone() },
            Audience { home: None, ..own.clone() },
        ];
        for other in others {
            assert_eq!(claim.load(other.clone()).await, None, "{other:?}");
        }
        for instance in [None, Some(Instance::new("im-2")), Some(eu.with("region", "us"))] {
            let other = Audience { instance, ..own.clone() };
            assert_eq!(claim.load(other.clone()).await, Some(state(7, "1")), "{other:?}");
        }
        fs::remove_dir_all(folder).expect("is removed");
    }

    #[tokio::test]
    async fn a_file_belongs_to_one_live_value_at_a_time() {
        let folder = folder_of_its_own();
        let path = folder.join("limits.json");
        let first = File::open(path.clone()).await.expect("is free");
        for same in
            [path.clone(), folder.join("../").join(folder.file_name().expect("has one")).join("limits.json")]
        {
            let refused = File::open(same).await.expect_err("is taken").to_string();
            assert!(refused.contains("another live value"), "{refused}");
        }
        File::open(folder.join("other.json")).await.expect("is another one");
        let late = first.0.clone();
        drop(first);
        late.write(audience(), &state(1, "1")).expect("ends what it has begun");
        let second = File::open(path).await.expect("is free again");
        late.write(audience(), &state(2, "2")).expect("is answered");
        assert_eq!(second.load(audience()).await, Some(state(1, "1")), "the file is not its own any more");
        fs::remove_dir_all(folder).expect("is removed");
    }

    #[tokio::test]
    async fn files_of_killed_processes_are_removed_and_no_others() {
        let folder = folder_of_its_own();
        let mine = ["limits.json.0123abcd.tmp", "limits.json.ffffffff.tmp"];
        let others =
            ["limits.json", "limits.json.bak.tmp", "limits.json.0123abc.tmp", "other.json.0123abcd.tmp"];
        for name in mine.iter().chain(&others) {
            fs::write(folder.join(name), "x").expect("is written");
        }
        let _claim = File::open(folder.join("limits.json")).await.expect("is good");
        let left = fs::read_dir(&folder).expect("is read").map(|file| file.expect("is there").file_name());
        let mut left: Vec<_> = left.map(|name| name.into_string().expect("is text")).collect();
        left.sort_unstable();
        let mut expected = others.to_vec();
        expected.sort_unstable();
        assert_eq!(left, expected);
        fs::remove_dir_all(folder).expect("is removed");
    }

    #[tokio::test]
    async fn bad_paths_are_refused() {
        for path in ["/", "/no/such/folder/x.json", "."] {
            let refused = File::open(path.into()).await.expect_err(path).to_string();
            assert!(refused.starts_with("invalid snapshot_file: "), "{refused}");
        }
    }
}
