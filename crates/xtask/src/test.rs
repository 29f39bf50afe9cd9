//! `cargo xtask test`: every test of the workspace, with what they need already found.

use std::num::NonZero;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, bail};

use crate::{etcd, protoc, shell, sim};

/// One selection of packages and features for every step: another one would unify features differently and
/// compile most dependencies a second time.
const WORKSPACE: [&str; 3] = ["test", "--workspace", "--all-features"];

/// How many tests of a program run at a time where the user does not say. Most of them wait, for servers to start and
/// leases to end, so two cores have time for more than two.
const THREADS: usize = 6;

/// Runs unit, example, documentation and integration tests, and the simulation; `args` go to every harness.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let protoc = protoc::find()?;
    let servers = etcd::find()?;
    eprintln!("etcd: {servers}\nprotoc: {}", protoc.display());

    let threads = shell::var("RUST_TEST_THREADS").unwrap_or_else(|| {
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        cores.max(THREADS).to_string().into()
    });

    let mut steps = shell::Steps::default();
    let step = |selection: &[&str]| {
        let mut command = cargo(selection);
        command.env("PROTOC", &protoc).env("RUST_TEST_THREADS", &threads);
        servers.export(&mut command);
        command
    };
    if !steps.run(&mut step(&["--no-run"])) {
        return steps.finish();
    }
    for selection in [&["--lib", "--bins", "--examples"][..], &["--doc"], &["--test", "*"]] {
        let mut command = step(selection);
        command.arg("--no-fail-fast");
        if !args.is_empty() {
            command.arg("--").args(args);
        }
        steps.run(&mut command);
    }
    let mut simulation = sim::command();
    if !args.is_empty() {
        simulation.arg("--").args(args);
    }
    steps.run(&mut simulation);
    if args.is_empty() {
        let mut counts = shell::xtask(["bench", "--check"]);
        servers.export(&mut counts);
        steps.run(&mut counts);
    }
    steps.finish()
}

/// Runs the soak, with what it needs already found.
pub(crate) fn soak(options: &[&str]) -> Result<()> {
    let servers = etcd::find()?;
    // The same selection as the tests, so that nothing is compiled a second time.
    let mut build = shell::cargo(["build", "--workspace", "--all-features", "--bin", "soak"]);
    let status = build.env("PROTOC", protoc::find()?).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the soak is not built; see the messages above");
    }
    let target = shell::var("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from);
    let mut command = Command::new(target.join("debug/soak"));
    servers.export(&mut command);
    shell::become_program(command.args(options).stdin(Stdio::null())).context("cannot start the soak")
}

/// Prints the names of the conformance tests and nothing else.
pub(crate) fn list(args: &[&str]) -> Result<()> {
    let output = cargo(&["--quiet", "--test", "conformance", "--", "--list", "--format", "terse"])
        .args(args)
        .env("PROTOC", protoc::find()?)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the conformance tests cannot be listed; see the messages above");
    }
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        if let Some(name) = line.strip_suffix(": test") {
            println!("{name}");
        }
    }
    Ok(())
}

fn cargo(selection: &[&str]) -> Command {
    shell::cargo(WORKSPACE.iter().chain(selection))
}
