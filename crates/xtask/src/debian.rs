//! Debian's etcd, unpacked into `target/etcd` without installing anything and without root.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::shell;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Newest first: releases before 3.5.16 or so revoke living leases on a slow disk (etcd#15247).
const SUITES: [&str; 2] = ["sid", "trixie"];

const DOWNLOAD: Duration = Duration::from_secs(180);

/// The programs in `target/etcd`.
pub(crate) struct Unpacked {
    pub(crate) etcd: PathBuf,
    pub(crate) etcdctl: PathBuf,
}

/// What an earlier run left, if it still starts.
pub(crate) fn unpacked() -> Option<Unpacked> {
    in_folder(&folder())
}

/// What an earlier run left, or a fresh download.
pub(crate) fn unpack() -> Result<Unpacked> {
    if let Some(found) = unpacked() {
        return Ok(found);
    }
    for tool in ["apt-get", "dpkg-deb"] {
        if shell::on_path(tool).is_none() {
            bail!("Debian's etcd needs `{tool}`, which is not here");
        }
    }
    let mut failure = None;
    for source in sources() {
        // Renamed when complete, so that two runs at once or an interrupted one leave nothing half done.
        let work = folder().with_extension(std::process::id().to_string());
        let result = download(&source, &work).and_then(|()| keep(&work));
        let _ = fs::remove_dir_all(&work);
        match result {
            Ok(found) => return Ok(found),
            Err(error) => {
                eprintln!("etcd from {source}: {error:#}");
                failure = Some(error);
            }
        }
    }
    Err(failure.expect("the machine's own sources are always tried")).context("no Debian suite gave an etcd")
}

/// The version that an `etcd` program reports, such as `3.5.30`.
pub(crate) fn version(etcd: &Path) -> Result<String> {
    let text = shell::output(Command::new(etcd).arg("--version"), Duration::from_secs(10))?;
    let first = text.lines().next().unwrap_or_default();
    first.strip_prefix("etcd Version: ").map(str::to_owned).context("`etcd --version` names no version")
}

fn folder() -> PathBuf {
    shell::root().join("target/etcd")
}

fn in_folder(folder: &Path) -> Option<Unpacked> {
    let etcd = folder.join("usr/bin/etcd").canonicalize().ok()?;
    let etcdctl = folder.join("usr/bin/etcdctl").canonicalize().ok()?;
    version(&etcd).ok().map(|_| Unpacked { etcd, etcdctl })
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

fn sources() -> Vec<Source> {
    let mirror = mirror().filter(|_| Path::new(KEYRING).exists());
    let suites = mirror
        .into_iter()
        .flat_map(|mirror| SUITES.map(move |suite| Source::Suite { mirror: mirror.clone(), suite }));
    suites.chain([Source::Configured]).collect()
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

fn download(source: &Source, work: &Path) -> Result<()> {
    eprintln!("unpacking etcd of {source} into target/etcd (nothing is installed)");
    let apt = work.join("apt");
    fs::create_dir_all(apt.join("lists/partial"))?;
    fs::create_dir_all(apt.join("cache/archives/partial"))?;
    let config = apt.join("apt.conf");
    fs::write(&config, apt_config(source, &apt)?)?;

    let apt_get = |args: &[&str]| {
        let mut command = Command::new("apt-get");
        shell::output(command.arg("-qq").args(args).env("APT_CONFIG", &config).current_dir(&apt), DOWNLOAD)
    };
    apt_get(&["update"])?;
    apt_get(&["download", "etcd-server", "etcd-client"])?;
    for entry in fs::read_dir(&apt)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            shell::output(Command::new("dpkg-deb").arg("-x").args([&file, work]), DOWNLOAD)?;
        }
    }
    Ok(())
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

fn keep(work: &Path) -> Result<Unpacked> {
    in_folder(work).context("the unpacked etcd does not start on this machine")?;
    fs::remove_dir_all(work.join("apt"))?;
    let folder = folder();
    if unpacked().is_none() {
        let _ = fs::remove_dir_all(&folder);
        // Another run may have been faster; then its folder is as good.
        let _ = fs::rename(work, &folder);
    }
    unpacked().with_context(|| format!("cannot keep etcd in `{}`; remove that folder", folder.display()))
}
