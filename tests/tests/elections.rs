//! Elections over etcd: beside etcd's own candidates, and when answers get lost or requests come late.

use std::{
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use coord_api::{
    Elections, ElectionsExt, Elector, ElectorOptions, Error, HandOver, Lost, Provider, Successor, Term,
};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Fault, Late, Proxy, signal};
use futures::future::join_all;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout},
    time::{Instant, sleep, timeout},
};

const TTL: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(30);

/// Clients that compete, with two candidates each.
const CANDIDATES: usize = 4;

async fn client(server: &EtcdServer) -> Client {
    let config = EtcdConfig::new([server.endpoint()]).namespace("shop");
    Client::connect(config).await.expect("etcd answers")
}

fn elector(client: &Client, value: &str) -> Elector {
    let options = ElectorOptions::new(TTL).value(value.to_owned());
    client.elections().elector("job", options).expect("is valid")
}

async fn campaign(elector: &Elector) -> Term {
    timeout(LIMIT, elector.campaign()).await.expect("in time").expect("etcd answers")
}

async fn candidates_become(elections: &Arc<dyn Elections>, count: usize) {
    let waiting = async {
        while elections.candidates("job").await.expect("etcd answers").len() != count {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, waiting).await.expect("the candidates come");
}

/// `etcdctl elect`, as a candidate or as an observer.
struct Etcdctl {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Etcdctl {
    fn start(server: &EtcdServer, args: &[&str]) -> Self {
        let mut command = server.etcdctl_process(args).expect("the server runs");
        let mut child = command
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("etcdctl: {error}; set COORD_TEST_ETCDCTL to an etcdctl"));
        let output = child.stdout.take().expect("is piped");
        Self { child, lines: BufReader::new(output).lines() }
    }

    fn campaign(server: &EtcdServer, value: &str) -> Self {
        Self::start(server, &["elect", "/shop/elections/job", value])
    }

    fn observe(server: &EtcdServer) -> Self {
        Self::start(server, &["elect", "-l", "/shop/elections/job"])
    }

    /// Waits until it prints a leader: its key and its value.
    async fn tells(&mut self) -> (String, String) {
        let mut line = async || {
            let line = timeout(LIMIT, self.lines.next_line()).await.expect("in time");
            line.expect("is readable").expect("prints a leader")
        };
        (line().await, line().await)
    }

    async fn tells_within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.lines.next_line()).await.is_ok()
    }

    /// Lets it resign.
    async fn resign(mut self) {
        signal(self.child.id().expect("runs"), "INT").await;
        timeout(LIMIT, self.child.wait()).await.expect("ends").expect("is waited for");
    }
}

