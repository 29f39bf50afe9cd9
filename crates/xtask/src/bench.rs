//! `cargo xtask bench`: an etcd of its own, the peers in Go where Go is installed, and `coord-bench` in release.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{debian, etcd, protoc, shell};

/// Where Debian's packages of Go sources are.
const GO_SOURCES: &str = "/usr/share/gocode";
const GO_PACKAGES: &str = "golang-go golang-etcd-server-dev";

/// The modules of `coord-bench` that measure something.
const AREAS: [&str; 7] = ["lock", "grpc", "ids", "registry", "config", "idle", "memory"];

const BUILD: Duration = Duration::from_secs(600);
const QUICK: Duration = Duration::from_secs(10);

/// Measures every area in turn. `--json FILE` is a file for each, with the area in its name.
pub(crate) fn all(options: &[&str]) -> Result<()> {
    check(options)?;
    let built = Built::new()?;
    for area in AREAS {
        let named = |file: &str| match file.rsplit_once('.') {
            Some((stem, extension)) => format!("{stem}-{area}.{extension}"),
            None => format!("{file}-{area}"),
        };
        let mut own: Vec<String> = options.iter().map(ToString::to_string).collect();
        if let Some(at) = own.iter().position(|option| option == "--json")
            && let Some(file) = own.get_mut(at + 1)
        {
            *file = named(file);
        }
        built.measure(area, &own.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    Ok(())
}

/// Measures the cost of operations in requests and commits, which depends on no machine, with the programs of the tests.
pub(crate) fn counts() -> Result<()> {
    let folder = shell::root().join("target/bench");
    fs::create_dir_all(&folder)?;
    // Without examples cargo would leave the features of development away, and compile most dependencies again.
    let selection = ["build", "--workspace", "--all-features", "--examples", "--bin", "coord-bench"];
    let mut command = shell::cargo(selection);
    let status = command.env("PROTOC", protoc::for_builds()?).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("coord-bench is not built; see the messages above");
    }
    let server = Server::start(&folder)?;
    let mut check = Command::new(target().join("debug/coord-bench"));
    let status = check.args(["check", "--endpoint", &server.address]).stdin(Stdio::null()).status();
    if !status.context("cannot start coord-bench")?.success() {
        bail!("an operation costs more than it may; see the lines above");
    }
    Ok(())
}

/// Shows what `--json` has written, as `coord-bench` can: `plot` or `tables`.
pub(crate) fn show(how: &str, files: &[&str]) -> Result<()> {
    let status = Command::new(build()?).arg(how).args(files).status().context("cannot start coord-bench")?;
    if !status.success() {
        bail!("nothing was written; see the message above");
    }
    Ok(())
}

fn target() -> PathBuf {
    shell::var("CARGO_TARGET_DIR").map_or_else(|| shell::root().join("target"), PathBuf::from)
}

/// Measures one area; `options` are `--json FILE`, `--quick` and `--only TEXT`.
pub(crate) fn run(area: &str, options: &[&str]) -> Result<()> {
    if !AREAS.contains(&area) {
        bail!("nothing is measured for `{area}`; there is: {}", AREAS.join(", "));
    }
    check(options)?;
    Built::new()?.measure(area, options)
}

/// Measuring programs: equal for all areas, even if their sources change meanwhile.
struct Built {
    folder: PathBuf,
    /// The commit, if it is known.
    commit: Result<String>,
    program: PathBuf,
    /// The contenders in Go with their versions, or why there are none.
    go: Result<(PathBuf, String)>,
}

impl Built {
    fn new() -> Result<Self> {
        let folder = shell::root().join("target/bench");
        fs::create_dir_all(&folder)?;
        let mut git = Command::new("git");
        git.current_dir(shell::root()).args(["describe", "--always", "--dirty"]);
        let commit = shell::output(&mut git, QUICK);
        let (program, go) = (build()?, build_go(&folder));
        Ok(Self { folder, commit, program, go })
    }

    fn measure(&self, area: &str, options: &[&str]) -> Result<()> {
        let server = Server::start(&self.folder)?;
        let mut command = Command::new(&self.program);
        command.arg(area).args(["--endpoint", &server.address]).args(options);
        match &self.go {
            Ok((program, version)) => command.arg("--go").arg(program).args(["--go-version", version]),
            Err(error) => command
                .args(["--go-missing", &format!("{error:#}; get it with `apt-get install {GO_PACKAGES}`")]),
        };
        let date = shell::output(Command::new("date").args(["-u", "+%Y-%m-%d"]), QUICK);
        for (name, text) in [("--commit", &self.commit), ("--date", &date)] {
            if let Ok(text) = text {
                command.args([name, text.trim()]);
            }
        }
        let status = command.stdin(Stdio::null()).status().context("cannot start coord-bench")?;
        drop(server);
        if !status.success() {
            bail!("the measurement ended with {status}; its message is above");
        }
        Ok(())
    }
}

fn check(options: &[&str]) -> Result<()> {
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        match *option {
            "--quick" => {}
            "--json" | "--only" if rest.next().is_some_and(|value| !value.starts_with("--")) => {}
            other => bail!("`bench` takes --quick, --json FILE and --only TEXT, not `{other}`"),
        }
    }
    Ok(())
}

