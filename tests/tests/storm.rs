//! Everything at once: calls that are dropped anywhere, networks that break, an operator who deletes and revokes. Afterwards
//! nobody held at the same time as another, nothing is left in the store, and whoever asks is served.
//!
//! `COORD_TEST_STORM=N` makes it N times as long.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use coord_api::{ConfigExt, DistributedLock, IdOptions, LockGuard, Provider, ServiceInfo};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Proxy};
use etcd_client::GetOptions;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

const LONG: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(40);
const ID_TTL: Duration = Duration::from_secs(3);

fn length() -> Duration {
    let times = std::env::var("COORD_TEST_STORM").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    Duration::from_secs(12) * times
}

struct Party {
    client: Client,
    way: Proxy,
}

async fn parties(server: &EtcdServer, count: usize) -> Vec<Arc<Party>> {
    let mut parties = Vec::new();
    for _ in 0..count {
        let target = server.endpoint().trim_start_matches("http://").to_owned();
        let way = Proxy::start(target).await.expect("a port is free");
        let config = EtcdConfig::new([way.address()])
            .namespace("storm")
            .instance_id_ttl(ID_TTL)
            .request_timeout(Duration::from_secs(1));
        let client = Client::connect(config).await.expect("etcd answers");
        parties.push(Arc::new(Party { client, way }));
    }
    parties
}

/// Breaks the ways until it is over, for less than a lease lasts.
async fn break_ways(parties: Vec<Arc<Party>>, over: Arc<AtomicBool>) {
    while !over.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(fastrand::u64(20..700))).await;
        let party = &parties[fastrand::usize(..parties.len())];
        match fastrand::u8(..6) {
            0..3 => party.way.reset(),
            3 => {
                party.way.cut();
                sleep(Duration::from_millis(fastrand::u64(10..1_500))).await;
                party.way.restore();
            }
            4 => {
                party.way.refuse();
                sleep(Duration::from_millis(fastrand::u64(10..400))).await;
                party.way.restore();
            }
            // Cuts a single direction.
            _ => {
                let line = if fastrand::bool() { party.way.up() } else { party.way.down() };
                line.set(coord_tests::Conditions::Silent);
                sleep(Duration::from_millis(fastrand::u64(10..1_200))).await;
                party.way.restore();
            }
        }
    }
    for party in parties {
        party.way.restore();
    }
}

/// Deletes places and revokes leases until it is over.
async fn operate(server: Arc<EtcdServer>, below: &'static str, over: Arc<AtomicBool>) {
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    while !over.load(Ordering::SeqCst) {
        sleep(Duration::from_millis(fastrand::u64(20..300))).await;
        let found = admin.kv_client().get(below, Some(GetOptions::new().with_prefix())).await;
        let found = found.expect("etcd answers");
        let kvs = found.kvs();
        if kvs.is_empty() {
            continue;
        }
        let kv = &kvs[fastrand::usize(..kvs.len())];
        if fastrand::u8(..4) > 0 {
            admin.kv_client().delete(kv.key(), None).await.expect("etcd answers");
        } else if kv.lease() != 0 {
            let _ = admin.lease_client().revoke(kv.lease()).await;
        }
    }
}

/// Guard of some kind, or none.
async fn acquire(locks: &Arc<dyn DistributedLock>, name: &str) -> Option<LockGuard> {
    let ttl = if fastrand::bool() { LONG } else { LONG * 2 };
    let time = Duration::from_micros(1 << fastrand::u32(5..21));
    match fastrand::u8(..5) {
        0 => timeout(time, locks.try_acquire(name, ttl)).await.ok()?.ok()?,
        1 => timeout(time, locks.acquire_waiting(name, ttl, time / 2)).await.ok()?.ok()?,
        2..4 => timeout(time, locks.acquire(name, ttl)).await.ok()?.ok(),
        _ => timeout(LIMIT, locks.acquire(name, ttl)).await.expect("everybody has its turn").ok(),
    }
}

#[derive(Default)]
struct Belief {
    holders: AtomicI64,
    turns: AtomicU64,
}

async fn contend(party: Arc<Party>, name: String, belief: Arc<Belief>, strict: bool, over: Arc<AtomicBool>) {
    let locks = party.client.lock();
    let mut last = 0;
    while !over.load(Ordering::SeqCst) {
        let Some(guard) = acquire(&locks, &name).await else { continue };
        let before = belief.holders.fetch_add(1, Ordering::SeqCst);
        if strict {
            assert!(guard.is_lost() || before == 0, "{before} others hold {name}");
            assert!(guard.token().get() > last, "tokens grow");
            last = guard.token().get();
        }
        belief.turns.fetch_add(1, Ordering::SeqCst);
        if fastrand::bool() {
            sleep(Duration::from_micros(1 << fastrand::u32(5..15))).await;
        }
        if fastrand::u8(..8) == 0 {
            let _ = guard.key();
        }
        if strict {
            assert!(!guard.is_lost(), "nothing lasts as long as a lease: {:?}", guard.lost().await);
        }
        belief.holders.fetch_sub(1, Ordering::SeqCst);
        match fastrand::u8(..3) {
            0 => drop(guard),
            1 => drop(timeout(Duration::from_micros(1 << fastrand::u32(5..18)), guard.unlock()).await),
            _ => drop(guard.unlock().await),
        }
    }
}

