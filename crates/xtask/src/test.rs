//! `cargo xtask test`: every test of the workspace, with what they need already found.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{etcd, protoc, shell, sim};

/// One selection of packages and features for every step: another one would unify features differently and
/// compile most dependencies a second time.
const WORKSPACE: [&str; 3] = ["test", "--workspace", "--all-features"];

/// Runs unit, example, documentation and integration tests, and the simulation; `args` go to every harness.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let protoc = protoc::find()?;
    let servers = etcd::find()?;
    eprintln!("etcd: {servers}\nprotoc: {}", protoc.display());

    let mut steps = shell::Steps::default();
    let step = |selection: &[&str]| {
        let mut command = cargo(selection);
        command.env("PROTOC", &protoc);
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
    steps.finish()
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
