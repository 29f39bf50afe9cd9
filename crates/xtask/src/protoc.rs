//! Finding a protocol buffer compiler, which the build of the etcd client needs.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::shell;

/// `$PROTOC`, else `protoc` on PATH, else the one that a dependency of this crate carries for this machine.
pub(crate) fn find() -> Result<PathBuf> {
    if let Some(set) = shell::var("PROTOC") {
        let path = PathBuf::from(set);
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
