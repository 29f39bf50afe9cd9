//! An etcd of a test's own, in a container or as a process, that can be killed and brought back.

mod container;
mod grpc_proxy;
pub(crate) mod http;
mod process;
mod snapshot;
mod watchdog;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::time::sleep;

use container::Container;
pub use grpc_proxy::GrpcProxy;
pub(crate) use process::Process;
pub use snapshot::Snapshot;

use crate::ports::free_port;

use crate::Certs;

const READY: Duration = Duration::from_secs(30);
const GIVEN_READY: Duration = Duration::from_secs(5);
const TICK: Duration = Duration::from_millis(50);

/// One etcd member on loopback. Its address stays the same over [`restart`](Self::restart).
///
/// Dropping it, or [`stop`](Self::stop), removes the container or process and its data.
#[derive(Debug)]
pub struct EtcdServer {
    endpoint: String,
    /// Where health and metrics are, without TLS.
    watched: String,
    /// How etcdctl gets in.
    etcdctl: Vec<String>,
    kind: Kind,
}

/// How a member listens for clients.
#[derive(Clone, Debug)]
struct Listen {
    port: u16,
    tls: Option<Tls>,
}

/// With TLS, health and metrics have a port of their own that needs none.
#[derive(Clone, Debug)]
struct Tls {
    metrics_port: u16,
    certs: PathBuf,
    clients: Clients,
}

/// Who may connect to a server with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Everyone.
    All,
    /// Those with a certificate of the authority.
    WithCertificate,
}

impl Listen {
    fn url(&self, host: &str, port: u16) -> String {
        format!("{}://{host}:{port}", if self.tls.is_some() { "https" } else { "http" })
    }

    /// The arguments for it, where `host` is the address to listen on and `port` the port there.
    fn args(&self, host: &str, port: u16) -> Vec<String> {
        let mut args = vec![
            format!("--listen-client-urls={}", self.url(host, port)),
            format!("--advertise-client-urls={}", self.url("127.0.0.1", self.port)),
        ];
        if let Some(tls) = &self.tls {
            let file = |name: &str| tls.certs.join(name).display().to_string();
            args.extend([
                format!("--listen-metrics-urls=http://{host}:{}", tls.metrics_port),
                format!("--cert-file={}", file("server.pem")),
                format!("--key-file={}", file("server.key")),
            ]);
            // To know an authority is to ask for its certificates, for etcd.
            if tls.clients == Clients::WithCertificate {
                args.push(format!("--trusted-ca-file={}", file("ca.pem")));
                args.push("--client-cert-auth".to_owned());
            }
        }
        args
    }
}

