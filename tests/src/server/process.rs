//! etcd as a child process with its data in a temporary folder.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;

use anyhow::{Context, Result};

use super::Listen;

#[derive(Debug)]
pub(super) struct Process {
    program: PathBuf,
    listen: Listen,
    args: Vec<String>,
    folder: PathBuf,
    /// Asking whether a child still runs needs `&mut`.
    child: Mutex<Option<Child>>,
}

impl Process {
    pub(super) fn start(program: PathBuf, listen: Listen, args: &[String]) -> Result<Self> {
        let folder =
            std::env::temp_dir().join(format!("coord-tests-etcd-{}-{}", std::process::id(), listen.port));
        let process = Self { program, listen, args: args.to_vec(), folder, child: Mutex::default() };
        process.start_empty()?;
        Ok(process)
    }

    pub(super) fn start_empty(&self) -> Result<()> {
        // Nothing there is as good as removed.
        let _ = fs::remove_dir_all(&self.folder);
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot create `{}`", self.folder.display()))?;
        self.start_again()
    }

    pub(super) fn start_again(&self) -> Result<()> {
        let mut command = Command::new(&self.program);
        command.args(["--log-level", "error", "--data-dir"]).arg(self.folder.join("data"));
        command.args(self.listen.args("127.0.0.1", self.listen.port));
        // A single member never dials its peers, so any free port does.
        command.args(["--listen-peer-urls", "http://127.0.0.1:0"]).args(&self.args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(self.log())?);
        let child = command.spawn().with_context(|| format!("cannot start `{}`", self.program.display()))?;
        *self.child.lock().expect("nothing panics while it holds the child") = Some(child);
        Ok(())
    }

    pub(super) fn kill9(&self) -> Result<()> {
        let child = self.child.lock().expect("nothing panics while it holds the child").take();
        if let Some(mut child) = child {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// The last line of the log when the process ended by itself.
    pub(super) fn ended(&self) -> Result<Option<String>> {
        let mut child = self.child.lock().expect("nothing panics while it holds the child");
        let status = child.as_mut().map(Child::try_wait).transpose()?.flatten();
        Ok(status.map(|status| {
            let log = fs::read_to_string(self.log()).unwrap_or_default();
            format!("{status}; {}", log.lines().last().unwrap_or("it wrote no log"))
        }))
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A failure leaves a folder among the temporary files, which no test result should depend on.
        let _ = self.kill9();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
