//! Holders that are cut off or stand still: they learn of their loss before anyone else is let in.

use std::time::Duration;

use coord_api::{Error, LockGuard, LossReason};
use coord_tests::{Cluster, Conditions, NODES, Proxy};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use crate::tools::{LONG, again, client, soon, until};

const TTLS: [u64; 3] = [2, 5, 10];

/// How many holders there are of each TTL and partition. With three TTLs and three partitions that is 54 runs.
const HOLDERS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_beside_a_leader_that_nodes_do_not_hear_is_told_before_its_lock_is_freed() {
    is_told_before_its_lock_is_freed("the leader", |cluster, leader| (leader, cluster.cut_peers(leader)))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_on_the_minority_side_is_told_before_its_lock_is_freed() {
    let strike = |cluster: &Cluster, leader| {
        let follower = (leader + 1) % NODES;
        (follower, cluster.cut_peers(follower))
    };
    is_told_before_its_lock_is_freed("a follower", strike).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_whose_renewals_do_not_arrive_is_told_before_its_lock_is_freed() {
    let strike = |cluster: &Cluster, leader| {
        let follower = (leader + 2) % NODES;
        (follower, cluster.clients(follower).up().set(Conditions::Silent))
    };
    is_told_before_its_lock_is_freed("the way to a follower", strike).await;
}

async fn is_told_before_its_lock_is_freed(what: &str, strike: impl Fn(&Cluster, usize) -> (usize, ())) {
    let cluster = Cluster::start().await.expect("starts");
    let leader = cluster.leader().await.expect("is elected");
    // To find out which node it is, without a fault yet.
    let (struck, ()) = strike(&cluster, leader);
    cluster.heal();
    let healthy: Vec<String> = (0..NODES).filter(|&n| n != struck).map(|n| cluster.endpoint(n)).collect();

    let mut pairs = Vec::new();
    for ttl in TTLS {
        for n in 0..HOLDERS {
            let name = format!("job-{ttl}-{n}");
            let ttl = Duration::from_secs(ttl);
            let holder = client([cluster.endpoint(struck)]).await;
            let guard = again(async || holder.lock().acquire(&name, ttl).await).await;
            let waiting = client([healthy[n % healthy.len()].clone()]).await;
            pairs.push((name, ttl, holder, guard, waiting));
        }
    }
    let runs = pairs.iter().map(|(name, ttl, _, guard, waiting)| {
        let locks = waiting.lock();
        async move {
            // An election may fail who asks for the first time. Who waits outlasts it, and also its own lease.
            let next = again(async || locks.acquire(name, *ttl).await).await;
            // Exact in this very moment, whatever the machine is busy with.
            let was_lost = guard.is_lost();
            (name, *ttl, was_lost, guard.remaining(), next.token() > guard.token(), Instant::now())
        }
    });
    let told = pairs.iter().map(|(_, _, _, guard, _)| async { (guard.lost().await, Instant::now()) });
    let fault = async {
        for (name, _, _, guard, waiting) in &pairs {
            // On a machine that is too busy for a TTL of 2 s, some are lost by themselves.
            let waits = async || waiting.lock().holders(name).await.is_ok_and(|all| all.len() == 2);
            until(async || guard.is_lost() || waits().await).await;
        }
        let held = pairs.iter().filter(|(_, _, _, guard, _)| !guard.is_lost()).count();
        assert!(held * 2 > pairs.len(), "{what}: only {held} of {} were held", pairs.len());
        strike(&cluster, leader);
        Instant::now()
    };
    let (runs, told, start) = soon(async { tokio::join!(join_all(runs), join_all(told), fault) }).await;
    for ((name, ttl, was_lost, remaining, is_larger, succeeded), (reason, told)) in runs.into_iter().zip(told)
    {
        let (told, succeeded) = (told - start, succeeded - start);
        println!("{what}, {name}: told after {told:?}, succeeded after {succeeded:?}");
        assert!(was_lost, "{what}, {name}: its holder believed in it for another {remaining:?}");
        assert_eq!(reason, LossReason::Expired, "{what}, {name}");
        assert!(is_larger, "{what}, {name}");
        // A leader that nobody hears goes on answering renewals until it notices that.
        assert!(told < ttl + Duration::from_secs(4), "{what}, {name}: told after {told:?}");
        // A new leader counts anew.
        assert!(succeeded < ttl * 2 + Duration::from_secs(5), "{what}, {name}: {succeeded:?}");
    }
}

/// Nodes that stand still do not count, so the lease can be there again afterwards. The lock is lost all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_frozen_past_the_ttl_loses_every_hold_for_good() {
    const TTL: Duration = Duration::from_secs(3);
    let cluster = Cluster::start().await.expect("starts");
    let (one, other) = (client(cluster.endpoints()).await, client(cluster.endpoints()).await);
    let guard = one.lock().acquire("job", TTL).await.expect("is free");
    let ids = one.instance_id_allocator("im-logic", 10).expect("is valid");
    again(async || ids.acquire_id().await).await;
    for n in 0..NODES {
        cluster.freeze(n).expect("is frozen");
    }
    let start = Instant::now();
    assert_eq!(soon(guard.lost()).await, LossReason::Expired);
    let told = start.elapsed();
    assert!(told < TTL + Duration::from_secs(1), "{told:?}");
    // Past the TTL of ids as well.
    sleep(Duration::from_secs(6).saturating_sub(told)).await;
    assert_eq!(ids.id(), None);
    cluster.mend().await.expect("goes on");
    assert!(guard.is_lost());
    assert_eq!(ids.id(), None, "it is not healed");
    let next = again(async || other.lock().acquire("job", TTL).await).await;
    assert!(next.token() > guard.token());
    assert!(matches!(soon(guard.unlock()).await, Err(Error::Lost { .. })));
    assert!(!next.is_lost(), "the late unlock did not touch the new holder");
}

/// etcd's own lock answered such a waiter with the lock (etcd#11456). It queues anew, behind those who came meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_whose_own_lease_expires_never_gets_the_lock_by_it() {
    const TTL: Duration = Duration::from_secs(2);
    let cluster = Cluster::start().await.expect("starts");
    let holder = client(cluster.endpoints()).await;
    let held = holder.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
    let network = Proxy::start(cluster.endpoint(0)).await.expect("a port is free");
    let cut_off = client([network.address().to_owned()]).await;
    let waiter = tokio::spawn({
        let locks = cut_off.lock();
        async move { locks.acquire("job", TTL).await }
    });
    until(async || holder.lock().holders("job").await.is_ok_and(|all| all.len() == 2)).await;
    // The answer for its place comes first: without that, the call would not wait yet. It may have taken another connection.
    again(async || cut_off.lock().holders("job").await).await;
    sleep(TTL / 4).await;
    network.cut();
    // Its place goes with its lease.
    until(async || holder.lock().holders("job").await.is_ok_and(|all| all.len() == 1)).await;
    held.unlock().await.expect("is held");
    let next = holder.lock().acquire("job", TTL).await.expect("is free");
    // Its own deadline is over as well.
    sleep(TTL * 2).await;
    assert!(!waiter.is_finished(), "it held nothing that could be lost");
    network.restore();
    until(async || holder.lock().holders("job").await.is_ok_and(|all| all.len() == 2)).await;
    assert!(!waiter.is_finished() && !next.is_lost());
    let places = again(async || holder.lock().holders("job").await).await;
    assert!(places[0].token == next.token() && places[1].token > next.token(), "{places:?}");
    next.unlock().await.expect("is held");
    let guard = soon(waiter).await.expect("no panic").expect("outlasts its lease");
    assert_eq!(guard.token(), places[1].token);
    guard.unlock().await.expect("is held");
}

