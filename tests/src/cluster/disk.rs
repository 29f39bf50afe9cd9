//! A disk that takes long or fails: `strace` gets between a node and its `fdatasync`.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{sleep, timeout},
};

use super::Cluster;
use crate::server::var;

const ATTACHED: Duration = Duration::from_secs(20);
const ENDED: Duration = Duration::from_secs(30);
const WRITTEN: Duration = Duration::from_millis(100);

/// What makes a node's disk slow. The disk is as fast as before when this is dropped.
#[derive(Debug)]
pub struct SlowDisk {
    tracer: Child,
}

impl Cluster {
    /// From now on whatever a node wants to have on its disk takes this much longer.
    ///
    /// # Errors
    /// When there is no strace, or it must not trace.
    pub async fn slow_disk(&self, n: usize, delay: Duration) -> Result<SlowDisk> {
        let tracer = self.trace(n, &format!("delay_enter={}", delay.as_micros())).await?;
        Ok(SlowDisk { tracer })
    }

    /// The next thing that a node wants to have on its disk fails with an I/O error; returns when the node has ended,
    /// as it does then. So that there is such a thing, this writes the key `disk`.
    ///
    /// # Errors
    /// When there is no strace, or it must not trace, or the node goes on.
    pub async fn fail_disk(&self, n: usize) -> Result<()> {
        let tracer = self.trace(n, "error=EIO:when=1").await?;
        let end = Instant::now() + ENDED;
        while self.nodes[n].process.ended()?.is_none() {
            if Instant::now() >= end {
                bail!("node {n} still runs {} s after its disk began to fail", ENDED.as_secs());
            }
            // A quiet node wants nothing of its disk. Whether this is written does not matter.
            let _ = timeout(WRITTEN, self.gateway(n, "/v3/kv/put", r#"{"key":"ZGlzaw=="}"#)).await;
            sleep(Duration::from_millis(5)).await;
        }
        drop(tracer);
        // Its zombie is collected, and a restart begins anew.
        self.kill9(n)
    }

    async fn trace(&self, n: usize, fault: &str) -> Result<Child> {
        let program = var("COORD_TEST_STRACE").unwrap_or_else(|| "strace".to_owned());
        let mut tracer = Command::new(&program)
            .args(["-f", "-p", &self.pid(n)?.to_string(), "-o", "/dev/null"])
            .args(["-e", "trace=fdatasync", "-e", &format!("inject=fdatasync:{fault}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| {
                format!("cannot start `{program}`: run `cargo xtask test`, or set COORD_TEST_STRACE")
            })?;
        let mut lines = BufReader::new(tracer.stderr.take().expect("is piped")).lines();
        let attached = async {
            let mut last = "it said nothing".to_owned();
            while let Some(line) = lines.next_line().await? {
                if line.contains("attached") {
                    return Ok(());
                }
                last = line;
            }
            bail!(
                "strace can not slow the disk of an etcd ({last}): allow tracing, as root or with `sysctl \
                 kernel.yama.ptrace_scope=0`, in a container with `--cap-add SYS_PTRACE`"
            )
        };
        timeout(ATTACHED, attached).await.context("strace did not attach in time")??;
        // It goes on talking about threads that come and go, and must not find the pipe full or closed.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(tracer)
    }
}

impl SlowDisk {
    /// Ends it; returns when the disk is as fast as before.
    ///
    /// # Errors
    /// When the system refuses to end the tracer.
    pub async fn stop(mut self) -> Result<()> {
        // Asked to, it leaves every thread as it found it.
        if let Some(pid) = self.tracer.id() {
            Command::new("kill").arg(pid.to_string()).status().await.context("cannot start `kill`")?;
        }
        if timeout(ENDED, self.tracer.wait()).await.is_err() {
            self.tracer.kill().await.context("cannot end strace")?;
        }
        Ok(())
    }
}
