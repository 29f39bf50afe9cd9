//! An etcd of a test's own, in a container or as a process, that can be killed and brought back.

mod container;
pub(crate) mod http;
mod process;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::time::sleep;

use container::Container;
pub(crate) use process::Process;

use crate::ports::free_port;

const READY: Duration = Duration::from_secs(30);
const GIVEN_READY: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(50);

/// One etcd member on loopback. Its address stays the same over [`restart`](Self::restart).
///
/// Dropping it, or [`stop`](Self::stop), removes the container or process and its data.
#[derive(Debug)]
pub struct EtcdServer {
    endpoint: String,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Given,
    Container(Container),
    Process(Process),
}

impl EtcdServer {
    /// A fresh server: a container of `COORD_TEST_ETCD_IMAGE`, else a process of `COORD_TEST_ETCD_BIN` or of
    /// the `etcd` on PATH.
    ///
    /// # Errors
    /// When neither exists, or the server does not get ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// As [`start`](Self::start), with more arguments for etcd: `&["--quota-backend-bytes", "16777216"]`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(args: &[&str]) -> Result<Self> {
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut tries = 3;
        loop {
            tries -= 1;
            match Self::try_start(&args).await {
                // Somebody took the port between the look for a free one and the start.
                Err(error) if tries > 0 && port_taken(&error) => {}
                result => return result,
            }
        }
    }

    /// The server at `COORD_TEST_ETCD` if that is set, else a fresh one: for tests that keep to a prefix of
    /// their own and do not stop it.
    ///
    /// # Errors
    /// When nothing healthy answers there, or as [`start`](Self::start).
    pub async fn shared() -> Result<Self> {
        let Some(given) = var("COORD_TEST_ETCD") else {
            return Self::start().await;
        };
        let endpoint = if given.contains("://") { given } else { format!("http://{given}") };
        let server = Self { endpoint, kind: Kind::Given };
        let endpoint = &server.endpoint;
        server.wait_until_ready(GIVEN_READY).await.with_context(|| {
            format!("COORD_TEST_ETCD names {endpoint}; start an etcd there or unset the variable")
        })?;
        Ok(server)
    }

    async fn try_start(args: &[String]) -> Result<Self> {
        let port = free_port()?;
        let kind = if let Some(image) = var("COORD_TEST_ETCD_IMAGE") {
            Kind::Container(Container::start(&image, port, args).await?)
        } else {
            Kind::Process(Process::start(program()?, port, args)?)
        };
        let server = Self { endpoint: format!("http://127.0.0.1:{port}"), kind };
        server.wait_until_ready(READY).await?;
        Ok(server)
    }

    /// Where etcd's own clients find it: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The same as [`endpoint`](Self::endpoint).
    pub fn url(&self) -> &str {
        &self.endpoint
    }

    /// Where coord finds it: `etcd://127.0.0.1:PORT/PREFIX`.
    pub fn coord_url(&self, prefix: &str) -> String {
        let address = self.endpoint.split("://").last().unwrap_or_default().trim_end_matches('/');
        format!("etcd://{address}/{}", prefix.trim_start_matches('/'))
    }

    /// SIGKILL; returns when the process is gone.
    ///
    /// # Errors
    /// When the server was given through `COORD_TEST_ETCD`, or Docker fails.
    pub async fn kill9(&mut self) -> Result<()> {
        match &mut self.kind {
            Kind::Given => bail!(NOT_OURS),
            Kind::Container(container) => container.kill9().await,
            Kind::Process(process) => process.kill9(),
        }
    }

    /// Starts it again on the same address and data, after a SIGKILL if it still runs; returns when ready.
    ///
    /// # Errors
    /// When the server was given through `COORD_TEST_ETCD`, or does not get ready.
    pub async fn restart(&mut self) -> Result<()> {
        self.kill9().await?;
        match &mut self.kind {
            Kind::Given => bail!(NOT_OURS),
            Kind::Container(container) => container.start_again().await?,
            Kind::Process(process) => process.start_again()?,
        }
        self.wait_until_ready(READY).await
    }

    /// As [`restart`](Self::restart), but with nothing of its data, as after a lost disk.
    ///
    /// # Errors
    /// As [`restart`](Self::restart).
    pub async fn restart_empty(&mut self) -> Result<()> {
        self.kill9().await?;
        match &mut self.kind {
            Kind::Given => bail!(NOT_OURS),
            Kind::Container(container) => container.start_empty().await?,
            Kind::Process(process) => process.start_empty()?,
        }
        self.wait_until_ready(READY).await
    }

    /// Removes it and its data now, where dropping it would ignore a failure to do so.
    ///
    /// # Errors
    /// When Docker fails to remove the container.
    pub async fn stop(self) -> Result<()> {
        match self.kind {
            Kind::Container(mut container) => container.remove().await,
            Kind::Given | Kind::Process(_) => Ok(()),
        }
    }

    /// Posts to etcd's JSON gateway, such as `/v3/kv/put`, and returns the body of the answer.
    ///
    /// # Errors
    /// When nothing answers, or with anything but 200.
    pub async fn gateway(&self, path: &str, json: &str) -> Result<String> {
        http::post(&self.endpoint, path, json).await
    }

    /// How many requests the server has begun to serve, by method: `Txn`, `Range`, `LeaseGrant`, … and
    /// `Watch` and `LeaseKeepAlive` by stream.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn requests(&self) -> Result<BTreeMap<String, u64>> {
        let metrics = http::get(&self.endpoint, "/metrics").await?;
        let started = metrics.lines().filter_map(|line| line.strip_prefix("grpc_server_started_total{"));
        Ok(started
            .filter_map(|line| {
                let method = line.split("grpc_method=\"").nth(1)?.split('"').next()?;
                let count = line.rsplit(' ').next()?.parse::<f64>().ok()?;
                // Counters are whole numbers, far below the limit.
                #[expect(clippy::cast_sign_loss, reason = "a counter is never negative")]
                (count > 0.0).then(|| (method.to_owned(), count as u64))
            })
            .collect())
    }

    /// The sum of the counters whose lines begin with `start` and contain `part`.
    ///
    /// # Errors
    /// When nothing answers.
    #[expect(clippy::cast_sign_loss, reason = "counters are not negative, though etcd may write 1e+06")]
    pub async fn metric(&self, start: &str, part: &str) -> Result<u64> {
        let metrics = http::get(&self.endpoint, "/metrics").await?;
        let lines = metrics.lines().filter(|line| line.starts_with(start) && line.contains(part));
        Ok(lines
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .map(|count| count as u64)
            .sum())
    }

    /// Runs `etcdctl` against this server to its end and returns its output.
    ///
    /// # Errors
    /// When there is no etcdctl, or it exits non-zero.
    pub async fn etcdctl(&self, args: &[&str]) -> Result<String> {
        if let (Kind::Container(container), None) = (&self.kind, var("COORD_TEST_ETCDCTL")) {
            return container.etcdctl(args).await;
        }
        let program = var("COORD_TEST_ETCDCTL").unwrap_or_else(|| "etcdctl".to_owned());
        let output = Command::new(&program)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint])
            .args(args)
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("cannot start `{program}`; set COORD_TEST_ETCDCTL to an etcdctl"))?;
        if !output.status.success() {
            bail!("etcdctl {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// An `etcdctl` against this server that goes on while the test does something else.
    ///
    /// # Errors
    /// When the server's container is gone.
    pub fn etcdctl_process(&self, args: &[&str]) -> Result<Command> {
        let mut command = match (&self.kind, var("COORD_TEST_ETCDCTL")) {
            (Kind::Container(container), None) => container.etcdctl_process()?,
            (_, program) => {
                let mut command = Command::new(program.as_deref().unwrap_or("etcdctl"));
                command.env("ETCDCTL_API", "3").args(["--endpoints", &self.endpoint]);
                command
            }
        };
        command.args(args).kill_on_drop(true);
        Ok(command)
    }

    async fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let reason = match http::get(&self.endpoint, "/health").await {
                Ok(body) if body.contains(r#""health":"true""#) => return Ok(()),
                Ok(body) => body,
                Err(error) => format!("{error:#}"),
            };
            let ended = match &self.kind {
                Kind::Given => None,
                Kind::Container(container) => container.ended().await?,
                Kind::Process(process) => process.ended()?,
            };
            if let Some(last_words) = ended {
                bail!("etcd ended at once: {last_words}");
            }
            if Instant::now() >= end {
                bail!("no healthy etcd at {} within {} s: {reason}", self.endpoint, limit.as_secs());
            }
            sleep(TICK).await;
        }
    }
}

const NOT_OURS: &str = "this server was given through COORD_TEST_ETCD and is not ours to stop; \
                        use EtcdServer::start() in a test that stops its server";

/// The value of a variable that is set and not empty.
pub(crate) fn var(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

pub(crate) fn program() -> Result<PathBuf> {
    if let Some(named) = var("COORD_TEST_ETCD_BIN") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|folder| folder.join("etcd")).find(|file| file.is_file()).context(
        "no etcd for this test: run `cargo xtask test`, or set COORD_TEST_ETCD_BIN or COORD_TEST_ETCD_IMAGE",
    )
}

pub(crate) fn port_taken(error: &anyhow::Error) -> bool {
    let text = format!("{error:#}");
    text.contains("address already in use") || text.contains("port is already allocated")
}
