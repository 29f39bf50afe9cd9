//! What every workload is made of: a process with its client, random choices, and patience.

use std::{
    collections::VecDeque,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex},
    task::Poll,
    time::Duration,
};

use coord_api::{Error, Provider};
use fastrand::Rng;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Plan,
    fenced::Registers,
    follow::Followers,
    history::{History, What},
};

/// What all workers of a run share.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) history: Arc<History>,
    pub(crate) registers: Registers,
    pub(crate) followers: Followers,
    /// The clients that stand by.
    spare: Mutex<VecDeque<Arc<dyn Provider>>>,
    pub(crate) begun: Instant,
}

impl World {
    pub(crate) fn new(plan: Plan, spare: VecDeque<Arc<dyn Provider>>, history: Arc<History>) -> Self {
        Self {
            plan,
            history,
            registers: Registers::default(),
            followers: Followers::default(),
            spare: Mutex::new(spare),
            begun: Instant::now(),
        }
    }

    pub(crate) fn spare(&self) -> Option<Arc<dyn Provider>> {
        self.spare.lock().expect("nothing panics while this is locked").pop_front()
    }
}

/// One process: it has a client, and another one after that was closed.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) number: usize,
    client: Mutex<Option<Arc<dyn Provider>>>,
}

impl Process {
    pub(crate) fn new(number: usize, client: Arc<dyn Provider>) -> Self {
        Self { number, client: Mutex::new(Some(client)) }
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Option<Arc<dyn Provider>>> {
        self.client.lock().expect("nothing panics while this is locked")
    }

    /// Takes the client away, at the end of the run.
    pub(crate) fn stop(&self) -> Option<Arc<dyn Provider>> {
        self.client().take()
    }
}

/// What comes of a call that somebody may have lost patience with.
pub(crate) enum Outcome<T> {
    Answer(T),
    Failed(Fate),
    /// It was dropped.
    Dropped,
}

/// What an error leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Nothing was changed.
    Refused,
    /// It may take effect, later or never.
    Unknown,
    /// As `Unknown`; the client is closed.
    Closed,
}

/// One task of a process.
pub(crate) struct Worker {
    pub(crate) world: Arc<World>,
    pub(crate) process: Arc<Process>,
    pub(crate) random: Rng,
    rounds: usize,
}

impl Worker {
    /// `number` is that of the task within the run: its choices follow from the seed and this.
    pub(crate) fn new(world: Arc<World>, process: Arc<Process>, number: u64) -> Self {
        // Seeds that are close to each other must not give choices that are alike.
        let mut mixed = Rng::with_seed(world.plan.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let random = mixed.fork();
        Self { world, process, random, rounds: 0 }
    }

    /// Waits a little, then says whether to make another round, and with which client.
    pub(crate) async fn next_round(&mut self) -> Option<Arc<dyn Provider>> {
        self.pause().await;
        self.rounds += 1;
        if self.rounds > self.world.plan.rounds || self.is_over() {
            return None;
        }
        self.client()
    }

    /// The client of the process; `None` when it was closed and no other stands by.
    pub(crate) fn client(&self) -> Option<Arc<dyn Provider>> {
        let mut client = self.process.client();
        if client.as_ref().is_some_and(|client| is_closed(&**client)) {
            *client = self.world.spare();
        }
        client.clone()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.world.begun.elapsed() >= self.world.plan.time
    }

    pub(crate) fn add(&self, what: What) {
        self.world.history.add(self.process.number, what);
    }

    pub(crate) fn fresh(&self) -> u64 {
        self.world.history.fresh()
    }

    /// True once in so many times.
    pub(crate) fn one_in(&mut self, times: u32) -> bool {
        self.random.u32(..times) == 0
    }

    pub(crate) fn pick<'a>(&mut self, names: &[&'a str]) -> &'a str {
        names[self.random.usize(..names.len())]
    }

    /// A random TTL, often short.
    pub(crate) fn ttl(&mut self) -> Duration {
        let longest = self.world.plan.ttl.as_millis().max(1001) as u64;
        Duration::from_millis(if self.random.bool() { 1000 } else { self.random.u64(1000..longest) })
    }

    /// A random time around the pace of the run: mostly short, now and then much longer.
    pub(crate) fn some_time(&mut self) -> Duration {
        let pace = self.world.plan.pace.as_micros() as u64;
        let longest = if self.one_in(16) { pace * 20 } else { pace * 2 };
        Duration::from_micros(self.random.u64(..=longest))
    }

    pub(crate) async fn pause(&mut self) {
        let time = self.some_time();
        sleep(time).await;
    }

    /// Runs a call, and now and then drops it at a random point.
    pub(crate) async fn call<T>(
        &mut self,
        name: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Outcome<T> {
        let ended = match self.random.u8(..16) {
            0 => {
                let polls = self.random.usize(1..4);
                polled_at_most(polls, call).await
            }
            1 => {
                let time = self.some_time();
                timeout(time, call).await.ok()
            }
            _ => return self.whole(name, call).await,
        };
        match ended {
            None => Outcome::Dropped,
            Some(Ok(answer)) => Outcome::Answer(answer),
            Some(Err(error)) => Outcome::Failed(self.fate(name, &error)),
        }
    }

    /// Runs a call to its end, which must come.
    pub(crate) async fn whole<T>(
        &mut self,
        name: &str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Outcome<T> {
        let patience = self.world.plan.patience;
        match timeout(patience, call).await {
            Ok(Ok(answer)) => Outcome::Answer(answer),
            Ok(Err(error)) => Outcome::Failed(self.fate(name, &error)),
            Err(_elapsed) => {
                self.add(What::Unexpected(format!("{name} has not ended within {patience:?}")));
                Outcome::Dropped
            }
        }
    }

    /// What an error leaves open. One that no fault explains is written down.
    pub(crate) fn fate(&self, name: &str, error: &Error) -> Fate {
        match error {
            Error::Closed => Fate::Closed,
            Error::Timeout { .. } | Error::Backend { .. } => Fate::Unknown,
            Error::Unavailable { .. }
            | Error::Tls { .. }
            | Error::Lost { .. }
            | Error::Conflict { .. }
            | Error::Exhausted { .. }
            | Error::NoSpace { .. }
            | Error::AlreadyRegistered { .. }
            | Error::PermissionDenied { .. }
            | Error::Unauthenticated { .. }
            | Error::ClockWentBack { .. } => Fate::Refused,
            other => {
                self.add(What::Unexpected(format!("{name} answered: {other}")));
                Fate::Unknown
            }
        }
    }
}

/// Whether a client was closed, without asking its store: an allocator can only be refused for that.
fn is_closed(client: &dyn Provider) -> bool {
    matches!(client.instance_id_allocator("torture/closed", 2), Err(Error::Closed))
}

/// Polls `future` so many times; `None` if it was not ready by then. One that is not woken again is dropped after
/// a while.
async fn polled_at_most<F: Future>(times: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut polls = 0;
    let polling = poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => {
            polls += 1;
            if polls >= times { Poll::Ready(None) } else { Poll::Pending }
        }
    });
    timeout(Duration::from_secs(1), polling).await.unwrap_or(None)
}
