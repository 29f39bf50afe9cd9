//! Within a client a lock is handed on at once: the store hears of it afterwards, and nobody else comes between.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use coord_api::{Batch, DistributedLock, Error, LockGuard, LossReason, Lost, Provider};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Late};
use etcd_client::{DeleteOptions, GetOptions, SortOrder, SortTarget};
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

/// How many tasks of one client wait.
const WAITERS: usize = 50;

/// Everybody who ever believed in a lock.
#[derive(Clone, Default)]
struct Believers(Arc<Mutex<Vec<Lost>>>);

impl Believers {
    /// Takes note of a holder, and fails if another one believes at this moment.
    fn add(&self, guard: &LockGuard) {
        let mut all = self.0.lock().expect("nothing panics while this is locked");
        let others = all.iter().filter(|lost| lost.reason().is_none()).count();
        all.push(guard.lost());
        drop(all);
        assert!(others == 0 || guard.is_lost(), "{others} others believe in the lock");
    }
}

/// The places of a holder and of many tasks of its client go at one revision, as their lease does, or since someone clears
/// the queue. None of them holds by it, and the next client does. More rounds by `COORD_VANISH_ROUNDS`.
#[tokio::test(flavor = "multi_thread")]
async fn places_that_go_at_one_revision_let_nobody_of_theirs_hold() {
    let rounds =
        std::env::var("COORD_VANISH_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(12);
    let server = EtcdServer::start().await.expect("starts");
    let (one, other) = (client(server.endpoint()).await.lock(), client(server.endpoint()).await.lock());
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let queue = || {
        Some(
            GetOptions::new().with_prefix().with_keys_only().with_sort(SortTarget::Create, SortOrder::Ascend),
        )
    };
    for round in 0..rounds {
        let believers = Believers::default();
        let waits = |locks: &Arc<dyn DistributedLock>| {
            let (locks, believers) = (locks.clone(), believers.clone());
            tokio::spawn(async move {
                let guard = locks.acquire("job", TTL).await.expect("queues anew");
                believers.add(&guard);
                tokio::task::yield_now().await;
                drop(guard.unlock().await);
            })
        };
        let places = async |count: usize| {
            let all = async {
                loop {
                    let found =
                        admin.kv_client().get("/coord/locks/job/", queue()).await.expect("etcd answers");
                    if found.kvs().len() == count {
                        break found.kvs()[0].lease();
                    }
                    sleep(Duration::from_millis(5)).await;
                }
            };
            timeout(SOON, all).await.expect("stand in the queue")
        };
        let held = one.acquire("job", TTL).await.expect("is free");
        let mut waiters: Vec<_> = (0..WAITERS).map(|_| waits(&one)).collect();
        let lease = places(WAITERS + 1).await;
        waiters.push(waits(&other));
        places(WAITERS + 2).await;
        // For the events.
        sleep(Duration::from_millis(50)).await;
        if round % 2 == 0 {
            admin.lease_client().revoke(lease).await.expect("is revoked");
        } else {
            let all = DeleteOptions::new().with_prefix();
            admin.kv_client().delete("/coord/locks/job/", Some(all)).await.expect("etcd answers");
        }
        let told =
            timeout(Duration::from_secs(2), held.lost()).await.expect("is told long before a renewal is due");
        assert!(matches!(told, LossReason::Deleted | LossReason::Revoked), "round {round}: {told:?}");
        for waiter in waiters {
            soon(waiter).await;
        }
    }
}

/// What is on a lease that was revoked is lost as soon as the client hears of one of its places.
#[tokio::test(flavor = "multi_thread")]
async fn guards_on_a_revoked_lease_hear_from_a_watched_queue() {
    let server = EtcdServer::start().await.expect("starts");
    let locks = client(server.endpoint()).await.lock();
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let alone = locks.acquire("alone", TTL).await.expect("is free");
    let held = locks.acquire("job", TTL).await.expect("is free");
    let waiter = waits(&locks, 2).await;
    let found = admin.kv_client().get(alone.key(), None).await.expect("etcd answers");
    admin.lease_client().revoke(found.kvs()[0].lease()).await.expect("is revoked");
    // The next renewal is due in twenty seconds.
    let told = timeout(Duration::from_secs(5), alone.lost()).await.expect("is told at once");
    assert_eq!(told, LossReason::Revoked);
    assert!(held.is_lost());
    assert!(!soon(waiter).await.is_lost(), "queues anew, on another lease");
}
