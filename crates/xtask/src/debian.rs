//! Programs from Debian's packages, unpacked into `target` without installing anything and without root.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::shell;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

const DOWNLOAD: Duration = Duration::from_secs(180);

/// Files that are unpacked together.
struct Bundle {
    /// Its folder in `target`.
    name: &'static str,
    packages: &'static [&'static str],
    /// Where to look, the best first.
    sources: fn() -> Vec<Source>,
    /// Makes a fresh download usable.
    prepare: fn(&Path) -> Result<()>,
    /// Fails when a program does not start.
    check: fn(&Path) -> Result<()>,
}

const ETCD: Bundle = Bundle {
    name: "etcd",
    packages: &["etcd-server", "etcd-client"],
    // Newest first: releases before 3.5.16 or so revoke living leases on a slow disk (etcd#15247).
    sources: || suites().into_iter().chain([Source::Configured]).collect(),
    prepare: |_| Ok(()),
    check: |folder| version(&folder.join("usr/bin/etcd")).map(drop),
};

const STRACE: Bundle = Bundle {
    name: "strace",
    packages: &["strace", "libunwind8"],
    // It is linked with the system's own library, which may be older than a newer suite's programs ask for.
    sources: || [Source::Configured].into_iter().chain(suites().into_iter().rev()).collect(),
    prepare: |folder| {
        let file = folder.join("strace");
        fs::write(&file, STRACE_START)?;
        shell::output(Command::new("chmod").arg("+x").arg(&file), Duration::from_secs(10)).map(drop)
    },
    check: |folder| {
        shell::output(Command::new(folder.join("strace")).arg("--version"), Duration::from_secs(10)).map(drop)
    },
};

