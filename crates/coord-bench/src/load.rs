//! The loops that the areas share.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;

/// Each of `tasks` makes one call after the other; how long each call took, in microseconds.
pub(crate) async fn repeat<C, F>(tasks: impl IntoIterator<Item = C>, seconds: Duration) -> Result<Vec<u64>>
where
    C: Fn() -> F + Send + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let mut running = JoinSet::new();
    let end = Instant::now() + seconds;
    for call in tasks {
        running.spawn(async move {
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                call().await?;
                latencies.push(start.elapsed().as_micros() as u64);
            }
            anyhow::Ok(latencies)
        });
    }
    let mut all = Vec::new();
    while let Some(latencies) = running.join_next().await {
        all.extend(latencies??);
    }
    Ok(all)
}

/// Threads that do nothing but `read`; how often they did, and for how long.
pub(crate) async fn read(
    threads: usize,
    seconds: Duration,
    read: impl Fn() + Clone + Send + 'static,
) -> Result<(u64, Duration)> {
    let start = Instant::now();
    let reading = (0..threads).map(|_| {
        let read = read.clone();
        tokio::task::spawn_blocking(move || {
            let mut reads = 0_u64;
            while start.elapsed() < seconds {
                for _ in 0..1000 {
                    read();
                }
                reads += 1000;
            }
            reads
        })
    });
    let mut reads = 0;
    for thread in reading.collect::<Vec<_>>() {
        reads += thread.await?;
    }
    Ok((reads, start.elapsed()))
}
