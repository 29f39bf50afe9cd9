//! Cron on one of many: every instance of a service runs this, one of them does the work, and when it goes another one
//! takes over where it stopped. While the store is away there is no leader, and nobody gives up: when it is back the work
//! goes on.
//!
//! ```sh
//! cargo run --example leader_job                                                    # three instances in memory
//! cargo run --example leader_job --features etcd -- etcd://127.0.0.1:2379/demo      # the same over etcd
//! ```

use std::{ops::ControlFlow, time::Duration};

use coord::{Error, prelude::*};

/// How long it takes until another instance is the leader, when the leader's process was killed.
const TTL: Duration = Duration::from_secs(5);

/// Hours, in this example.
const PERIOD: Duration = Duration::from_millis(100);

const ROUNDS: u32 = 6;

/// What every instance does from its start to its end: it leads while it may, again and again, until all is done.
async fn instance(number: u32, coordinator: Coordinator) -> coord::Result<()> {
    let options = ElectorOptions::new(TTL).value(format!("instance {number}"));
    let elector = coordinator.elections().elector("leader-job", options)?;
    elector.lead(|term| lead(number, coordinator.clone(), term)).await
}

/// Works until all is done. It is dropped at an await point if the term is lost, and runs again in the next one.
async fn lead(number: u32, coordinator: Coordinator, term: impl Fence) -> ControlFlow<()> {
    println!("[{number}] is the leader");
    loop {
        match make_report(number, &coordinator, &term).await {
            Ok(ROUNDS) => return ControlFlow::Break(()),
            Ok(_) => {}
            // It may have been stored or not, which the next round reads first.
            Err(error) => println!("[{number}] waits: {error}"),
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Makes the next report, if one is missing; how many there are then.
async fn make_report(number: u32, coordinator: &Coordinator, term: &impl Fence) -> coord::Result<u32> {
    let config = coordinator.config();
    // Not in a variable: the leader before may have been another process.
    let done = config.get::<u32>("leader-job/done").await?.map_or(0, |found| found.value);
    if done >= ROUNDS {
        return Ok(ROUNDS);
    }
    println!("[{number}] makes report {}", done + 1);
    // The store refuses this from one that was the leader, even if it does not know it yet.
    config.set_if_held(term, "leader-job/done", &(done + 1)).await?;
    Ok(done + 1)
}

#[tokio::main]
async fn main() -> coord::Result<()> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("memory://leader-job");
    let mut instances = Vec::new();
    for number in 1..=3 {
        let coordinator = Coordinator::connect(url).await?;
        let task = tokio::spawn(instance(number, coordinator.clone()));
        instances.push((coordinator, task));
    }

    // The first leader is stopped in the middle of its work, as by a deployment.
    let (first, task) = instances.remove(0);
    tokio::time::sleep(PERIOD * 3).await;
    close(&first).await;
    match task.await.expect("does not panic") {
        Ok(()) | Err(Error::Closed) => {}
        Err(error) => return Err(error),
    }

    for (_, task) in &mut instances {
        task.await.expect("does not panic")?;
    }
    instances[0].0.config().delete("leader-job/done").await?;
    for (coordinator, _) in instances {
        close(&coordinator).await;
    }
    Ok(())
}

/// An instance ends whether the store hears of it or not: what it held is free when its lease is over.
async fn close(coordinator: &Coordinator) {
    if let Err(error) = coordinator.close().await {
        println!("closed without the store: {error}");
    }
}
