//! The load of one process, on one thread.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use coord_api::Provider;
use coord_memory::Store;
use serde_json::json;

use crate::args::Args;
use crate::child::Runner;

const TTL: Duration = Duration::from_secs(30);
/// How many pairs are made between two looks at the clock.
const BLOCK: u64 = 1000;

/// Runs one contender as `args` say.
pub(crate) async fn run(args: &Args, runner: &mut Runner) -> Result<()> {
    let contender: String = args.need("contender")?;
    let time = Duration::from_secs_f64(args.need("seconds")?);
    let shape: String = args.need("shape")?;
    runner.ready().await?;
    // A runtime of its own, with one thread.
    let measured = std::thread::spawn(move || -> Result<(Duration, u64)> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        runtime.block_on(async {
            match (shape.as_str(), contender.as_str()) {
                ("pairs", "coord") => pairs(time).await,
                ("pairs", "mutex") => pairs_of_a_mutex(time).await,
                (shape, contender) => bail!("no contender `{contender}` in `{shape}`"),
            }
        })
    });
    let waiting = tokio::task::spawn_blocking(move || measured.join());
    let (took, count) = waiting.await?.map_err(|_| anyhow::anyhow!("the load panicked"))??;
    runner.report(&json!({ "seconds": took.as_secs_f64(), "count": count })).await
}

async fn pairs(time: Duration) -> Result<(Duration, u64)> {
    let store = Store::new();
    let locks = store.client().lock();
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time {
        for _ in 0..BLOCK {
            locks.acquire("job", TTL).await?.unlock().await?;
        }
        count += BLOCK;
    }
    Ok((start.elapsed(), count))
}

async fn pairs_of_a_mutex(time: Duration) -> Result<(Duration, u64)> {
    let mutex = tokio::sync::Mutex::new(());
    let (start, mut count) = (Instant::now(), 0);
    while start.elapsed() < time {
        for _ in 0..BLOCK {
            drop(mutex.lock().await);
        }
        count += BLOCK;
    }
    Ok((start.elapsed(), count))
}
