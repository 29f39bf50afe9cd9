//! The fault injection itself: each fault does what it says, and ends.

use std::{
    io::{BufRead, BufReader},
    net::TcpStream,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use coord_tests::{Cluster, Conditions, NODES, Proxy};
use etcd_client::{Client, ConnectOptions};

/// A write through one node, which fails after two seconds.
async fn put(cluster: &Cluster, n: usize) -> Result<(), etcd_client::Error> {
    let limit = Duration::from_secs(2);
    let options = ConnectOptions::new().with_connect_timeout(limit).with_timeout(limit);
    let client = Client::connect([cluster.endpoint(n)], Some(options)).await?;
    client.kv_client().put("key", "value", None).await.map(|_| ())
}

/// Tries for as long as an election may take.
async fn put_soon(cluster: &Cluster, n: usize) {
    let start = Instant::now();
    while let Err(error) = put(cluster, n).await {
        assert!(start.elapsed() < Duration::from_secs(30), "node {n}: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_of_nodes_come_and_go() {
    let cluster = Cluster::start().await.expect("starts");
    for fault in ["killed", "frozen", "cut off", "cut off from nodes"] {
        let leader = cluster.leader().await.expect("is elected");
        match fault {
            "killed" => cluster.kill9(leader).expect("is killed"),
            "frozen" => cluster.freeze(leader).expect("is frozen"),
            "cut off" => cluster.isolate(leader),
            _ => cluster.cut_peers(leader),
        }
        let start = Instant::now();
        let others: Vec<usize> = (0..NODES).filter(|&n| n != leader).collect();
        let next = cluster.leader_among(&others).await.expect("is elected");
        println!("{fault}: the next leader after {:?}", start.elapsed());
        for n in others {
            put_soon(&cluster, n).await;
        }
        assert!(put(&cluster, leader).await.is_err(), "a node that is {fault} writes nothing");
        assert_ne!(next, leader);
        cluster.mend().await.expect("is mended");
        for n in 0..NODES {
            put_soon(&cluster, n).await;
        }
    }

    let leader = cluster.leader().await.expect("is elected");
    cluster.cut_clients(leader);
    assert!(put(&cluster, leader).await.is_err());
    put(&cluster, (leader + 1) % NODES).await.expect("goes on");
    assert_eq!(cluster.leader().await.expect("is there"), leader, "nodes still reach each other");
    cluster.heal();
    put(&cluster, leader).await.expect("is healed");
}

/// A leader that is not heard loses its office, one that does not hear a follower does not, as long as there is another.
#[tokio::test(flavor = "multi_thread")]
async fn one_direction_between_two_nodes_can_be_cut() {
    let cluster = Cluster::start().await.expect("starts");
    let leader = cluster.leader().await.expect("is elected");
    let (one, other) = ((leader + 1) % NODES, (leader + 2) % NODES);
    cluster.cut_one_way(leader, one);
    cluster.cut_one_way(leader, other);
    let next = cluster.leader_among(&[one, other]).await.expect("is elected");
    assert_ne!(next, leader, "nobody heard the old one");
    put_soon(&cluster, next).await;
    cluster.heal();
    put_soon(&cluster, leader).await;

    let leader = cluster.leader().await.expect("is elected");
    let follower = (leader + 1) % NODES;
    cluster.cut_one_way(follower, leader);
    put_soon(&cluster, leader).await;
    assert!(put(&cluster, follower).await.is_err(), "its request does not reach the leader");
    cluster.heal();
    put_soon(&cluster, follower).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_is_slow_and_a_failing_one_ends_its_node() {
    let cluster = Cluster::start().await.expect("starts");
    let leader = cluster.leader().await.expect("is elected");
    put(&cluster, leader).await.expect("is written");
    let slow = cluster.slow_disk(leader, Duration::from_millis(300)).await.expect("strace is there");
    let start = Instant::now();
    put(&cluster, leader).await.expect("is written");
    let took = start.elapsed();
    slow.stop().await.expect("ends");
    // The leader alone is slow, and a majority does without its disk.
    println!("a write took {took:?} with a slow disk");
    put(&cluster, leader).await.expect("is written");

    cluster.fail_disk(leader).await.expect("ends");
    put_soon(&cluster, (leader + 1) % NODES).await;
    cluster.mend().await.expect("comes back");
    put_soon(&cluster, leader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn doors_and_conditions_do_what_they_say() {
    let cluster = Cluster::start().await.expect("starts");
    let network = Proxy::start(cluster.endpoint(0)).await.expect("a port is free");
    let limit = Duration::from_secs(2);
    let connect = async || {
        let options = ConnectOptions::new().with_connect_timeout(limit).with_timeout(limit);
        Client::connect([network.address()], Some(options)).await
    };
    let client = connect().await.expect("answers");
    let read = async || client.kv_client().get("key", None).await;
    read().await.expect("answers");

    network.set(Conditions::Slow { delay: Duration::from_millis(200), jitter: Duration::ZERO });
    let start = Instant::now();
    read().await.expect("answers");
    assert!(start.elapsed() >= Duration::from_millis(400), "there and back");
    network.restore();

    let before = network.accepted();
    network.reset();
    // The first ones may notice, or be on their way.
    let start = Instant::now();
    while let Err(error) = read().await {
        assert!(start.elapsed() < limit, "is connected again: {error}");
    }
    assert!(network.accepted() > before);

    network.refuse();
    assert!(read().await.is_err());
    network.restore();
    network.slam();
    assert!(read().await.is_err());
    network.restore();
    let start = Instant::now();
    while read().await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    network.down().set(Conditions::Silent);
    assert!(read().await.is_err(), "no answer arrives");
    network.restore();
    read().await.expect("answers");
}

/// Runs twice: the test starts itself once more, as the process that is killed.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_end_with_the_process_that_started_them_however_that_ends() {
    const STARTER: &str = "COORD_TEST_STARTER";
    if std::env::var_os(STARTER).is_some() {
        let cluster = Cluster::start().await.expect("starts");
        cluster.freeze(0).expect("is frozen");
        let nodes: Vec<_> = (0..NODES).map(|n| cluster.direct(n)).collect();
        println!("\nnodes {}", nodes.join(" "));
        return std::future::pending().await;
    }
    let name = "nodes_end_with_the_process_that_started_them_however_that_ends";
    let mut starter = Command::new(std::env::current_exe().expect("is known"))
        .args([name, "--exact", "--nocapture"])
        .env(STARTER, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("is started");
    let mut lines = BufReader::new(starter.stdout.take().expect("is piped")).lines().map_while(Result::ok);
    let nodes = lines.find_map(|line| line.strip_prefix("nodes ").map(str::to_owned)).expect("tells them");
    let nodes: Vec<_> = nodes.split(' ').map(|node| node.trim_start_matches("http://")).collect();
    let run = || nodes.iter().filter(|node| TcpStream::connect(node).is_ok()).count();
    assert_eq!(run(), NODES);
    // On Unix this is `kill -9`.
    starter.kill().expect("runs");
    starter.wait().expect("is waited for");
    let killed = Instant::now();
    while run() > 0 {
        assert!(killed.elapsed() < Duration::from_secs(30), "{} still run", run());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
