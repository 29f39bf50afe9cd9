//! Requests that arrive late: their client has given them up and gone on by another way.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use coord_api::{
    ConfigExt, DistributedLock, Error, IdOptions, LockGuard, Provider, ServiceInfo, Snowflake,
    SnowflakeOptions, Version,
};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{Conditions, EtcdServer, Late, Proxy, other_runtime};
use etcd_client::{AlarmAction, AlarmOptions, AlarmType, GetOptions, GetResponse, KeyValue, WatchOptions};
use futures::{FutureExt, future::join_all};
use tokio::time::{sleep, timeout};

const TTL: Duration = Duration::from_secs(30);

/// How many config writes a client has under way before the next ones wait for each other.
const WRITES_UNDER_WAY: usize = 4;
const WRITES: usize = 64;

/// An etcd, the way to it on which writes are kept back, and how a client takes that way.
async fn late(request_timeout: Duration) -> (EtcdServer, Late, EtcdConfig) {
    let server = EtcdServer::start().await.expect("starts");
    let late = Late::start(server.endpoint()).await.expect("a port is free");
    let config = EtcdConfig::new([late.address()]).request_timeout(request_timeout);
    (server, late, config)
}

/// Sets a value of a key of its own.
fn write(client: &Client, n: usize) -> impl Future<Output = Result<Version, Error>> + use<> {
    let config = client.config();
    async move { config.set(&format!("k/{n}"), &n).await }
}

/// Waits until this is so.
async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !is_so().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(60), waiting).await.expect(what);
}

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
    let late = Late::start(server.endpoint()).await.expect("a port is free");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let other = Proxy::start(target).await.expect("a port is free");
    other.refuse();
    let config = EtcdConfig::new([late.address(), other.address()]);
    let client = Client::connect(config.request_timeout(Duration::from_secs(4))).await.expect("etcd answers");
    let registry = client.registry();
    let instance = |id: &str| ServiceInfo::new("im-logic", id, "10.0.0.1", 80);
    // With a lease, which lives on, and with the watch that guards the records of the service.
    let _other = registry.register(instance("other"), TTL).await.expect("is registered");

    late.keep_the_next();
    let other_is_back = async {
        late.has_kept().await;
        other.restore();
    };
    let (registered, ()) = tokio::join!(registry.register(instance("late"), TTL), other_is_back);
    registered.expect("is made through the other one").deregister().await.expect("is registered");
    late.let_it_arrive().await;
    let found = registry.discover("im-logic").await.expect("etcd answers");
    assert_eq!(found, [instance("other")]);
}

/// Whoever wanted a place has gone when the request for it arrives.
#[tokio::test(flavor = "multi_thread")]
async fn a_place_that_arrives_late_is_never_taken() {
    let (late, locks, _held, mut store) = locks_with_a_lease().await;
    for asked in ["waiting", "trying", "dropped"] {
        late.keep_the_next();
        let shut = store.gate().await;
        match asked {
            "waiting" => {
                let taken = locks.acquire("late", TTL).await;
                assert!(matches!(taken, Err(Error::Timeout { .. })), "{taken:?}");
            }
            "trying" => {
                let taken = locks.try_acquire("late", TTL).await;
                assert!(matches!(taken, Err(Error::Timeout { .. })), "{taken:?}");
            }
            _ => {
                let taken = timeout(Duration::from_millis(100), locks.acquire("late", TTL)).await;
                assert!(taken.is_err(), "the request is stuck");
                until("the gate is shut", async || store.gate().await > shut).await;
            }
        }
        assert_eq!(store.gate().await, shut + 1, "{asked}");
        store.stays_when_it_arrives(&late, asked).await;
        // What is asked from now on passes, and finds the lock free.
        let again = locks.try_acquire("late", TTL).await.expect("etcd answers").expect("is free");
        again.unlock().await.expect("is held");
    }
}

/// Many places that were asked for in one request are kept out by a few writes.
#[tokio::test(flavor = "multi_thread")]
async fn places_that_arrive_late_together_are_kept_out_together() {
    let (late, locks, _held, mut store) = locks_with_a_lease().await;
    // The first of them may travel alone.
    late.keep(0, 2);
    let places = (0..64).map(|n| {
        let (locks, name) = (locks.clone(), format!("late-{n}"));
        async move { locks.acquire(&name, TTL).await }
    });
    let taken = join_all(places).await;
    let lost = taken.iter().filter(|taken| taken.is_err()).count();
    assert!(lost > 32, "most travel together, and not {lost}: {taken:?}");
    // Not by one, since some hear of it when the first write is under way.
    let shut = store.gate().await;
    assert!((1..16).contains(&shut), "{lost} places were kept out by {shut} writes");
    store.stays_when_it_arrives(&late, "places").await;
}