/// How a server of a test's own is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum As {
    /// In a container, where an image is named, and else as a process.
    Named,
    Process,
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
        Self::start_listening(args, None).await
    }

    /// As [`start_with`](Self::start_with), but with TLS, and the certificates of `certs`, which it reads for each
    /// new connection.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_tls(certs: &Certs, clients: Clients, args: &[&str]) -> Result<Self> {
        let tls = Tls { metrics_port: 0, certs: certs.folder().to_owned(), clients };
        Self::start_listening(args, Some(tls)).await
    }

    async fn start_listening(args: &[&str], tls: Option<Tls>) -> Result<Self> {
        Self::start_kind(args, tls, As::Named).await
    }

    async fn start_kind(args: &[&str], tls: Option<Tls>, kind: As) -> Result<Self> {
        coord_conformance::print_traces();
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let mut tries = 3;
        loop {
            tries -= 1;
            match Self::try_start(&args, tls.clone(), kind).await {
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
        let server = Self { watched: endpoint.clone(), endpoint, etcdctl: Vec::new(), kind: Kind::Given };
        let endpoint = &server.endpoint;
        server.wait_until_ready(GIVEN_READY).await.with_context(|| {
            format!("COORD_TEST_ETCD names {endpoint}; start an etcd there or unset the variable")
        })?;
        Ok(server)
    }

    async fn try_start(args: &[String], tls: Option<Tls>, kind: As) -> Result<Self> {
        let port = free_port()?;
        let mut etcdctl = Vec::new();
        let tls =
            tls.map(|tls| Ok::<_, anyhow::Error>(Tls { metrics_port: free_port()?, ..tls })).transpose()?;
        if let Some(tls) = &tls {
            for (flag, name) in [("cacert", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")] {
                etcdctl.push(format!("--{flag}={}", tls.certs.join(name).display()));
            }
        }
        let listen = Listen { port, tls };
        let endpoint = listen.url("127.0.0.1", port);
        let metrics_port = listen.tls.as_ref().map_or(port, |tls| tls.metrics_port);
        let image = var("COORD_TEST_ETCD_IMAGE").filter(|_| kind == As::Named);
        let kind = if let Some(image) = image {
            Kind::Container(Container::start(&image, listen, args).await?)
        } else {
            Kind::Process(Process::start(program()?, &listen, args)?)
        };
        let server = Self { endpoint, watched: format!("http://127.0.0.1:{metrics_port}"), etcdctl, kind };
        server.wait_until_ready(READY).await?;
        Ok(server)
    }

    /// Enables authentication with the user `root` and gives etcdctl its password.
    ///
    /// # Errors
    /// As [`etcdctl`](Self::etcdctl).
    pub async fn enable_auth(&mut self) -> Result<()> {
        for command in ["user add root:rootpw", "user grant-role root root", "auth enable"] {
            self.etcdctl(&command.split(' ').collect::<Vec<_>>()).await?;
        }
        self.etcdctl.push("--user=root:rootpw".to_owned());
        Ok(())
    }

    /// Adds a user with a role that may `permission` (`read` or `readwrite`) what begins with `prefix`.
    ///
    /// # Errors
    /// As [`etcdctl`](Self::etcdctl).
    pub async fn add_user(&self, user: &str, password: &str, permission: &str, prefix: &str) -> Result<()> {
        let role = format!("coord-{user}");
        self.etcdctl(&["role", "add", &role]).await?;
        self.etcdctl(&["role", "grant-permission", &role, "--prefix=true", permission, prefix]).await?;
        self.etcdctl(&["user", "add", &format!("{user}:{password}")]).await?;
        self.etcdctl(&["user", "grant-role", user, &role]).await?;
        Ok(())
    }

    /// Changes a password, which ends all tokens of the user.
    ///
    /// # Errors
    /// As [`etcdctl`](Self::etcdctl).
    pub async fn change_password(&self, user: &str, password: &str) -> Result<()> {
        let mut command = self.etcdctl_process(&["user", "passwd", user, "--interactive=false"])?;
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn()?;
        let mut input = child.stdin.take().context("stdin was piped above")?;
        tokio::io::AsyncWriteExt::write_all(&mut input, password.as_bytes()).await?;
        drop(input);
        let output = child.wait_with_output().await?;
        if !output.status.success() {
            bail!("etcdctl user passwd: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(())
    }

    /// Where etcd's own clients find it: `http://127.0.0.1:PORT`, or `https` with TLS.
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
        let metrics = http::get(&self.watched, "/metrics").await?;
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
        let metrics = http::get(&self.watched, "/metrics").await?;
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
            let args: Vec<&str> =
                self.etcdctl.iter().map(String::as_str).chain(args.iter().copied()).collect();
            return container.etcdctl(&args).await;
        }
        let program = var("COORD_TEST_ETCDCTL").unwrap_or_else(|| "etcdctl".to_owned());
        let output = Command::new(&program)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.endpoint])
            .args(&self.etcdctl)
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
        command.args(&self.etcdctl).args(args).kill_on_drop(true);
        Ok(command)
    }

    async fn wait_until_ready(&self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        loop {
            let reason = match http::get(&self.watched, "/health").await {
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
