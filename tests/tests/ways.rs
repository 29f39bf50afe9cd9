//! Over which connection requests go: the short way, while that is one that works.

use std::{
    net::SocketAddr,
    sync::{Arc, mpsc},
    time::Duration,
};

use coord_api::{ConfigExt, Provider};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Ways, other_runtime};
use tokio::time::timeout;

/// Far less than the time that a request has.
const AT_ONCE: Duration = Duration::from_millis(2500);

const REQUESTS: usize = 20;

async fn client(endpoint: &str) -> Client {
    Client::connect(EtcdConfig::new([endpoint])).await.expect("etcd answers")
}

/// Reads some times, and which connections that took.
async fn read(client: &Client, ways: &Ways) -> Vec<(SocketAddr, usize)> {
    ways.taken();
    for _ in 0..REQUESTS {
        client.config().get::<u32>("limits").await.expect("is read");
    }
    ways.taken().into_iter().collect()
}

/// The same on another runtime, which never takes the short way.
fn read_elsewhere(client: &Client, ways: &Arc<Ways>) -> Vec<(SocketAddr, usize)> {
    let (client, ways) = (client.clone(), ways.clone());
    let reading = std::thread::spawn(move || other_runtime().block_on(read(&client, &ways)));
    reading.join().expect("does not panic")
}

/// Waits until the short way is taken, and tells it.
async fn short_way(client: &Client, ways: &Arc<Ways>) -> SocketAddr {
    let own = read_elsewhere(client, ways)[0].0;
    let short = async {
        loop {
            match read(client, ways).await[..] {
                [(short, REQUESTS)] if short != own => return short,
                _ => {}
            }
        }
    };
    timeout(AT_ONCE, short).await.expect("the short way is taken")
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_its_own_runtime_go_the_short_way_and_all_others_do_not() {
    let server = EtcdServer::start().await.expect("starts");
    let ways = Arc::new(Ways::start(server.endpoint()).await.expect("a port is free"));
    let client = client(ways.address()).await;
    let short = short_way(&client, &ways).await;

    let of_another = read_elsewhere(&client, &ways);
    assert!(matches!(of_another[..], [(other, REQUESTS)] if other != short), "{of_another:?}, {short}");

    // What has to go on whatever the runtime does.
    ways.taken();
    let guard = client.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
    guard.unlock().await.expect("is held");
    assert!(!ways.taken().contains_key(&short), "a place in a queue is coord's own matter");
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_come_the_short_way_as_well() {
    let server = EtcdServer::start().await.expect("starts");
    let ways = Arc::new(Ways::start(server.endpoint()).await.expect("a port is free"));
    let client = client(ways.address()).await;
    let short = short_way(&client, &ways).await;
    let config = client.config();
    // Together more than a gRPC client accepts by default, which is 4 MiB.
    for number in 0..6 {
        config.set(&format!("large/{number}"), &"x".repeat(1_000_000)).await.expect("is written");
    }
    ways.taken();
    assert_eq!(config.list("large").await.expect("is read").len(), 6);
    assert_eq!(ways.taken().into_keys().collect::<Vec<_>>(), [short]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_runtime_holds_up_no_other_one() {
    let server = EtcdServer::start().await.expect("starts");
    let (made, is_made) = tokio::sync::oneshot::channel();
    let (go_on, is_blocked_until) = mpsc::channel::<()>();
    let endpoint = server.endpoint().to_owned();
    let blocked = std::thread::spawn(move || {
        other_runtime().block_on(async move {
            let client = client(&endpoint).await;
            // So that both ways are connected.
            tokio::time::sleep(Duration::from_millis(300)).await;
            made.send(client).expect("the test waits");
            is_blocked_until.recv().expect_err("the test drops its end");
        });
    });
    let client = is_made.await.expect("is made");
    let works = async {
        let config = client.config();
        config.set("limits", &1).await.expect("is written");
        assert_eq!(config.get::<u32>("limits").await.expect("is read").expect("exists").value, 1);
        let guard = client.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
        guard.unlock().await.expect("is held");
    };
    timeout(AT_ONCE, works).await.expect("the other runtime has nothing to do with it");
    drop(go_on);
    blocked.join().expect("does not panic");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_outlives_the_runtime_that_it_was_made_on() {
    let server = EtcdServer::start().await.expect("starts");
    let endpoint = server.endpoint().to_owned();
    let made = std::thread::spawn(move || other_runtime().block_on(async { client(&endpoint).await }));
    let client = made.join().expect("does not panic");
    let works = async {
        let config = client.config();
        let mut watch = config.watch::<u32>("limits").await.expect("is answered");
        config.set("limits", &1).await.expect("is written");
        for _ in 0..2 {
            let event = futures::StreamExt::next(&mut watch).await.expect("does not end");
            event.expect("is good");
        }
        let guard = client.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
        guard.unlock().await.expect("is held");
        client.close().await.expect("closes");
    };
    timeout(AT_ONCE, works).await.expect("needs no other runtime");
}
