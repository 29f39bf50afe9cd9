//! `coord lock`: a command that runs only while a lock is held, and a look at the queues.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use coord_api::{DistributedLock, DistributedLockExt, Error, Holder, LockGuard, Owner, Provider, Result};
use serde_json::{Value, json};

use crate::{
    child::{self, Signals},
    connect::duration,
    exit::{self, Exit, Failure},
    held::{Held, Kind},
    out::{Out, shown, table},
};

const LOCK: Kind =
    Kind { noun: "lock", holding: "holding", variables: ["COORD_LOCK_NAME", "COORD_LOCK_TOKEN"] };

#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = exit::HELP
)]
pub(crate) struct LockArgs {
    #[command(subcommand)]
    look: Option<Look>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand, Debug)]
enum Look {
    /// Shows who holds which lock, and who waits for it
    List {
        /// Only this lock [default: all that someone holds]
        name: Option<String>,
    },
    /// Runs a command under a lock of any name, also one that is called as a command here
    Hold(Box<Run>),
}

#[derive(Args, Debug)]
struct Run {
    /// The lock to hold
    #[arg(required = true)]
    name: Option<String>,
    /// How long the lock outlives a `coord` that is killed or cut off; it is renewed in the meantime
    #[arg(long, default_value = "10s", value_parser = duration)]
    ttl: Duration,
    #[command(flatten)]
    patience: Patience,
    /// How long CMD has between SIGTERM and SIGKILL when the lock is lost
    #[arg(long, default_value = "5s", value_parser = duration)]
    grace: Duration,
    /// What to run: `COORD_LOCK_NAME` and `COORD_LOCK_TOKEN` are in its environment
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// How long to wait for something that others hold.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Give up after this time [default: wait for ever]
    #[arg(long, value_parser = duration, value_name = "TIME")]
    pub(crate) wait: Option<Duration>,
    /// Do not wait at all
    #[arg(long = "try", conflicts_with = "wait")]
    pub(crate) at_once: bool,
}

/// How long to wait before standing in the queue anew.
const PAUSE: Duration = Duration::from_secs(1);

impl Patience {
    /// Tells whether there is no time to wait.
    pub(crate) fn is_over_at_once(&self) -> bool {
        self.at_once || self.wait == Some(Duration::ZERO)
    }
}

impl LockArgs {
    /// What others shall see as the holder.
    pub(crate) fn label(&self) -> Option<String> {
        match &self.look {
            Some(Look::Hold(run)) => child::name(&run.command),
            _ => child::name(&self.run.command),
        }
    }

    pub(crate) async fn call(self, provider: &dyn Provider, out: Out) -> Result<Exit, Failure> {
        match self.look {
            Some(Look::List { name }) => list(&*provider.lock(), name, out).await,
            Some(Look::Hold(run)) => run.call(&*provider.lock(), out).await,
            None => self.run.call(&*provider.lock(), out).await,
        }
    }
}

impl Run {
    fn name(&self) -> &str {
        self.name.as_deref().expect("clap asks for it where there is no subcommand")
    }

    async fn call(self, locks: &dyn DistributedLock, out: Out) -> Result<Exit, Failure> {
        // From here on: a signal that comes while the lock is being acquired must give the place in the queue back.
        let mut signals = Signals::listen()?;
        let acquired = tokio::select! {
            biased;
            heard = signals.next() => return Ok(Exit::of_signal(heard.signal.as_raw())),
            acquired = self.acquire(locks, out) => acquired?,
        };
        let Some(guard) = acquired else {
            let holder = locks.holders(self.name()).await?.into_iter().next();
            let text = format!("lock `{}` is held by {}; CMD was not run", self.name(), who(holder.as_ref()));
            let json =
                json!({ "event": "not_acquired", "lock": self.name(), "holder": holder.as_ref().map(place) });
            out.note(&json, &text);
            return Ok(Exit::NOT_ACQUIRED);
        };
        let held = Held { kind: LOCK, name: self.name(), ttl: self.ttl, out };
        let of_guard = (guard.token(), guard.ttl(), guard.lost());
        held.run((&self.command, self.grace), of_guard, &mut signals, || guard.unlock()).await
    }

