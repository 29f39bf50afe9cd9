//! Running other programs: bounded when their output is wanted, timed when a person watches.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The folder of the workspace's `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The cargo that runs this program, started in the workspace's root.
pub(crate) fn cargo<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // Variables of this package that `cargo run` sets. Build scripts that look at them would run again whenever a person
    // calls cargo without this program, and their packages would be compiled again.
    for (name, _) in std::env::vars_os() {
        let is_of_this_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];
        if is_of_this_package.iter().any(|start| name.to_string_lossy().starts_with(start)) {
            command.env_remove(name);
        }
    }
    command.current_dir(root()).args(args);
    command
}

/// This program once more. Through cargo, since what was built meanwhile may have replaced its file.
pub(crate) fn xtask<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Command {
    let mut command = cargo(["run", "--quiet", "--package", "xtask", "--"]);
    command.args(args);
    command
}

/// An environment variable that is set and not empty.
pub(crate) fn var(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// A program by its bare name, as a shell would find it.
pub(crate) fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| is_program(file))
}

#[cfg(unix)]
fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_program(file: &Path) -> bool {
    file.is_file()
}

/// Becomes `command`, so that whoever ends this process ends that; returns only if it can not.
#[cfg(unix)]
pub(crate) fn become_program(command: &mut Command) -> Result<()> {
    use std::os::unix::process::CommandExt;
    Err(command.exec().into())
}

/// The nearest to it elsewhere.
#[cfg(not(unix))]
pub(crate) fn become_program(command: &mut Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("it ended with {status}; its message is above");
    }
    Ok(())
}

/// Runs `command` to its end and returns what it wrote to stdout.
///
/// Fails when it exits non-zero (with the last line it wrote to stderr) or is not done after `limit`.
pub(crate) fn output(command: &mut Command, limit: Duration) -> Result<String> {
    let shown = display(command);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let stdout = drain(child.stdout.take().expect("stdout was piped above"));
    let stderr = drain(child.stderr.take().expect("stderr was piped above"));
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            // The readers are left alone: a grandchild may hold the pipes open for ever.
            bail!("`{shown}` was not done after {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    };
    let stdout = stdout.join().expect("the reader of a pipe does not panic");
    let stderr = stderr.join().expect("the reader of a pipe does not panic");
    if !status.success() {
        let reason = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        bail!("`{shown}` failed: {}", reason.trim());
    }
    Ok(stdout)
}

fn drain(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the text early; the exit status tells what matters.
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Steps of a task that a person watches: each is shown, timed and remembered.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<Step>,
}

struct Step {
    shown: String,
    took: Duration,
    passed: bool,
}

impl Steps {
    /// Runs one step with this terminal's output and says whether it passed.
    pub(crate) fn run(&mut self, command: &mut Command) -> bool {
        self.run_noted(command, "")
    }

    /// As [`Steps::run`], with a remark that is shown after the command.
    pub(crate) fn run_noted(&mut self, command: &mut Command, note: &str) -> bool {
        let shown = format!("{}{note}", display(command));
        eprintln!("==> {shown}");
        let start = Instant::now();
        let status = command.stdin(Stdio::null()).status();
        if let Err(error) = &status {
            eprintln!("cannot start `{shown}`: {error}");
        }
        let passed = status.as_ref().is_ok_and(ExitStatus::success);
        self.done.push(Step { shown, took: start.elapsed(), passed });
        passed
    }

    /// Runs one step and returns what `read` makes of its output; nothing if it failed.
    pub(crate) fn listed<T>(&mut self, command: &mut Command, read: impl FnOnce(&str) -> T) -> Option<T> {
        let shown = display(command);
        eprintln!("==> {shown}");
        let start = Instant::now();
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        if let Err(error) = &output {
            eprintln!("cannot start `{shown}`: {error}");
        }
        let passed = output.as_ref().is_ok_and(|output| output.status.success());
        self.done.push(Step { shown, took: start.elapsed(), passed });
        let output = output.ok().filter(|_| passed)?;
        Some(read(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Runs steps in their order, `width` at a time. The output of each is shown when it has ended.
    pub(crate) fn run_side_by_side(&mut self, steps: Vec<(String, Command)>, width: usize) {
        let waiting = Mutex::new(steps.into_iter());
        let done = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..width {
                scope.spawn(|| {
                    while let Some((shown, mut command)) = next(&waiting) {
                        let start = Instant::now();
                        let output = merged(&mut command);
                        let step = |passed| Step { shown: shown.clone(), took: start.elapsed(), passed };
                        let mut done = done.lock().expect("nothing panics while this is locked");
                        match output {
                            Ok((status, text)) => {
                                println!("==> {shown}\n{text}");
                                done.push(step(status.success()));
                            }
                            Err(error) => {
                                eprintln!("cannot run `{shown}`: {error}");
                                done.push(step(false));
                            }
                        }
                    }
                });
            }
        });
        self.done.extend(done.into_inner().expect("nothing panics while this is locked"));
    }

    /// Shows all steps with their times; an error when one failed.
    pub(crate) fn finish(self) -> Result<()> {
        println!();
        for step in &self.done {
            let verdict = if step.passed { "ok    " } else { "FAILED" };
            println!("{verdict} {:>7.1} s  {}", step.took.as_secs_f64(), step.shown);
        }
        let failed: Vec<&str> =
            self.done.iter().filter(|step| !step.passed).map(|step| step.shown.as_str()).collect();
        match failed.as_slice() {
            [] => Ok(()),
            [one] => bail!("failed: {one}"),
            many => bail!("{} steps failed: {}", many.len(), many.join("; ")),
        }
    }
}

fn next<T>(waiting: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    waiting.lock().expect("nothing panics while this is locked").next()
}

/// Runs a command to its end; its output and messages in the order in which they were written. They go through a file:
/// a pipe would be held open by whatever a failed test has left behind.
fn merged(command: &mut Command) -> io::Result<(ExitStatus, String)> {
    let mut file = temporary_file()?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file.try_clone()?);
    let status = command.status()?;
    let mut text = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut text)?;
    Ok((status, String::from_utf8_lossy(&text).into_owned()))
}

/// A file that ends with its last handle.
fn temporary_file() -> io::Result<File> {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("coord-xtask-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let path = std::env::temp_dir().join(name);
    let file = File::options().read(true).append(true).create_new(true).open(&path)?;
    // Elsewhere than on Unix it stays until the temporary folder is emptied.
    let _ = fs::remove_file(&path);
    Ok(file)
}

/// A command as a person would type it (the program without its folder).
fn display(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let mut text = program.to_string_lossy().into_owned();
    for arg in command.get_args().map(OsStr::to_string_lossy) {
        let quote = if arg.contains([' ', '*', '$']) { "'" } else { "" };
        text.extend([" ", quote, &arg, quote]);
    }
    text
}