/// Starts the program with the library that came along.
const STRACE_START: &str = r#"#!/bin/sh
here=$(cd "$(dirname "$0")" && pwd)
LD_LIBRARY_PATH=$(echo "$here"/usr/lib/*-linux-*) exec "$here/usr/bin/strace" "$@"
"#;

const FAKETIME: Bundle = Bundle {
    name: "libfaketime",
    packages: &["libfaketime"],
    // It gets between programs of this machine and the system's own library.
    sources: || [Source::Configured].into_iter().chain(suites().into_iter().rev()).collect(),
    prepare: |_| Ok(()),
    check: |folder| check_faketime(&faketime_within(&folder.join("usr/lib"))?),
};

/// The programs in `target/etcd`.
pub(crate) struct Unpacked {
    pub(crate) etcd: PathBuf,
    pub(crate) etcdctl: PathBuf,
}

impl Unpacked {
    fn within(folder: &Path) -> Self {
        Self { etcd: folder.join("usr/bin/etcd"), etcdctl: folder.join("usr/bin/etcdctl") }
    }
}

/// Returns the files of an earlier run, if they still start.
pub(crate) fn unpacked() -> Option<Unpacked> {
    ETCD.present().map(|folder| Unpacked::within(&folder))
}

/// Returns the files of an earlier run, or a fresh download.
pub(crate) fn unpack() -> Result<Unpacked> {
    ETCD.obtain().map(|folder| Unpacked::within(&folder))
}

/// An strace that an earlier run left, or a fresh download.
pub(crate) fn strace() -> Result<PathBuf> {
    STRACE.obtain().map(|folder| folder.join("strace"))
}

/// A libfaketime that the system has, that an earlier run left, or a fresh download.
pub(crate) fn faketime() -> Result<PathBuf> {
    if let Ok(installed) = faketime_within(Path::new("/usr/lib")) {
        return Ok(installed);
    }
    FAKETIME.obtain().and_then(|folder| faketime_within(&folder.join("usr/lib")))
}

/// The library is in a folder that is named after the machine's kind.
fn faketime_within(folder: &Path) -> Result<PathBuf> {
    let kinds = fs::read_dir(folder).with_context(|| format!("no `{}`", folder.display()))?;
    let library = |kind: fs::DirEntry| kind.path().join("faketime/libfaketimeMT.so.1");
    let mut libraries = kinds.filter_map(Result::ok).map(library);
    libraries.find(|file| file.is_file()).with_context(|| format!("no libfaketime in `{}`", folder.display()))
}

/// A library that can not be loaded is only warned about, so this looks at what it does.
fn check_faketime(library: &Path) -> Result<()> {
    let mut date = Command::new("date");
    date.args(["-u", "+%Y"]).env("LD_PRELOAD", library).env("FAKETIME", "@2001-02-03 04:05:06");
    let year = shell::output(&mut date, Duration::from_secs(10))?;
    if year.trim() != "2001" {
        bail!("`{}` does not move the clock: it is {}", library.display(), year.trim());
    }
    Ok(())
}

impl Bundle {
    fn folder(&self) -> PathBuf {
        shell::root().join("target").join(self.name)
    }

    fn present(&self) -> Option<PathBuf> {
        let folder = self.folder().canonicalize().ok()?;
        (self.check)(&folder).ok().map(|()| folder)
    }

    fn obtain(&self) -> Result<PathBuf> {
        if let Some(found) = self.present() {
            return Ok(found);
        }
        for tool in ["apt-get", "dpkg-deb"] {
            if shell::on_path(tool).is_none() {
                bail!("Debian's {} needs `{tool}`, which is not here", self.name);
            }
        }
        let mut failure = None;
        for source in (self.sources)() {
            // Renamed when complete, so that two runs at once or an interrupted one leave nothing half done.
            let work = self.folder().with_extension(std::process::id().to_string());
            let result = self.download(&source, &work).and_then(|()| self.keep(&work));
            let _ = fs::remove_dir_all(&work);
            match result {
                Ok(found) => return Ok(found),
                Err(error) => {
                    eprintln!("{} from {source}: {error:#}", self.name);
                    failure = Some(error);
                }
            }
        }
        let failure = failure.expect("the machine's own sources are always tried");
        Err(failure).with_context(|| format!("no Debian suite gave a usable {}", self.name))
    }

    fn download(&self, source: &Source, work: &Path) -> Result<()> {
        eprintln!("unpacking {0} of {source} into target/{0} (nothing is installed)", self.name);
        let apt = work.join("apt");
        fs::create_dir_all(apt.join("lists/partial"))?;
        fs::create_dir_all(apt.join("cache/archives/partial"))?;
        let config = apt.join("apt.conf");
        fs::write(&config, apt_config(source, &apt)?)?;

        let apt_get = |args: &[&str]| {
            let mut command = Command::new("apt-get");
            shell::output(
                command.arg("-qq").args(args).env("APT_CONFIG", &config).current_dir(&apt),
                DOWNLOAD,
            )
        };
        apt_get(&["update"])?;
        apt_get(&[&["download"], self.packages].concat())?;
        for entry in fs::read_dir(&apt)? {
            let file = entry?.path();
            if file.extension().is_some_and(|extension| extension == "deb") {
                shell::output(Command::new("dpkg-deb").arg("-x").args([&file, work]), DOWNLOAD)?;
            }
        }
        (self.prepare)(work)
    }

    fn keep(&self, work: &Path) -> Result<PathBuf> {
        (self.check)(work).with_context(|| format!("the unpacked {} does not start here", self.name))?;
        fs::remove_dir_all(work.join("apt"))?;
        let folder = self.folder();
        if self.present().is_none() {
            let _ = fs::remove_dir_all(&folder);
            // Another run may have been faster; then its folder is as good.
            let _ = fs::rename(work, &folder);
        }
        self.present().with_context(|| {
            format!("cannot keep {} in `{}`; remove that folder", self.name, folder.display())
        })
    }
}

/// The version that an `etcd` program reports, such as `3.5.30`.
pub(crate) fn version(etcd: &Path) -> Result<String> {
    let text = shell::output(Command::new(etcd).arg("--version"), Duration::from_secs(10))?;
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("etcd Version: ").map(str::to_owned).context("`etcd --version` names no version")
}

/// Where apt looks: one suite of a mirror, or whatever this machine has configured.
enum Source {
    Suite { mirror: String, suite: &'static str },
    Configured,
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Suite { suite, .. } => write!(f, "Debian {suite}"),
            Self::Configured => f.write_str("this machine's own apt sources"),
        }
    }
}

/// Debian's newest suites, on a machine that knows Debian's keys and a mirror.
fn suites() -> Vec<Source> {
    let mirror = mirror().filter(|_| Path::new(KEYRING).exists());
    let newest = ["sid", "trixie"];
    mirror
        .into_iter()
        .flat_map(|mirror| newest.map(|suite| Source::Suite { mirror: mirror.clone(), suite }))
        .collect()
}

/// The mirror that apt uses here, so that a machine behind a proxy or a local mirror stays on it.
fn mirror() -> Option<String> {
    let files = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    let text: String = files.iter().filter_map(|file| fs::read_to_string(file).ok()).collect();
    text.lines()
        .filter(|line| line.starts_with("URIs:") || line.starts_with("deb "))
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("http")))
        .find(|uri| !uri.contains("security"))
        .map(str::to_owned)
}

fn apt_config(source: &Source, apt: &Path) -> Result<String> {
    let folder = apt.display();
    let mut config = format!(
        "Dir::State::lists \"{folder}/lists\";\n\
         Dir::Cache \"{folder}/cache\";\n\
         Acquire::Retries \"2\";\n\
         Acquire::http::Timeout \"20\";\n\
         APT::Sandbox::User \"root\";\n"
    );
    if let Source::Suite { mirror, suite } = source {
        let list = apt.join("sources.list");
        fs::write(&list, format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n"))?;
        writeln!(config, "Dir::Etc::sourcelist \"{}\";\nDir::Etc::sourceparts \"-\";", list.display())?;
    }
    Ok(config)
}
