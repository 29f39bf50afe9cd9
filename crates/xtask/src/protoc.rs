//! Finding a protocol buffer compiler, which the build of the etcd client needs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell;

/// Returns `$PROTOC`, else `protoc` on PATH, else the one that a dependency of this crate carries for this machine.
pub(crate) fn find() -> Result<PathBuf> {
    if let Some(path) = shell::var("PROTOC").map(PathBuf::from).filter(|path| !is_own_script(path)) {
        if !path.is_file() {
            bail!("PROTOC is `{}`, which is no file; correct or unset it", path.display());
        }
        return Ok(path);
    }
    if let Some(found) = shell::on_path("protoc") {
        return Ok(found);
    }
    protoc_bin_vendored::protoc_bin_path()
        .context("no protoc for this machine; install a `protobuf-compiler` or set PROTOC")
}

/// Returns the value of `PROTOC` for builds. It is the one that plain cargo uses in this repository, whose change would make
/// cargo build the etcd client again.
pub(crate) fn for_builds() -> Result<PathBuf> {
    let found = find()?;
    // The script needs a shell.
    Ok(if cfg!(windows) { found } else { shell::var("PROTOC").map_or(found, PathBuf::from) })
}

/// Tells whether a path is the script that `.cargo/config.toml` gives to cargo, which asks this program in turn.
fn is_own_script(path: &Path) -> bool {
    let script = shell::root().join(".cargo/protoc");
    path.canonicalize().ok().is_some_and(|path| script.canonicalize().ok() == Some(path))
}
