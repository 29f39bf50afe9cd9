//! Every example runs to its end, on memory and over etcd.

use std::{path::PathBuf, process::Stdio, time::Duration};

use coord_tests::EtcdServer;
use tokio::{process::Command, time::timeout};

const LIMIT: Duration = Duration::from_secs(60);

/// The examples that take a URL; `testing` has tests instead.
const EXAMPLES: [&str; 6] = ["first", "grpc_service", "leader_job", "live_config", "quickstart", "snowflake"];

async fn run(name: &str, url: &str) {
    // This program is in `deps` of the folder that has `examples`.
    let own = std::env::current_exe().expect("has a path");
    let folder = own.ancestors().nth(2).map(PathBuf::from).expect("is in a folder");
    let program = folder.join("examples").join(name);
    let mut command = Command::new(&program);
    // `first` takes its URL from the environment, as services do.
    command.arg(url).env("COORD_URL", url).stdin(Stdio::null()).kill_on_drop(true);
    let running = timeout(LIMIT, command.output()).await;
    let output = running.unwrap_or_else(|_| panic!("{name} {url} is not done after {LIMIT:?}"));
    let output = output.unwrap_or_else(|error| {
        panic!("{}: {error}; `cargo build --workspace --all-features --examples` makes it", program.display())
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {url} ended with {}\n{stderr}", output.status);
    assert!(!output.stdout.is_empty(), "{name} {url} says nothing");
}

#[tokio::test]
async fn every_example_runs_on_memory() {
    for name in EXAMPLES {
        run(name, &format!("memory://{name}")).await;
    }
}

#[tokio::test]
async fn every_example_runs_over_etcd() {
    let server = EtcdServer::start().await.expect("starts");
    let address = server.endpoint().trim_start_matches("http://");
    for name in EXAMPLES {
        run(name, &format!("etcd://{address}/{name}")).await;
    }
}

#[test]
fn no_example_is_left_out() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/coord/examples");
    let files =
        std::fs::read_dir(folder).expect("is a folder").map(|entry| entry.expect("can be read").path());
    let mut names: Vec<_> = files
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| name != "testing")
        .collect();
    names.sort();
    assert_eq!(names, EXAMPLES);
}
