//! `cargo xtask sim`: the workloads of `coord-torture` on the memory backend, thousands of times in virtual time.

use anyhow::{Result, bail};

use crate::{shell, test};

/// Runs all seeds, so many of them, or one.
pub(crate) fn run(options: &[&str]) -> Result<()> {
    let mut command = test::simulation()?;
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
