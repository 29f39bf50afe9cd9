//! How a command is started so that it dies with `coord`, even if that is killed by `kill -9` or for want of memory.
//!
//! Only a process itself can ask the system for this, between its creation and the start of its program. So `coord` starts
//! itself once more, as `coord __child PARENT CMD…`; that asks, looks whether its parent is still the one that started it,
//! and becomes CMD. What CMD starts in its turn is not covered: the system forgets the request in new processes.

use std::{
    ffi::{OsStr, OsString},
    io,
    process::{Command, ExitCode},
};

use crate::exit::{Exit, Failure};

/// The first argument of a `coord` that is to become another program. Not for people, so clap does not know it.
const WORD: &str = "__child";

/// Returns a command that becomes `command` and dies with this process. Without `/proc` it does not die with it, since this
/// program can not be named.
#[cfg(target_os = "linux")]
pub(crate) fn command(command: &[OsString]) -> Command {
    // This very program, also if its file was replaced in the meantime.
    const OWN: &str = "/proc/self/exe";
    if !std::path::Path::new(OWN).exists() {
        return plain(command);
    }
    let mut birth = Command::new(OWN);
    birth.arg(WORD).arg(std::process::id().to_string()).args(command);
    birth
}

/// There is no such request elsewhere: CMD outlives a `coord` that was killed.
#[cfg(not(target_os = "linux"))]
pub(crate) fn command(command: &[OsString]) -> Command {
    plain(command)
}

fn plain(command: &[OsString]) -> Command {
    let mut plain = Command::new(&command[0]);
    plain.args(&command[1..]);
    plain
}

/// Becomes the command if this process was started for that; returns an exit code only if it can not.
pub(crate) fn be_born() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().as_deref() != Some(OsStr::new(WORD)) {
        return None;
    }
    let parent = arguments.next().and_then(|parent| parent.to_str()?.parse().ok());
    let command: Vec<OsString> = arguments.collect();
    let (Some(parent), [program, rest @ ..]) = (parent, command.as_slice()) else {
        return Some(ExitCode::from(Exit::USAGE.0));
    };
    Some(match become_child(parent, program, rest) {
        None => ExitCode::from(Exit::FAILED.0),
        Some(error) => {
            let failure = not_started(program, &error);
            eprintln!("coord: error: {failure}");
            ExitCode::from(failure.exit.0)
        }
    })
}

/// `None` if the parent has died already, which nobody needs to be told.
#[cfg(target_os = "linux")]
fn become_child(parent: i32, program: &OsStr, arguments: &[OsString]) -> Option<io::Error> {
    use std::os::unix::process::CommandExt;

    use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        return Some(error.into());
    }
    // The request counts from here on: a parent that died before it is not told.
    if getppid() != Pid::from_raw(parent) {
        return None;
    }
    Some(Command::new(program).args(arguments).exec())
}

#[cfg(not(target_os = "linux"))]
fn become_child(_parent: i32, _program: &OsStr, _arguments: &[OsString]) -> Option<io::Error> {
    None
}

/// As shells tell it.
pub(crate) fn not_started(program: &OsStr, error: &io::Error) -> Failure {
    let exit = if error.kind() == io::ErrorKind::NotFound { Exit::NOT_FOUND } else { Exit::NOT_RUNNABLE };
    Failure::new(exit, "not_started", format!("can not run `{}`: {error}", program.to_string_lossy()))
}
