//! etcd as a child process with its data in a temporary folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard};

use anyhow::{Context, Result, bail};

use super::{Listen, watchdog::Watchdog};

/// Everything is relative to a folder of its own, in which the program runs.
#[derive(Debug)]
pub(crate) struct Process {
    program: PathBuf,
    args: Vec<String>,
    folder: PathBuf,
    running: Mutex<Option<Running>>,
}

#[derive(Debug)]
struct Running {
    /// Asking whether it still runs needs `&mut`.
    child: Child,
    watchdog: Watchdog,
}

impl Process {
    /// A member that is alone.
    pub(super) fn start(program: PathBuf, listen: &Listen, args: &[String]) -> Result<Self> {
        let mut all = listen.args("127.0.0.1", listen.port);
        // A single member never dials its peers, so any free port does.
        all.extend(["--listen-peer-urls", "http://127.0.0.1:0"].map(str::to_owned));
        all.extend(args.iter().cloned());
        let name = format!("coord-tests-etcd-{}-{}", std::process::id(), listen.port);
        let process = Self::new(program, std::env::temp_dir().join(name), all);
        process.start_empty()?;
        Ok(process)
    }

    /// One that is not started yet.
    pub(crate) fn new(program: PathBuf, folder: PathBuf, args: Vec<String>) -> Self {
        Self { program, args, folder, running: Mutex::default() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn start_empty(&self) -> Result<()> {
        // Nothing there is as good as removed.
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create `{}`", self.folder.display()))?;
        self.start_again()
    }

    pub(crate) fn start_again(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["--log-level", "error", "--data-dir", "data"]).args(&self.args);
        command.current_dir(&self.folder).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.stderr(File::create(self.log())?).spawn();
        let mut child = child.with_context(|| format!("cannot start `{}`", self.program.display()))?;
        match Watchdog::over(child.id(), &self.folder) {
            Ok(watchdog) => *self.running() = Some(Running { child, watchdog }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error).context("cannot start `sh`");
            }
        }
        Ok(())
    }

    pub(crate) fn kill9(&self) -> Result<()> {
        let running = self.running().take();
        if let Some(Running { mut child, watchdog }) = running {
            // First, since the id may be another process's afterwards.
            drop(watchdog);
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Its id, for signals and tracers.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.running().as_ref().map(|running| running.child.id()).context("this etcd is not running")
    }

    /// Sends a signal, such as `STOP`.
    pub(crate) fn signal(&self, name: &str) -> Result<()> {
        let pid = self.pid()?.to_string();
        let status = Command::new("kill").args([&format!("-{name}"), &pid]).status();
        if !status.context("cannot start `kill`")?.success() {
            bail!("`kill -{name} {pid}` failed");
        }
        Ok(())
    }

    /// The last line of the log when the process ended by itself.
    pub(crate) fn ended(&self) -> Result<Option<String>> {
        let status = self.running().as_mut().map(|running| running.child.try_wait()).transpose()?.flatten();
        Ok(status.map(|status| {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            format!("{status}; {}", log.lines().last().unwrap_or("it wrote no log"))
        }))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().expect("nothing panics while it holds the child")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A failure leaves a folder among the temporary files, which no test result should depend on.
        let _ = self.kill9();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
