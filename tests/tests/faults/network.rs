//! Bad networks: slow, narrow, lossy, and cut again and again.

use std::{sync::Arc, time::Duration};

use coord_api::{ConfigEvent, ConfigExt, Provider, RegistrationStatus, ServiceInfo};
use coord_tests::{Cluster, Conditions, NODES};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use crate::tools::{again, client, soon, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_third_of_all_packets_lost_slows_down_and_loses_nothing() {
    slows_down_and_loses_nothing(Conditions::Lossy { percent: 30 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_of_64_kbit_slows_down_and_loses_nothing() {
    slows_down_and_loses_nothing(Conditions::Narrow { bits_per_second: 64_000 }).await;
}

async fn slows_down_and_loses_nothing(conditions: Conditions) {
    let cluster = Cluster::start().await.expect("starts");
    let leader = cluster.leader().await.expect("is elected");
    let client = client(cluster.endpoints()).await;
    let guard = client.lock().acquire("job", Duration::from_secs(15)).await.expect("is free");
    cluster.set_conditions(leader, conditions);
    let config = client.config();
    let (mut slowest, mut written) = (Duration::ZERO, 0);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(15) {
        let call = Instant::now();
        let append = |all: Option<Vec<u32>>| {
            let mut all = all.unwrap_or_default();
            // A try that timed out may have written it.
            if all.last() != Some(&written) {
                all.push(written);
            }
            all
        };
        again(async || config.update("all", append).await).await;
        slowest = slowest.max(call.elapsed());
        written += 1;
    }
    println!("{conditions:?}: {written} writes, the slowest took {slowest:?}");
    assert!(!guard.is_lost());
    cluster.heal();
    let all = again(async || config.get::<Vec<u32>>("all").await).await.expect("exists").value;
    assert_eq!(all, (0..written).collect::<Vec<_>>(), "nothing lost, nothing twice");
}

/// Each node is cut off and joined again in random order, as a flaky switch does it.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_that_come_and_go_at_random_leave_everything_whole_and_cause_no_storm() {
    const CLIENTS: usize = 10;
    const TTL: Duration = Duration::from_secs(4);
    const SWIZZLED: Duration = Duration::from_secs(15);
    let cluster = Cluster::start().await.expect("starts");
    let clients: Vec<Arc<dyn Provider>> = join_all((0..CLIENTS).map(|_| client(cluster.endpoints()))).await;
    let mut registrations = Vec::new();
    let mut watches = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let instance = ServiceInfo::new("im-logic", n.to_string(), "10.0.0.1", 80);
        registrations.push(client.registry().register(instance, TTL).await.expect("is registered"));
        watches.push(client.config().watch::<u32>("limits").await.expect("is watched"));
    }
    let swizzle = async {
        let end = Instant::now() + SWIZZLED;
        while Instant::now() < end {
            let mut order: Vec<usize> = (0..NODES).collect();
            fastrand::shuffle(&mut order);
            for &n in &order {
                if fastrand::bool() {
                    cluster.isolate(n);
                } else {
                    cluster.cut_peers(n);
                }
                sleep(Duration::from_millis(fastrand::u64(100..1_500))).await;
            }
            fastrand::shuffle(&mut order);
            for &n in &order {
                cluster.heal_node(n);
                sleep(Duration::from_millis(fastrand::u64(100..700))).await;
            }
        }
    };
    let work = clients.iter().map(|client| async {
        let (mut held, end) = (0, Instant::now() + SWIZZLED);
        while Instant::now() < end {
            // Errors are no surprise here.
            if let Ok(guard) = client.lock().acquire("job", TTL).await {
                held += 1;
                let _ = guard.unlock().await;
            }
            sleep(Duration::from_millis(300)).await;
        }
        held
    });
    let ((), held) = soon(async { tokio::join!(swizzle, join_all(work)) }).await;
    println!("the lock was held {} times meanwhile", held.iter().sum::<i32>());

    cluster.heal();
    let accepted = |cluster: &Cluster| (0..NODES).map(|n| cluster.clients(n).accepted()).sum::<u64>();
    let before = accepted(&cluster);
    let start = Instant::now();
    for client in &clients {
        let guard = again(async || client.lock().acquire("job", TTL).await).await;
        again(async || guard.check()).await;
        drop(guard);
    }
    println!("every client had the lock {:?} after the last fault", start.elapsed());
    until(async || {
        registrations.iter().all(|registration| registration.status() == RegistrationStatus::Registered)
    })
    .await;
    let found = again(async || clients[0].registry().discover("im-logic").await).await;
    assert_eq!(found.len(), CLIENTS);
    again(async || clients[0].config().set("limits", &7).await).await;
    for watch in &mut watches {
        let seen = async {
            loop {
                match watch.next().await.expect("never ends").expect("is readable") {
                    ConfigEvent::Set(setting) if setting.value == 7 => break,
                    ConfigEvent::Snapshot { settings, .. } if settings.iter().any(|s| s.value == 7) => break,
                    _ => {}
                }
            }
        };
        soon(seen).await;
    }
    println!("everything is whole {:?} after the last fault", start.elapsed());
    sleep(Duration::from_secs(10).saturating_sub(start.elapsed())).await;
    let made = accepted(&cluster) - before;
    println!("{made} connections were made in the 10 s after it, by {CLIENTS} clients to {NODES} nodes");
    // Each client connects anew to each node, and may have to try twice.
    assert!(made <= (CLIENTS * NODES * 2) as u64, "{made} connections are a storm");
    assert!(start.elapsed() < Duration::from_secs(30));
}
