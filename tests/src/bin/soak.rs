//! `cargo xtask soak --seconds N --seed S`: disturbs a cluster for N seconds, and says which promises were broken.

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result, bail};
use coord_tests::soak::soak;

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mut seconds, mut seed) = (300, fastrand::u64(..));
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { bail!("`{}` has no value", pair[0]) };
        let number = value.parse().with_context(|| format!("`{name} {value}` is not a number"))?;
        match name.as_str() {
            "--seconds" => seconds = number,
            "--seed" => seed = number,
            _ => bail!("there are --seconds N and --seed S, not `{name}`"),
        }
    }
    let again = format!("cargo xtask soak --seconds {seconds} --seed {seed}");
    println!("{again}");
    let soaked = soak(seed, Duration::from_secs(seconds), &|line| println!("{line}")).await?;
    let (faults, authentications) = (soaked.faults, soaked.authentications);
    println!("{faults} faults; {authentications} authentications; {}", soaked.outcome.summary());
    let violations = &soaked.outcome.violations;
    println!("{} violations", violations.len());
    if violations.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let file = std::env::temp_dir().join(format!("coord-soak-{seed}.txt"));
    let lines = soaked.outcome.events.iter().enumerate().map(|(at, event)| format!("#{at} {event:?}\n"));
    std::fs::write(&file, lines.collect::<String>())?;
    println!("{}\n  its history is in {}", soaked.outcome.report(&again), file.display());
    Ok(ExitCode::FAILURE)
}
