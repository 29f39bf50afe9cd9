//! The command that is run while something is held.
//!
//! It never outlives what it relies on: it is stopped when that is lost, and on Linux the system kills it when `coord`
//! itself dies, however that happens ([`birth`]).
//!
//! Where a person sits in front of it (stdin is a terminal) it stays in the process group of `coord`, so that Ctrl-C,
//! Ctrl-Z and reading from the terminal work as without `coord`. Elsewhere it gets a group of its own, and signals reach
//! what it has started as well.

mod birth;
mod signals;

use std::{
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    process::ExitStatus,
    time::Duration,
};

pub(crate) use birth::be_born;
pub(crate) use signals::Signals;

use coord_api::LossReason;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::process::Command;

use crate::exit::{Exit, Failure};

/// A running command.
#[derive(Debug)]
pub(crate) struct Child {
    process: tokio::process::Child,
    pid: Pid,
    group: Group,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Group {
    /// That of `coord`: what the terminal sends comes to both.
    Shared,
    /// One of its own.
    Own,
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// By itself, or by a signal that was passed on.
    Exited(ExitStatus),
    /// It was stopped, since what it relied on was lost.
    Lost(LossReason),
}

impl Child {
    /// Starts `command` with `variables` in its environment.
    pub(crate) fn start(command: &[OsString], variables: &[(&str, String)]) -> Result<Self, Failure> {
        let group = if io::stdin().is_terminal() { Group::Shared } else { Group::Own };
        let mut starting = Command::from(birth::command(command));
        starting.envs(variables.iter().map(|(name, value)| (name, value))).kill_on_drop(true);
        if group == Group::Own {
            starting.process_group(0);
        }
        let process = starting.spawn().map_err(|error| birth::not_started(&command[0], &error))?;
        let id = process.id().expect("was not waited for yet");
        let pid = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id is positive");
        Ok(Self { process, pid, group })
    }

    /// Passes a signal on, unless the terminal has sent it to the command already.
    pub(crate) fn forward(&self, signal: Signal) {
        let from_terminal = [Signal::INT, Signal::QUIT].contains(&signal);
        if self.group == Group::Own || !from_terminal {
            self.signal(signal);
        }
    }

    /// Waits for the end of the command.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(crate) async fn ended(&mut self) -> Result<ExitStatus, Failure> {
        Ok(self.process.wait().await?)
    }

    /// Waits for the end of the command, and passes signals on.
    pub(crate) async fn wait(&mut self, signals: &mut Signals) -> Result<ExitStatus, Failure> {
        loop {
            tokio::select! {
                biased;
                status = self.process.wait() => return Ok(status?),
                signal = signals.next() => self.forward(signal),
            }
        }
    }

    /// As [`wait`](Self::wait), but stops the command when what it relies on is lost.
    pub(crate) async fn wait_while(
        &mut self,
        lost: impl Future<Output = LossReason>,
        grace: Duration,
        signals: &mut Signals,
    ) -> Result<Ended, Failure> {
        let reason = tokio::select! {
            // Both are true when this process wakes from a freeze, and then the loss counts.
            biased;
            reason = lost => reason,
            status = self.wait(signals) => return status.map(Ended::Exited),
        };
        self.stop(grace).await?;
        Ok(Ended::Lost(reason))
    }

    /// Asks the command to end, and kills it if it does not within `grace`.
    pub(crate) async fn stop(&mut self, grace: Duration) -> Result<(), Failure> {
        self.signal(Signal::TERM);
        // A group of its own is over only when all in it have ended: what the command has started relied on the same.
        let all_ended = async {
            self.process.wait().await?;
            while self.group == Group::Own && has_members(self.pid) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            io::Result::Ok(())
        };
        match tokio::time::timeout(grace, all_ended).await {
            Ok(ended) => ended?,
            Err(_elapsed) => {
                self.signal(Signal::KILL);
                self.process.wait().await?;
            }
        }
        Ok(())
    }

    /// One that has ended in the meantime needs no signal.
    fn signal(&self, signal: Signal) {
        let _ = match self.group {
            Group::Own => kill_process_group(self.pid, signal),
            // After the wait, its id may be somebody else's.
            Group::Shared if self.process.id().is_none() => Ok(()),
            Group::Shared => kill_process(self.pid, signal),
        };
    }
}

fn has_members(group: Pid) -> bool {
    rustix::process::test_kill_process_group(group).is_ok()
}

/// What the command is called, for those who see who holds a lock.
pub(crate) fn name(command: &[OsString]) -> Option<String> {
    let name = std::path::Path::new(command.first()?).file_name().map(OsStr::to_string_lossy)?;
    coord_api::Owner::check_label(&name).is_ok().then(|| name.into_owned())
}

impl Ended {
    /// The exit code of `coord`, if nothing else is to say.
    pub(crate) fn exit(self) -> Exit {
        match self {
            Self::Exited(status) => Exit::of_status(status),
            Self::Lost(_) => Exit::LOST,
        }
    }
}