/// Waits until nothing is below a prefix; else says what is.
async fn nothing_is_left(server: &EtcdServer, below: &str) {
    let mut left = String::new();
    let gone = async {
        loop {
            left = server.etcdctl(&["get", "--prefix", "--keys-only", below]).await.expect("answers");
            if left.trim().is_empty() {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    };
    let gone = timeout(Duration::from_secs(15), gone).await;
    assert!(gone.is_ok(), "is left: {left}");
}

async fn locks_in_a_storm(operator: bool) {
    let server = Arc::new(EtcdServer::start().await.expect("starts"));
    let parties = parties(&server, 3).await;
    let over = Arc::new(AtomicBool::new(false));
    let beliefs: Vec<_> = (0..2).map(|_| Arc::new(Belief::default())).collect();
    let mut tasks = JoinSet::new();
    for party in &parties {
        for (n, belief) in beliefs.iter().enumerate() {
            for _ in 0..4 {
                let work =
                    contend(party.clone(), format!("job-{n}"), belief.clone(), !operator, over.clone());
                tasks.spawn(work);
            }
        }
    }
    if operator {
        tasks.spawn(operate(server.clone(), "/storm/locks/", over.clone()));
    }
    tasks.spawn(break_ways(parties.clone(), over.clone()));
    let ends = sleep(length());
    tokio::pin!(ends);
    loop {
        tokio::select! {
            () = &mut ends => break,
            Some(ended) = tasks.join_next() => ended.expect("no promise is broken"),
        }
    }
    end(tasks, &over).await;
    println!("turns: {:?}", beliefs.iter().map(|it| it.turns.load(Ordering::SeqCst)).collect::<Vec<_>>());
    nothing_is_left(&server, "/storm/locks/").await;
    for party in &parties {
        for n in 0..2 {
            let locks = party.client.lock();
            let guard = timeout(LIMIT, locks.acquire(&format!("job-{n}"), LONG)).await.expect("in time");
            guard.expect("is free").unlock().await.expect("is held");
        }
        timeout(LIMIT, party.client.close()).await.expect("in time").expect("closes");
    }
    let leases = server.etcdctl(&["lease", "list"]).await.expect("answers");
    assert!(leases.contains("found 0 leases"), "{leases}");
}

/// Tells all tasks that the storm is over, and waits for their ends.
async fn end(mut tasks: JoinSet<()>, over: &AtomicBool) {
    over.store(true, Ordering::SeqCst);
    let all = async {
        while let Some(ended) = tasks.join_next().await {
            ended.expect("no promise is broken");
        }
    };
    timeout(LIMIT * 2, all).await.expect("everybody comes to an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_in_a_storm_of_the_network() {
    locks_in_a_storm(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_in_a_storm_with_an_operator() {
    locks_in_a_storm(true).await;
}

const MAX_ID: u32 = 6;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_in_a_storm_of_the_network() {
    let server = Arc::new(EtcdServer::start().await.expect("starts"));
    let parties = parties(&server, 3).await;
    let over = Arc::new(AtomicBool::new(false));
    let held = Arc::new(Mutex::new(BTreeMap::<u32, String>::new()));
    let turns = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for (number, party) in parties.iter().enumerate() {
        for task in 0..3 {
            let (party, held, over, turns) = (party.clone(), held.clone(), over.clone(), turns.clone());
            tasks.spawn(async move {
                let who = format!("{number} {task}");
                while !over.load(Ordering::SeqCst) {
                    let options = IdOptions::new("svc", MAX_ID).quarantine(Duration::ZERO);
                    let ids = party.client.instance_ids().allocator(options).expect("is good");
                    let time = Duration::from_micros(1 << fastrand::u32(5..22));
                    let id = match fastrand::u8(..2) {
                        0 => timeout(time, ids.try_acquire_id()).await,
                        _ => timeout(time, ids.acquire_id()).await,
                    };
                    let Ok(Ok(id)) = id else { continue };
                    let id = u32::from(id);
                    {
                        let mut held = held.lock().expect("no panic");
                        if ids.id().is_some() {
                            let before = held.insert(id, who.clone());
                            assert_eq!(before, None, "{id} is held by {who} too");
                        } else {
                            continue;
                        }
                    }
                    turns.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_micros(1 << fastrand::u32(5..19))).await;
                    held.lock().expect("no panic").remove(&id);
                    match fastrand::u8(..3) {
                        0 => drop(ids),
                        1 => {
                            let time = Duration::from_micros(1 << fastrand::u32(5..18));
                            drop(timeout(time, ids.release_id()).await);
                        }
                        _ => drop(ids.release_id().await),
                    }
                }
            });
        }
    }
    tasks.spawn(break_ways(parties.clone(), over.clone()));
    sleep(length()).await;
    end(tasks, &over).await;
    println!("turns: {}", turns.load(Ordering::SeqCst));
    // All of them come back: what vanished rests for a TTL.
    let mut all = Vec::new();
    for _ in 1..MAX_ID {
        let options = IdOptions::new("svc", MAX_ID).quarantine(Duration::ZERO);
        let ids = parties[0].client.instance_ids().allocator(options).expect("is good");
        let id = timeout(Duration::from_secs(20), ids.acquire_id()).await;
        if id.is_err() {
            let left = server.etcdctl(&["get", "--prefix", "/storm/ids"]).await.expect("answers");
            panic!("after {} an id never comes back: {left}", all.len());
        }
        all.push(ids);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_in_a_storm_with_an_operator() {
    let server = Arc::new(EtcdServer::start().await.expect("starts"));
    let parties = parties(&server, 3).await;
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for (number, party) in parties.iter().enumerate() {
        for task in 0..3 {
            let (party, over) = (party.clone(), over.clone());
            tasks.spawn(async move {
                while !over.load(Ordering::SeqCst) {
                    let info = ServiceInfo::new("svc", format!("{number}-{task}"), "10.0.0.1", 80);
                    let time = Duration::from_micros(1 << fastrand::u32(5..21));
                    let registry = party.client.registry();
                    let registered = timeout(time, registry.register(info, LONG)).await;
                    let Ok(Ok(registered)) = registered else { continue };
                    if fastrand::bool() {
                        let time = Duration::from_micros(1 << fastrand::u32(5..18));
                        let metadata = [("a".to_owned(), fastrand::u32(..).to_string())].into();
                        drop(timeout(time, registered.update(metadata)).await);
                    }
                    sleep(Duration::from_micros(1 << fastrand::u32(5..19))).await;
                    match fastrand::u8(..3) {
                        0 => drop(registered),
                        1 => {
                            let time = Duration::from_micros(1 << fastrand::u32(5..18));
                            drop(timeout(time, registered.deregister()).await);
                        }
                        _ => drop(registered.deregister().await),
                    }
                }
            });
        }
    }
    tasks.spawn(operate(server.clone(), "/storm/services/", over.clone()));
    tasks.spawn(break_ways(parties.clone(), over.clone()));
    sleep(length()).await;
    end(tasks, &over).await;
    nothing_is_left(&server, "/storm/services/").await;
}

/// Compactions leave nothing to compare with, just when connections are made anew and keys are written again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_through_compactions_and_new_connections() {
    let server = Arc::new(EtcdServer::start().await.expect("starts"));
    let party = parties(&server, 1).await.remove(0);
    let held = party.client.lock().acquire("held", LONG).await.expect("is free");
    let over = Arc::new(AtomicBool::new(false));
    let mut tasks = JoinSet::new();
    for n in 0..4 {
        let (party, over) = (party.clone(), over.clone());
        tasks.spawn(async move {
            let (locks, values) = (party.client.lock(), party.client.config());
            while !over.load(Ordering::SeqCst) {
                let guard = acquire(&locks, &format!("job-{}", n % 2)).await;
                drop(timeout(Duration::from_millis(300), values.set(&format!("a/{n}"), &1)).await);
                drop(guard);
                let info = ServiceInfo::new("svc", format!("{n}"), "10.0.0.1", 80);
                let registry = party.client.registry();
                drop(timeout(Duration::from_millis(300), registry.register(info, LONG)).await);
                let options = IdOptions::new("svc", 9).quarantine(Duration::ZERO);
                let ids = party.client.instance_ids().allocator(options).expect("is good");
                drop(timeout(Duration::from_millis(300), ids.try_acquire_id()).await);
                drop(timeout(Duration::from_millis(300), ids.release_id()).await);
            }
        });
    }
    tasks.spawn({
        let (server, over) = (server.clone(), over.clone());
        async move {
            let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
            while !over.load(Ordering::SeqCst) {
                let now = admin.kv_client().get("/x", None).await.expect("etcd answers");
                let now = now.header().expect("has one").revision();
                let physical = etcd_client::CompactionOptions::new().with_physical();
                let _ = admin.kv_client().compact(now, Some(physical)).await;
                sleep(Duration::from_millis(fastrand::u64(1..30))).await;
            }
        }
    });
    tasks.spawn({
        let (party, over) = (party.clone(), over.clone());
        async move {
            while !over.load(Ordering::SeqCst) {
                sleep(Duration::from_millis(fastrand::u64(1..150))).await;
                party.way.reset();
            }
        }
    });
    let lost = timeout(length(), held.lost()).await;
    over.store(true, Ordering::SeqCst);
    assert!(lost.is_err(), "{lost:?}");
    timeout(LIMIT, async { while tasks.join_next().await.is_some() {} }).await.expect("all end");
    held.unlock().await.expect("is held");
}
