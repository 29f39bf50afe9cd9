//! Within a client a lock is handed on at once: the store hears of it afterwards, and nobody else comes between.

use std::{sync::Arc, time::Duration};

use coord_api::{Batch, DistributedLock, Error, LockGuard, Provider};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Late};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

const TTL: Duration = Duration::from_secs(60);
/// For what happens without the store.
const AT_ONCE: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(20);

/// A client whose requests take a way on which they can be kept back, and are waited for long.
async fn late() -> (EtcdServer, Late, Client) {
    let server = EtcdServer::start().await.expect("starts");
    let late = Late::start(server.endpoint()).await.expect("a port is free");
    let client = client(late.address()).await;
    (server, late, client)
}

async fn client(address: &str) -> Client {
    let config = EtcdConfig::new([address]).request_timeout(Duration::from_secs(4));
    Client::connect(config).await.expect("etcd answers")
}

/// Somebody who waits for `job`, once there are `places` in the queue, and the client knows of them.
async fn waits(locks: &Arc<dyn DistributedLock>, places: usize) -> JoinHandle<LockGuard> {
    let asking = locks.clone();
    let waiter = tokio::spawn(async move { asking.acquire("job", TTL).await.expect("becomes free") });
    let queued = async {
        while locks.holders("job").await.expect("etcd answers").len() < places {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, queued).await.expect("stands in the queue");
    // For the event, which follows the place.
    sleep(Duration::from_millis(100)).await;
    waiter
}

async fn at_once<T>(waiter: JoinHandle<T>) -> T {
    timeout(AT_ONCE, waiter).await.expect("needs no answer of the store").expect("does not panic")
}

async fn soon<T>(waiter: JoinHandle<T>) -> T {
    timeout(SOON, waiter).await.expect("becomes free").expect("does not panic")
}

fn give_back(guard: LockGuard) -> JoinHandle<()> {
    tokio::spawn(async move { guard.unlock().await.expect("was held") })
}

/// Others wait until the store has freed all places before theirs, and those behind them wait for them.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_goes_from_task_to_task_before_the_store_hears_of_it_and_to_nobody_else() {
    let (server, late, one) = late().await;
    let (locks, other) = (one.lock(), client(server.endpoint()).await.lock());
    let first = locks.acquire("job", TTL).await.expect("is free");
    let second = waits(&locks, 2).await;
    let third = waits(&locks, 3).await;
    let others = waits(&other, 4).await;
    let last = waits(&locks, 5).await;

    late.keep_the_next();
    let (token, first) = (first.token(), give_back(first));
    let second = at_once(second).await;
    late.has_kept().await;
    assert!(second.token() > token);
    // One that is dropped hands on as well.
    drop(second);
    let third = at_once(third).await;
    assert_eq!(
        other.holders("job").await.expect("etcd answers")[0].token,
        token,
        "the store does not know yet"
    );
    let third = give_back(third);
    sleep(AT_ONCE).await;
    assert!(!others.is_finished() && !last.is_finished() && !first.is_finished());
    late.let_it_arrive().await;
    let others = soon(others).await;
    sleep(AT_ONCE).await;
    assert!(!last.is_finished(), "somebody else holds it");
    others.unlock().await.expect("was held");
    soon(last).await.unlock().await.expect("was held");
    // The answer to the one that was kept back is lost; its place is deleted once more in time.
    drop((first, third));
}

/// A write that depends on the holder may be under way when it gives the lock back. It must not come after what the next
/// one does.
#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_fences_writes_is_handed_on_when_the_store_has_freed_it() {
    for by_key in [false, true] {
        let (_server, late, client) = late().await;
        let (locks, config) = (client.lock(), client.config());
        let first = locks.acquire("job", TTL).await.expect("is free");
        let next = waits(&locks, 2).await;
        let batch = if by_key {
            assert!(!first.key().is_empty());
            Batch::new()
        } else {
            Batch::new().while_held(&first).expect("is held")
        };
        let batch = batch.set("owner", &1).expect("is valid");
        late.keep_the_next();
        let _first = give_back(first);
        late.has_kept().await;
        sleep(AT_ONCE).await;
        assert!(!next.is_finished(), "the store would still let the batch in");
        config.commit(batch.clone()).await.expect("the store knows of the first alone");
        late.let_it_arrive().await;
        let _next = soon(next).await;
        if !by_key {
            let written = config.commit(batch).await;
            assert!(matches!(written, Err(Error::Lost { .. })), "{written:?}");
        }
    }
}

/// What waits behind a place that is left while it is waited for in vain hears of it at once as well.
#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_waiting_lets_the_next_one_through_at_once() {
    let (_server, late, client) = late().await;
    let locks = client.lock();
    let first = locks.acquire("job", TTL).await.expect("is free");
    let second = waits(&locks, 2).await;
    let third = waits(&locks, 3).await;
    late.keep(0, 2);
    second.abort();
    let _first = give_back(first);
    let third = at_once(third).await;
    assert!(!third.is_lost());
    drop(third);
}
