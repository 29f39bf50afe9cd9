//! What a process has of threads, tasks and memory, and what clients that are gone left of it.

use std::{fmt, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

/// How much more memory there may be in the end, whatever was done, and for each event of the history. Measured are 38 MiB more
/// after five minutes with 110,000 to 125,000 events, which are the history and what the allocator keeps. A client that
/// repeated what failed at once, and left a task each time, took 40 to 600 MiB within seconds.
const MEMORY: u64 = 64 << 20;
const AN_EVENT: u64 = 1 << 9;

const LOOK: Duration = Duration::from_millis(100);

/// What this process has at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Footprint {
    /// Of all kinds: each client has one of its own in the background.
    threads: u64,
    /// On the runtime of those who use the clients.
    tasks: u64,
    /// That is resident, in bytes.
    memory: u64,
}

impl Footprint {
    /// As it is now.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(super) fn now() -> Result<Self> {
        let told =
            std::fs::read_to_string("/proc/self/status").context("only Linux tells what a process has")?;
        let number = |name: &str| -> Result<u64> {
            let line = told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            let word = line.and_then(|line| line.split_whitespace().next());
            word.and_then(|word| word.parse().ok())
                .with_context(|| format!("/proc/self/status has no {name}"))
        };
        let tasks = Handle::current().metrics().num_alive_tasks() as u64;
        Ok(Self { threads: number("Threads")?, tasks, memory: number("VmRSS")? << 10 })
    }

    /// The memory.
    pub(super) fn mebibytes(&self) -> u64 {
        self.memory >> 20
    }

    /// As it is once nothing is left of what came after `before`, or `patience` is over, and what is left.
    ///
    /// # Errors
    /// As [`now`](Self::now).
    pub(super) async fn settled(
        before: &Self,
        events: usize,
        patience: Duration,
    ) -> Result<(Self, Option<String>)> {
        let end = Instant::now() + patience;
        loop {
            let now = Self::now()?;
            let left = now.left(before, events);
            if left.is_none() || Instant::now() >= end {
                return Ok((now, left));
            }
            sleep(LOOK).await;
        }
    }

    /// What there is that was not there `before`, beside a history of so many events.
    fn left(&self, before: &Self, events: usize) -> Option<String> {
        let memory = before.memory + MEMORY + AN_EVENT * events as u64;
        let is_left = self.threads > before.threads || self.tasks > before.tasks || self.memory > memory;
        is_left.then(|| format!("all clients are gone, and there were {before}, and now are {self}"))
    }
}

impl fmt::Display for Footprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { threads, tasks, memory } = self;
        write!(f, "{threads} threads, {tasks} tasks and {} MiB", memory >> 20)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Footprint = Footprint { threads: 5, tasks: 2, memory: 40 << 20 };

    #[test]
    fn one_thread_or_task_too_many_is_told_and_so_is_much_memory() {
        assert_eq!(BEFORE.left(&BEFORE, 0), None);
        let less = Footprint { threads: 4, tasks: 0, memory: 1 << 20 };
        assert_eq!(less.left(&BEFORE, 0), None);
        let told = Footprint { threads: 6, ..BEFORE }.left(&BEFORE, 0).expect("is one more");
        assert!(told.contains("5 threads") && told.contains("6 threads"), "{told}");
        assert!(Footprint { tasks: 3, ..BEFORE }.left(&BEFORE, 0).is_some());
        let large = Footprint { memory: BEFORE.memory + MEMORY + 2 * AN_EVENT, ..BEFORE };
        assert_eq!(large.left(&BEFORE, 2), None);
        assert!(large.left(&BEFORE, 1).is_some());
    }

    #[tokio::test]
    async fn a_task_that_stays_is_seen_until_it_ends() {
        let before = Footprint::now().expect("this is Linux");
        let task = tokio::spawn(std::future::pending::<()>());
        let now = Footprint::now().expect("this is Linux");
        assert_eq!(now.tasks, before.tasks + 1);
        assert!(now.left(&before, 0).is_some());
        task.abort();
        let _ = task.await;
        assert_eq!(Footprint::now().expect("this is Linux").tasks, before.tasks);
    }
}
