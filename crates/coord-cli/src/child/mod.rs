//! The command that is run while something is held.
//!
//! The lock or id that it relies on is given back only when all that it has started has ended, or has got SIGKILL. When it is
//! lost, all of that is stopped; and on Linux the system kills the command when `coord` itself dies, however that happens ([`birth`]).
//!
//! Where this process has a terminal, the command stays in its process group: so Ctrl-C, Ctrl-Z, `fg`, pipes and reading
//! from the terminal work as without `coord`. Elsewhere it gets a group of its own, and signals go to all of that group.
//! In both cases [`family`] follows what has left the group.

mod birth;
mod ending;
mod family;
mod job;
mod signals;
mod table;
mod told;

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    process::ExitStatus,
    time::{Duration, Instant},
};

pub(crate) use birth::be_born;
pub(crate) use signals::{Heard, Signals};
pub(crate) use told::Subject;

use coord_api::LossReason;
use rustix::process::{Pid, Signal};

use self::{
    ending::{Asked, Ending, Left, Step},
    family::{Family, Group, Reached, Stopped},
    job::{Change, Job},
};
use crate::exit::{Exit, Failure};

/// How soon it is looked again whether all that was asked to stop stands still.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A running command. Its processes are killed if this is dropped before it has [finished](Self::finish).
#[derive(Debug)]
pub(crate) struct Child {
    family: Family,
    job: Job,
    grace: Duration,
    /// Whether it was asked to end.
    asked: Asked,
    /// Whether all in the group of the command have got SIGTERM already.
    group_had_term: bool,
    finished: bool,
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    /// By itself, or by a signal that was passed on.
    Exited(ExitStatus),
    /// It was stopped, since what it relied on was lost.
    Lost,
}

/// An event while a command runs.
#[derive(Debug)]
pub(crate) enum Event {
    /// The command itself has ended; what it has started may go on.
    Ended(ExitStatus),
    /// A signal has come, and was not passed on.
    Heard(Heard),
}

impl Child {
    /// Starts `command` with `variables` in its environment.
    pub(crate) fn start(
        command: &[OsString],
        variables: &[(&str, String)],
        grace: Duration,
    ) -> Result<Self, Failure> {
        use std::os::unix::process::CommandExt;

        let job = Job::listen()?;
        let strangers = family::adopt();
        let mut starting = birth::command(command);
        starting.envs(variables.iter().map(|(name, value)| (name, value)));
        // Only a process with a terminal of its own can open this.
        let group = if File::open("/dev/tty").is_ok() { Group::Shared } else { Group::Own };
        if group == Group::Own {
            starting.process_group(0);
        }
        let process = starting.spawn().map_err(|error| birth::not_started(&command[0], &error))?;
        let family = Family::new(Pid::from_child(&process), group, strangers);
        Ok(Self { family, job, grace, asked: Asked::ByNobody, group_had_term: false, finished: false })
    }

    /// Passes a signal on, unless the terminal has sent it to the command already.
    pub(crate) async fn forward(&mut self, heard: Heard, subject: &Subject) {
        if heard.asks_to_end() {
            self.asked = Asked::BySignal;
        }
        // It may end what works on since the signal to stop. Whether a signal to continue came before it, nobody knows.
        self.job.stay();
        if self.family.group() == Group::Shared && heard.is_key() {
            return;
        }
        self.group_had_term |= self.family.group() == Group::Own && heard.signal == Signal::TERM;
        if self.family.signal_command(heard.signal) == Reached::NotAll {
            subject.not_signalled().await;
        }
    }

