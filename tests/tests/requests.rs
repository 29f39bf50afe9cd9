//! What operations cost, from etcd's own counters: requests carry no noise, so they can be asserted.

use std::{collections::BTreeMap, ops::ControlFlow, sync::Arc, time::Duration};

use coord::{Coordinator, SchemaExt};
use coord_api::{
    ConfigExt, ElectionsExt, ElectorOptions, HandOver, IdOptions, LockGuard, Provider, Scope, ServiceEvent,
    ServiceInfo, Successor,
};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::EtcdServer;
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

/// Long enough that no renewal falls into a test.
const TTL: Duration = Duration::from_secs(600);
const LIMIT: Duration = Duration::from_secs(20);

/// An etcd of its own, so that nobody else is counted, with one client whose session exists.
struct Bench {
    server: EtcdServer,
    client: Arc<dyn Provider>,
    _turn: SemaphorePermit<'static>,
}

/// What a request costs is the same on every machine, but one that is so busy that requests are made again.
static TURNS: Semaphore = Semaphore::const_new(2);

impl Bench {
    async fn new() -> Self {
        let turn = TURNS.acquire().await.expect("is never closed");
        let server = EtcdServer::start().await.expect("starts");
        let bench = Self { client: client(&server).await, server, _turn: turn };
        bench.acquire("warm-up").await.unlock().await.expect("is held");
        bench
    }

    async fn acquire(&self, name: &str) -> LockGuard {
        timeout(LIMIT, self.client.lock().acquire(name, TTL)).await.expect("in time").expect("is granted")
    }

    /// The requests that `work` causes, by method.
    async fn requests_of<T>(&self, work: impl Future<Output = T>) -> (T, BTreeMap<String, u64>) {
        let before = self.server.requests().await.expect("etcd answers");
        let done = work.await;
        let mut after = self.server.requests().await.expect("etcd answers");
        after.retain(|method, count| {
            *count -= before.get(method).copied().unwrap_or_default();
            *count > 0
        });
        (done, after)
    }

