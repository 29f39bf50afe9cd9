//! `cargo xtask api`: what each library offers, one item a line in `docs/api`, so that a change of it is seen in review.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result, bail};

use crate::{protoc, shell};

const LIBRARIES: [&str; 7] =
    ["coord", "coord-api", "coord-config", "coord-etcd", "coord-grpc", "coord-kv", "coord-memory"];

/// Set where this program is called in place of rustdoc.
const AS_RUSTDOC: &str = "COORD_XTASK_AS_RUSTDOC";

/// Writes the lists anew, or says what is not as they say.
pub(crate) fn run(checks: bool) -> Result<()> {
    let mut doc = shell::cargo(["doc", "--quiet", "--no-deps", "--lib", "--all-features"]);
    doc.args(LIBRARIES.iter().flat_map(|name| ["--package", name]));
    doc.env("PROTOC", protoc::for_builds()?).env("RUSTDOC", std::env::current_exe()?).env(AS_RUSTDOC, "1");
    if !doc.status().context("cannot start cargo")?.success() {
        bail!("the libraries are not documented; see the messages above");
    }
    let target = shell::var("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from);
    let mut list = shell::cargo(["run", "--quiet", "--package", "listing", "--"]);
    list.args(checks.then_some("--check")).arg("docs/api");
    list.args(LIBRARIES.map(|name| target.join("doc").join(name.replace('-', "_")).with_extension("json")));
    if !list.status().context("cannot start cargo")?.success() {
        bail!("see the messages above");
    }
    Ok(())
}

/// Whether this is [`rustdoc`], and not for a person.
pub(crate) fn is_rustdoc() -> bool {
    shell::var(AS_RUSTDOC).is_some()
}

/// The real rustdoc, which tells items as JSON only to those who may use what is not stable. Only it may: a build script that
/// saw the permission would choose other code for all that is built.
pub(crate) fn rustdoc(args: &[String]) -> ExitCode {
    let mut rustdoc = Command::new("rustdoc");
    rustdoc.args(args).env("RUSTC_BOOTSTRAP", "1");
    if args.iter().any(|arg| arg == "--crate-name") {
        rustdoc.args(["-Z", "unstable-options", "--output-format", "json"]);
    }
    match rustdoc.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cannot start rustdoc: {error}");
            ExitCode::FAILURE
        }
    }
}
