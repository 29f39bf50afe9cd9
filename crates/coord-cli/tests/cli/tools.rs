//! Starting `coord`, and waiting for what it does.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use coord_api::Provider;
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{Certs, Clients, EtcdServer, signal};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{sleep, timeout},
};

/// For what happens at once, on a machine that does much else.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// An etcd of a test's own, with `coord` on it.
pub(crate) struct Shop {
    pub(crate) server: EtcdServer,
}

impl Shop {
    pub(crate) async fn open() -> Self {
        Self { server: EtcdServer::start().await.unwrap_or_else(|error| panic!("{error:#}")) }
    }

    /// With TLS, and for clients with a certificate.
    pub(crate) async fn open_tls(certs: &Certs) -> Self {
        let server = EtcdServer::start_tls(certs, Clients::WithCertificate, &[]).await;
        Self { server: server.unwrap_or_else(|error| panic!("{error:#}")) }
    }

    pub(crate) fn url(&self) -> String {
        self.server.coord_url("shop")
    }

    /// `coord ARGS`, not started yet. Nothing of the environment of the test's caller counts.
    pub(crate) fn coord(&self, args: &[&str]) -> Command {
        let mut command = heeding_signals(env!("CARGO_BIN_EXE_coord"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("COORD_")
                || name == "NO_COLOR"
                || name == "RUST_LOG"
                || name.starts_with("CLICOLOR")
            {
                command.env_remove(name);
            }
        }
        command.env("COORD_URL", self.url()).env("USER", "ann");
        command.args(args).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs it to its end.
    pub(crate) async fn run(&self, args: &[&str]) -> Output {
        output(&mut self.coord(args)).await
    }

    /// What it prints; it must end well.
    pub(crate) async fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args).await;
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// What it prints with `--json`; it must end well.
    pub(crate) async fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[args, &["--json"]].concat()).await;
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// The exit code, and what it says on stderr.
    pub(crate) async fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.run(args).await;
        (output.status.code().expect("ends by itself"), stderr(&output))
    }

    /// A client of the library on the same namespace.
    pub(crate) async fn client(&self) -> Client {
        let config = EtcdConfig::from_url(&self.url()).expect("is good");
        Client::connect(config).await.expect("etcd answers")
    }

    /// Waits until so many stand in the queue of a lock.
    pub(crate) async fn queue_becomes(&self, name: &str, length: usize) {
        let locks = self.client().await.lock();
        let becomes = async {
            while locks.holders(name).await.expect("etcd answers").len() != length {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(LIMIT, becomes).await.unwrap_or_else(|_| panic!("the queue of {name} becomes {length}"));
    }
}

/// A program on which signals have their usual effect, whatever this test was started to ignore: below `nohup` it would ignore
/// the hang-up.
pub(crate) fn heeding_signals(program: &str) -> Command {
    let mut command = Command::new("env");
    command.args(["--default-signal", program]);
    command
}

pub(crate) async fn output(command: &mut Command) -> Output {
    timeout(LIMIT, command.output()).await.expect("ends in time").expect("is built")
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("is UTF-8")
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("is UTF-8")
}

/// A `coord` that goes on while the test does something else.
pub(crate) struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("is built");
        let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
        Self { child, lines }
    }

    /// The next line on its stdout.
    pub(crate) async fn line(&mut self) -> String {
        let line = timeout(LIMIT, self.lines.next_line()).await.expect("prints a line in time");
        line.expect("is UTF-8").expect("has not ended")
    }

    /// The next line as JSON.
    pub(crate) async fn json(&mut self) -> Value {
        let line = self.line().await;
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("has not ended")
    }

    pub(crate) async fn signal(&self, name: &str) {
        signal(self.pid(), name).await;
    }

    /// Its exit code, or `None` if a signal ended it.
    pub(crate) async fn code(mut self) -> Option<i32> {
        timeout(LIMIT, self.child.wait()).await.expect("ends in time").expect("is waited for").code()
    }
}

/// Whether a process lives; one that nobody has waited for yet does not.
pub(crate) fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

pub(crate) async fn until_dead(pid: &str) {
    let dead = async {
        while lives(pid) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, dead).await.unwrap_or_else(|_| panic!("process {pid} ends"));
}