/// A gate that somebody else has written costs a request, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_is_not_as_it_was_lets_the_next_attempt_pass() {
    let server = EtcdServer::start().await.expect("starts");
    let client = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    let locks = client.lock();
    let held = locks.acquire("held", TTL).await.expect("is free");
    let mut store = Store::of(server).await;
    let place = &store.keys("/coord/locks/held/").await[0];
    let lease = place.trim_start_matches("/coord/locks/held/").split('-').next().expect("is its first part");
    let gate = format!("/coord/internal/gates/{lease}");
    for what in ["written", "deleted"] {
        match what {
            "written" => drop(store.etcd.put(gate.as_str(), "", None).await.expect("etcd answers")),
            _ => drop(store.etcd.delete(gate.as_str(), None).await.expect("etcd answers")),
        }
        let names = (0..8).map(|n| {
            let (locks, name) = (locks.clone(), format!("{what}-{n}"));
            async move { locks.acquire(&name, TTL).await.expect("is free").unlock().await }
        });
        assert!(join_all(names).await.iter().all(Result::is_ok), "{what}");
        assert!(locks.try_acquire("held", TTL).await.expect("etcd answers").is_none(), "{what}");
    }
    held.unlock().await.expect("is held");
}

/// A full store takes no gate; it is shut when there is room again.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_store_keeps_out_what_arrives_late_when_it_has_room_again() {
    let (late, locks, _held, mut store) = locks_with_a_lease().await;
    late.keep_the_next();
    let full = store.alarm(AlarmAction::Activate, 0).await;
    let taken = locks.acquire("late", TTL).await;
    assert!(matches!(taken, Err(Error::Timeout { .. })), "{taken:?}");
    assert_eq!(store.gate().await, 0, "is refused");
    store.alarm(AlarmAction::Deactivate, full).await;
    until("the gate is shut", async || store.gate().await > 0).await;
    store.stays_when_it_arrives(&late, "a place").await;
}

/// Whoever wanted an id or a registration has gone on when the request for it arrives.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_and_a_registration_that_arrive_late_are_never_written() {
    let (server, late, config) = late(Duration::from_secs(1)).await;
    let client = Client::connect(config.instance_id_ttl(TTL)).await.expect("etcd answers");
    let ids = || client.instance_id_allocator("svc", 8).expect("is valid");
    let (first, second, registry) = (ids(), ids(), client.registry());
    let instance = |id: &str| ServiceInfo::new("svc", id, "10.0.0.1", 80);
    let taken = first.acquire_id().await.expect("is free");
    let _other = registry.register(instance("other"), TTL).await.expect("is registered");
    let mut store = Store::of(server).await;
    for asked in ["an id", "a registration"] {
        let shut = store.gate().await;
        late.keep_the_next();
        let error = match asked {
            "an id" => second.acquire_id().await.map(drop),
            _ => registry.register(instance("late"), TTL).await.map(drop),
        };
        assert!(matches!(error, Err(Error::Timeout { .. })), "{asked}: {error:?}");
        assert_eq!(store.gate().await, shut + 1, "{asked}");
        store.stays_when_it_arrives(&late, asked).await;
    }
    let found = registry.discover("svc").await.expect("etcd answers");
    assert_eq!(found, [instance("other")]);
    assert_ne!(second.acquire_id().await.expect("is free"), taken);
}

/// Locks over a way on which requests are kept back, with the lease on which they all are, and the store behind it.
async fn locks_with_a_lease() -> (Late, Arc<dyn DistributedLock>, LockGuard, Store) {
    let (server, late, config) = late(Duration::from_secs(1)).await;
    let locks = Client::connect(config).await.expect("etcd answers").lock();
    let held = locks.acquire("held", TTL).await.expect("is free");
    (late, locks, held, Store::of(server).await)
}

/// An etcd and what it has, past the way on which requests are kept back.
struct Store {
    etcd: etcd_client::Client,
    _server: EtcdServer,
}

impl Store {
    async fn of(server: EtcdServer) -> Self {
        let etcd = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
        Self { etcd, _server: server }
    }

    /// Lets what was kept back arrive, which writes nothing.
    async fn stays_when_it_arrives(&mut self, late: &Late, asked: &str) {
        let before = self.revision().await;
        late.let_it_arrive().await;
        assert_eq!(self.revision().await, before, "{asked}: nothing is written");
    }

    async fn read(&mut self, prefix: &str) -> GetResponse {
        self.etcd.get(prefix, Some(GetOptions::new().with_prefix())).await.expect("etcd answers")
    }

    async fn revision(&mut self) -> i64 {
        self.read("/").await.header().expect("is there").revision()
    }

    async fn keys(&mut self, prefix: &str) -> Vec<String> {
        let found = self.read(prefix).await;
        found.kvs().iter().map(|kv| kv.key_str().expect("is text").to_owned()).collect()
    }

