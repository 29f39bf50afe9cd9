//! Processes that hold ids and are killed or frozen at random.
//!
//! `COORD_TEST_ID_FAULTS` is how many of them, 200 by default.

use std::{
    collections::BTreeMap,
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use coord_api::{Error, HeldId, IdOptions, Provider, Snowflake, SnowflakeOptions};
use coord_etcd::EtcdConfig;
use coord_memory::{Options, Store};
use coord_tests::{Cluster, EtcdServer, NODES, Proxy, signal};
use etcd_client::{Compare, CompareOp, Txn};
use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::sleep,
};

const PARTIES: usize = 6;
/// How many faults one service has.
const PER_SERVICE: usize = 50;
const MAX_ID: u32 = 8;
const TTL: u64 = 2;

/// One hold of an id by one process, as it told itself.
#[derive(Clone, Copy, Debug)]
struct Span {
    /// It believed from here,
    from: u128,
    /// to here, at least.
    to: u128,
    first: u64,
    last: u64,
}

/// By id, process and hold.
type Looks = Arc<Mutex<BTreeMap<(u32, usize, u64), Span>>>;

fn start(server: &EtcdServer, service: &str, looks: &Looks, process: usize) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stamper"))
        .args([server.endpoint(), service, &MAX_ID.to_string(), &TTL.to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("is built");
    let mut lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
    let looks = looks.clone();
    tokio::spawn(async move {
        while let Ok(Some(line)) = lines.next_line().await {
            // The last line of one that was killed may be cut.
            let words: Vec<u128> = line.split(' ').map_while(|word| word.parse().ok()).collect();
            let &[id, hold, before, after, number] = words.as_slice() else { continue };
            let (id, hold, number) = (id as u32, hold as u64, number as u64);
            let look = Span { from: after, to: before, first: number, last: number };
            let mut looks = looks.lock().expect("nothing panics while this is locked");
            let span = looks.entry((id, process, hold)).or_insert(look);
            assert!(span.last == number && span.first == number || span.last < number, "{line}");
            (span.to, span.last) = (before, number);
        }
    });
    child
}

/// No two processes hold one id at one moment, and the numbers of the later one are larger.
fn check(looks: &BTreeMap<(u32, usize, u64), Span>) {
    let mut by_id = BTreeMap::<u32, Vec<Span>>::new();
    for ((id, ..), span) in looks {
        by_id.entry(*id).or_default().push(*span);
    }
    for (id, mut spans) in by_id {
        spans.sort_by_key(|span| span.from);
        for pair in spans.windows(2) {
            assert!(pair[0].to < pair[1].from, "two processes hold {id}: {pair:?}");
            assert!(pair[0].last < pair[1].first, "the numbers of worker {id} do not grow: {pair:?}");
        }
    }
}

/// One service with its processes, which are killed and frozen; how often each.
async fn torment(server: &EtcdServer, service: &str, looks: &Looks, faults: usize) -> (usize, usize) {
    let mut started = 0;
    let mut next = || {
        started += 1;
        start(server, service, looks, started)
    };
    let mut parties: Vec<_> = (0..PARTIES).map(|_| (next(), None::<usize>)).collect();
    let (mut kills, mut freezes) = (0, 0);
    sleep(Duration::from_secs(2)).await;
    for fault in 0..faults {
        // Those that have been frozen for long enough go on.
        for (child, frozen) in &mut parties {
            if frozen.is_some_and(|since| fault - since >= 8) {
                signal(child.id().expect("runs"), "CONT").await;
                *frozen = None;
            }
        }
        let (child, frozen) = &mut parties[fastrand::usize(0..PARTIES)];
        if frozen.is_none() && freezes <= kills {
            signal(child.id().expect("runs"), "STOP").await;
            *frozen = Some(fault);
            freezes += 1;
        } else {
            child.kill().await.expect("is killed");
            (*child, *frozen) = (next(), None);
            kills += 1;
        }
        sleep(Duration::from_millis(fastrand::u64(300..600))).await;
    }
    for (child, _) in &parties {
        signal(child.id().expect("runs"), "CONT").await;
    }
    sleep(Duration::from_secs(TTL * 3)).await;
    (kills, freezes)
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_and_frozen_processes_share_no_id_and_no_number() {
    let faults: usize =
        std::env::var("COORD_TEST_ID_FAULTS").ok().and_then(|faults| faults.parse().ok()).unwrap_or(200);
    let server = EtcdServer::start().await.expect("starts");
    // Services do not meet, so they are tormented side by side.
    let services: Vec<_> =
        (0..faults.div_ceil(PER_SERVICE)).map(|n| (format!("svc-{n}"), Looks::default())).collect();
    let all = services.iter().enumerate().map(|(n, (service, looks))| {
        let faults = PER_SERVICE.min(faults - n * PER_SERVICE);
        torment(&server, service, looks, faults)
    });
    let done = join_all(all).await;
    sleep(Duration::from_millis(200)).await;
    let (kills, freezes) = done.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    let mut holds = 0;
    for (_, looks) in &services {
        let looks = std::mem::take(&mut *looks.lock().expect("nothing panics while this is locked"));
        check(&looks);
        assert!(looks.len() > PARTIES, "too little happened");
        holds += looks.len();
    }
    println!("{kills} kills and {freezes} freezes, {holds} holds");
}

/// On memory one client stands still while the others go on, which no signal can do to a part of a process.
#[tokio::test(start_paused = true)]
async fn a_hundred_freezes_on_memory_make_no_two_holders() {
    let ttl = Duration::from_secs(TTL);
    let store = Store::new();
    let (begin, since) = (std::time::SystemTime::now(), tokio::time::Instant::now());
    let holds = Arc::new(Mutex::new(BTreeMap::<u32, (Option<HeldId>, u64, usize)>::new()));
    let clients: Vec<_> = (0..PARTIES)
        .map(|_| store.client_with(Options::default().instance_id_ttl(ttl)).expect("the options are good"))
        .collect();
    let mut tasks = tokio::task::JoinSet::new();
    for client in &clients {
        let ids = client.instance_id_allocator("svc", 4).expect("is valid");
        let holds = holds.clone();
        tasks.spawn(async move {
            loop {
                let Ok(id) = ids.acquire_id().await else { continue };
                let Some(held) = ids.held() else { continue };
                {
                    let mut holds = holds.lock().expect("nothing panics while this is locked");
                    let (before, _, count) = holds.entry(id.get()).or_default();
                    let others = before.replace(held.clone());
                    assert!(others.is_none_or(|other| other.is_lost()), "two hold {id}");
                    *count += 1;
                }
                let options = SnowflakeOptions::default().clock(move || begin + since.elapsed());
                let Ok(snowflake) = Snowflake::start_with(&*ids, options).await else { continue };
                while let Ok(number) = snowflake.next_id().await {
                    {
                        let mut holds = holds.lock().expect("nothing panics while this is locked");
                        let (_, last, _) = holds.entry(id.get()).or_default();
                        assert!(number > *last, "worker {id} made {number} after {last}");
                        *last = number;
                    }
                    sleep(Duration::from_millis(10)).await;
                }
            }
        });
    }
    for _ in 0..100 {
        clients[fastrand::usize(0..PARTIES)].stall(Duration::from_millis(fastrand::u64(100..4 * 1000 * TTL)));
        sleep(Duration::from_millis(fastrand::u64(100..5000))).await;
        assert!(tasks.try_join_next().is_none(), "a party failed");
    }
    let holds = holds.lock().expect("nothing panics while this is locked");
    let changes: usize = holds.values().map(|(_, _, count)| count).sum();
    assert!(changes > 20, "only {changes} holds");
}

/// A member that is cut off from the others answers whatever may be answered without them, from a state in which these
/// ids were not taken yet.
#[tokio::test(flavor = "multi_thread")]
async fn ids_are_kept_while_a_follower_that_is_behind_is_asked() {
    const IDS: u32 = 50;
    let ttl = Duration::from_secs(12);
    // A member that knows of no leader says so. It takes the one that it does not hear for its leader for so long.
    let cluster = Cluster::start_with(&["--election-timeout", "10000"]).await.expect("starts");
    let follower = cluster.follower().await.expect("there is a leader");
    let to = |node| cluster.direct(node).trim_start_matches("http://").to_owned();
    let way = Proxy::start(to((follower + 1) % NODES)).await.expect("a port is free");
    let config = EtcdConfig::new([way.address()]).instance_id_ttl(ttl);
    let client = coord_etcd::Client::connect(config).await.expect("etcd answers");
    let warm = client.instance_id_allocator("warm-up", 2).expect("is valid");
    warm.acquire_id().await.expect("is free");
    cluster.cut_peers(follower);
    let begun = tokio::time::Instant::now();
    let held: Vec<_> =
        (0..IDS).map(|_| client.instance_id_allocator("svc", IDS + 1).expect("is valid")).collect();
    for acquired in join_all(held.iter().map(|ids| ids.acquire_id())).await {
        acquired.expect("is free");
    }
    // Each id is looked at first between 0.3 and 0.35 of the TTL: then there is nobody else to ask.
    tokio::time::sleep_until(begun + ttl.mul_f64(0.28)).await;
    way.redirect(to(follower));
    // What is so only if that member answers by itself, and does not know of any of them.
    let behind = etcd_client::Client::connect([cluster.direct(follower)], None).await.expect("is up");
    let taken = Compare::create_revision("/coord/ids/svc/ids/1", CompareOp::Greater, 0);
    let answer = behind.kv_client().txn(Txn::new().when([taken])).await.expect("asks nobody");
    assert!(!answer.succeeded(), "it is behind");
    tokio::time::sleep_until(begun + ttl.mul_f64(0.37)).await;
    way.redirect(to((follower + 1) % NODES));
    tokio::time::sleep_until(begun + ttl).await;
    let lost: Vec<_> = held.iter().filter_map(|ids| ids.lost()?.reason()).collect();
    assert!(lost.is_empty(), "{} of {IDS} ids were lost: {lost:?}", lost.len());
}

/// What the store refuses ends nothing: numbers go on when it takes stamps again, and until then callers hear why.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_go_on_when_a_store_that_was_full_has_room_again() {
    let ttl = Duration::from_secs(6);
    let cluster = Cluster::start().await.expect("starts");
    let config = EtcdConfig::new(cluster.endpoints()).instance_id_ttl(ttl);
    let client = coord_etcd::Client::connect(config).await.expect("etcd answers");
    let ids = client.instance_id_allocator("svc", 8).expect("is valid");
    ids.acquire_id().await.expect("is free");
    let snowflake = Snowflake::start(&*ids).await.expect("an id is held");
    cluster.alarm().await.expect("is raised");
    let mut last = 0;
    while let Some(number) = snowflake.try_next_id().expect("is held") {
        last = number;
        sleep(Duration::from_millis(20)).await;
    }
    let refused = tokio::time::timeout(ttl * 3, snowflake.next_id()).await.expect("does not wait for ever");
    assert!(matches!(refused, Err(Error::NoSpace { .. })), "{refused:?}");
    cluster.disarm().await.expect("is ended");
    let number = loop {
        match tokio::time::timeout(ttl * 3, snowflake.next_id()).await.expect("does not wait for ever") {
            Ok(number) => break number,
            Err(error) => assert!(matches!(error, Error::NoSpace { .. }), "{error:?}"),
        }
    };
    assert!(number > last);
}

/// The note of a vanished holder is on a lease, which goes when the id is free again.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_left_of_an_id_whose_holder_vanished() {
    let server = EtcdServer::start().await.expect("starts");
    let network =
        Proxy::start(server.endpoint().trim_start_matches("http://").to_owned()).await.expect("starts");
    let connect = async |endpoint: &str| {
        let config = EtcdConfig::new([endpoint]).instance_id_ttl(Duration::from_secs(TTL));
        coord_etcd::Client::connect(config).await.expect("etcd answers")
    };
    let ids = |client: &coord_etcd::Client| {
        let options = IdOptions::new("svc", 2).quarantine(Duration::from_secs(TTL));
        client.instance_ids().allocator(options).expect("is valid")
    };
    let vanishes = connect(network.address()).await;
    ids(&vanishes).acquire_id().await.expect("is free");
    network.refuse();
    drop(vanishes);
    let next = connect(server.endpoint()).await;
    let held = ids(&next);
    held.acquire_id().await.expect("is free when it has rested");
    let leases = async || server.etcdctl(&["lease", "list"]).await.expect("etcd answers");
    let one_left = async {
        while !leases().await.contains("found 1 leases") {
            sleep(Duration::from_millis(100)).await;
        }
    };
    let left = tokio::time::timeout(Duration::from_secs(20), one_left).await;
    assert!(left.is_ok(), "more than that of the holder: {}", leases().await);
}