/// Go's `concurrency.Election`, which `etcdctl elect` is, and coord in one election, both ways.
#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_and_coord_are_candidates_of_one_election() {
    let server = EtcdServer::start().await.expect("starts");
    let (one, other) = (client(&server).await, client(&server).await);
    let elections = one.elections();
    let mut view = elections.observe("job").await.expect("etcd answers");
    let mut observer = Etcdctl::observe(&server);

    // coord leads, etcdctl waits, coord waits behind it.
    let term = campaign(&elector(&one, "coord-1")).await;
    let (key, value) = observer.tells().await;
    assert_eq!((key.as_str(), value.as_str()), (term.key(), "coord-1"));
    let mut ctl = Etcdctl::campaign(&server, "etcdctl-1");
    candidates_become(&elections, 2).await;
    let behind = elector(&other, "coord-2");
    let behind = tokio::spawn(async move { behind.campaign().await.expect("leads at last") });
    candidates_become(&elections, 3).await;
    let candidates = elections.candidates("job").await.expect("etcd answers");
    let told: Vec<_> =
        candidates.iter().map(|one| (one.text().expect("is text"), one.owner.is_some())).collect();
    assert_eq!(told, [("coord-1", true), ("etcdctl-1", false), ("coord-2", true)]);
    assert!(!ctl.tells_within(Duration::from_millis(300)).await, "coord leads");

    // A value that is proclaimed is told by etcdctl.
    term.proclaim("coord-1 again").await.expect("leads");
    assert_eq!(observer.tells().await.1, "coord-1 again");
    // Candidates of other programs are not moved.
    let term = match term.hand_over(&Successor::Value("coord-2".into())).await.expect("leads") {
        HandOver::Blocked(term) => term,
        other => panic!("{other:?}"),
    };

    term.resign().await.expect("leads");
    let (key, value) = ctl.tells().await;
    assert!(key.starts_with("/shop/elections/job/") && value == "etcdctl-1", "{key} {value}");
    assert_eq!(observer.tells().await, (key.clone(), value));
    let is_told = async {
        while view.leader().is_none_or(|leader| leader.key != key) {
            view.changed().await.expect("is open");
        }
    };
    timeout(LIMIT, is_told).await.expect("in time");
    let leader = view.leader().expect("leads");
    assert_eq!((leader.text(), leader.owner.as_ref()), (Some("etcdctl-1"), None));
    sleep(Duration::from_millis(200)).await;
    assert!(!behind.is_finished(), "etcdctl leads");

    ctl.resign().await;
    let next = timeout(LIMIT, behind).await.expect("is its turn").expect("no panic");
    assert_eq!(observer.tells().await, (next.key().to_owned(), "coord-2".to_owned()));

    // And again with the process behind, now that its tasks share a watch.
    let mut ctl = Etcdctl::campaign(&server, "etcdctl-2");
    candidates_become(&elections, 2).await;
    let two_behind: Vec<_> = ["coord-3", "coord-4"]
        .map(|value| {
            let elector = elector(&other, value);
            tokio::spawn(async move { elector.campaign().await.expect("leads at last") })
        })
        .into();
    candidates_become(&elections, 4).await;
    let handed = next.hand_over(&Successor::Value("etcdctl-2".into())).await.expect("leads");
    assert!(matches!(handed, HandOver::To(next) if next.owner.is_none()));
    assert_eq!(ctl.tells().await.1, "etcdctl-2");
    sleep(Duration::from_millis(200)).await;
    assert!(two_behind.iter().all(|task| !task.is_finished()), "etcdctl leads");
    // Killed: its lease ends.
    let lease = ctl_lease(&elections).await;
    server.etcdctl(&["lease", "revoke", &lease]).await.expect("is revoked");
    for task in join_all(two_behind.into_iter().map(|task| async {
        let term = timeout(LIMIT, task).await.expect("is its turn").expect("no panic");
        term.resign().await
    }))
    .await
    {
        task.expect("leads");
    }
    one.close().await.expect("closes");
    other.close().await.expect("closes");
}

/// Returns the lease of the leader, which is of etcdctl.
async fn ctl_lease(elections: &Arc<dyn Elections>) -> String {
    let leader = elections.candidates("job").await.expect("etcd answers").remove(0);
    leader.key.rsplit('/').next().expect("a key has segments").to_owned()
}

/// etcd#22082: the resignation has taken effect, or does so late, and nobody has heard of it.
#[tokio::test(flavor = "multi_thread")]
async fn resignation_whose_answer_is_lost_ends_no_later_term() {
    let server = EtcdServer::start().await.expect("starts");
    let late = Late::start(server.endpoint()).await.expect("a port is free");
    let config = EtcdConfig::new([late.address()]).namespace("shop").request_timeout(Duration::from_secs(1));
    let (one, other) = (Client::connect(config).await.expect("etcd answers"), client(&server).await);
    for round in 0..4 {
        let term = campaign(&elector(&one, "one")).await;
        late.keep_the_next();
        let resigned = term.resign().await;
        assert!(
            matches!(resigned, Ok(()) | Err(Error::Timeout { .. } | Error::Unavailable { .. })),
            "{resigned:?}"
        );
        // The place is given back by a later request; then the same client is a candidate again, and another one.
        let (first, second) = if round % 2 == 0 { (&one, &other) } else { (&other, &one) };
        let (first, second) = (elector(first, "first"), elector(second, "second"));
        let term = campaign(&first).await;
        let waiter = tokio::spawn(async move { second.campaign().await.expect("leads at last") });
        candidates_become(&other.elections(), 2).await;
        late.let_it_arrive().await;
        sleep(Duration::from_millis(300)).await;
        assert!(!term.is_lost() && !waiter.is_finished(), "a late resignation has ended a later term");
        assert_eq!(other.elections().candidates("job").await.expect("etcd answers").len(), 2);
        term.resign().await.expect("leads");
        let term = timeout(LIMIT, waiter).await.expect("is its turn").expect("no panic");
        term.resign().await.expect("leads");
    }
    candidates_become(&other.elections(), 0).await;
}