    /// Waits for the end of the command, or a signal.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub(crate) async fn event(&mut self, signals: &mut Signals) -> Event {
        loop {
            if let Some(status) = self.family.status() {
                return Event::Ended(status);
            }
            let stopped = self.family.stopped();
            if stopped == Stopped::All {
                self.job.follow();
            }
            // Processes that CMD has started tell nobody that they stand still.
            let looks_again = stopped == Stopped::Command && self.job.is_asked();
            let change = tokio::select! {
                biased;
                heard = signals.next() => return Event::Heard(heard),
                change = self.job.changed() => change,
                () = tokio::time::sleep(LOOK_AGAIN), if looks_again => continue,
            };
            self.react(change);
        }
    }

    fn react(&mut self, change: Change) {
        match change {
            Change::Child => {}
            // Where the group is shared, the command has got it as well.
            Change::Stop(signal) => {
                if self.family.group() == Group::Own {
                    self.family.signal_command(signal);
                }
            }
            Change::Resumed => self.family.resume(),
        }
    }

    /// Waits for the end of the command and of all that it has started, and passes signals on. Stops all of it when what it
    /// relies on is lost.
    pub(crate) async fn wait_while(
        &mut self,
        lost: impl Future<Output = LossReason>,
        subject: &Subject,
        signals: &mut Signals,
    ) -> Ended {
        tokio::pin!(lost);
        loop {
            let event = tokio::select! {
                // Both are true when this process wakes from a freeze, and then the loss counts.
                biased;
                reason = &mut lost => {
                    subject.lost(&reason.to_string()).await;
                    self.family.signal_all(Signal::TERM);
                    let ending = Ending::of_loss(Instant::now(), self.grace);
                    self.end(ending, std::future::pending(), subject, signals).await;
                    return Ended::Lost;
                }
                event = self.event(signals) => event,
            };
            match event {
                Event::Heard(heard) => self.forward(heard, subject).await,
                Event::Ended(status) => return self.finish(status, lost, subject, signals).await,
            }
        }
    }

    /// Waits for the end of all that the command has started, now that it has ended itself.
    pub(crate) async fn finish(
        &mut self,
        status: ExitStatus,
        lost: impl Future<Output = LossReason>,
        subject: &Subject,
        signals: &mut Signals,
    ) -> Ended {
        let ending = Ending::of_command(Instant::now(), self.grace, self.asked);
        match self.end(ending, lost, subject, signals).await {
            Some(_) => Ended::Lost,
            None => Ended::Exited(status),
        }
    }

    /// Ends all that is left; returns why what it relied on was lost, if that happened meanwhile.
    async fn end(
        &mut self,
        mut ending: Ending,
        lost: impl Future<Output = LossReason>,
        subject: &Subject,
        signals: &mut Signals,
    ) -> Option<LossReason> {
        tokio::pin!(lost);
        let mut reason = None;
        loop {
            let left = self.family.left();
            let wait = match ending.step(Instant::now(), left) {
                Step::Finished => break,
                Step::Terminate => {
                    if self.asked == Asked::ByNobody && self.family.status().is_some() && reason.is_none() {
                        subject.left_behind(&self.family.pids()).await;
                    }
                    if self.group_had_term {
                        self.family.signal_outside(Signal::TERM);
                    } else {
                        self.family.signal_all(Signal::TERM);
                    }
                    continue;
                }
                Step::Kill => {
                    self.family.kill();
                    continue;
                }
                Step::Wait(wait) => wait,
            };
            tokio::select! {
                biased;
                why = &mut lost, if reason.is_none() => {
                    subject.lost(&why.to_string()).await;
                    reason = Some(why);
                    ending.hurry();
                }
                // A further signal means that there is no patience left.
                heard = signals.next() => {
                    if heard.asks_to_end() {
                        ending.hurry();
                    }
                    if !(self.family.group() == Group::Shared && heard.is_key()) {
                        self.family.signal_all(heard.signal);
                    }
                }
                change = self.job.changed() => self.react(change),
                () = tokio::time::sleep(wait) => {}
            }
        }
        if self.family.left() != Left::Nobody {
            subject.not_stopped(&self.family.pids()).await;
        }
        self.finished = true;
        reason
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.finished {
            self.family.kill();
        }
    }
}

/// Returns the name of the command, which is shown as the holder of a lock.
pub(crate) fn name(command: &[OsString]) -> Option<String> {
    let name = std::path::Path::new(command.first()?).file_name().map(OsStr::to_string_lossy)?;
    coord_api::Owner::check_label(&name).is_ok().then(|| name.into_owned())
}

impl Ended {
    /// The exit code of `coord`, if nothing else is to say.
    pub(crate) fn exit(self) -> Exit {
        match self {
            Self::Exited(status) => Exit::of_status(status),
            Self::Lost => Exit::LOST,
        }
    }
}
