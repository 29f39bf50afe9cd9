//! All that CMD has started: waiting for it, and sending signals to it.
//!
//! On Linux this process is the parent of every descendant that lost its own, as process 1 is elsewhere. So nothing that CMD
//! started gets away: it is a descendant of this process until it ends, also if it began a session of its own. And there
//! is a living descendant exactly as long as there is a child, which the system tells without `/proc`.

use std::{collections::HashSet, os::unix::process::ExitStatusExt, process::ExitStatus};

use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitOptions, WaitStatus, getpid, kill_process, kill_process_group},
};

use super::{
    ending::Left,
    table::{Identity, Process, Table, any_works},
};

/// CMD with all that it has started.
#[derive(Debug)]
pub(super) struct Family {
    command: Pid,
    group: Group,
    /// Descendants that this process had before CMD: a shell that became `coord` may have had some. A process
    /// that loses its parent comes to this process, as those of CMD do.
    strangers: HashSet<Identity>,
    /// Processes of other users, which SIGKILL does not reach.
    refused: HashSet<i32>,
    status: Option<ExitStatus>,
    stopped: bool,
}

/// The process group of CMD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Group {
    /// The group of `coord`: signals of the terminal come to both.
    Shared,
    /// A group of its own.
    Own,
}

/// Whether signals reached everything that they were meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reached {
    All,
    /// The system refused a signal, since the process runs as another user.
    NotAll,
}

/// The part of CMD and of all that it has started that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// CMD itself works.
    Nothing,
    /// CMD stands still, and something that it has started works.
    Command,
    All,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Children {
    None,
    Some,
}

/// Takes over what the descendants of this process leave behind, and returns those that it has already.
pub(super) fn adopt() -> HashSet<Identity> {
    let own = getpid();
    #[cfg(target_os = "linux")]
    // Process 1 adopts them in any case; and no Linux refuses this.
    let _ = rustix::process::set_child_subreaper(Some(own));
    let present = Table::read().map(|table| table.descendants(own.as_raw_pid(), &HashSet::new()));
    present.unwrap_or_default().iter().map(Process::identity).collect()
}

impl Family {
    pub(super) fn new(command: Pid, group: Group, strangers: HashSet<Identity>) -> Self {
        Self { command, group, strangers, refused: HashSet::new(), status: None, stopped: false }
    }

    pub(super) fn group(&self) -> Group {
        self.group
    }

    /// Waits for all that has ended, so that nothing is left behind of it, and learns how CMD does.
    fn reap(&mut self) -> Children {
        let options = WaitOptions::NOHANG | WaitOptions::UNTRACED | WaitOptions::CONTINUED;
        loop {
            match rustix::process::wait(options) {
                Ok(Some((pid, status))) => self.learn(pid, status),
                Ok(None) => return Children::Some,
                Err(Errno::INTR) => {}
                // There is none to wait for.
                Err(_) => return Children::None,
            }
        }
    }

    fn learn(&mut self, pid: Pid, status: WaitStatus) {
        let ended = status.exited() || status.signaled();
        if pid == self.command && self.status.is_none() {
            self.stopped = status.stopped();
            self.status = ended.then(|| ExitStatus::from_raw(status.as_raw()));
        }
    }

    /// Returns how CMD itself has ended.
    pub(super) fn status(&mut self) -> Option<ExitStatus> {
        self.reap();
        self.status
    }

    /// Tells whether CMD was stopped, as by Ctrl-Z, and was not continued.
    fn is_stopped(&mut self) -> bool {
        self.reap();
        self.stopped && self.status.is_none()
    }

    /// Tells how much was stopped.
    pub(super) fn stopped(&mut self) -> Stopped {
        if !self.is_stopped() {
            return Stopped::Nothing;
        }
        if any_works(&self.living().unwrap_or_default()) { Stopped::Command } else { Stopped::All }
    }

    /// Tells what has not ended.
    pub(super) fn left(&mut self) -> Left {
        if self.reap() == Children::None {
            return Left::Nobody;
        }
        match self.living() {
            Some(living) if living.iter().any(|process| !self.refused.contains(&process.pid)) => Left::Some,
            Some(living) if !living.is_empty() => Left::OutOfReach,
            // All children that there are were there before CMD.
            Some(_) if self.status.is_some() && self.has_strangers() => Left::Nobody,
            None if self.status.is_none() || self.group == Group::Own => Left::Some,
            // Processes of others may be hidden.
            _ => Left::OutOfReach,
        }
    }