    async fn revision(&self) -> String {
        let status = self.server.gateway("/v3/kv/range", r#"{"key":"eA=="}"#).await.expect("etcd answers");
        let revision = status.split(r#""revision":""#).nth(1).and_then(|rest| rest.split('"').next());
        revision.expect("every answer has a revision").to_owned()
    }
}

async fn client(server: &EtcdServer) -> Arc<dyn Provider> {
    Arc::new(Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers"))
}

fn only(method: &str, count: u64) -> BTreeMap<String, u64> {
    BTreeMap::from([(method.to_owned(), count)])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uncontended_lock_costs_one_request_and_an_unlock_one() {
    let bench = Bench::new().await;
    let (guard, requests) = bench.requests_of(bench.acquire("job")).await;
    assert_eq!(requests, only("Txn", 1));
    let (unlocked, requests) = bench.requests_of(guard.unlock()).await;
    unlocked.expect("is held");
    assert_eq!(requests, only("DeleteRange", 1));
}

/// As a lock: one request to lead, one to resign, and one for each new value.
#[tokio::test(flavor = "multi_thread")]
async fn a_campaign_costs_one_request_and_a_resignation_one() {
    let bench = Bench::new().await;
    let options = ElectorOptions::new(TTL).value("10.0.0.1:80");
    let elector = bench.client.elections().elector("job", options).expect("is valid");
    let (term, requests) = bench.requests_of(elector.campaign()).await;
    assert_eq!(requests, only("Txn", 1));
    let term = term.expect("nobody leads");
    for value in ["10.0.0.2:80", "10.0.0.3:80"] {
        let (proclaimed, requests) = bench.requests_of(term.proclaim(value)).await;
        proclaimed.expect("leads");
        assert_eq!(requests, only("Txn", 1));
    }
    let (resigned, requests) = bench.requests_of(term.resign()).await;
    resigned.expect("leads");
    assert_eq!(requests, only("DeleteRange", 1));

    let led = elector.lead(|_term| async { ControlFlow::Break(()) });
    let (led, requests) = bench.requests_of(led).await;
    led.expect("leads");
    assert_eq!(requests, BTreeMap::from([("DeleteRange".to_owned(), 1), ("Txn".to_owned(), 1)]));
}

/// The candidates are read, then the leader resigns. Candidates of one client in between are moved by one request.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_costs_a_read_more_than_a_resignation() {
    let bench = Bench::new().await;
    let other = client(&bench.server).await;
    let options = ElectorOptions::new(TTL).value("next");
    let waiting = other.elections().elector("job", options).expect("is valid");
    let elector = bench.client.elections().elector("job", ElectorOptions::new(TTL)).expect("is valid");
    let term = elector.campaign().await.expect("nobody leads");
    let waiter = tokio::spawn(async move { waiting.campaign().await.expect("leads at last") });
    while bench.client.elections().candidates("job").await.expect("etcd answers").len() != 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let handed_over = async {
        let handed = term.hand_over(&Successor::Value("next".into())).await.expect("leads");
        assert!(matches!(handed, HandOver::To(_)));
        timeout(LIMIT, waiter).await.expect("in time").expect("no panic")
    };
    let (next, requests) = bench.requests_of(handed_over).await;
    // The waiter looks who is before it when the leader has gone.
    let expected = [("DeleteRange".to_owned(), 1), ("Range".to_owned(), 1), ("Txn".to_owned(), 1)];
    assert_eq!(requests, BTreeMap::from(expected));
    next.resign().await.expect("leads");
}

/// Each learns what the one before wrote, so that only the first has to read.
#[tokio::test(flavor = "multi_thread")]
async fn updates_of_one_value_by_tasks_of_one_client_cost_one_request_each() {
    let bench = Bench::new().await;
    let config = bench.client.config();
    config.set("counter", &0).await.expect("is written");
    let update = || config.update("counter", |old: Option<u32>| old.unwrap_or_default() + 1);
    // They are in the queue before the first of them has its turn.
    let updates = futures::future::try_join_all(std::iter::repeat_with(update).take(16));
    let (settings, requests) = bench.requests_of(updates).await;
    let mut values: Vec<_> = settings.expect("are written").iter().map(|setting| setting.value).collect();
    values.sort_unstable();
    assert!(values.into_iter().eq(1..=16));
    assert_eq!(requests, BTreeMap::from([("Range".to_owned(), 1), ("Txn".to_owned(), 16)]));
}

/// Four at once, and then all that came in the meantime together.
#[tokio::test(flavor = "multi_thread")]
async fn writes_of_one_moment_share_requests() {
    let bench = Bench::new().await;
    let config = bench.client.config();
    config.set("warm-up", &0).await.expect("is written");
    let write = |n: usize| {
        let config = config.clone();
        async move { config.set(&format!("k/{n}"), &n).await }
    };
    // Each has begun before the first of them is answered.
    let (versions, requests) = bench.requests_of(futures::future::try_join_all((0..100).map(write))).await;
    let versions = versions.expect("are written");
    assert_eq!(requests, only("Txn", 5));
    for (n, version) in versions.into_iter().enumerate() {
        let found = config.get::<usize>(&format!("k/{n}")).await.expect("is read").expect("was written");
        assert_eq!((found.value, found.version), (n, version));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_try_costs_one_request_and_writes_nothing() {
    let bench = Bench::new().await;
    let _held = bench.acquire("job").await;
    let other = client(&bench.server).await;
    other
        .lock()
        .try_acquire("warm-up", TTL)
        .await
        .expect("etcd answers")
        .expect("is free")
        .unlock()
        .await
        .expect("held");
    let before = bench.revision().await;
    let (tried, requests) = bench.requests_of(other.lock().try_acquire("job", TTL)).await;
    assert!(tried.expect("etcd answers").is_none());
    assert_eq!(requests, only("Txn", 1));
    assert_eq!(bench.revision().await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_not_paid_per_lock() {
    let bench = Bench::new().await;
    let (_guards, requests) = bench
        .requests_of(async {
            let mut guards = Vec::new();
            for n in 0..50 {
                guards.push(bench.acquire(&format!("job-{n}")).await);
            }
            guards
        })
        .await;
    assert_eq!(requests, only("Txn", 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_off_within_a_process_costs_the_release_and_nothing_else() {
    const WAITERS: u64 = 5;
    let bench = Bench::new().await;
    let mut guard = bench.acquire("job").await;
    let mut waiters = Vec::new();
    for n in 1..=WAITERS {
        let lock = bench.client.lock();
        waiters.push(tokio::spawn(async move { lock.acquire("job", TTL).await }));
        // In this order, and each of them seen by the watch that they share.
        while bench.client.lock().holders("job").await.expect("etcd answers").len() as u64 <= n {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for waiter in waiters {
        let handed_over = async {
            guard.unlock().await.expect("is held");
            timeout(LIMIT, waiter).await.expect("in time").expect("no panic").expect("is granted")
        };
        let (next, requests) = bench.requests_of(handed_over).await;
        assert_eq!(requests, only("DeleteRange", 1));
        guard = next;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiter_that_is_alone_in_its_process_watches_and_looks_once() {
    let bench = Bench::new().await;
    let other = client(&bench.server).await;
    other.lock().acquire("warm-up", TTL).await.expect("is free").unlock().await.expect("is held");
    let guard = bench.acquire("job").await;
    let watches = || bench.server.metric("etcd_debugging_mvcc_watcher_total", "");
    let before = watches().await.expect("etcd answers");
    let handed_over = async {
        let waiter = tokio::spawn(async move { other.lock().acquire("job", TTL).await });
        while watches().await.expect("etcd answers") == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        guard.unlock().await.expect("is held");
        timeout(LIMIT, waiter).await.expect("in time").expect("no panic").expect("is granted")
    };
    let (_next, requests) = bench.requests_of(handed_over).await;
    // It enters and sees who is before it, watches that one, and looks who is before it when that one has gone. The
    // store has not changed between its entering and its watch, so it does not look in between.
    assert_eq!(
        requests,
        BTreeMap::from([("DeleteRange".to_owned(), 1), ("Txn".to_owned(), 2), ("Watch".to_owned(), 1)])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_different_names_that_wait_together_travel_together() {
    const NAMES: usize = 64;
    let bench = Bench::new().await;
    let names: Vec<_> = (0..NAMES).map(|n| format!("job-{n}")).collect();
    let acquire_all = futures::future::join_all(names.iter().map(|name| bench.acquire(name)));
    let (guards, requests) = bench.requests_of(acquire_all).await;
    println!("acquiring {NAMES} locks at once: {requests:?}");
    assert!(requests["Txn"] <= 8 && requests.len() == 1, "{requests:?}");
    let unlock_all = futures::future::join_all(guards.into_iter().map(LockGuard::unlock));
    let (unlocked, requests) = bench.requests_of(unlock_all).await;
    assert!(unlocked.into_iter().all(|unlocked| unlocked.is_ok()));
    println!("releasing {NAMES} locks at once: {requests:?}");
    assert!(requests.values().sum::<u64>() <= 8, "{requests:?}");
    assert!(requests.keys().all(|method| ["DeleteRange", "Txn"].contains(&&**method)), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lock_that_is_held_costs_those_that_are_asked_for_with_it_one_request_more() {
    const NAMES: usize = 64;
    let bench = Bench::new().await;
    let _held = client(&bench.server).await.lock().acquire("job-40", TTL).await.expect("is free");
    let names: Vec<_> = (0..NAMES).filter(|n| *n != 40).map(|n| format!("job-{n}")).collect();
    let locks = bench.client.lock();
    let waiter = async || {
        let _ = timeout(LIMIT, locks.acquire("job-40", TTL)).await;
    };
    for round in 0..2 {
        let acquire_all = async {
            let all = futures::future::join_all(names.iter().map(|name| bench.acquire(name)));
            tokio::select! {
                guards = all => guards,
                () = waiter() => panic!("is held"),
            }
        };
        let (guards, requests) = bench.requests_of(acquire_all).await;
        println!("acquiring {NAMES} locks at once, one of which is held, round {round}: {requests:?}");
        assert!(requests["Txn"] <= 10, "{requests:?}");
        for unlocked in futures::future::join_all(guards.into_iter().map(LockGuard::unlock)).await {
            unlocked.expect("is held");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_for_each_read_and_write() {
    let bench = Bench::new().await;
    let (config, registry) = (bench.client.config(), bench.client.registry());
    config.set("limits", &1).await.expect("is written");
    let (set, requests) = bench.requests_of(config.set("limits", &2)).await;
    let version = set.expect("is written");
    assert_eq!(requests, only("Txn", 1));
    let (swapped, requests) = bench.requests_of(config.compare_and_set("limits", version, &3)).await;
    swapped.expect("nobody else writes");
    assert_eq!(requests, only("Txn", 1));
    let guard = bench.acquire("job").await;
    let (fenced, requests) = bench.requests_of(config.set_if_held(&guard, "limits", &4)).await;
    fenced.expect("is held");
    assert_eq!(requests, only("Txn", 1));
    let (got, requests) = bench.requests_of(config.get::<u32>("limits")).await;
    assert_eq!(got.expect("is read").expect("exists").value, 4);
    assert_eq!(requests, only("Range", 1));

    // The watch that guards the records of a service is there before its first one is written.
    let register = registry.register(ServiceInfo::new("svc", "1", "10.0.0.1", 80), TTL);
    let (first, requests) = bench.requests_of(register).await;
    assert_eq!(requests, BTreeMap::from([("Txn".to_owned(), 1), ("Watch".to_owned(), 1)]));
    let watches = || bench.server.metric("etcd_debugging_mvcc_watcher_total", "");
    let before = watches().await.expect("etcd answers");
    let register = registry.register(ServiceInfo::new("svc", "2", "10.0.0.1", 80), TTL);
    let (second, requests) = bench.requests_of(register).await;
    assert_eq!(requests, only("Txn", 1), "the service is watched already");
    assert_eq!(watches().await.expect("etcd answers"), before);
    let (first, second) = (first.expect("registers"), second.expect("registers"));
    let (found, requests) = bench.requests_of(registry.discover("svc")).await;
    assert_eq!(found.expect("is read").len(), 2);
    assert_eq!(requests, only("Range", 1));
    drop((first, second));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_registrations_and_a_hundred_views_are_one_watch_and_one_keep_alive_stream() {
    const INSTANCES: usize = 1000;
    let bench = Bench::new().await;
    let registry = bench.client.registry();
    let watches = || bench.server.metric("etcd_debugging_mvcc_watcher_total", "");
    let before = watches().await.expect("etcd answers");

    // As short as etcd grants, so that several renewals fall into the test.
    let ttl = Duration::from_secs(3);
    let info = |n: usize| ServiceInfo::new("svc", format!("{n:04}"), "10.0.0.1", 80);
    // Some at a time: who hears of more changes than it can take lists anew, which depends on the machine.
    let register = async {
        let mut registered = Vec::new();
        for first in (0..INSTANCES).step_by(50) {
            let some = (first..first + 50).map(|n| registry.register(info(n), ttl));
            registered.extend(futures::future::join_all(some).await);
        }
        registered
    };
    let (registered, requests) = bench.requests_of(register).await;
    let registrations: Vec<_> = registered.into_iter().map(|one| one.expect("registers")).collect();
    println!("registering {INSTANCES} instances: {requests:?}");
    assert_eq!(requests["Txn"], INSTANCES as u64);
    assert_eq!(requests["LeaseGrant"], 1);

    // Until this client has heard of all of them: a view that opens in between may find itself behind and list anew.
    let mut heard = registry.watch("svc").await.expect("etcd answers");
    let last = registry.register(info(INSTANCES), ttl).await.expect("registers");
    let is_last = |event: &ServiceEvent| match event {
        ServiceEvent::Added(info) => info.id == last.service().id,
        ServiceEvent::Snapshot { instances, .. } => instances.len() == INSTANCES + 1,
        _ => false,
    };
    while !heard.next().await.is_some_and(|event| event.is_ok_and(|event| is_last(&event))) {}

    let (views, requests) = bench
        .requests_of(async {
            let mut views = Vec::new();
            for _ in 0..100 {
                views.push(registry.view("svc").await.expect("etcd answers"));
            }
            views
        })
        .await;
    assert!(views.iter().all(|view| view.instances().len() == INSTANCES + 1));
    assert!(requests["Range"] <= 6, "the pages of one list: {requests:?}");
    let mut events = Vec::new();
    for _ in 0..10 {
        events.push(registry.watch("svc").await.expect("etcd answers"));
    }
    let added = watches().await.expect("etcd answers") - before;
    assert_eq!(added, 1, "one watch for all");

    let renewals = || bench.server.metric("grpc_server_msg_received_total", "LeaseKeepAlive");
    let (first, start) = (renewals().await.expect("etcd answers"), tokio::time::Instant::now());
    tokio::time::sleep(ttl * 2).await;
    let sent = renewals().await.expect("etcd answers") - first;
    let ttls = start.elapsed().as_secs_f64() / ttl.as_secs_f64();
    println!("{sent} keep-alives in {ttls} times to live");
    // Opening the stream is a message of its own.
    let most = 3 * start.elapsed().as_millis().div_ceil(ttl.as_millis()) + 1;
    assert!(sent >= 2 && u128::from(sent) <= most, "{sent} in {ttls}");
    assert_eq!(bench.server.requests().await.expect("etcd answers")["LeaseKeepAlive"], 1, "streams");

    drop((views, events, heard));
    let (gone, _) = bench
        .requests_of(futures::future::join_all(
            registrations.into_iter().chain([last]).map(coord_api::Registration::deregister),
        ))
        .await;
    assert!(gone.into_iter().all(|gone| gone.is_ok()));
    timeout(LIMIT, async {
        while watches().await.expect("etcd answers") > before {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the watch ends with its last user");
}

/// Takes the first ids of `svc`, as processes with the Go original do.
async fn take_ids(server: &EtcdServer, taken: std::ops::RangeInclusive<u32>) {
    let client = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let keys: Vec<_> = taken.map(|id| format!("/coord/ids/svc/ids/{id}")).collect();
    for some in keys.chunks(100) {
        let puts: Vec<_> =
            some.iter().map(|key| etcd_client::TxnOp::put(key.as_str(), "taken", None)).collect();
        client.kv_client().txn(etcd_client::Txn::new().and_then(puts)).await.expect("is written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_costs_one_or_two_requests_however_many_are_taken() {
    let bench = Bench::new().await;
    // On the session of the ids.
    let warm = bench.client.instance_id_allocator("warm-up", 8).expect("is valid");
    warm.acquire_id().await.expect("is free");
    let mut first = 1;
    for taken in [0, 500, 1000] {
        take_ids(&bench.server, first..=taken).await;
        first = taken + 1;
        let mut worst = 0;
        for _ in 0..5 {
            // With and without an identity, which is looked for first.
            let plain = IdOptions::new("svc", 1024).quarantine(Duration::ZERO);
            for (options, looks) in [(plain.clone(), 0), (plain.identity("web"), 1)] {
                let ids = bench.client.instance_ids().allocator(options).expect("is valid");
                let (id, requests) = bench.requests_of(ids.acquire_id()).await;
                assert!(id.expect("is free").get() > taken);
                let sent = requests["Txn"];
                worst = worst.max(sent);
                assert_eq!(requests, only("Txn", sent), "nothing but transactions");
                assert!(sent <= 2, "{sent} requests with {taken} taken");
                assert!(taken > 0 || sent == 1 + looks, "{sent} requests for an empty range");
                ids.release_id().await.expect("is held");
            }
        }
        println!("{taken} of 1023 taken: at most {worst} requests");
    }
    // As the Go original does: one request for each id that is taken. Counted here, since the client looks after the id that it
    // holds meanwhile.
    let client = etcd_client::Client::connect([bench.server.endpoint()], None).await.expect("answers");
    let mut requests = 0;
    for id in 1.. {
        requests += 1;
        let key = format!("/coord/ids/svc/ids/{id}");
        let free = etcd_client::Compare::mod_revision(key.as_str(), etcd_client::CompareOp::Equal, 0);
        let txn = etcd_client::Txn::new().when([free]).and_then([etcd_client::TxnOp::put(key, "", None)]);
        if client.kv_client().txn(txn).await.expect("etcd answers").succeeded() {
            break;
        }
    }
    assert_eq!(requests, 1001);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_who_want_an_id_at_once_do_not_collide_their_way_to_the_last() {
    let bench = Bench::new().await;
    let (mut clients, mut warmed) = (Vec::new(), Vec::new());
    for _ in 0..64 {
        let client = client(&bench.server).await;
        let warm = client.instance_id_allocator("warm-up", 1024).expect("is valid");
        warm.acquire_id().await.expect("is free");
        warmed.push(warm);
        clients.push(client);
    }
    // Kept, so that no release is counted.
    let mut held = Vec::new();
    for (service, max_id) in [("wide", 1024), ("narrow", 65)] {
        let ids: Vec<_> = clients
            .iter()
            .map(|client| client.instance_id_allocator(service, max_id).expect("is valid"))
            .collect();
        let all = futures::future::join_all(ids.iter().map(|ids| ids.acquire_id()));
        let (all, requests) = bench.requests_of(all).await;
        let all: std::collections::BTreeSet<_> = all.into_iter().map(|id| id.expect("is free")).collect();
        assert_eq!(all.len(), 64);
        println!("64 at once below {max_id}: {requests:?}");
        assert!(requests["Txn"] <= 64 * 3 && requests.len() == 1, "{requests:?}");
        held.push(ids);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_an_id_does_not_poll() {
    let bench = Bench::new().await;
    let held = bench.client.instance_id_allocator("svc", 2).expect("is valid");
    held.acquire_id().await.expect("is free");
    let other = client(&bench.server).await;
    let waiting = other.instance_id_allocator("svc", 2).expect("is valid");
    let waiter = tokio::spawn(async move { waiting.acquire_id().await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ((), requests) = bench.requests_of(tokio::time::sleep(Duration::from_secs(3))).await;
    assert_eq!(requests, BTreeMap::new());
    waiter.abort();
}

/// Numbers are made here, and the store hears of them about every third of a TTL.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_cost_nothing_but_the_time_that_is_reserved() {
    let bench = Bench::new().await;
    let ids = bench.client.instance_id_allocator("svc", 1024).expect("is valid");
    ids.acquire_id().await.expect("is free");
    let snowflake = coord_api::Snowflake::start(&*ids).await.expect("is held");
    let making = async {
        let end = std::time::Instant::now() + Duration::from_secs(2);
        let mut made = 0_u64;
        while std::time::Instant::now() < end {
            snowflake.next_id().await.expect("is held");
            made += 1;
        }
        made
    };
    let (made, requests) = bench.requests_of(making).await;
    println!("{made} numbers with {requests:?}");
    assert!(made > 1000 && requests.is_empty(), "{requests:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_reads_the_schemas_once() {
    let bench = Bench::new().await;
    bench.client.config().schemas().set::<u32>(Scope::Key("limits")).await.expect("is set");
    let coordinator = Coordinator::from(bench.client.clone());
    let write = || async { coordinator.config().set("limits", &1).await.expect("fits") };
    let (_, requests) = bench.requests_of(write()).await;
    assert_eq!(requests, BTreeMap::from([("Range".to_owned(), 1), ("Txn".to_owned(), 1)]));
    for _ in 0..10 {
        let (_, requests) = bench.requests_of(write()).await;
        assert_eq!(requests, only("Txn", 1));
    }
}
