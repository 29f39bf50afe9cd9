//! What ends a server when this process is gone and could not do it itself, as after `kill -9`.

use std::{
    io,
    path::Path,
    process::{Child, Command, Stdio},
};

/// Waits for the end of its input, which this process alone holds open. It ignores what a terminal sends to all that it
/// runs: a server that is frozen would outlive that.
const SCRIPT: &str = r#"trap '' HUP INT TERM; read -r _; kill -9 "$1"; rm -rf "$2""#;

/// A process of its own that watches over a server. Dropping it calls it off.
#[derive(Debug)]
pub(super) struct Watchdog(Child);

impl Watchdog {
    /// When this process is gone, the server with this id is killed, and its folder removed.
    ///
    /// Not by the system's own signal for the death of a parent: it comes with the end of the thread that started the
    /// server, and tests are threads.
    pub(super) fn over(pid: u32, folder: &Path) -> io::Result<Self> {
        let mut command = Command::new("sh");
        command.args(["-c", SCRIPT, "sh", &pid.to_string()]).arg(folder);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().map(Self)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // Errors here mean that it is gone already. Killed first: it takes the end of its input for ours.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
