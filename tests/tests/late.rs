//! Requests that arrive late: their client has given them up and gone on by another way.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{Provider, ServiceInfo};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{Conditions, EtcdServer, Proxy};
use futures::{FutureExt, future::join_all};
use tokio::time::sleep;

const TTL: Duration = Duration::from_secs(30);

/// An update is stuck on its way; its instance leaves by another one, and then the update arrives.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_arrives_late_does_not_bring_an_instance_back() {
    let server = EtcdServer::start().await.expect("starts");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let watching = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    // Several at once, since etcd may see that its client has gone before it sees the request.
    let stuck = join_all((0..10).map(|round| leaves(round, &target, &watching))).await;
    assert!(stuck.into_iter().filter(|stuck| *stuck).count() >= 5, "most updates get stuck");
}

/// A registration that one member did not answer is made through another one. When the instance has left, the first
/// request arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_registration_that_arrives_late_does_not_bring_an_instance_back() {
    let server = EtcdServer::start().await.expect("starts");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let watching = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    join_all((0..10).map(|round| registers_and_leaves(round, &target, &watching))).await;
}

async fn registers_and_leaves(round: usize, target: &str, watching: &Client) {
    let stuck = Proxy::start(target.to_owned()).await.expect("a port is free");
    let other = Proxy::start(target.to_owned()).await.expect("a port is free");
    other.refuse();
    let config = EtcdConfig::new([stuck.address(), other.address()]);
    let client = Client::connect(config.request_timeout(Duration::from_secs(4))).await.expect("etcd answers");
    let service = format!("im-{round}");
    let instance = |id: &str| ServiceInfo::new(&service, id, "10.0.0.1", 80);
    // With a lease, and with the watch that guards the records of the service.
    let registry = client.registry();
    let warm = registry.register(instance("warm"), TTL).await.expect("is registered");

    stuck.up().set(Conditions::Silent);
    let before = stuck.sent();
    let registering = registry.register(instance("late"), TTL);
    let other_is_back = async {
        while stuck.sent() == before {
            sleep(Duration::from_millis(5)).await;
        }
        other.restore();
    };
    let (registered, ()) = tokio::join!(registering, other_is_back);
    let left = match registered {
        Ok(registration) => registration.deregister().await,
        Err(error) => Err(error),
    };
    stuck.restore();
    sleep(Duration::from_millis(300)).await;
    let found = watching.registry().discover(&service).await.expect("etcd answers");
    println!("round {round}: {left:?}");
    let is_there = found.iter().any(|info| info.id == "late");
    assert!(left.is_err() || !is_there, "round {round}: {left:?}, and there is {found:?}");
    drop(warm);
}

/// Whether the update was stuck: it may just have found a way through.
async fn leaves(round: usize, target: &str, watching: &Client) -> bool {
    let stuck = Proxy::start(target.to_owned()).await.expect("a port is free");
    let other = Proxy::start(target.to_owned()).await.expect("a port is free");
    other.refuse();
    let config = EtcdConfig::new([stuck.address(), other.address()]);
    let client = Client::connect(config.request_timeout(Duration::from_millis(700))).await;
    let client = client.expect("etcd answers");
    let service = format!("im-{round}");
    let instance = ServiceInfo::new(&service, "1", "10.0.0.1", 80);
    let registration = client.registry().register(instance, TTL).await.expect("is registered");

    stuck.up().set(Conditions::Silent);
    let metadata = BTreeMap::from([("update".to_owned(), "late".to_owned())]);
    let is_stuck = registration.update(metadata).await.is_err();
    other.restore();
    let left = registration.deregister().await;
    stuck.restore();
    // Long enough for what was stuck, and not for the clean-up after it.
    sleep(Duration::from_millis(300)).await;
    let found = watching.registry().discover(&service).await.expect("etcd answers");
    println!("round {round}: {left:?}");
    assert!(left.is_err() || found.is_empty(), "round {round}: {left:?}, and there is {found:?}");
    is_stuck
}

/// The delete that nobody waits for any more may be under way for long: another place must not have its key.
#[tokio::test(flavor = "multi_thread")]
async fn an_unlock_that_is_given_up_keeps_its_key_from_the_next_hold() {
    let server = EtcdServer::start().await.expect("starts");
    let client = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    let lock = client.lock();
    let first = lock.acquire("job", TTL).await.expect("is free");
    let key = first.key().to_owned();
    first.unlock().await.expect("is held");
    let again = lock.acquire("job", TTL).await.expect("is free");
    assert_eq!(again.key(), key, "one whose end is known is used again");

    assert!(again.unlock().now_or_never().is_none(), "is given up while the request is under way");
    // Often enough for everything that is under way to end, after which the smallest number that is free is used.
    for _ in 0..100 {
        let next = lock.acquire("job", TTL).await.expect("becomes free");
        assert_ne!(next.key(), key);
        next.unlock().await.expect("is held");
    }
}