/// A proclamation and the step of a hand-over arrive when the term is over, or when a later value was proclaimed.
#[tokio::test(flavor = "multi_thread")]
async fn requests_of_a_leader_that_arrive_late_change_nothing() {
    let server = EtcdServer::start().await.expect("starts");
    let late = Late::start(server.endpoint()).await.expect("a port is free");
    let config = EtcdConfig::new([late.address()]).namespace("shop").request_timeout(Duration::from_secs(1));
    let (one, other) = (Client::connect(config).await.expect("etcd answers"), client(&server).await);
    let elections = other.elections();
    let value = async || {
        let candidates = elections.candidates("job").await.expect("etcd answers");
        candidates[0].text().expect("is text").to_owned()
    };

    let term = campaign(&elector(&one, "first")).await;
    late.keep_the_next();
    let proclaimed = timeout(Duration::from_millis(300), term.proclaim("late")).await;
    assert!(proclaimed.is_err(), "is kept back");
    late.has_kept().await;
    timeout(LIMIT, term.proclaim("kept")).await.expect("in time").expect("leads");
    late.let_it_arrive().await;
    assert_eq!(value().await, "kept");

    late.keep_the_next();
    let proclaimed = timeout(Duration::from_millis(300), term.proclaim("late")).await;
    assert!(proclaimed.is_err(), "is kept back");
    term.resign().await.expect("leads");
    let term = campaign(&elector(&one, "next term")).await;
    late.let_it_arrive().await;
    assert_eq!(value().await, "next term");

    // The hand-over is given up, and those that wait have kept their places when it arrives.
    let waiting = ["a", "b"].map(|value| elector(&other, value));
    let mut waiters = Vec::new();
    for (number, elector) in waiting.into_iter().enumerate() {
        waiters.push(tokio::spawn(async move { elector.campaign().await.expect("leads at last") }));
        candidates_become(&elections, number + 2).await;
    }
    late.keep_the_next();
    let handed = timeout(Duration::from_millis(300), term.hand_over(&Successor::Value("b".into()))).await;
    assert!(handed.is_err(), "is kept back");
    for waiter in waiters {
        let term = timeout(LIMIT, waiter).await.expect("is its turn").expect("no panic");
        late_arrives_once(&late).await;
        assert!(!term.is_lost());
        term.resign().await.expect("leads");
    }
    candidates_become(&elections, 0).await;
}

/// Lets what was kept back arrive, if it has not yet.
async fn late_arrives_once(late: &Late) {
    static ARRIVED: AtomicUsize = AtomicUsize::new(0);
    if ARRIVED.fetch_add(1, Ordering::SeqCst) == 0 {
        late.let_it_arrive().await;
    }
}

/// Everybody who believed to lead, with the moment of the fault by which two may believe for a while.
#[derive(Clone, Default)]
struct Believers(Arc<Mutex<Vec<(usize, Lost)>>>);

impl Believers {
    /// Takes note of a term. Returns the others who believe at this moment.
    fn add(&self, number: usize, term: &Term) -> Vec<usize> {
        let mut all = self.0.lock().expect("nothing panics while this is locked");
        all.retain(|(_, lost)| lost.reason().is_none());
        let others = all.iter().map(|(number, _)| *number).collect();
        if !term.is_lost() {
            all.push((number, term.lost()));
        }
        others
    }
}

/// Leads for a moment again and again, and ends each term in another way.
async fn compete(elector: Elector, number: usize, believers: Believers, terms: Arc<AtomicUsize>) {
    loop {
        // Some give up while they wait.
        let wait = if fastrand::u8(..8) == 0 { fastrand::u64(1..200) } else { 60_000 };
        let Ok(campaigned) = timeout(Duration::from_millis(wait), elector.campaign()).await else { continue };
        let Ok(term) = campaigned else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let others = believers.add(number, &term);
        assert!(others.is_empty() || term.is_lost(), "{number} believes while {others:?} do");
        terms.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(fastrand::u64(1..30))).await;
        match fastrand::u8(..4) {
            0 => drop(term),
            1 => drop(term.resign().await),
            2 => drop(timeout(Duration::from_micros(fastrand::u64(1..2000)), term.resign()).await),
            _ => {
                let to = fastrand::usize(..CANDIDATES).to_string();
                drop(term.hand_over(&Successor::Value(to.into())).await);
            }
        }
    }
}

