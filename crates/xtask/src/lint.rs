//! `cargo xtask lint`: formatting, prose, clippy, documentation, every useful feature combination, and what dependencies may be.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::{protoc, shell};

const WITH_ETCD: [&[&str]; 3] = [&[], &["--no-default-features", "--features", "etcd"], &["--all-features"]];
const WITHOUT_ETCD: [&[&str]; 2] =
    [&["--no-default-features"], &["--no-default-features", "--features", "memory,grpc"]];

/// Runs every check, even after one failed, so that one run shows all there is to do.
pub(crate) fn run() -> Result<()> {
    let protoc = protoc::for_builds()?;
    let mut steps = shell::Steps::default();

    steps.run(&mut shell::cargo(["fmt", "--all", "--check"]));
    steps.run(&mut shell::xtask(["style"]));
    steps.run(
        shell::cargo(["clippy", "--workspace", "--all-targets", "--all-features", "--", "-D", "warnings"])
            .env("PROTOC", &protoc),
    );
    steps.run(
        shell::cargo(["doc", "--workspace", "--all-features", "--no-deps"])
            .env("PROTOC", &protoc)
            .env("RUSTDOCFLAGS", "-D warnings"),
    );
    for features in WITH_ETCD {
        steps.run(check(features).env("PROTOC", &protoc));
    }
    // A path that names nothing, and a target folder that never saw a protoc: together they prove that these builds ask
    // for none. A build script that ran once is not run again for another PROTOC.
    let target = shell::var("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from);
    for features in WITHOUT_ETCD {
        let mut command = check(features);
        command.env("PROTOC", "/nonexistent/protoc").env("CARGO_TARGET_DIR", target.join("without-protoc"));
        steps.run_noted(&mut command, "  (without protoc)");
    }
    // With this package alone no other crate switches on features of serde_json, on which the values would then depend.
    let mut alone = shell::cargo(["test", "--package", "coord-config", "--test", "floats"]);
    alone.env("PROTOC", "/nonexistent/protoc").env("CARGO_TARGET_DIR", target.join("without-protoc"));
    steps.run_noted(&mut alone, "  (numbers, with no features of others)");
    for task in [["contract"].as_slice(), &["api", "--check"], &["package"]] {
        steps.run(&mut shell::xtask(task));
    }
    // Takes minutes to build, so that nobody has to have it.
    if shell::on_path("cargo-deny").is_some() {
        steps.run(&mut shell::cargo(["deny", "--all-features", "check", "licenses", "bans", "sources"]));
    } else {
        eprintln!(
            "==> not checked against deny.toml: `cargo install --locked cargo-deny` gets what is needed"
        );
    }
    steps.finish()
}

fn check(features: &[&str]) -> Command {
    shell::cargo(["check", "--package", "coord"].iter().chain(features))
}
