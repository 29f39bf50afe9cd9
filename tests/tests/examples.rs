//! Every example runs to its end, on memory and over etcd.

use std::{path::PathBuf, process::Stdio, time::Duration};

use coord_tests::{EtcdServer, Proxy, signal};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::timeout,
};

const LIMIT: Duration = Duration::from_secs(60);

/// The examples that take a URL and end; `testing` has tests instead, and `greeter` needs several of it.
const EXAMPLES: [&str; 6] = ["first", "grpc_service", "leader_job", "live_config", "quickstart", "snowflake"];

fn example(name: &str) -> Command {
    // This program is in `deps` of the folder that has `examples`.
    let own = std::env::current_exe().expect("has a path");
    let folder = own.ancestors().nth(2).map(PathBuf::from).expect("is in a folder");
    let mut command = Command::new(folder.join("examples").join(name));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn run(name: &str, url: &str) {
    // `first` takes its URL from the environment, as services do.
    let mut command = example(name);
    command.arg(url).env("COORD_URL", url);
    let running = timeout(LIMIT, command.output()).await;
    let output = running.unwrap_or_else(|_| panic!("{name} {url} is not done after {LIMIT:?}"));
    let output = output.unwrap_or_else(|error| {
        let program = command.as_std().get_program().display();
        panic!("{program}: {error}; `cargo build --workspace --all-features --examples` makes it")
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

/// Nobody is left to lead if those who wait give up with their places.
#[tokio::test]
async fn leader_job_outlasts_an_outage_of_more_than_a_ttl() {
    let server = EtcdServer::start().await.expect("starts");
    let address = server.endpoint().trim_start_matches("http://");
    let network = Proxy::start(address.to_owned()).await.expect("a port is free");
    let mut job = example("leader_job");
    let url = format!("etcd://{}/outage", network.address());
    let mut job = job.arg(url).stdout(Stdio::piped()).spawn().expect("starts");
    let mut lines = BufReader::new(job.stdout.take().expect("is piped")).lines();
    let (mut said, mut was_cut) = (Vec::<String>::new(), false);
    while let Some(line) = timeout(LIMIT, lines.next_line()).await.expect("in time").expect("is text") {
        said.push(line);
        // The others stand in the queue by then.
        let is_leading = said.last().is_some_and(|line| line.ends_with("makes report 2"));
        if is_leading && !std::mem::replace(&mut was_cut, true) {
            network.cut();
            tokio::time::sleep(Duration::from_secs(12)).await;
            network.restore();
        }
    }
    let ended = timeout(LIMIT, job.wait()).await.expect("in time").expect("can be waited for");
    assert!(ended.success(), "{ended}: {said:#?}");
    assert!(said.iter().any(|line| line.ends_with("makes report 6")), "{said:#?}");
}

#[test]
fn no_example_is_left_out() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/coord/examples");
    let files =
        std::fs::read_dir(folder).expect("is a folder").map(|entry| entry.expect("can be read").path());
    let mut names: Vec<_> = files
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .filter(|name| name != "testing" && name != "greeter")
        .collect();
    names.sort();
    assert_eq!(names, EXAMPLES);
}

/// A server of the first service that is registered.
async fn greeter(url: &str) -> Child {
    let mut server = example("greeter");
    let mut server =
        server.arg("server").env("COORD_URL", url).stdout(Stdio::piped()).spawn().expect("starts");
    let lines = BufReader::new(server.stdout.take().expect("is piped"));
    let first = timeout(LIMIT, lines.lines().next_line()).await.expect("in time").expect("is text");
    assert!(first.expect("says something").starts_with("registered on port "));
    server
}

/// What the client of the first service says.
async fn calls(url: &str) -> String {
    let running = timeout(LIMIT, example("greeter").env("COORD_URL", url).output()).await;
    let output = running.expect("in time").expect("starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("is text")
}

#[tokio::test]
async fn the_first_service_is_what_its_page_says() {
    let page = include_str!("../../docs/first-service.md");
    let code =
        include_str!("../../crates/coord/examples/greeter.rs").split_once("\n\n").expect("has a title").1;
    assert!(
        page.contains(&format!("```rust,no_run\n{code}```\n")),
        "examples/greeter.rs and the page differ"
    );

    let etcd = EtcdServer::start().await.expect("starts");
    let url = format!("etcd://{}/first", etcd.endpoint().trim_start_matches("http://"));
    let (mut one, other) = (greeter(&url).await, greeter(&url).await);
    let said = calls(&url).await;
    let of = |server: &Child| format!("greeter-{} at ", server.id().expect("runs"));
    assert!(said.contains(&of(&one)) && said.contains(&of(&other)), "{said}");

    signal(one.id().expect("runs"), "INT").await;
    let ended = timeout(LIMIT, one.wait()).await.expect("in time").expect("can be waited for");
    assert!(ended.success(), "{ended}");
    let said = calls(&url).await;
    assert!(said.contains(&of(&other)) && said.contains("had 100 of 100 calls"), "{said}");
}