/// Candidates lead, are cut off, have their leases end while they wait, hand over and give up. Nobody revokes the lease of a
/// leader, after which two may believe for a moment. So at most one believes at any moment, and somebody leads soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_most_one_leads_whatever_happens_to_the_others() {
    const ROUNDS: usize = 200;
    let server = EtcdServer::start().await.expect("starts");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let operator = client(&server).await;
    let (elections, operator_elector) = (operator.elections(), elector(&operator, "operator"));
    let (believers, terms) = (Believers::default(), Arc::new(AtomicUsize::new(0)));
    let (mut proxies, mut tasks) = (Vec::new(), Vec::new());
    for number in 0..CANDIDATES {
        let proxy = Proxy::start(target.clone()).await.expect("a port is free");
        let config =
            EtcdConfig::new([proxy.address()]).namespace("shop").request_timeout(Duration::from_secs(2));
        let client = Client::connect(config).await.expect("etcd answers");
        proxies.push(proxy);
        for task in 0..2 {
            let options = ElectorOptions::new(Duration::from_secs(2)).value(format!("{number}"));
            let elector = client.elections().elector("job", options).expect("is valid");
            let number = number * 2 + task;
            tasks.push(tokio::spawn(compete(elector, number, believers.clone(), terms.clone())));
        }
    }
    let begun = Instant::now();
    for round in 0..ROUNDS {
        let before = terms.load(Ordering::SeqCst);
        let proxy = &proxies[fastrand::usize(..proxies.len())];
        match round % 4 {
            0 => {
                // Only those that wait lose their places, since the operator leads.
                let term = campaign(&operator_elector).await;
                let others = believers.add(CANDIDATES * 2, &term);
                assert!(others.is_empty(), "the operator believes while {others:?} do");
                for waiting in &elections.candidates("job").await.expect("etcd answers")[1..] {
                    let name = waiting.key.rsplit('/').next().and_then(|name| name.split('-').next());
                    match (fastrand::u8(..4), name) {
                        (0, Some(lease)) => drop(server.etcdctl(&["lease", "revoke", lease]).await),
                        (1, _) => drop(server.etcdctl(&["del", &waiting.key]).await),
                        _ => {}
                    }
                }
                assert!(!term.is_lost(), "the operator leads");
                term.resign().await.expect("leads");
            }
            1 => {
                proxy.fault(Fault::StallDown);
                sleep(Duration::from_millis(fastrand::u64(10..300))).await;
                proxy.fault(Fault::None);
            }
            // Now and then for longer than a lease lives.
            2 if round % 40 == 2 => {
                proxy.fault(Fault::Blackhole);
                sleep(Duration::from_millis(3500)).await;
                proxy.fault(Fault::None);
            }
            2 => {
                proxy.fault(Fault::Refuse);
                sleep(Duration::from_millis(fastrand::u64(10..100))).await;
                proxy.fault(Fault::None);
            }
            _ => sleep(Duration::from_millis(20)).await,
        }
        // Somebody leads within a TTL and three seconds of the end of a fault.
        let leads = async {
            while terms.load(Ordering::SeqCst) == before {
                if let Some(ended) = tasks.iter().position(tokio::task::JoinHandle::is_finished) {
                    panic!("{ended}: {:?}", (&mut tasks[ended]).await);
                }
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(5), leads)
            .await
            .unwrap_or_else(|_| panic!("nobody leads in round {round}"));
    }
    println!("{} terms in {ROUNDS} rounds, {:?}", terms.load(Ordering::SeqCst), begun.elapsed());
    for task in tasks {
        task.abort();
        assert!(task.await.is_err_and(|ended| ended.is_cancelled()), "a candidate has panicked");
    }
    candidates_become(&elections, 0).await;
}
