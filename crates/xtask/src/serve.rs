//! `cargo xtask etcd`: an empty etcd on loopback for hand trials.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::parent_id;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::{debian, etcd, image, shell};

const READY: Duration = Duration::from_secs(20);
const TICK: Duration = Duration::from_millis(100);

/// Runs until Ctrl-C, until the program that started this one is gone, or until etcd ends.
pub(crate) fn run(port: u16) -> Result<()> {
    // Before the start, so that no signal in between leaves a server behind.
    let stop = Stop::new()?;
    if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
        bail!("port {port} is taken; pass another one with `--port`");
    }
    let mut server = Server::start(port)?;
    wait_until_ready(&mut server, port, &stop)?;

    let etcdctl = etcd::control_program();
    let etcdctl = etcdctl.map_or_else(|| "etcdctl".to_owned(), |path| path.display().to_string());
    println!("etcd://127.0.0.1:{port}/demo");
    eprintln!(
        "\n{} is ready; in another terminal:\n  \
         PROTOC=$(cargo xtask protoc) cargo run --example quickstart \
         --features etcd -- etcd://127.0.0.1:{port}/demo\n  \
         {etcdctl} --endpoints 127.0.0.1:{port} get --prefix /\n\
         Ctrl-C stops it and removes its data.",
        server.what
    );
    // A script that reads the address through a pipe waits for this line.
    std::io::stdout().flush()?;

    while !stop.wanted() {
        if let Some(status) = server.child.try_wait()? {
            bail!("etcd ended by itself with {status}");
        }
        thread::sleep(TICK);
    }
    Ok(())
}

struct Stop {
    signal: Arc<AtomicBool>,
    parent: u32,
}

impl Stop {
    fn new() -> Result<Self> {
        let signal = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(number, Arc::clone(&signal))?;
        }
        Ok(Self { signal, parent: parent_id() })
    }

    fn wanted(&self) -> bool {
        self.signal.load(Ordering::Relaxed) || parent_id() != self.parent
    }
}

/// A process or a container; dropping it removes what it wrote.
struct Server {
    what: String,
    child: Child,
    leftover: Leftover,
}

enum Leftover {
    Folder(PathBuf),
    Container(String),
}

impl Server {
    fn start(port: u16) -> Result<Self> {
        if let Some(program) = etcd::program() {
            return Self::start_process(&program, port);
        }
        match image::find()? {
            Some(image) => Self::start_container(&image, port),
            None => Self::start_process(
                &debian::unpack()
                    .context("no etcd to start: install one, start Docker, or set COORD_TEST_ETCD_BIN")?
                    .etcd,
                port,
            ),
        }
    }

    fn start_process(program: &Path, port: u16) -> Result<Self> {
        let data = std::env::temp_dir().join(format!("coord-etcd-{port}-{}", std::process::id()));
        let url = format!("http://127.0.0.1:{port}");
        let mut command = Command::new(program);
        command.arg("--data-dir").arg(&data).args(["--log-level", "error"]);
        command.args(["--listen-client-urls", &url, "--advertise-client-urls", &url]);
        // A single member never dials its peers, so any free port does.
        command.args(["--listen-peer-urls", "http://127.0.0.1:0"]);
        Self::spawn(command, program.display().to_string(), Leftover::Folder(data))
    }

    fn start_container(image: &str, port: u16) -> Result<Self> {
        let name = format!("coord-etcd-{port}-{}", std::process::id());
        let mut command = Command::new("docker");
        command.args(["run", "--rm", "--name", &name, "--publish", &format!("127.0.0.1:{port}:2379"), image]);
        command.args(["etcd", "--log-level", "error", "--listen-client-urls", "http://0.0.0.0:2379"]);
        command.args(["--advertise-client-urls", &format!("http://127.0.0.1:{port}")]);
        Self::spawn(command, format!("a container of {image}"), Leftover::Container(name))
    }

    fn spawn(mut command: Command, what: String, leftover: Leftover) -> Result<Self> {
        // Standard output is for the address alone.
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.with_context(|| format!("cannot start {what}"))?;
        Ok(Self { what, child, leftover })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Errors here mean that it is gone already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        match &self.leftover {
            Leftover::Folder(data) => {
                let _ = std::fs::remove_dir_all(data);
            }
            Leftover::Container(name) => {
                let _ = shell::output(
                    Command::new("docker").args(["rm", "--force", "--volumes", name]),
                    Duration::from_secs(15),
                );
            }
        }
    }
}

fn wait_until_ready(server: &mut Server, port: u16, stop: &Stop) -> Result<()> {
    let end = Instant::now() + READY;
    while !healthy(port) {
        if let Some(status) = server.child.try_wait()? {
            bail!("{} ended with {status}; its messages are above", server.what);
        }
        if stop.wanted() {
            bail!("stopped before it was ready");
        }
        if Instant::now() >= end {
            bail!("{} was not ready after {} s", server.what, READY.as_secs());
        }
        thread::sleep(TICK);
    }
    Ok(())
}

/// Asks for `/health`: an open port proves little, as Docker opens it before etcd does.
fn healthy(port: u16) -> bool {
    let ask = || -> std::io::Result<bool> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).or_else(|error| match error.kind() {
            ErrorKind::ConnectionReset => Ok(0),
            _ => Err(error),
        })?;
        Ok(answer.contains(r#""health":"true""#))
    };
    ask().unwrap_or(false)
}