    /// Lets it take itself for full, or ends that; the member that does.
    async fn alarm(&mut self, action: AlarmAction, member: u64) -> u64 {
        let mut options = AlarmOptions::new();
        options.with_member(member);
        let answer = self.etcd.alarm(action, AlarmType::Nospace, Some(options)).await.expect("etcd answers");
        answer.alarms().first().map_or(0, etcd_client::AlarmMember::member_id)
    }

    /// How often the only gate was shut.
    async fn gate(&mut self) -> i64 {
        self.read("/coord/internal/gates/").await.kvs().first().map_or(0, KeyValue::version)
    }
}

/// Time that is reserved for numbers never goes back, or the next holder of the id would make some of them again.
#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_that_arrives_late_takes_no_time_back() {
    let (server, late, config) = late(Duration::from_secs(2)).await;
    let client = Client::connect(config.instance_id_ttl(TTL)).await.expect("etcd answers");
    let ids = client.instance_id_allocator("svc", 2).expect("is valid");
    ids.acquire_id().await.expect("is free");
    let clock = Arc::new(AtomicU64::new(0));
    let (start, passed) = (SystemTime::now(), clock.clone());
    let now = move || start + Duration::from_millis(passed.load(Ordering::SeqCst));
    let options = SnowflakeOptions::default().clock(now);
    let snowflake = Snowflake::start_with(&*ids, options).await.expect("is held");
    let etcd = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let reserved = async || {
        let found = etcd.kv_client().get("/coord/ids/svc/stamped/1", None).await.expect("etcd answers");
        found.kvs()[0].value_str().expect("is a number").parse::<u64>().expect("is a number")
    };
    let before = reserved().await;

    late.keep_the_next();
    clock.fetch_add(15_000, Ordering::SeqCst);
    snowflake.next_id().await.expect("is held");
    late.has_kept().await;
    // The next one is of a later time.
    clock.fetch_add(1_000, Ordering::SeqCst);
    until("more time is reserved", async || reserved().await != before).await;
    let after = reserved().await;
    assert_eq!(after, before + 16_000);
    late.let_it_arrive().await;
    assert_eq!(reserved().await, after);
    // It still reserves time.
    clock.fetch_add(15_000, Ordering::SeqCst);
    snowflake.next_id().await.expect("is held");
    until("more time is reserved", async || reserved().await == after + 15_000).await;
}

/// As when a stamp arrives late, but before the next one is sent, which knows of none.
#[tokio::test(flavor = "multi_thread")]
async fn a_stamp_that_arrives_unseen_does_not_keep_the_next_from_being_written() {
    let (_server, late, config) = late(Duration::from_secs(2)).await;
    let client = Client::connect(config).await.expect("etcd answers");
    let ids = client.instance_id_allocator("svc", 2).expect("is valid");
    ids.acquire_id().await.expect("is free");
    let snowflake = Snowflake::start(&*ids).await.expect("is held");
    late.keep_the_next();
    assert!(matches!(snowflake.finish().await, Err(Error::Timeout { .. })));
    late.let_it_arrive().await;
    let again = Snowflake::start(&*ids).await.expect("is held");
    again.finish().await.expect("is held");
}

/// Who waited for an id and gave up while etcd was away does not take one when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_wait_for_an_id_that_was_given_up_takes_none_later() {
    const LIMIT: Duration = Duration::from_secs(1);
    let server = EtcdServer::start().await.expect("starts");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let way = Proxy::start(target).await.expect("a port is free");
    let etcd = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let queued = async || {
        let below = Some(GetOptions::new().with_prefix().with_count_only());
        etcd.kv_client().get("/coord/ids/svc/queue/", below).await.expect("etcd answers").count()
    };
    let ids = async |endpoint: &str| {
        let config = EtcdConfig::new([endpoint]).request_timeout(LIMIT);
        let client = Client::connect(config).await.expect("etcd answers");
        let options = IdOptions::new("svc", 2).quarantine(Duration::ZERO);
        (client.instance_ids().allocator(options).expect("is valid"), client)
    };
    let ((held, _holder), (wanted, _waiter)) = (ids(server.endpoint()).await, ids(way.address()).await);
    held.acquire_id().await.expect("is free");
    let waiting = tokio::spawn(async move { wanted.acquire_id().await });
    until("one waits", async || queued().await > 0).await;

    // It hears that the id is free, and can not take it.
    way.up().set(Conditions::Silent);
    let sent = way.sent();
    held.release_id().await.expect("is held");
    until("it asks", async || way.sent() > sent).await;
    way.refuse();
    waiting.abort();
    // Until the claim that was under way has been given up.
    sleep(LIMIT * 5).await;
    let below = Some(WatchOptions::new().with_prefix());
    let mut taken = etcd.watch_client().watch("/coord/ids/svc/ids/", below).await.expect("etcd answers");
    way.restore();
    until("it has left", async || queued().await == 0).await;
    etcd.kv_client().put("/coord/ids/svc/ids/end", "", None).await.expect("is written");
    let mut changes = Vec::new();
    while changes.last().is_none_or(|last: &String| !last.ends_with("/end")) {
        let answer = taken.message().await.expect("etcd answers").expect("does not end");
        changes.extend(answer.events().iter().filter_map(|e| Some(e.kv()?.key_str().ok()?.to_owned())));
    }
    assert_eq!(changes, ["/coord/ids/svc/ids/end"]);
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
    let (_server, late, config) = late(Duration::from_secs(2)).await;
    let client = Client::connect(config).await.expect("etcd answers");
    let lock = client.lock();
    let first = lock.acquire("job", TTL).await.expect("is free");
    let key = first.key().to_owned();
    first.unlock().await.expect("is held");
    let again = lock.acquire("job", TTL).await.expect("is free");
    assert_eq!(again.key(), key, "one whose end is known is used again");

    late.keep_the_next();
    assert!(again.unlock().now_or_never().is_none(), "is given up while the request is under way");
    late.has_kept().await;
    // Often enough for everything else that is under way to end, after which the smallest number that is free is used.
    for _ in 0..20 {
        let next = lock.acquire("job", TTL).await.expect("becomes free");
        assert_ne!(next.key(), key);
        next.unlock().await.expect("is held");
    }
    let held = lock.acquire("job", TTL).await.expect("is free");
    late.let_it_arrive().await;
    held.unlock().await.expect("is held");
}

