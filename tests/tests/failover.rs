//! Several endpoints, some of which do not work: one etcd behind several networks, so that every member always knows
//! everything. What the members have to agree on among themselves is in the tests of the cluster.

use std::time::Duration;

use coord_api::{ConfigEvent, ConfigExt, Error, HEALTH_LIMIT, LossReason, Provider, ServiceInfo};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{Certs, Clients, EtcdServer, Fault, Leaderless, Proxy};
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

const LONG: Duration = Duration::from_secs(30);
/// How long an operation may take from the moment of a fault on.
const SOON: Duration = Duration::from_secs(3);
const TTL: Duration = Duration::from_secs(5);

struct Fleet {
    server: EtcdServer,
    members: Vec<Proxy>,
}

impl Fleet {
    async fn start(members: usize) -> Self {
        let server = EtcdServer::start().await.expect("starts");
        let mut fleet = Self { server, members: Vec::new() };
        for _ in 0..members {
            let target = fleet.server.endpoint().trim_start_matches("http://").to_owned();
            fleet.members.push(Proxy::start(target).await.expect("a port can be opened"));
        }
        fleet
    }

    fn config(&self) -> EtcdConfig {
        EtcdConfig::new(self.members.iter().map(Proxy::address))
    }

    async fn client(&self) -> Client {
        Client::connect(self.config()).await.expect("etcd answers")
    }

    /// A client of its own way to etcd, to see what another one did.
    async fn witness(&self) -> Client {
        Client::connect(EtcdConfig::new([self.server.endpoint()])).await.expect("etcd answers")
    }

    fn fault(&self, members: &[usize], fault: Fault) {
        for member in members {
            self.members[*member].fault(fault);
        }
    }
}

