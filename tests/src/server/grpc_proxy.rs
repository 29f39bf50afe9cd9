//! etcd's own gRPC proxy before a server.

use std::{
    fs,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{net::TcpStream, time::sleep};

use super::{program, watchdog::Watchdog};
use crate::ports::free_port;

const READY: Duration = Duration::from_secs(30);

/// A process of `etcd grpc-proxy`, of the program `COORD_TEST_ETCD_BIN` or `etcd` on PATH. It ends when this is dropped.
#[derive(Debug)]
pub struct GrpcProxy {
    endpoint: String,
    folder: PathBuf,
    child: Child,
    watchdog: Option<Watchdog>,
}

impl GrpcProxy {
    /// A proxy before the server at `endpoint`.
    ///
    /// # Errors
    /// When there is no such program, or it does not get ready.
    pub async fn start(endpoint: &str) -> Result<Self> {
        let mut last = None;
        for _ in 0..3 {
            match Self::try_start(endpoint).await {
                Ok(proxy) => return Ok(proxy),
                // Somebody took the port between the look for a free one and the start.
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("there were tries"))
    }

    async fn try_start(endpoint: &str) -> Result<Self> {
        let port = free_port()?;
        let folder = std::env::temp_dir().join(format!("coord-tests-proxy-{}-{port}", std::process::id()));
        fs::create_dir_all(&folder)?;
        let address = format!("127.0.0.1:{port}");
        let program = program()?;
        let mut command = Command::new(&program);
        command.args(["grpc-proxy", "start", "--endpoints", endpoint, "--listen-addr", &address]);
        // It connects to the address that it advertises, and ends if that is not its own.
        command.args(["--advertise-client-url", &address]);
        command.args(["--data-dir", "data"]).current_dir(&folder).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("cannot start `{}`", program.display()))?;
        let watchdog = Some(Watchdog::over(child.id(), &folder)?);
        let mut proxy = Self { endpoint: format!("http://{address}"), folder, child, watchdog };
        let end = Instant::now() + READY;
        while TcpStream::connect(&address).await.is_err() {
            if proxy.child.try_wait()?.is_some() || Instant::now() > end {
                bail!("the gRPC proxy does not get ready");
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(proxy)
    }

    /// The address for clients: `http://127.0.0.1:PORT`.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }
}

impl Drop for GrpcProxy {
    fn drop(&mut self) {
        // First, since the id may be another process's afterwards.
        drop(self.watchdog.take());
        // Errors mean that it is gone already; a folder that is left changes no test.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
