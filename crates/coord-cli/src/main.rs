//! The command `coord`: locks, elections, services, configuration and instance ids from a shell. `coord --help` tells what there is,
//! `docs/cli.md` in the repository shows it.
//!
//! One file for each subcommand, which has its arguments, what it does over the traits of `coord-api`, and how it is
//! printed. [`connect`] is the way to etcd, [`child`] a command that is run, [`out`] and [`exit`] what comes back.

#[cfg(not(unix))]
compile_error!("`coord` passes signals on and runs on Unix only; the libraries run everywhere");

mod args;
mod child;
mod config;
mod connect;
mod doctor;
mod elect;
mod exit;
mod held;
mod id;
mod json;
mod lock;
mod out;
mod service;
mod top;
mod traces;
mod watch;

use std::process::ExitCode;

use clap::Parser;
use coord_api::Provider;

use crate::{
    args::{Area, Cli, StoreArea},
    exit::{Exit, Failure},
    out::Out,
};

fn main() -> ExitCode {
    if let Some(code) = child::be_born() {
        return code;
    }
    let cli = Cli::parse();
    let out = cli.out();
    traces::print(cli.traces(), out);
    // One thread, this one: the system kills a child when the thread that made it ends, not when the process does.
    // What must not be late, such as renewals, runs on a thread of the etcd client.
    let ended = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(cli, out)));
    let Exit(code) = ended.unwrap_or_else(|failure| {
        out.failure(&failure);
        failure.exit
    });
    ExitCode::from(code)
}

async fn run(cli: Cli, out: Out) -> Result<Exit, Failure> {
    let Cli { connect: options, area, .. } = cli;
    let area = match area {
        Area::Completions { shell } => return Ok(args::completions(shell)),
        Area::Man { dir } => return args::man(dir.as_deref()),
        Area::Doctor(doctor) => return doctor.call(&options, out).await,
        Area::Store(area) => area,
    };
    let (label, id_ttl) = match &area {
        StoreArea::Lock(lock) => (lock.label(), None),
        StoreArea::Elect(elect) => (elect.label(), None),
        StoreArea::Service(service) => (service.label(), None),
        StoreArea::Id(id) => (id.label(), id.ttl()),
        StoreArea::Config(_) | StoreArea::Top(_) => (None, None),
    };
    let mut etcd = options.config(label)?;
    if let Some(ttl) = id_ttl {
        etcd = etcd.instance_id_ttl(ttl);
    }
    let client = connect::connect(etcd).await?;
    let ended = match area {
        StoreArea::Lock(lock) => lock.call(&client, out).await,
        StoreArea::Elect(elect) => elect.call(&client, out).await,
        StoreArea::Service(service) => service.call(&client, out).await,
        StoreArea::Config(config) => config.call(&client, out).await,
        StoreArea::Id(id) => id.call(&client, out).await,
        StoreArea::Top(top) => top.call(&client, options.url(), out).await,
    };
    // So that what was given up in the background, such as a place in a queue, is gone when this ends.
    let closed = client.close().await;
    match (ended, closed) {
        (Ok(exit), Err(error)) => {
            let json = serde_json::json!({ "event": "close_failed", "error": error.to_string() });
            out.detail(&json, &format!("what is left is freed when its lease is over: {error}"));
            Ok(exit)
        }
        (ended, _) => ended,
    }
}