/// Builds `coord-bench` as users build coord: optimized.
fn build() -> Result<PathBuf> {
    let mut command = shell::cargo(["build", "--release", "--package", "coord-bench"]);
    let status = command.env("PROTOC", protoc::for_builds()?).status().context("cannot start cargo")?;
    if !status.success() {
        bail!("coord-bench is not built; see the messages above");
    }
    Ok(target().join("release/coord-bench"))
}

/// Builds the contenders in Go; the program and the versions of what is in it, or why there is none.
fn build_go(folder: &Path) -> Result<(PathBuf, String)> {
    let go = shell::on_path("go").context("no `go` on PATH")?;
    let packages = Path::new(GO_SOURCES).join("src/go.etcd.io/etcd");
    // etcd moved its Go packages with 3.5.
    let tags = match ["clientv3", "client/v3"].map(|layout| packages.join(layout).is_dir()) {
        [true, _] => "etcd34",
        [_, true] => "etcd35",
        _ => bail!("no Go packages of etcd in {GO_SOURCES}"),
    };
    let program = folder.join("go-peer").canonicalize().unwrap_or_else(|_| folder.join("go-peer"));
    let mut command = Command::new(&go);
    command.current_dir(shell::root().join("crates/coord-bench/peers/go"));
    command.env("GO111MODULE", "off").env("GOPATH", GO_SOURCES).env("GOFLAGS", "");
    command.args(["build", "-tags", tags, "-o"]).arg(&program).arg(".");
    shell::output(&mut command, BUILD)?;
    let version = shell::output(Command::new(&go).arg("version"), QUICK)?;
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat", "${Version}", "golang-etcd-server-dev"]);
    let etcd = shell::output(&mut query, QUICK).unwrap_or_else(|_| "of unknown version".into());
    Ok((program, format!("{}, clientv3 {}", version.trim(), etcd.trim())))
}

/// `cargo xtask etcd` as a process of its own, which cleans up even if this one is killed.
struct Server {
    address: String,
    process: Child,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let port = free_port()?;
        let log = folder.join("etcd.log");
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["etcd", "--port", &port.to_string()]);
        // `etcd` starts a program before it starts a container. So there should be one: what Docker puts between it and the
        // disk and its clients would be measured too.
        if etcd::program().is_none()
            && let Err(error) = debian::unpack()
        {
            eprintln!("no program to measure, so a container if there is one: {error:#}");
        }
        // Its data belongs on the disk of the checkout: /tmp may be memory, where a commit costs nothing.
        command.env("TMPDIR", OsString::from(folder.canonicalize()?));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(File::create(&log)?);
        let mut process = command.spawn().context("cannot start etcd")?;
        let mut line = String::new();
        // The address comes when it is ready; the end of the output when it failed.
        BufReader::new(process.stdout.take().context("stdout was piped")?).read_line(&mut line)?;
        let server = Self { address: format!("127.0.0.1:{port}"), process };
        if line.trim().is_empty() {
            bail!("etcd did not get ready; see {}", log.display());
        }
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Not SIGKILL, which would leave etcd and its data behind. Should this fail, it ends with this process.
        let mut terminate = Command::new("kill");
        if terminate.arg(self.process.id().to_string()).status().is_ok_and(|status| status.success()) {
            let _ = self.process.wait();
        }
    }
}

/// Below the ports that systems give to outgoing connections.
fn free_port() -> Result<u16> {
    (23_790..23_890)
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        .context("no free port from 23790 on")
}
