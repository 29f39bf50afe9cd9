//! `cargo xtask sim`: the workloads of `coord-torture` on the memory backend, thousands of times in virtual time.

use std::process::Command;

use anyhow::{Result, bail};

use crate::shell;

/// A profile of its own: optimised, with every assertion, and few packages, so that its build takes about a minute.
const SIMULATION: [&str; 7] =
    ["test", "--profile", "sim", "--package", "coord-torture", "--test", "simulation"];

/// The tests of the simulation, with tokio's own choices (which branch of a `select!` is first, which of several who
/// wait is woken first) made from the seed.
pub(crate) fn command() -> Command {
    let mut command = shell::cargo(SIMULATION);
    command.env("RUSTFLAGS", "--cfg tokio_unstable").env_remove("CARGO_ENCODED_RUSTFLAGS");
    command
}

/// Runs all seeds, so many of them, or one.
pub(crate) fn run(options: &[&str]) -> Result<()> {
    let mut command = command();
    match options {
        [] => {}
        ["--seeds", count] => drop(command.env("COORD_SIM_SEEDS", number("--seeds", count)?)),
        ["--seeds", count, "--from", first] => {
            command.env("COORD_SIM_SEEDS", number("--seeds", count)?);
            command.env("COORD_SIM_FROM", number("--from", first)?);
        }
        ["--seed", seed] => {
            command.env("COORD_SIM_SEED", number("--seed", seed)?);
            command.arg("no_seed_breaks_a_promise");
        }
        _ => bail!("`sim` takes `--seeds N`, `--seeds N --from S`, or `--seed S`"),
    }
    command.args(["--", "--nocapture"]);
    let mut steps = shell::Steps::default();
    steps.run(&mut command);
    steps.finish()
}

fn number<'a>(option: &str, text: &'a str) -> Result<&'a str> {
    match text.parse::<u64>() {
        Ok(_) => Ok(text),
        Err(_) => bail!("`{option} {text}` is not a number"),
    }
}