    async fn acquire(&self, locks: &dyn DistributedLock, out: Out) -> Result<Option<LockGuard>, Failure> {
        if let Some(guard) = locks.try_acquire(self.name(), self.ttl).await? {
            return Ok(Some(guard));
        }
        if self.patience.is_over_at_once() {
            return Ok(None);
        }
        out.progress(&format!("waiting for lock `{}`", self.name()));
        let begun = Instant::now();
        loop {
            let left = self.patience.wait.map(|wait| wait.saturating_sub(begun.elapsed()));
            let answer = match left {
                // Whether others are before is for etcd to say.
                Some(Duration::ZERO) => return Ok(locks.try_acquire(self.name(), self.ttl).await?),
                Some(left) => locks.acquire_within(self.name(), self.ttl, left).await,
                None => locks.acquire(self.name(), self.ttl).await.map(Some),
            };
            match answer {
                // Nothing was held: an outage has taken a place in the queue, and the next one is as good.
                Err(error) if error.is_retryable() || matches!(error, Error::Lost { .. }) => {
                    out.progress(&format!("waiting on: {error}"));
                    let over = self.patience.wait.is_some_and(|wait| begun.elapsed() >= wait);
                    if over && !matches!(error, Error::Lost { .. }) {
                        return Err(error.into());
                    }
                    tokio::time::sleep(left.unwrap_or(PAUSE).min(PAUSE)).await;
                }
                answer => return Ok(answer?),
            }
        }
    }
}

async fn list(locks: &dyn DistributedLock, name: Option<String>, out: Out) -> Result<Exit, Failure> {
    let queues = match name {
        Some(name) => {
            let queue = locks.holders(&name).await?;
            BTreeMap::from([(name, queue)])
        }
        None => locks.queues().await?,
    };
    let json: Vec<Value> = queues.iter().map(|(name, queue)| queue_json(name, queue)).collect();
    out.result(&json, |to| write_queues(to, &queues))?;
    Ok(Exit::OK)
}

fn write_queues(to: &mut dyn Write, queues: &BTreeMap<String, Vec<Holder>>) -> std::io::Result<()> {
    let rows: Vec<[String; 4]> = queues
        .iter()
        .flat_map(|(name, queue)| {
            queue.iter().enumerate().map(move |(at, holder)| {
                let state = if at == 0 { "holds".into() } else { format!("waits {at}") };
                [shown(name), state, holder.token.to_string(), who(Some(holder))]
            })
        })
        .collect();
    if rows.is_empty() {
        return writeln!(to, "no lock is held");
    }
    table(to, ["LOCK", "STATE", "TOKEN", "BY"], &rows)
}

/// A queue as it is documented.
pub(crate) fn queue_json(name: &str, queue: &[Holder]) -> Value {
    let waiting: Vec<Value> = queue.iter().skip(1).map(place).collect();
    json!({ "lock": name, "holder": queue.first().map(place), "waiting": waiting })
}

fn place(holder: &Holder) -> Value {
    json!({ "token": holder.token.get(), "key": holder.key, "owner": holder.owner })
}

/// Who has a place, in one line.
pub(crate) fn who(holder: Option<&Holder>) -> String {
    match holder {
        Some(Holder { owner: Some(owner), .. }) => owner_line(owner),
        Some(Holder { key, .. }) => format!("another program ({})", shown(key)),
        None => "nobody any more".into(),
    }
}

/// An owner in one line.
pub(crate) fn owner_line(owner: &Owner) -> String {
    let label = owner.label.as_ref().map(|label| format!("{} ", shown(label))).unwrap_or_default();
    format!("{label}{} pid {}", shown(&owner.host), owner.pid)
}
