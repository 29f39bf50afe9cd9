//! The load of one process: pairs on names of its own, turns on one name, or a queue that stands still.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::contenders::{Locker, connect};
use crate::args::Args;
use crate::child::{Runner, now_us, resident};
use crate::load::repeat;

/// How long the warm-up of a contended lock may take until each waiter had it once.
const WARM: Duration = Duration::from_secs(20);

/// Runs one contender as `args` say.
pub(crate) async fn run(args: &Args, runner: &mut Runner) -> Result<()> {
    let (contender, endpoint, namespace) =
        (args.need::<String>("contender")?, args.need::<String>("endpoint")?, args.need::<String>("prefix")?);
    let (tasks, seconds) = (args.need("tasks")?, Duration::from_secs_f64(args.need("seconds")?));
    let locker = connect(&contender, &endpoint, &namespace).await?;
    match args.text("shape") {
        Some("own") => own_names(&locker, tasks, seconds, runner).await?,
        Some("one") => one_name(&locker, tasks, seconds, runner).await?,
        Some("queued") => queued(&locker, tasks, runner).await?,
        other => bail!("no shape {other:?}"),
    }
    locker.close().await
}

/// Each task locks and unlocks a name of its own.
async fn own_names(
    locker: &Arc<dyn Locker>,
    tasks: usize,
    seconds: Duration,
    runner: &mut Runner,
) -> Result<()> {
    pairs(locker, tasks, seconds / 5).await?;
    runner.ready().await?;
    let start = Instant::now();
    let latencies = pairs(locker, tasks, seconds).await?;
    runner.report(&json!({ "seconds": start.elapsed().as_secs_f64(), "latencies_us": latencies })).await
}

/// How long each pair took, in microseconds.
async fn pairs(locker: &Arc<dyn Locker>, tasks: usize, seconds: Duration) -> Result<Vec<u64>> {
    let pairs = (0..tasks).map(|task| {
        let (locker, name) = (locker.clone(), Arc::<str>::from(format!("own-{task}")));
        move || {
            let (locker, name) = (locker.clone(), name.clone());
            async move { locker.unlock(locker.lock(&name).await?).await }
        }
    });
    repeat(pairs, seconds).await
}

#[derive(Default)]
struct Turns {
    /// When the lock was got, while this is measured.
    got: Mutex<Vec<u64>>,
    measuring: AtomicBool,
    count: AtomicUsize,
}

/// All tasks take turns on one name.
async fn one_name(
    locker: &Arc<dyn Locker>,
    tasks: usize,
    seconds: Duration,
    runner: &mut Runner,
) -> Result<()> {
    let turns = Arc::new(Turns::default());
    let mut lockers = Vec::new();
    for _ in 0..tasks {
        lockers.push(locker.clone().for_task().await?);
    }
    let mut running = JoinSet::new();
    for locker in lockers {
        let turns = turns.clone();
        running.spawn(async move {
            loop {
                let held = locker.lock("one").await?;
                turns.count.fetch_add(1, Ordering::Relaxed);
                if turns.measuring.load(Ordering::Relaxed) {
                    turns.got.lock().expect("nothing panics while this is locked").push(now_us());
                }
                locker.unlock(held).await?;
            }
            #[expect(unreachable_code, reason = "says which errors `?` makes")]
            anyhow::Ok(())
        });
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1)
        || (turns.count.load(Ordering::Relaxed) < tasks && start.elapsed() < WARM)
    {
        sleep(Duration::from_millis(10)).await;
        fail_early(&mut running)?;
    }
    runner.ready().await?;
    let start = Instant::now();
    turns.measuring.store(true, Ordering::Relaxed);
    sleep(seconds).await;
    turns.measuring.store(false, Ordering::Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    fail_early(&mut running)?;
    let got = std::mem::take(&mut *turns.got.lock().expect("nothing panics while this is locked"));
    runner.report(&json!({ "seconds": seconds, "turns_us": got })).await?;
    running.shutdown().await;
    Ok(())
}

/// The tasks run until they are stopped, so one that ended has failed.
fn fail_early(running: &mut JoinSet<Result<()>>) -> Result<()> {
    match running.try_join_next() {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

/// All tasks stand behind a lock that is held all the time; the runner looks when they all stand there.
async fn queued(locker: &Arc<dyn Locker>, tasks: usize, runner: &mut Runner) -> Result<()> {
    let held = locker.lock("one").await?;
    let mut lockers = Vec::with_capacity(tasks);
    for _ in 0..tasks {
        lockers.push(locker.clone().for_task().await?);
    }
    sleep(Duration::from_millis(500)).await;
    let before = resident()?;
    let mut waiting = JoinSet::new();
    for locker in lockers {
        waiting.spawn(async move { locker.lock("one").await.map(drop) });
    }
    runner.ready().await?;
    sleep(Duration::from_secs(1)).await;
    fail_early(&mut waiting)?;
    let after = resident()?;
    runner.report(&json!({ "seconds": 1.0, "bytes": [before, after] })).await?;
    waiting.shutdown().await;
    locker.unlock(held).await
}
