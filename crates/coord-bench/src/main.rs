//! Measures coord beside its peers. Started by `cargo xtask bench`, which brings an etcd and the Go program.
//!
//! Each area is one module with a plan (what is measured, and what is aimed at) and the load of a child process.

mod args;
mod child;
mod config;
mod figures;
mod grpc;
mod idle;
mod ids;
mod load;
mod lock;
mod memory;
mod page;
mod party;
mod plan;
mod plot;
mod registry;
mod run;
mod server;
mod table;
mod told;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use args::Args;
use plan::{Plan, Target};
use run::{Measured, Runner};

/// The modules that measure something.
const AREAS: [&str; 7] = ["lock", "grpc", "ids", "registry", "config", "idle", "memory"];

#[tokio::main]
async fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let done = match words.next().as_deref() {
        Some("check") => check(Args::parse(words)).await,
        Some("plot") => plot::write(words.collect::<Vec<_>>().as_slice()),
        Some("tables") => page::write(words.collect::<Vec<_>>().as_slice()),
        Some("child") => Box::pin(contend(&words.next().unwrap_or_default(), Args::parse(words))).await,
        Some(area) => measure(area, Args::parse(words)).await,
        None => Err(anyhow::anyhow!("no area: this is started by `cargo xtask bench`")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("coord-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn contend(area: &str, args: Result<Args>) -> Result<()> {
    let (args, mut runner) = (args?, child::Runner::new());
    match area {
        "lock" => lock::child(&args, &mut runner).await,
        "ids" => Box::pin(ids::child(&args, &mut runner)).await,
        "grpc" => grpc::child(&args, &mut runner).await,
        "registry" => registry::child(&args, &mut runner).await,
        "config" => config::child(&args, &mut runner).await,
        "idle" => idle::child(&args, &mut runner).await,
        "memory" => memory::child(&args, &mut runner).await,
        _ => bail!("no area `{area}`"),
    }
}

fn plan_of(area: &str) -> Result<Plan> {
    match area {
        "lock" => Ok(lock::plan()),
        "ids" => Ok(ids::plan()),
        "grpc" => Ok(grpc::plan()),
        "registry" => Ok(registry::plan()),
        "config" => Ok(config::plan()),
        "idle" => Ok(idle::plan()),
        "memory" => Ok(memory::plan()),
        _ => bail!("no area `{area}`; there is: {}", AREAS.join(", ")),
    }
}

/// The targets that are counted, of all areas: an error for any that is missed.
async fn check(args: Result<Args>) -> Result<()> {
    let runner = Runner { endpoint: args?.need("endpoint")?, go: None, rounds: 1, seconds: 0.5, only: None };
    let mut missed = 0;
    for area in AREAS {
        let mut plan = plan_of(area)?;
        plan.targets.retain(Target::is_counted);
        plan.scenarios.retain(|scenario| plan.targets.iter().any(|target| target.scenario == scenario.id));
        for scenario in &mut plan.scenarios {
            scenario.contenders.retain(|contender| contender.id == "coord");
        }
        if plan.targets.is_empty() {
            continue;
        }
        let all = runner.run(&plan, |_| {}).await?;
        print!("\n{area}");
        table::print_targets(&plan, &all);
        missed += table::verdicts(&plan, &all).iter().filter(|verdict| !verdict.is_met()).count();
    }
    anyhow::ensure!(missed == 0, "{missed} of these are missed");
    Ok(())
}

async fn measure(area: &str, args: Result<Args>) -> Result<()> {
    let (args, plan) = (args?, plan_of(area)?);
    let quick = args.has("quick");
    let runner = Runner {
        endpoint: args.need("endpoint")?,
        go: args.text("go").map(Into::into),
        rounds: if quick { 1 } else { 3 },
        seconds: if quick { 1.5 } else { 3.0 },
        only: args.text("only").map(ToOwned::to_owned),
    };
    let etcd = server::version(&runner.endpoint).await?;
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let note = |name| args.text(name).unwrap_or("unknown").to_owned();
    let about = json!({
        "area": plan.area, "commit": note("commit"), "date": note("date"), "etcd": etcd, "cores": cores,
        "go": args.text("go-version"), "rounds": runner.rounds, "seconds": runner.seconds,
    });
    // Other work on the machine is the main source of noise.
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    println!(
        "etcd {etcd} and the contenders share {cores} cores (load before: {load}); {} round(s) of {} s in turn, medians",
        runner.rounds, runner.seconds
    );
    if let Some(reason) = args.text("go-missing") {
        println!("without Go: {reason}");
    }
    let all = runner.run(&plan, table::print).await?;
    table::print_targets(&plan, &all);
    if let Some(file) = args.text("json") {
        let text = serde_json::to_string_pretty(&to_json(&about, &plan, &all))?;
        std::fs::write(file, text + "\n").with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

fn to_json(about: &Value, plan: &Plan, all: &[Measured]) -> Value {
    let scenarios = all.iter().map(|measured| {
        let rows = measured.rows.iter().map(|row| {
            json!({ "contender": row.contender.id, "title": row.contender.title,
                    "median": row.median, "rounds": row.rounds })
        });
        json!({ "id": measured.scenario.id, "title": measured.scenario.title, "unit": measured.scenario.unit,
                "contenders": rows.collect::<Vec<_>>() })
    });
    let targets = table::verdicts(plan, all).into_iter().map(|verdict| {
        let target = verdict.target;
        json!({ "scenario": target.scenario, "of": target.of, "figure": target.figure, "against": target.against,
                "aim": target.bound.to_string(), "value": verdict.value, "met": verdict.is_met() })
    });
    json!({ "about": about, "scenarios": scenarios.collect::<Vec<_>>(), "targets": targets.collect::<Vec<_>>() })
}
