//! The leader's disk is stuck or fails: only that node is gone.

use std::time::Duration;

use coord_api::{ConfigExt, RegistrationStatus, ServiceInfo};
use coord_tests::{Cluster, NODES};
use tokio::time::{Instant, sleep};

use crate::tools::{again, client};

const TTL: Duration = Duration::from_secs(5);

/// etcd 3.4.23 and 3.5.1 revoke leases of living clients here (etcd#15247).
#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_is_stuck_for_ten_seconds_costs_no_lease() {
    a_living_lease_survives("stuck", async |cluster, leader| {
        let slow = cluster.slow_disk(leader, Duration::from_secs(10)).await.expect("strace is there");
        sleep(Duration::from_secs(12)).await;
        slow.stop().await.expect("ends");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_disk_fails_costs_no_lease() {
    a_living_lease_survives("failing", async |cluster, leader| {
        cluster.fail_disk(leader).await.expect("the node ends");
        sleep(TTL + Duration::from_secs(1)).await;
    })
    .await;
}

async fn a_living_lease_survives(disk: &str, fault: impl AsyncFnOnce(&Cluster, usize)) {
    let cluster = Cluster::start().await.expect("starts");
    let leader = cluster.leader().await.expect("is elected");
    let others = (0..NODES).filter(|&n| n != leader).map(|n| cluster.endpoint(n));
    // Through all nodes, and past the one that fails.
    let clients = [client(cluster.endpoints()).await, client(others).await];
    let mut held = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let lock = client.lock().acquire(&format!("job-{n}"), TTL).await.expect("is free");
        let instance = ServiceInfo::new("im-logic", n.to_string(), "10.0.0.1", 80);
        held.push((lock, client.registry().register(instance, TTL).await.expect("is registered")));
    }
    let start = Instant::now();
    let worked = async {
        let mut slowest = Duration::ZERO;
        // The fault needs something to be written.
        while start.elapsed() < Duration::from_secs(5) {
            let call = Instant::now();
            again(async || clients[1].config().set("limits", &1).await).await;
            slowest = slowest.max(call.elapsed());
            sleep(Duration::from_millis(50)).await;
        }
        slowest
    };
    let ((), slowest) = tokio::join!(fault(&cluster, leader), worked);
    println!("{disk} disk: the slowest write took {slowest:?}");
    for (lock, registration) in &held {
        assert!(!lock.is_lost(), "{disk} disk: {lock:?}");
        assert_eq!(registration.status(), RegistrationStatus::Registered, "{disk} disk");
    }
    cluster.mend().await.expect("is mended");
    let found = again(async || clients[0].registry().discover("im-logic").await).await;
    assert_eq!(found.len(), clients.len());
}
