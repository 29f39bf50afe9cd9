//! Backups of an etcd, and an etcd that is put back to one.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::{EtcdServer, Kind, NOT_OURS, Process, READY, program, var};

/// A backup of an etcd. Dropping it removes the file.
#[derive(Debug)]
pub struct Snapshot {
    file: PathBuf,
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        // A failure leaves a file among the temporary ones, which no test result should depend on.
        let _ = fs::remove_file(&self.file);
    }
}

impl EtcdServer {
    /// As [`start`](Self::start), but always as a process, whose data can be restored.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_process() -> Result<Self> {
        Self::start_kind(&[], None, super::As::Process).await
    }

    /// Saves what the server has now, by `etcdctl snapshot save`.
    ///
    /// # Errors
    /// As [`etcdctl`](Self::etcdctl).
    pub async fn snapshot(&self) -> Result<Snapshot> {
        let name = format!("coord-tests-snapshot-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let snapshot = Snapshot { file: std::env::temp_dir().join(name) };
        self.etcdctl(&["snapshot", "save", path(&snapshot.file)?]).await?;
        Ok(snapshot)
    }

    /// Kills the server, replaces its data by a backup, with more arguments for `snapshot restore`, and starts it again on
    /// the same address; returns when it is ready.
    ///
    /// # Errors
    /// When the server is no process of this test, or a program fails.
    pub async fn restore(&mut self, snapshot: &Snapshot, args: &[&str]) -> Result<()> {
        self.kill9().await?;
        self.restore_killed(snapshot, args).await
    }

    /// As [`restore`](Self::restore), where the server was killed before.
    ///
    /// # Errors
    /// As [`restore`](Self::restore).
    pub async fn restore_killed(&mut self, snapshot: &Snapshot, args: &[&str]) -> Result<()> {
        let Kind::Process(process) = &self.kind else { bail!(NOT_OURS) };
        put_back(process, snapshot, args).await?;
        process.start_again()?;
        self.wait_until_ready(READY).await
    }
}

/// Replaces the data of a process that does not run.
async fn put_back(process: &Process, snapshot: &Snapshot, args: &[&str]) -> Result<()> {
    let data = process.folder().join("data");
    // Nothing there is as good as removed.
    let _ = fs::remove_dir_all(&data);
    let tool = restorer()?;
    let output = Command::new(&tool)
        .env("ETCDCTL_API", "3")
        .args(["snapshot", "restore", path(&snapshot.file)?, "--data-dir", path(&data)?])
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("cannot start `{}`", tool.display()))?;
    if !output.status.success() {
        bail!("{} snapshot restore: {}", tool.display(), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// `etcdutl` beside etcd, and `etcdctl` for releases that have none.
fn restorer() -> Result<PathBuf> {
    let beside = program()?.with_file_name("etcdutl");
    if beside.is_file() {
        return Ok(beside);
    }
    Ok(var("COORD_TEST_ETCDCTL").map_or_else(|| PathBuf::from("etcdctl"), PathBuf::from))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().context("temporary folders have names in UTF-8")
}
