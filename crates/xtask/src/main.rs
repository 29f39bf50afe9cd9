//! Developer tasks of the workspace: `cargo xtask --help`.
//!
//! Builds in seconds on purpose (no async runtime, no argument parser), because every other command waits
//! for it.

mod api;
mod bench;
mod contract;
mod debian;
mod etcd;
mod image;
mod lint;
mod package;
mod protoc;
mod serve;
mod shell;
mod sim;
mod style;
mod test;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

const HELP: &str = "\
Developer tasks of the coord workspace.

Usage: cargo xtask COMMAND

Commands:
  test [-- ARGS…]   All tests: unit, examples, documentation, then integration against a real etcd.
                    ARGS go to every test harness: `cargo xtask test -- etcd::lock`.
  test --list       The names of the conformance tests, one a line (needs no etcd).
  soak [--seconds N] [--seed S]
                    Works on three etcd nodes while all kinds of faults strike them, and says which promises
                    were broken; 300 seconds and a random seed unless told otherwise.
  sim               The simulation alone: 10,000 seeds in virtual time. --seeds N: so many (--from S: others
                    than the first ones); --seed S: one again, with its history in target/sim-S.txt.
  lint              Formatting, prose, clippy, documentation, every feature combination of `coord`, the public items, the
                    packages, and, where cargo-deny is installed, licences and sources of all dependencies.
  style [--write]   Rules of prose for comments; --write lowers the list of exceptions.
  contract          Whether docs/semantics.md and the conformance tests list the same promises; part of `lint`.
  api [--check]     Writes the public items of each library into docs/api, or says what differs from there.
  package [--build] Packs every crate that can be published; --build also builds each from its package.
  bench [AREA]      Measures coord beside its peers on an etcd of its own, and says which targets are met.
                    AREA is lock, grpc, ids, registry, config, idle or memory.
                    --json FILE: every figure; --quick: one short round; --only TEXT: some scenarios.
  bench --check     Only what operations cost in requests and commits, which depends on no machine; part of `test`.
  bench --plot JSON SVG
                    Draws the figures of a file that --json has written.
  bench --tables JSON… MD
                    A page of the figures of all files that --json has written.
  etcd [--port N]   An empty etcd on 127.0.0.1:N (2379) for hand trials, until Ctrl-C.
  protoc            The path of a usable protoc: `export PROTOC=$(cargo xtask protoc)`.
  help              This text.

Environment (all optional):
  COORD_TEST_ETCD         Address of a running etcd for the tests, e.g. http://127.0.0.1:2379.
                          The tests write and delete under prefixes of their own.
  COORD_TEST_ETCD_IMAGE   Container image with etcd on its PATH, started by the tests through Docker.
  COORD_TEST_ETCD_BIN     etcd program to start instead of a container, and for clusters of three.
  COORD_TEST_ETCDCTL      etcdctl program for the tests that compare with it.
  COORD_TEST_STRACE       strace program that makes disks slow; it must be allowed to trace (root, or
                          `sysctl kernel.yama.ptrace_scope=0`).
  COORD_TEST_FAKETIME     libfaketimeMT.so.1 of libfaketime, which moves the clock of a client.
  PROTOC                  Protocol buffer compiler for the build of the etcd client.

With none of these set: Docker with the official image, or with an image built from Debian's etcd; else an
etcd on PATH; else Debian's etcd unpacked into target/etcd, with nothing installed. Clusters are processes: of the
etcd on PATH if it is 3.5.30 or newer, else of Debian's, else of the image's program, copied out of it.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if api::is_rustdoc() {
        return api::rustdoc(&args);
    }
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] | ["help" | "--help" | "-h", ..] | [_, "--help" | "-h"] => {
            print!("{HELP}");
            Ok(())
        }
        ["test", "--list"] => test::list(&[]),
        ["test", "--list", "--", rest @ ..] => test::list(rest),
        ["test"] => test::run(&[]),
        ["test", "--", rest @ ..] => test::run(rest),
        ["soak", options @ ..] => test::soak(options),
        ["sim", options @ ..] => sim::run(options),
        ["lint"] => lint::run(),
        ["style"] => style::run(false),
        ["style", "--write"] => style::run(true),
        ["contract"] => contract::check(),
        ["api"] => api::run(false),
        ["api", "--check"] => api::run(true),
        ["package"] => package::run(false),
        ["package", "--build"] => package::run(true),
        ["bench", "--check"] => bench::counts(),
        ["bench", "--plot", json, svg] => bench::show("plot", &[json, svg]),
        ["bench", "--tables", files @ ..] => bench::show("tables", files),
        ["bench"] => bench::all(&[]),
        ["bench", options @ ..]
            if options.first().is_some_and(|first| ["--json", "--quick"].contains(first)) =>
        {
            bench::all(options)
        }
        ["bench", area, options @ ..] if !area.starts_with('-') => bench::run(area, options),
        ["bench", ..] => {
            bail!("`bench` takes an area first; there is: lock, grpc, ids, registry, config, idle, memory")
        }
        ["etcd"] => serve::run(2379),
        ["etcd", "--port", port] => serve::run(port_number(port)?),
        ["protoc"] => {
            println!("{}", protoc::find()?.display());
            Ok(())
        }
        ["test", ..] => bail!("`test` takes --list, and arguments for the harnesses only after `--`"),
        _ => bail!("no such command: `{}`; see `cargo xtask --help`", words.join(" ")),
    }
}

fn port_number(text: &str) -> Result<u16> {
    let port = text.parse().with_context(|| format!("`--port {text}` is not a port; use 1 to 65535"))?;
    if port == 0 {
        bail!("`--port 0` names no port that a client could use; use 1 to 65535");
    }
    Ok(port)
}