    /// Returns the ids of all that has not ended, as far as they can be seen.
    pub(super) fn pids(&mut self) -> Vec<i32> {
        let mut pids: Vec<i32> = self.living().into_iter().flatten().map(|process| process.pid).collect();
        pids.sort_unstable();
        pids
    }

    /// Tells whether a child of this process was there before CMD.
    fn has_strangers(&self) -> bool {
        let own = getpid().as_raw_pid();
        !self.strangers.is_empty() && Table::read().is_ok_and(|table| table.is_child(own, &self.strangers))
    }

    /// `None` where there is no `/proc`.
    fn living(&self) -> Option<Vec<Process>> {
        Some(Table::read().ok()?.descendants(getpid().as_raw_pid(), &self.strangers))
    }

    /// Sends a signal to CMD: to its group, or to it alone where it shares that of `coord`.
    pub(super) fn signal_command(&self, signal: Signal) -> Reached {
        if self.status.is_some() {
            return Reached::All;
        }
        reached(match self.group {
            Group::Own => kill_process_group(self.command, signal),
            Group::Shared => kill_process(self.command, signal),
        })
    }

    /// Sends a signal to all that has not ended.
    pub(super) fn signal_all(&mut self, signal: Signal) -> Reached {
        self.reap();
        // All of the group at once, so that none starts another one between two signals.
        let mut all = self.signal_command(signal);
        let at_once = (self.group == Group::Own && self.status.is_none()).then(|| self.command.as_raw_pid());
        match self.living() {
            Some(living) => {
                for process in living {
                    let had_it = at_once == Some(process.group) || process.pid == self.command.as_raw_pid();
                    if !had_it && send(process.pid, signal) == Reached::NotAll {
                        all = Reached::NotAll;
                    }
                }
            }
            None if self.status.is_some() && self.group == Group::Own => {
                let _ = kill_process_group(self.command, signal);
            }
            None => {}
        }
        all
    }

    /// Sends a signal to all that has not ended and is not in the group of CMD, which has got it.
    pub(super) fn signal_outside(&mut self, signal: Signal) {
        let group = self.command.as_raw_pid();
        for process in self.living().into_iter().flatten().filter(|process| process.group != group) {
            send(process.pid, signal);
        }
    }

    /// Continues what the terminal has stopped together with this process.
    pub(super) fn resume(&mut self) {
        let is_stopped = self.is_stopped();
        match self.group {
            Group::Own => {
                self.signal_command(Signal::CONT);
            }
            Group::Shared if is_stopped => {
                let group = rustix::process::getpgrp().as_raw_pid();
                self.signal_command(Signal::CONT);
                for process in self.living().into_iter().flatten().filter(|process| process.group == group) {
                    send(process.pid, Signal::CONT);
                }
            }
            // A shell has continued the whole group.
            Group::Shared => {}
        }
    }

    /// Kills all that has not ended, also what is started meanwhile.
    pub(super) fn kill(&mut self) {
        // A process that got SIGKILL starts no other: so a look that shows nothing new is the last.
        const LOOKS: usize = 1000;
        self.reap();
        self.signal_command(Signal::KILL);
        let mut killed = HashSet::new();
        for _ in 0..LOOKS {
            let Some(living) = self.living() else {
                return self.kill_unseen();
            };
            let new: Vec<i32> =
                living.iter().map(|process| process.pid).filter(|pid| killed.insert(*pid)).collect();
            if new.is_empty() {
                return;
            }
            for pid in new {
                if send(pid, Signal::KILL) == Reached::NotAll {
                    self.refused.insert(pid);
                }
            }
        }
    }

    /// Without `/proc`, what has left the group of CMD has no name. Process 1 may name all that there are.
    fn kill_unseen(&self) {
        if self.group == Group::Own {
            let _ = kill_process_group(self.command, Signal::KILL);
        }
        if getpid().is_init() {
            let _ = kill_process_group(Pid::INIT, Signal::KILL);
        }
    }
}

fn send(pid: i32, signal: Signal) -> Reached {
    Pid::from_raw(pid).map_or(Reached::All, |pid| reached(kill_process(pid, signal)))
}

/// A process that has ended in the meantime needs no signal.
fn reached(sent: rustix::io::Result<()>) -> Reached {
    if sent == Err(Errno::PERM) { Reached::NotAll } else { Reached::All }
}
