//! Calls through a connection while instances come, go, crash and fall silent, and while etcd loses its data.

use std::{
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use coord_api::{Provider, Registration, ServiceInfo};
use coord_etcd::{Client, EtcdConfig};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt, InstanceStatus};
use coord_memory::Store;
use coord_tests::{EtcdServer, Proxy};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::{Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const LONG: Duration = Duration::from_secs(30);
const TTL: Duration = Duration::from_secs(10);

/// A server process; killed when this is dropped.
struct Instance {
    process: Child,
    port: u16,
}

impl Instance {
    async fn start(port: u16) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_instance"))
            .arg(port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("is built");
        let mut lines = BufReader::new(process.stdout.take().expect("is piped")).lines();
        let line = timeout(LONG, lines.next_line()).await.expect("in time").expect("is text");
        let port = line.expect("tells its port").parse().expect("is a port");
        Self { process, port }
    }

    /// SIGKILL.
    async fn kill9(&mut self) {
        self.process.kill().await.expect("runs");
    }
}

async fn register(provider: &dyn Provider, id: &str, port: u16) -> Registration {
    let info = ServiceInfo::new("im-logic", id, "127.0.0.1", port);
    provider.registry().register(info, TTL).await.expect("the store is there")
}

async fn check(connection: &Connection) -> Result<(), Status> {
    HealthClient::new(connection.clone()).check(HealthCheckRequest::default()).await.map(drop)
}

/// Waits until so many instances are ready.
async fn until_ready(connection: &Connection, count: usize) {
    timeout(LONG, async {
        while connection.state().ready() != count {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{:?}", connection.state()));
}

#[derive(Default)]
struct Tally {
    calls: AtomicUsize,
    failed: AtomicUsize,
    slow: AtomicUsize,
}

/// Makes `calls` calls, `at_once` at a time; those that take longer than `limit` are slow. `event` comes in the
/// middle of them.
async fn under_calls<C, F>(
    (calls, at_once, limit): (usize, usize, Duration),
    call: C,
    event: impl Future<Output = ()>,
) -> Arc<Tally>
where
    C: Fn() -> F + Clone + Send + 'static,
    F: Future<Output = Result<(), Status>> + Send,
{
    let tally = Arc::new(Tally::default());
    let callers: Vec<_> = (0..at_once)
        .map(|_| {
            let (tally, call) = (tally.clone(), call.clone());
            tokio::spawn(async move {
                while tally.calls.fetch_add(1, Relaxed) < calls {
                    let begun = Instant::now();
                    if let Err(status) = call().await {
                        println!("failed: {status}");
                        tally.failed.fetch_add(1, Relaxed);
                    }
                    if begun.elapsed() >= limit {
                        tally.slow.fetch_add(1, Relaxed);
                    }
                }
            })
        })
        .collect();
    while tally.calls.load(Relaxed) < calls / 4 {
        sleep(Duration::from_millis(1)).await;
    }
    event.await;
    for caller in callers {
        timeout(LONG * 2, caller).await.expect("no call hangs").expect("no panic");
    }
    tally
}

async fn on_both(test: impl AsyncFn(Arc<dyn Provider>)) {
    test(Arc::new(Store::new().client())).await;
    let server = EtcdServer::start().await.expect("starts");
    let client = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    test(Arc::new(client)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_drain_and_an_addition_fail_no_call() {
    on_both(async |provider| {
        let mut processes = Vec::new();
        for _ in 0..4 {
            processes.push(Instance::start(0).await);
        }
        let mut registered = Vec::new();
        for (id, process) in ["a", "b", "c"].iter().zip(&processes) {
            registered.push(register(&*provider, id, process.port).await);
        }
        let connection = provider.registry().connection("im-logic").await.expect("is registered");
        until_ready(&connection, 3).await;
        let (calls, leaving) = (connection.clone(), registered.pop().expect("three are"));
        let call = move || {
            let calls = calls.clone();
            async move { check(&calls).await }
        };
        let tally = under_calls((2000, 8, LONG), call, async {
            leaving.deregister().await.expect("is registered");
            until_ready(&connection, 2).await;
            // Gone as soon as its callers have seen it go.
            while connection.state().instances.iter().any(|instance| instance.id == "c") {
                sleep(Duration::from_millis(1)).await;
            }
            sleep(Duration::from_millis(100)).await;
            processes[2].kill9().await;
            registered.push(register(&*provider, "d", processes[3].port).await);
            until_ready(&connection, 3).await;
        })
        .await;
        assert_eq!(tally.failed.load(Relaxed), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_fails_only_what_was_on_its_way_and_a_restart_nothing() {
    on_both(async |provider| {
        let mut processes = Vec::new();
        let mut registered = Vec::new();
        for id in ["a", "b", "c"] {
            let process = Instance::start(0).await;
            registered.push(register(&*provider, id, process.port).await);
            processes.push(process);
        }
        let connection = provider.registry().connection("im-logic").await.expect("is registered");
        until_ready(&connection, 3).await;
        let calls = connection.clone();
        let call = move || {
            let calls = calls.clone();
            async move { check(&calls).await }
        };
        // It stays registered all the time.
        let tally = under_calls((2000, 3, LONG), call.clone(), async {
            processes[0].kill9().await;
            until_ready(&connection, 2).await;
        })
        .await;
        let failed = tally.failed.load(Relaxed);
        println!("{failed} of 2000 calls failed with the crash");
        assert!(failed <= 3, "{failed}");
        let after = under_calls((500, 8, LONG), call.clone(), async {}).await;
        assert_eq!(after.failed.load(Relaxed), 0, "none after it was seen");

        let back = under_calls((500, 8, LONG), call, async {
            processes[0] = Instance::start(processes[0].port).await;
            until_ready(&connection, 3).await;
        })
        .await;
        assert_eq!(back.failed.load(Relaxed), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blackhole_is_left_after_one_try_timeout_and_comes_back() {
    on_both(async |provider| {
        let (_processes, hole, ports) = with_a_hole().await;
        let mut registered = Vec::new();
        for (id, port) in ["a", "b", "c"].iter().zip(ports) {
            registered.push(register(&*provider, id, port).await);
        }
        let limit = Duration::from_secs(1);
        let options = ConnectOptions::new().try_timeout(limit).cool_off(Duration::from_millis(300), LONG);
        let connection = provider.registry().connection_with("im-logic", options).await;
        let connection = connection.expect("is registered");
        until_ready(&connection, 3).await;
        let calls = connection.clone();
        let call = move || {
            let calls = calls.clone();
            async move { check(&calls).await }
        };
        // Two callers, so that at most two calls are on their way to it.
        let tally = under_calls((2000, 2, limit), call, async { hole.cut() }).await;
        let (slow, failed) = (tally.slow.load(Relaxed), tally.failed.load(Relaxed));
        println!("{slow} of 2000 calls waited for the try timeout, {failed} failed");
        assert!(slow <= 2 && failed <= 2, "{slow} {failed}");
        let state = connection.state();
        assert_eq!(state.instances[2].status, InstanceStatus::Ejected, "{state:?}");
        assert_eq!(state.instances[2].ejections, 1, "is not tried with calls meanwhile: {state:?}");

        hole.restore();
        until_ready(&connection, 3).await;
    })
    .await;
}

/// Three servers of which the last is behind a network that can be cut, and their ports.
async fn with_a_hole() -> (Vec<Instance>, Proxy, Vec<u16>) {
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(Instance::start(0).await);
    }
    let mut ports: Vec<_> = processes.iter().map(|process| process.port).collect();
    let hole = Proxy::start(format!("127.0.0.1:{}", ports[2])).await.expect("a port can be opened");
    ports[2] = hole.address().rsplit(':').next().and_then(|port| port.parse().ok()).expect("has a port");
    (processes, hole, ports)
}

#[tokio::test(flavor = "multi_thread")]
async fn tonics_own_balancer_goes_on_to_call_a_blackhole() {
    let (_processes, hole, ports) = with_a_hole().await;
    let limit = Duration::from_millis(300);
    let endpoints = ports.iter().map(|port| {
        Channel::from_shared(format!("http://127.0.0.1:{port}")).expect("is a URI").timeout(limit)
    });
    let channel = Channel::balance_list(endpoints);
    let call = move || {
        let mut client = HealthClient::new(channel.clone());
        async move { client.check(HealthCheckRequest::default()).await.map(drop) }
    };
    under_calls((100, 1, limit), call.clone(), async {}).await;
    hole.cut();
    let tally = under_calls((60, 1, limit), call, async {}).await;
    let failed = tally.failed.load(Relaxed);
    println!("{failed} of 60 calls failed over tonic's balance_channel");
    assert!(failed > 6, "the comparison is what makes our own balancer worth it: {failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn tonics_own_balancer_fails_a_good_part_after_a_crash() {
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(Instance::start(0).await);
    }
    let endpoints = processes.iter().map(|process| {
        let uri = format!("http://127.0.0.1:{}", process.port);
        Channel::from_shared(uri).expect("is a URI")
    });
    let channel = Channel::balance_list(endpoints);
    let call = move || {
        let mut client = HealthClient::new(channel.clone());
        async move { client.check(HealthCheckRequest::default()).await.map(drop) }
    };
    under_calls((100, 3, LONG), call.clone(), async {}).await;
    processes[0].kill9().await;
    let tally = under_calls((2000, 3, LONG), call, async {}).await;
    let failed = tally.failed.load(Relaxed);
    println!("{failed} of 2000 calls failed over tonic's balance_channel");
    assert!(failed > 200, "the comparison is what makes our own balancer worth it: {failed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_call_fails_while_etcd_is_killed_and_comes_back_empty() {
    let mut server = EtcdServer::start().await.expect("starts");
    let config = EtcdConfig::new([server.endpoint()]).request_timeout(Duration::from_secs(2));
    let logic = Client::connect(config.clone()).await.expect("etcd answers");
    let gateway = Client::connect(config).await.expect("etcd answers");
    let (mut processes, mut registered) = (Vec::new(), Vec::new());
    for id in ["a", "b", "c"] {
        let process = Instance::start(0).await;
        registered.push(register(&logic, id, process.port).await);
        processes.push(process);
    }
    let registry = gateway.registry();
    let connection = registry.connection("im-logic").await.expect("is registered");
    let protected = ConnectOptions::new().keep_when_empty();
    let protected = registry.connection_with("im-logic", protected).await.expect("is registered");
    until_ready(&connection, 3).await;
    until_ready(&protected, 3).await;

    let stop = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = [connection.clone(), protected.clone()]
        .into_iter()
        .map(|connection| {
            let stop = stop.clone();
            tokio::spawn(async move {
                let (mut calls, mut slowest) = (0, Duration::ZERO);
                while !stop.load(Relaxed) {
                    let begun = Instant::now();
                    check(&connection).await.unwrap_or_else(|status| panic!("call {calls}: {status}"));
                    slowest = slowest.max(begun.elapsed());
                    calls += 1;
                    sleep(Duration::from_millis(1)).await;
                }
                (calls, slowest)
            })
        })
        .collect();
    server.kill9().await.expect("is killed");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(connection.state().ready(), 3, "the last instances stay");
    server.restart_empty().await.expect("comes back");
    let back = Instant::now();
    timeout(LONG, async {
        while gateway.registry().discover("im-logic").await.map_or(0, |found| found.len()) < 3 {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("all are registered again");
    println!("all are registered again {:?} after etcd was back", back.elapsed());
    until_ready(&connection, 3).await;
    stop.store(true, Relaxed);
    for (caller, name) in callers.into_iter().zip(["as the registry says", "kept when empty"]) {
        let (calls, slowest) = timeout(LONG, caller).await.expect("ends").expect("no call failed");
        println!("{name}: {calls} calls, the slowest {slowest:?}");
        assert!(calls > 0);
    }
}
