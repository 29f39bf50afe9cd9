//! The container image that the tests start: the official one, or one built here from Debian's etcd.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::debian::{self, Unpacked};
use crate::shell;

/// At least 3.5.33: the first 3.5 without the known faults in leases and access checks of nested transactions.
const OFFICIAL: &str = "quay.io/coreos/etcd:v3.5.33";

/// Repository of the images built here; the tag is etcd's version.
const BUILT: &str = "coord-test-etcd";

const QUICK: Duration = Duration::from_secs(15);
const PULL: Duration = Duration::from_secs(60);
const IMPORT: Duration = Duration::from_secs(120);

/// An image that this machine's Docker engine can start; none without an engine.
pub(crate) fn find() -> Result<Option<String>> {
    let chosen = shell::var("COORD_TEST_ETCD_IMAGE").map(|name| name.to_string_lossy().into_owned());
    match (docker(&["version", "--format", "{{.Server.Version}}"], QUICK), chosen) {
        (Ok(_), Some(image)) => Ok(Some(image)),
        (Ok(_), None) => match pull_or_build() {
            Ok(image) => Ok(Some(image)),
            Err(error) => {
                eprintln!("Docker runs, but there is no etcd image: {error:#}");
                Ok(None)
            }
        },
        (Err(error), Some(image)) => bail!(
            "COORD_TEST_ETCD_IMAGE is `{image}`, but Docker does not answer; \
             start it or unset the variable ({error:#})"
        ),
        (Err(_), None) => Ok(None),
    }
}

fn pull_or_build() -> Result<String> {
    if docker(&["image", "inspect", OFFICIAL], QUICK).is_ok() {
        return Ok(OFFICIAL.to_owned());
    }
    let built = docker(&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}", BUILT], QUICK)?;
    if let Some(image) = built.lines().next() {
        return Ok(image.to_owned());
    }
    eprintln!("pulling {OFFICIAL}");
    match docker(&["pull", "--quiet", OFFICIAL], PULL) {
        Ok(_) => Ok(OFFICIAL.to_owned()),
        Err(error) => {
            eprintln!("{error:#}");
            build(&debian::unpack()?)
        }
    }
}

/// The programs of an image, copied to `target/etcd-of-image`: tests that need several servers at once, or send them
/// signals, start processes.
pub(crate) fn programs(image: &str) -> Result<Unpacked> {
    let folder = shell::root().join("target/etcd-of-image");
    fs::create_dir_all(&folder)?;
    let container = docker(&["create", image], QUICK)?;
    let container = container.trim();
    let copied = ["etcd", "etcdctl"].into_iter().try_for_each(|program| {
        let inside = format!("{container}:/usr/local/bin/{program}");
        docker(&["cp", &inside, &folder.to_string_lossy()], QUICK).map(drop)
    });
    // Never started, so it holds nothing but a name.
    let _ = docker(&["rm", container], QUICK);
    copied?;
    let folder = folder.canonicalize()?;
    let found = Unpacked { etcd: folder.join("etcd"), etcdctl: folder.join("etcdctl") };
    debian::version(&found.etcd).context("the image's etcd does not start outside of a container")?;
    Ok(found)
}

/// An image from scratch that is started like the official one: no entrypoint, `etcd` and `etcdctl` on PATH.
fn build(programs: &Unpacked) -> Result<String> {
    let image = format!("{BUILT}:{}", debian::version(&programs.etcd)?);
    eprintln!("building the image {image}");
    let root = shell::root().join(format!("target/etcd-image.{}", std::process::id()));
    let archive = root.with_extension("tar");
    let result = fill(&root, programs).and_then(|()| import(&root, &archive, &image));
    let _ = fs::remove_dir_all(&root);
    let _ = fs::remove_file(&archive);
    result.map(|()| image)
}

fn fill(root: &Path, programs: &Unpacked) -> Result<()> {
    for folder in ["usr/local/bin", "var/lib/etcd", "tmp"] {
        fs::create_dir_all(root.join(folder))?;
    }
    let mut libraries = BTreeSet::new();
    for (program, name) in [(&programs.etcd, "etcd"), (&programs.etcdctl, "etcdctl")] {
        copy(program, &root.join("usr/local/bin").join(name))?;
        libraries.append(&mut libraries_of(program));
    }
    for library in libraries {
        let inside = library.strip_prefix("/").expect("only absolute paths are collected");
        copy(&library, &root.join(inside))?;
    }
    Ok(())
}

/// Shared libraries and the loader, at the paths under which the program looks for them.
fn libraries_of(program: &Path) -> BTreeSet<PathBuf> {
    // ldd fails on a static program, which needs none.
    let listing = shell::output(Command::new("ldd").arg(program), QUICK).unwrap_or_default();
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().expect("a file inside the image has a folder");
    fs::create_dir_all(folder)?;
    fs::copy(from, to).with_context(|| format!("cannot copy `{}` into the image", from.display()))?;
    Ok(())
}

fn import(root: &Path, archive: &Path, image: &str) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--owner=0", "--group=0", "-cf"]).arg(archive).arg("-C").arg(root).arg(".");
    shell::output(&mut tar, IMPORT)?;
    let mut import = Command::new("docker");
    import.arg("import");
    // The data is on a volume, since a commit to a container's own layer can take many times as long as one to the disk.
    for change in [
        "ENV PATH=/usr/local/bin",
        "EXPOSE 2379 2380",
        "WORKDIR /var/lib/etcd",
        "VOLUME /var/lib/etcd",
        "CMD [\"/usr/local/bin/etcd\"]",
    ] {
        import.args(["--change", change]);
    }
    shell::output(import.arg(archive).arg(image), IMPORT)?;
    Ok(())
}

fn docker(args: &[&str], limit: Duration) -> Result<String> {
    shell::output(Command::new("docker").args(args), limit)
}