/// The answer to the grant or to the entry is lost, and the caller is told that it took too long.
#[tokio::test(flavor = "multi_thread")]
async fn an_acquire_that_times_out_half_way_leaves_neither_key_nor_lease() {
    const TTL: Duration = Duration::from_secs(20);
    let cluster = Cluster::start().await.expect("starts");
    let admin = etcd_client::Client::connect(cluster.endpoints(), None).await.expect("etcd answers");
    let watching = client(cluster.endpoints()).await;
    for has_lease in [false, true] {
        let network = Proxy::start(cluster.endpoint(1)).await.expect("a port is free");
        let client = client([network.address().to_owned()]).await;
        let held: Option<LockGuard> = if has_lease {
            Some(client.lock().acquire("another", TTL).await.expect("is free"))
        } else {
            None
        };
        let before = admin.lease_client().leases().await.expect("etcd answers").leases().len();
        network.down().set(Conditions::Silent);
        let answer = soon(client.lock().acquire("job", TTL)).await;
        assert!(answer.as_ref().is_err_and(coord_api::Error::is_retryable), "{has_lease}: {answer:?}");
        network.restore();
        let start = Instant::now();
        until(async || {
            let leases = admin.lease_client().leases().await.expect("etcd answers");
            let places = watching.lock().holders("job").await.expect("etcd answers");
            leases.leases().len() <= before && places.is_empty()
        })
        .await;
        println!("with a lease {has_lease}: all is gone {:?} after the network was back", start.elapsed());
        assert!(start.elapsed() < TTL.min(LONG), "{has_lease}: before the TTL would have done it");
        let guard = watching.lock().try_acquire("job", TTL).await.expect("etcd answers").expect("is free");
        guard.unlock().await.expect("is held");
        drop(held);
    }
}