/// Writes that went together and were not answered are as sure not to come later as one alone.
#[tokio::test(flavor = "multi_thread")]
async fn writes_that_arrive_late_together_change_nothing() {
    let (_server, late, config) = late(Duration::from_secs(5)).await;
    let client = Client::connect(config).await.expect("etcd answers");
    client.config().set("warm-up", &0).await.expect("is written");
    late.keep(WRITES_UNDER_WAY, 1);
    let written = join_all((0..WRITES).map(|n| write(&client, n))).await;
    late.has_kept().await;
    late.let_it_arrive().await;
    let found = client.config().list("k").await.expect("is read");
    let refused: Vec<_> = written.iter().filter_map(|written| written.as_ref().err()).collect();
    println!("{} of {WRITES} were not written: {:?}", refused.len(), refused.first());
    assert_eq!(written.len() - refused.len(), found.len(), "what was not answered is not there");
    assert!(refused.len() > WRITES / 2, "most of them went together");
    assert!(refused.iter().all(|error| matches!(error, Error::Unavailable { .. })), "{refused:?}");
}

/// Writes wait for those that are under way, but not as long as etcd does not answer those.
#[tokio::test(flavor = "multi_thread")]
async fn writes_behind_some_that_are_stuck_are_made_alone() {
    let (_server, late, config) = late(Duration::from_secs(20)).await;
    // On a runtime that is gone: the short way would be given up sooner than the time that a request has.
    let connecting = std::thread::spawn(|| other_runtime().block_on(Client::connect(config)));
    let client = connecting.join().expect("does not panic").expect("etcd answers");
    client.config().set("warm-up", &0).await.expect("is written");
    late.keep(0, WRITES_UNDER_WAY);
    let stuck: Vec<_> = (0..WRITES_UNDER_WAY).map(|n| tokio::spawn(write(&client, n))).collect();
    late.has_kept().await;
    let others = join_all((WRITES_UNDER_WAY..WRITES).map(|n| write(&client, n)));
    let others = timeout(Duration::from_secs(10), others).await.expect("do not wait for what is stuck");
    assert!(others.iter().all(Result::is_ok), "{others:?}");
    for stuck in stuck {
        stuck.abort();
    }
}

/// Requests about locks wait for those that are under way, but not as long as etcd does not answer those.
#[tokio::test(flavor = "multi_thread")]
async fn locks_behind_one_that_is_stuck_are_taken_meanwhile() {
    let (_server, late, config) = late(Duration::from_secs(20)).await;
    let client = Client::connect(config).await.expect("etcd answers");
    let locks = client.lock();
    locks.acquire("warm-up", TTL).await.expect("is free").unlock().await.expect("is held");
    late.keep_the_next();
    let asking = locks.clone();
    let stuck = tokio::spawn(async move { asking.acquire("stuck", TTL).await });
    late.has_kept().await;
    let others = async {
        for n in 0..10 {
            let guard = locks.acquire(&format!("job-{n}"), TTL).await.expect("is free");
            guard.unlock().await.expect("is held");
        }
    };
    timeout(Duration::from_secs(10), others).await.expect("do not wait for what is stuck");
    assert!(!stuck.is_finished());
    stuck.abort();
}
