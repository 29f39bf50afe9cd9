//! A first program: work that only one process does at a time.

use std::time::Duration;

use coord::prelude::*;

#[tokio::main]
async fn main() -> coord::Result<()> {
    // In production: "etcd://10.0.0.1:2379,10.0.0.2:2379/shop", with the cargo feature `etcd`.
    let coordinator = Coordinator::connect("memory://").await?;
    let guard = coordinator.lock().acquire("nightly-report", Duration::from_secs(30)).await?;
    println!("holding {} with token {}", guard.name(), guard.token());
    guard.run(async { println!("doing what one process may do at a time") }).await?;
    guard.unlock().await?;
    coordinator.close().await
}
