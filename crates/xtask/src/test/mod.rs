//! `cargo xtask test`: every test of the workspace, or those that a filter names, with what they need already found.

mod names;
mod programs;
mod select;

use std::{
    ffi::OsString,
    num::NonZero,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail};

use crate::{etcd, protoc, shell};
use select::Selection;

/// Selection of packages and features for every step. Another selection would unify features differently, and compile most
/// dependencies a second time.
const WORKSPACE: [&str; 3] = ["test", "--workspace", "--all-features"];

/// How many tests of a program run at a time where the user does not say. Most of them wait, for servers to start and
/// leases to end, so two cores have time for more than two.
const THREADS: usize = 6;

/// How many test programs run at a time, for the same reason.
const PROGRAMS: usize = 2;

/// Runs unit, example, documentation and integration tests, the simulation, and the counts of requests. With a filter in
/// `args` only the programs that have such a test are built and run. All of `args` go to every program.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let environment = Environment::find()?;
    let selection = Selection::of(args)?;
    eprintln!("etcd: {}\nprotoc: {}", environment.servers, environment.protoc.display());

    let mut steps = shell::Steps::default();
    if selection.needs_examples() {
        let mut build = shell::cargo(["build", "--workspace", "--all-features", "--examples"]);
        if !steps.run(environment.give_to(&mut build)) {
            return steps.finish();
        }
    }
    let mut build = cargo(&selection.targets());
    let programs = steps.listed(environment.give_to(&mut build), programs::read);
    let Some(programs) = programs else { return steps.finish() };

    let mut jobs: Vec<_> = programs::longest_first(programs)
        .into_iter()
        .filter(|program| selection.has(program))
        .map(|program| {
            let mut command = program.command(args);
            environment.give_to(&mut command);
            (program.shown(), command)
        })
        .collect();
    if selection.has_documentation() {
        let mut documentation = cargo(&["--doc"]);
        documentation.arg("--no-fail-fast");
        if !args.is_empty() {
            documentation.arg("--").args(args);
        }
        environment.give_to(&mut documentation);
        // It compiles, while others wait.
        jobs.insert(jobs.len().min(PROGRAMS), ("documentation".to_owned(), documentation));
    }
    steps.run_side_by_side(jobs, PROGRAMS);
    if selection.is_everything() {
        steps.run(environment.give_to(&mut shell::xtask(["bench", "--check"])));
    }
    steps.finish()
}

/// Runs the soak, with what it needs already found.
pub(crate) fn soak(options: &[&str]) -> Result<()> {
    let environment = Environment::find()?;
    // With examples the same features as with the tests, so that nothing is compiled a second time.
    let mut build = shell::cargo(["build", "--workspace", "--all-features", "--examples", "--bin", "soak"]);
    let status = environment.give_to(&mut build).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("the soak is not built; see the messages above");
    }
    let target = shell::var("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from);
    let mut command = Command::new(target.join("debug/soak"));
    environment.give_to(&mut command);
    shell::become_program(command.args(options).stdin(Stdio::null())).context("cannot start the soak")
}

/// Prints the names of the conformance tests and nothing else.
pub(crate) fn list(args: &[&str]) -> Result<()> {
    let output = cargo(&["--quiet", "--test", "conformance", "--", "--list", "--format", "terse"])
        .args(args)
        .env("PROTOC", protoc::for_builds()?)
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

/// The command that builds and runs the tests of the simulation: the same program that `cargo xtask test` runs.
pub(crate) fn simulation() -> Result<Command> {
    let mut command = cargo(&["--test", "simulation"]);
    command.env("PROTOC", protoc::for_builds()?);
    Ok(command)
}

/// A run of cargo over the whole workspace. Flags of the user's are kept, beside the one that the configuration of this
/// repository would have added.
fn cargo<S: AsRef<std::ffi::OsStr>>(selection: &[S]) -> Command {
    let mut command = shell::cargo(WORKSPACE);
    command.args(selection);
    if let Some(mut flags) = shell::var("RUSTFLAGS") {
        flags.push(" --cfg tokio_unstable");
        command.env("RUSTFLAGS", flags);
    }
    command
}

/// Environment of the tests.
struct Environment {
    protoc: PathBuf,
    servers: etcd::Servers,
    threads: OsString,
}

impl Environment {
    fn find() -> Result<Self> {
        let threads = shell::var("RUST_TEST_THREADS").unwrap_or_else(|| {
            let cores = thread::available_parallelism().map_or(1, NonZero::get);
            cores.max(THREADS).to_string().into()
        });
        Ok(Self { protoc: protoc::for_builds()?, servers: etcd::find()?, threads })
    }

    fn give_to<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        self.servers.export(command);
        command.env("PROTOC", &self.protoc).env("RUST_TEST_THREADS", &self.threads)
    }
}

/// The folder of the manifest that a path belongs to.
fn folder(manifest: &str) -> PathBuf {
    Path::new(manifest).parent().map(PathBuf::from).unwrap_or_default()
}
