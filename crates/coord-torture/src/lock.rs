//! Workload: counters that are kept right by locks, within the store and outside.
//!
//! The holder reads a counter, waits, and writes one more. It does not look whether it still holds the lock: what keeps
//! the counter right is the fence, and only that.

use std::sync::Arc;

use coord_api::{Batch, ConfigExt, DistributedLock, DistributedLockExt, LockGuard, Provider};
use tokio::time::sleep;

use crate::{
    config::Asked,
    history::{Answer, Name, Op, Value, What},
    worker::{Fate, Outcome, Worker},
};

/// `a` and `a/b` are two locks.
const NAMES: [&str; 3] = ["torture/a", "torture/a/b", "torture/c"];

/// Where the counter of a lock is in the config center.
pub(crate) fn counter(lock: &str) -> String {
    format!("torture/guarded/{lock}")
}

pub(crate) fn names() -> &'static [&'static str] {
    &NAMES
}

/// Takes locks and counts, until the run is over.
pub(crate) async fn work(mut worker: Worker) {
    while let Some(client) = worker.next_round().await {
        let name = worker.pick(&NAMES);
        let place: Name = format!("lock {name}").into();
        let hold = worker.fresh();
        worker.add(What::Asks { place: place.clone(), hold });
        let Some(guard) = acquire(&mut worker, &*client.lock(), name).await else { continue };
        let token = guard.token().get();
        worker.world.history.acquires(worker.process.number, &place, hold, Some(token), guard.lost());
        for _ in 0..worker.random.usize(..3) {
            if worker.random.bool() {
                count_outside(&mut worker, &place, hold, token).await;
            } else if !count_within(&mut worker, &client, &guard, name).await {
                break;
            }
            if worker.random.bool() && !worker.world.history.believes(&place, hold) {
                break;
            }
        }
        give_back(&mut worker, &place, hold, guard).await;
    }
}

/// One acquisition in one of several ways; a guard if it came to that.
async fn acquire(worker: &mut Worker, locks: &dyn DistributedLock, name: &str) -> Option<LockGuard> {
    let (ttl, wait) = (worker.ttl(), worker.some_time() * 4);
    let acquired = match worker.random.u8(..8) {
        0 => worker.call("try_acquire", locks.try_acquire(name, ttl)).await,
        1 => {
            let acquiring = async { locks.acquire(name, ttl).await.map(Some) };
            // Waits for as long as others hold the lock, which is not for ever.
            worker.whole("acquire", acquiring).await
        }
        2..5 => worker.call("acquire_within", locks.acquire_within(name, ttl, wait)).await,
        5 => {
            let holders = worker.call("holders", locks.holders(name)).await;
            if let Outcome::Answer(holders) = holders
                && !holders.is_sorted_by(|one, next| one.token < next.token)
            {
                worker.add(What::Unexpected(format!("the queue of {name} is out of order: {holders:?}")));
            }
            return None;
        }
        _ => worker.call("acquire", async { locks.acquire(name, ttl).await.map(Some) }).await,
    };
    match acquired {
        Outcome::Answer(guard) => guard,
        Outcome::Failed(_) | Outcome::Dropped => None,
    }
}

/// Increments a register outside the store, which the token protects.
async fn count_outside(worker: &mut Worker, register: &Name, hold: u64, token: u64) {
    let world = worker.world.clone();
    let process = worker.process.number;
    let read = world.registers.read(&world.history, process, register, token);
    // Whether a register refuses is decided by tokens; whether the holder believes must not matter.
    let _ = world.history.believes(register, hold);
    if let Some(value) = read {
        dwell(worker).await;
        world.registers.write(&world.history, process, register, token, value + 1);
    }
}

/// Increments a counter in the config center, which refuses the write once the lock is lost. False when a write is
/// under way that may still take effect: then nothing more may be written with this guard.
async fn count_within(
    worker: &mut Worker,
    client: &Arc<dyn Provider>,
    guard: &LockGuard,
    name: &str,
) -> bool {
    let (key, config) = (counter(name), client.config());
    let asked = Asked::begin(worker, &key, Op::Get);
    let Outcome::Answer(found) = worker.call("get", config.get::<Value>(&key)).await else {
        asked.answer(worker, Answer::Refused);
        return true;
    };
    let found = found.map(|found| (found.value, found.version.get()));
    asked.answer(worker, Answer::Found(found));
    dwell(worker).await;

    let value = Value { id: worker.fresh(), n: found.map_or(0, |(value, _)| value.n) + 1 };
    let asked = Asked::begin(worker, &key, Op::Guarded(value));
    let written = async {
        if value.id.is_multiple_of(2) {
            return config.set_if_held(guard, &key, &value).await;
        }
        let batch = Batch::new().while_held(guard)?.set(&key, &value)?;
        Ok(config.commit(batch).await?.version)
    };
    let answer = match worker.call("set_if_held", written).await {
        Outcome::Answer(version) => Answer::Wrote(value, version.get()),
        Outcome::Failed(Fate::Refused) => Answer::Refused,
        Outcome::Failed(Fate::Unknown | Fate::Closed) | Outcome::Dropped => Answer::Unknown(Some(value)),
    };
    asked.answer(worker, answer);
    !matches!(answer, Answer::Unknown(_))
}

/// The time between a read and a write: now and then so long that the lock may be lost meanwhile.
async fn dwell(worker: &mut Worker) {
    if worker.one_in(8) {
        let time = worker.ttl();
        sleep(time).await;
    } else {
        worker.pause().await;
    }
}

async fn give_back(worker: &mut Worker, place: &Name, hold: u64, guard: LockGuard) {
    match worker.random.u8(..8) {
        // Kept until it is lost, or for a while.
        0 => {
            let time = worker.ttl();
            let lost = guard.lost();
            let _ = tokio::time::timeout(time, lost).await;
            worker.world.history.ends(place, hold);
            drop(guard);
        }
        1 => {
            worker.world.history.ends(place, hold);
            drop(guard);
        }
        _ => {
            worker.world.history.ends(place, hold);
            let _ = worker.call("unlock", guard.unlock()).await;
        }
    }
}
