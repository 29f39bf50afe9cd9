//! Unlocks that are given up leave nothing in memory, however long the lease lives that they were held on.

use std::time::Duration;

use coord_api::Provider;
use coord_etcd::{Client, EtcdConfig};
use coord_tests::EtcdServer;
use futures::FutureExt;

const TTL: Duration = Duration::from_secs(60);

/// The memory of this process, in KiB.
fn memory() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("is there");
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).expect("is a number");
    pages * 4
}

/// Each lock has a name of its own, as locks of users or orders have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unlocks_that_are_given_up_leave_nothing_in_memory() {
    let server = EtcdServer::start().await.expect("starts");
    let client = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    let locks = client.lock();
    let keeps_the_lease = locks.acquire("held", TTL).await.expect("is free");
    let mut before = 0;
    for round in 0..3 {
        for n in 0..1500 {
            let guard = locks.acquire(&format!("{round}/{n}"), TTL).await.expect("is free");
            let mut unlock = Box::pin(guard.unlock());
            let _ = (&mut unlock).now_or_never();
        }
        // The first round fills what is kept in any case.
        if round == 0 {
            before = memory();
        }
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 1500, "{grown} KiB for 3000 names");
    keeps_the_lease.unlock().await.expect("is held");
}
