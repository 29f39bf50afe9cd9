//! One process of a contender, as the runner sees it.

use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

/// Longer than any step takes.
const LIMIT: Duration = Duration::from_secs(120);

/// A running process; killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Party {
    process: Child,
    commands: ChildStdin,
    lines: Lines<BufReader<ChildStdout>>,
    /// What it last complained of. Shown only when it fails, since Go's client warns of its own clean-up.
    complaint: Arc<Mutex<String>>,
}

impl Party {
    /// Starts it; it connects and warms up by itself.
    pub(crate) fn start(program: &Path, args: &[String]) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut process = command.spawn().with_context(|| format!("cannot start {}", program.display()))?;
        let commands = process.stdin.take().context("stdin was piped")?;
        let lines = BufReader::new(process.stdout.take().context("stdout was piped")?).lines();
        let mut complaints = BufReader::new(process.stderr.take().context("stderr was piped")?).lines();
        let complaint = Arc::new(Mutex::new(String::new()));
        let latest = complaint.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = complaints.next_line().await {
                *latest.lock().expect("nothing panics while this is locked") = line;
            }
        });
        Ok(Self { process, commands, lines, complaint })
    }

    /// Waits until the load is running.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        let line = self.line().await?;
        if line != "ready" {
            bail!("`{line}` instead of `ready`");
        }
        Ok(())
    }

    /// Begins the measured time.
    pub(crate) async fn go(&mut self) -> Result<()> {
        Ok(self.commands.write_all(b"go\n").await?)
    }

    /// Waits for its end.
    pub(crate) async fn report(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.line().await?)?)
    }

    /// Lets it clean up and waits until it is gone.
    pub(crate) async fn stop(mut self) -> Result<()> {
        self.commands.write_all(b"stop\n").await?;
        let status = timeout(LIMIT, self.process.wait()).await.context("a contender does not end")??;
        anyhow::ensure!(status.success(), "a contender ended with {status}: {}", self.complaint());
        Ok(())
    }

    /// The processor time that it has used so far, in seconds.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let used = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()?)).ok()?;
            // After the program's name, which may contain anything: state is the first field, utime the 12th.
            let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
            let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
            // Linux reports hundredths of a second on every machine that runs etcd.
            Some((ticks(11)? + ticks(12)?) / 100.0)
        };
        used().unwrap_or_default()
    }

    async fn line(&mut self) -> Result<String> {
        let line = timeout(LIMIT, self.lines.next_line()).await;
        let line = line.with_context(|| format!("a contender does not answer: {}", self.complaint()))??;
        line.with_context(|| format!("a contender failed: {}", self.complaint()))
    }

    fn complaint(&self) -> String {
        self.complaint.lock().expect("nothing panics while this is locked").clone()
    }
}
