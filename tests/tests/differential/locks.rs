//! Steps about locks that do not wait for one another: what a client gives up and wants again at once, waits of hardly
//! any time, and holders that vanish while callers come and go.

use std::time::Duration;

use coord_api::{DistributedLock, DistributedLockExt, Error, FencingToken, LockGuard, Provider, Result};
use coord_conformance::BoxFuture;
use futures::FutureExt;
use proptest::{prelude::*, sample::select};
use tokio::time::{sleep, timeout};

use crate::{
    outcome::{Lines, Log},
    steps::{LIMIT, LOCKS, SLOTS, TTL},
};

/// What takes place on one store.
pub(crate) trait Stage {
    /// One of two clients.
    fn client(&self, number: usize) -> &dyn Provider;

    /// A client that vanishes now and then.
    fn stranger(&self) -> &dyn Provider;

    /// Ends all leases of the stranger, as when it has crashed.
    fn vanish(&self) -> BoxFuture<'_, ()>;

    /// Cuts the second client off.
    fn cut(&self);

    /// Ends that.
    fn restore(&self);
}

/// One step of one client.
#[derive(Clone, Debug)]
pub(crate) enum LockCall {
    /// Drops a guard and tries the same lock at once.
    DropAndTry(usize),
    /// The same with an unlock that is given up after so many polls.
    UnlockAndTry(usize, usize),
    /// Asks for a lock, gives up after so many polls, and tries it at once.
    GiveUpAndTry(&'static str, usize, usize),
    /// Waits for hardly any time.
    Within(&'static str, usize, Duration),
    /// Waits for a lock that a stranger has, with another one that gives up meanwhile, until the stranger vanishes.
    Outlive(&'static str, usize),
}

pub(crate) fn lock_calls() -> impl Strategy<Value = LockCall> {
    let (lock, slot, polls) = (|| select(&LOCKS[..]), || 0..SLOTS, || 0..5_usize);
    let wait = select(vec![Duration::ZERO, Duration::from_micros(1), Duration::from_millis(20)]);
    prop_oneof![
        3 => slot().prop_map(LockCall::DropAndTry),
        1 => (slot(), polls()).prop_map(|(slot, polls)| LockCall::UnlockAndTry(slot, polls)),
        2 => (lock(), slot(), polls()).prop_map(|(name, slot, polls)| LockCall::GiveUpAndTry(name, slot, polls)),
        3 => (lock(), slot(), wait).prop_map(|(name, slot, wait)| LockCall::Within(name, slot, wait)),
        1 => (lock(), slot()).prop_map(|(name, slot)| LockCall::Outlive(name, slot)),
    ]
}

/// Polls a future so many times, without waiting, and drops it.
async fn poll(times: usize, future: impl Future) {
    let mut future = std::pin::pin!(future);
    for _ in 0..times {
        if future.as_mut().now_or_never().is_some() {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// The places in the queue of a lock.
async fn tokens(locks: &dyn DistributedLock, name: &str) -> Result<Vec<FencingToken>> {
    Ok(locks.holders(name).await?.into_iter().map(|holder| holder.token).collect())
}

fn tell(log: &mut Log, guard: Option<&LockGuard>) {
    match guard {
        None => log.text("is held"),
        Some(guard) => {
            log.text(format!("{} for {:?}", guard.name(), guard.ttl()));
            log.token(guard.token().get());
        }
    }
}

impl LockCall {
    /// Takes the step. `guards` are what its client holds.
    pub(crate) async fn take(
        &self,
        stage: &dyn Stage,
        number: usize,
        guards: &mut [Option<LockGuard>; SLOTS],
        log: &mut Log,
    ) -> Result<()> {
        let locks = stage.client(number).lock();
        let slot = match self {
            Self::DropAndTry(slot) | Self::UnlockAndTry(slot, _) => {
                let Some(guard) = guards[*slot].take() else { return Ok(()) };
                let name = guard.name().to_owned();
                match self {
                    Self::UnlockAndTry(_, polls) => poll(*polls, guard.unlock()).await,
                    _ => drop(guard),
                }
                guards[*slot] = locks.try_acquire(&name, TTL).await?;
                *slot
            }
            Self::GiveUpAndTry(name, slot, polls) => {
                if guards[*slot].is_some() {
                    return Ok(());
                }
                poll(*polls, locks.acquire(name, TTL)).await;
                guards[*slot] = locks.try_acquire(name, TTL).await?;
                *slot
            }
            Self::Within(name, slot, wait) => {
                if guards[*slot].is_some() {
                    return Ok(());
                }
                let before = tokens(&*locks, name).await?;
                guards[*slot] = locks.acquire_within(name, TTL, *wait).await?;
                // The place of a waiter whose time is over is left in the background.
                let left = async {
                    while guards[*slot].is_none() && tokens(&*locks, name).await? != before {
                        sleep(Duration::from_millis(5)).await;
                    }
                    Ok::<_, Error>(())
                };
                timeout(LIMIT, left).await.expect("the place of a waiter that gave up is left")?;
                *slot
            }
            Self::Outlive(name, slot) => {
                if guards[*slot].is_some() {
                    return Ok(());
                }
                guards[*slot] = outlive(stage, &*locks, name, log).await?;
                *slot
            }
        };
        tell(log, guards[slot].as_ref());
        Ok(())
    }
}

async fn outlive(
    stage: &dyn Stage,
    locks: &dyn DistributedLock,
    name: &str,
    log: &mut Log,
) -> Result<Option<LockGuard>> {
    let Some(held) = stage.stranger().lock().try_acquire(name, TTL).await? else { return Ok(None) };
    log.token(held.token().get());
    let queued = |count: usize| async move {
        while locks.holders(name).await.expect("is answered").len() != count {
            sleep(Duration::from_millis(2)).await;
        }
    };
    let gives_up = async {
        tokio::select! {
            _ = locks.acquire(name, TTL) => panic!("is held"),
            () = queued(3) => {}
        }
        queued(2).await;
        stage.vanish().await;
    };
    let both = async {
        tokio::join!(locks.acquire(name, TTL), async {
            queued(2).await;
            gives_up.await;
        })
    };
    let (guard, ()) = timeout(LIMIT, both).await.expect("the stranger has vanished");
    drop(held);
    guard.map(Some)
}

/// What comes of an outage that outlasts the lease of somebody who waits.
pub(crate) async fn outage(stage: &dyn Stage) -> Lines {
    const SHORT: Duration = Duration::from_secs(2);
    let mut log = Log::default();
    let (locks, away) = (stage.client(0).lock(), stage.client(1).lock());
    let queued = async |count: usize| {
        let queued = async {
            while locks.holders("l").await.expect("is answered").len() != count {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, queued).await.expect("stand in the queue");
    };
    log.step("a lock is held, and waited for".into());
    let held = locks.try_acquire("l", TTL).await.expect("is answered").expect("is free");
    log.token(held.token().get());
    let waiting = away.clone();
    let waiter = tokio::spawn(async move { waiting.acquire("l", SHORT).await });
    queued(2).await;
    // Whoever waits has heard that it does: it is answered before this is.
    assert_eq!(away.holders("l").await.expect("is answered").len(), 2);

    log.step("who waits is cut off, and its place goes".into());
    stage.cut();
    queued(1).await;
    for wait in [Duration::ZERO, Duration::from_millis(1), Duration::from_millis(700)] {
        match away.acquire_within("l", SHORT, wait).await {
            Err(error) if error.is_retryable() => log.text("nobody knows"),
            Err(error) => log.error(&error),
            Ok(guard) => tell(&mut log, guard.as_ref()),
        }
    }
    held.unlock().await.expect("is held");
    let meanwhile = locks.try_acquire("l", TTL).await.expect("is answered");
    tell(&mut log, meanwhile.as_ref());
    sleep(SHORT * 2).await;

    log.step("it is back".into());
    log.text(format!("waits: {}", !waiter.is_finished()));
    stage.restore();
    if !waiter.is_finished() {
        queued(2).await;
    }
    drop(meanwhile);
    match timeout(LIMIT, waiter).await.expect("becomes free").expect("does not panic") {
        Ok(guard) => tell(&mut log, Some(&guard)),
        Err(error) => log.error(&error),
    }
    log.lines()
}