/// Does every kind of operation once, one after the other; the slowest of them. On leases that outlive a stall of this
/// machine, which would lose what was just registered; whether leases live on is tested below.
async fn everything(client: &Client, round: usize) -> Duration {
    let mut slowest = Duration::ZERO;
    let mut begun = Instant::now();
    let mut done = |what: &str| {
        println!("{round}: {what} took {:?}", begun.elapsed());
        slowest = slowest.max(begun.elapsed());
        begun = Instant::now();
    };
    let name = format!("job-{round}");
    let guard = client.lock().acquire(&name, LONG).await.expect("is free");
    done("acquire");
    guard.unlock().await.expect("is held");
    done("unlock");
    let tried = client.lock().try_acquire(&name, LONG).await.expect("etcd answers");
    done("try_acquire");
    drop(tried.expect("is free"));
    let info = ServiceInfo::new("im-logic", format!("{round}"), "10.0.0.1", 80);
    let registration = client.registry().register(info, LONG).await.expect("registers");
    done("register");
    let found = client.registry().discover("im-logic").await.expect("etcd answers");
    let is_found = found.iter().any(|info| info.id == round.to_string());
    assert!(is_found, "{found:?}, {:?}", registration.status());
    done("discover");
    client.config().set("limits", &round).await.expect("is written");
    done("set");
    let read = client.config().get::<usize>("limits").await.expect("etcd answers");
    assert_eq!(read.expect("was written").value, round);
    done("get");
    let ids = client.instance_id_allocator("im-logic", 100).expect("is valid");
    ids.acquire_id().await.expect("is free");
    done("acquire_id");
    ids.release_id().await.expect("is held");
    done("release_id");
    registration.deregister().await.expect("is registered");
    done("deregister");
    slowest
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_in_turn_may_vanish_and_every_operation_goes_on() {
    let fleet = Fleet::start(3).await;
    let (client, witness) = (fleet.client().await, fleet.witness().await);
    let mut watched = client.config().watch::<usize>("seen").await.expect("is watched");
    watched.next().await.expect("never ends").expect("begins with a snapshot");
    let mut round = 0;
    for fault in [Fault::Refuse, Fault::Hangup, Fault::Blackhole, Fault::StallDown, Fault::StallUp] {
        for member in 0..3 {
            fleet.fault(&[member], fault);
            let begun = Instant::now();
            round += 1;
            let slowest = timeout(LONG, everything(&client, round)).await.expect("does not hang");
            assert!(slowest < SOON, "{fault:?} of {member}: {slowest:?}");
            witness.config().set("seen", &round).await.expect("is written");
            let event = timeout(LONG, watched.next()).await.expect("is heard of").expect("never ends");
            println!("{fault:?} of {member}: {event:?} after {:?}", begun.elapsed());
            assert!(matches!(&event, Ok(ConfigEvent::Set(set)) if set.value == round), "{event:?}");
            fleet.fault(&[member], Fault::None);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_watch_hears_soon_what_happens_behind_a_dead_member() {
    let fleet = Fleet::start(3).await;
    let (client, witness) = (fleet.client().await, fleet.witness().await);
    let mut watched = client.config().watch::<usize>("seen").await.expect("is watched");
    watched.next().await.expect("never ends").expect("begins with a snapshot");
    for round in 0..6 {
        let member = round % 3;
        fleet.fault(&[member], if round < 3 { Fault::Blackhole } else { Fault::StallDown });
        let begun = Instant::now();
        witness.config().set("seen", &round).await.expect("is written");
        let event = timeout(LONG, watched.next()).await.expect("is heard of").expect("never ends");
        println!("without member {member}: after {:?}", begun.elapsed());
        assert!(matches!(&event, Ok(ConfigEvent::Set(set)) if set.value == round), "{event:?}");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        fleet.fault(&[member], Fault::None);
        sleep(Duration::from_millis(700)).await;
    }
}

/// A member that is asked whether it is there says so, and keeps its streams. etcd reads HTTP/2 in two ways, of which one is
/// that of TLS.
#[tokio::test(flavor = "multi_thread")]
async fn streams_stay_while_members_answer() {
    let fleet = Fleet::start(3).await;
    let certs = Certs::new();
    let tls = EtcdServer::start_tls(&certs, Clients::WithCertificate, &[]).await.expect("starts");
    let way = Proxy::start(tls.endpoint().trim_start_matches("https://").to_owned()).await;
    let way = way.expect("a port can be opened");
    let both = [tls.endpoint().to_owned(), format!("https://{}", way.address())];
    let secured = EtcdConfig::new(both).tls(certs.mutual());
    tokio::join!(stay(&fleet.server, fleet.config()), stay(&tls, secured));
}

async fn stay(server: &EtcdServer, config: EtcdConfig) {
    const IDLE: Duration = Duration::from_secs(6);
    let client = Client::connect(config).await.expect("etcd answers");
    let guard = client.lock().acquire("job", LONG).await.expect("is free");
    let mut watched = client.config().watch::<usize>("seen").await.expect("is watched");
    watched.next().await.expect("never ends").expect("begins with a snapshot");

    let before = server.requests().await.expect("etcd answers");
    sleep(IDLE).await;
    let mut after = server.requests().await.expect("etcd answers");
    after.retain(|method, count| {
        *count -= before.get(method).copied().unwrap_or_default();
        *count > 0
    });
    // One each second to each of the two members that have a stream at most.
    let asked = after.remove("Check").expect("the members are asked");
    assert!(asked <= 2 * IDLE.as_secs(), "{asked} times");
    assert!(after.is_empty(), "{after:?}");
    guard.unlock().await.expect("is held");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_of_three_may_be_dead_and_nobody_notices_one() {
    let fleet = Fleet::start(3).await;
    let client = fleet.client().await;
    let mut failed = Vec::new();
    for call in 0..1000 {
        if call == 100 {
            fleet.fault(&[0], Fault::Refuse);
        }
        let guard = client.lock().acquire(&format!("job-{}", call % 7), TTL).await;
        match guard {
            Ok(guard) => failed.extend(guard.unlock().await.err()),
            Err(error) => failed.push(error),
        }
    }
    assert!(failed.is_empty(), "{} of 2000 calls failed: {:?}", failed.len(), failed[0]);
    fleet.fault(&[1], Fault::Refuse);
    let slowest = timeout(LONG, everything(&client, 0)).await.expect("does not hang");
    assert!(slowest < SOON, "{slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_without_a_leader_are_asked_and_left() {
    let server = EtcdServer::start().await.expect("starts");
    let mut leaderless = Vec::new();
    for _ in 0..2 {
        leaderless.push(Leaderless::start().await.expect("a port can be opened"));
    }
    let members = [leaderless[0].address(), server.endpoint(), leaderless[1].address()];
    let client = Client::connect(EtcdConfig::new(members)).await.expect("one of three has a leader");
    let begun = Instant::now();
    let held = client.lock().acquire("held", TTL).await.expect("is free");
    let mut watched = client.config().watch::<usize>("limits").await.expect("is watched");
    watched.next().await.expect("never ends").expect("begins with a snapshot");
    for round in 0..20 {
        let slowest = timeout(LONG, everything(&client, round)).await.expect("does not hang");
        assert!(slowest < SOON, "{slowest:?}");
        let event = timeout(LONG, watched.next()).await.expect("is heard of").expect("never ends");
        assert!(matches!(&event, Ok(ConfigEvent::Set(set)) if set.value == round), "{event:?}");
    }
    let in_vain: Vec<_> = leaderless.iter().map(Leaderless::asked).collect();
    let elapsed = begun.elapsed();
    println!("asked in vain: {in_vain:?} in {elapsed:?}");
    assert!(in_vain.iter().sum::<usize>() > 0, "they were asked");
    // Each three times, while other requests were under way to it, and once after each pause from then on.
    let most = 12 + elapsed.as_secs() as usize;
    assert!(in_vain.iter().all(|asked| *asked <= most), "{in_vain:?} in {elapsed:?}");
    held.unlock().await.expect("is held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_one_member_fails_goes_to_another() {
    let server = EtcdServer::start().await.expect("starts");
    let mut leaderless = Vec::new();
    for _ in 0..2 {
        leaderless.push(Leaderless::start().await.expect("a port can be opened"));
    }
    let members = [leaderless[0].address(), server.endpoint(), leaderless[1].address()];
    let asked = || leaderless.iter().map(Leaderless::asked).collect::<Vec<_>>();
    for _ in 0..60 {
        let client = Client::connect(EtcdConfig::new(members)).await.expect("one of three has a leader");
        // The good one has answered, so its connection is there: where only the others' are, one has to be asked again.
        let before = asked();
        client.config().get::<usize>("limits").await.expect("one of three has a leader");
        let more = |(now, before): (&usize, &usize)| now - before;
        let in_vain: Vec<_> = asked().iter().zip(&before).map(more).collect();
        assert!(in_vain.iter().all(|asked| *asked <= 1), "none twice: {in_vain:?}");
    }
    assert!(asked().iter().sum::<usize>() > 0, "they were asked");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_member_calls_end_in_time_and_all_is_well_again_afterwards() {
    let fleet = Fleet::start(3).await;
    let limit = Duration::from_secs(2);
    let client = Client::connect(fleet.config().request_timeout(limit)).await.expect("etcd answers");
    client.config().set("limits", &0).await.expect("is written");
    let mut watched = client.config().watch::<usize>("limits").await.expect("is watched");
    watched.next().await.expect("never ends").expect("begins with a snapshot");
    for (round, fault) in [Fault::Refuse, Fault::Hangup, Fault::Blackhole].into_iter().enumerate() {
        fleet.fault(&[0, 1, 2], fault);
        sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        let error = client.config().get::<usize>("limits").await.expect_err("nothing is there");
        println!("{fault:?}: {error}, {:?} after {:?}", std::error::Error::source(&error), begun.elapsed());
        assert!(error.is_retryable() && begun.elapsed() < limit + Duration::from_millis(500), "{error:?}");
        if fault != Fault::Blackhole {
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            let source = std::error::Error::source(&error).expect("says why").to_string();
            assert!(error.to_string().contains("etcd") && source.contains("check the endpoints"), "{source}");
        }
        let begun = Instant::now();
        // Those that wait together share a transaction, and are told together.
        let names = (0..20).map(|n| format!("job-{n}"));
        let locks = join_all(names.map(async |name| client.lock().acquire(&name, TTL).await));
        for given_up in timeout(3 * limit, locks).await.expect("none waits for another one") {
            given_up.expect_err("nothing is there");
        }
        println!("{fault:?}: the locks were given up after {:?}", begun.elapsed());
        fleet.fault(&[0, 1, 2], Fault::None);
        let begun = Instant::now();
        client.config().set("limits", &(round + 1)).await.expect("all are back");
        println!("{fault:?}: written again {:?} after they were back", begun.elapsed());
        assert!(begun.elapsed() < SOON);
        loop {
            let event = timeout(LONG, watched.next()).await.expect("goes on").expect("never ends");
            match event.expect("is readable") {
                ConfigEvent::Set(set) if set.value == round + 1 => break,
                ConfigEvent::Snapshot { settings, .. } if settings.iter().any(|s| s.value == round + 1) => {
                    break;
                }
                _ => {}
            }
        }
        timeout(LONG, everything(&client, round)).await.expect("does not hang");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leases_live_on_whichever_member_their_renewals_went_to() {
    let fleet = Fleet::start(3).await;
    let client = fleet.client().await;
    let held = client.lock().acquire("job", TTL).await.expect("is free");
    let info = ServiceInfo::new("im-logic", "1", "10.0.0.1", 80);
    let registration = client.registry().register(info, TTL).await.expect("registers");
    for (member, fault) in [(0, Fault::Blackhole), (1, Fault::StallDown), (2, Fault::Blackhole)] {
        fleet.fault(&[member], fault);
        // Long enough for the lease to end if nobody renewed it.
        let lost = timeout(TTL + Duration::from_millis(1500), held.lost()).await;
        assert!(lost.is_err(), "{fault:?} of {member}: {lost:?}");
        fleet.fault(&[member], Fault::None);
        sleep(Duration::from_millis(500)).await;
    }
    held.unlock().await.expect("is still held, as the server sees it");
    registration.deregister().await.expect("is still there");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_member_a_lease_is_lost_at_its_deadline() {
    let fleet = Fleet::start(3).await;
    let client = fleet.client().await;
    let held = client.lock().acquire("job", Duration::from_secs(2)).await.expect("is free");
    fleet.fault(&[0, 1, 2], Fault::Blackhole);
    let begun = Instant::now();
    let reason = timeout(LONG, held.lost()).await.expect("is told");
    assert_eq!(reason, LossReason::Expired);
    assert!(begun.elapsed() < Duration::from_millis(2500), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_finds_another_member_within_its_time() {
    let fleet = Fleet::start(3).await;
    let client = fleet.client().await;
    for member in 0..3 {
        fleet.fault(&[member], Fault::Blackhole);
        let health = client.health().await.expect("two others answer");
        println!("without member {member}: {health:?}");
        assert!(health.is_ready());
        fleet.fault(&[member], Fault::None);
    }
    fleet.fault(&[0, 1, 2], Fault::Refuse);
    let begun = Instant::now();
    let error = client.health().await.expect_err("nobody is there");
    assert!(matches!(error, Error::Unavailable { .. } | Error::Timeout { .. }), "{error:?}");
    assert!(begun.elapsed() < HEALTH_LIMIT * 2, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_version_of_each_member_is_known_also_over_tls() {
    let plain = EtcdServer::start().await.expect("starts");
    let client = Client::connect(EtcdConfig::new([plain.endpoint()])).await.expect("etcd answers");
    let expected = client.server_versions().await.remove(0).version.expect("is told");
    println!("etcd {expected}: {:?}", expected.faults());
    // What the server says of itself: the one at hand may be of another version.
    let told = plain.etcdctl(&["endpoint", "status", "-w", "json"]).await.expect("etcdctl works");
    assert!(told.contains(&format!("\"version\":\"{expected}\"")), "{told}");

    let certs = Certs::new();
    let strict = EtcdServer::start_tls(&certs, Clients::WithCertificate, &[]).await.expect("starts");
    let nobody = "127.0.0.1:9".to_owned();
    let config = EtcdConfig::new([strict.endpoint().to_owned(), nobody]).tls(certs.mutual());
    let client = Client::connect(config).await.expect("is let in");
    let [one, other] = &client.server_versions().await[..] else { panic!("there are two") };
    assert_eq!(one.version.as_ref().ok(), Some(&expected), "{one:?}");
    assert!(other.version.is_err(), "{other:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_etcd_says_what_to_do_and_what_is_held_can_be_given_back() {
    let server = EtcdServer::start_with(&["--quota-backend-bytes", "3000000"]).await.expect("starts");
    let client = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    let held = client.lock().acquire("before", Duration::from_secs(2)).await.expect("is free");
    let info = ServiceInfo::new("im-logic", "1", "10.0.0.1", 80);
    let registration = client.registry().register(info, TTL).await.expect("registers");
    let value = "x".repeat(500_000);
    let full = timeout(LONG, async {
        for n in 0.. {
            if let Err(error) = client.config().set(&format!("values/{n}"), &value).await {
                return error;
            }
        }
        unreachable!("there is a quota")
    });
    let full = full.await.expect("becomes full");
    assert!(matches!(full, Error::NoSpace { .. }), "{full:?}");
    assert!(full.to_string().contains("alarm disarm") && !full.is_retryable(), "{full}");
    let refused = client.lock().acquire("after", TTL).await.expect_err("can not be written");
    assert!(matches!(refused, Error::NoSpace { .. }), "{refused:?}");
    // Longer than the lease would live without renewals.
    assert!(timeout(Duration::from_secs(4), held.lost()).await.is_err(), "is renewed");
    assert_eq!(client.registry().discover("im-logic").await.expect("etcd answers").len(), 1);
    held.unlock().await.expect("is held");
    registration.deregister().await.expect("is registered");
    assert!(client.registry().discover("im-logic").await.expect("etcd answers").is_empty());
    client.close().await.expect("leases are revoked");
}
