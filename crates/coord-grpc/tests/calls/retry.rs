//! A call whose instance goes away: made again only if its request has certainly not been sent.

#![allow(clippy::float_cmp, reason = "counts are whole numbers")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc,
    },
    thread,
};

use coord_api::{Provider, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection, Policy};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use tokio::{net::TcpListener, runtime, sync::Notify, task::yield_now};
use tonic::{
    Code,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::pb::health_server::HealthServer;

use crate::fleet::{Behaviour, Fleet, LONG, Service, check, fleet, plain, until};

/// A server with a runtime of its own, so that it can end while the client's does nothing.
struct Mortal {
    behaviour: Arc<Behaviour>,
    port: u16,
    stop: Arc<Notify>,
    ended: mpsc::Receiver<()>,
}

impl Mortal {
    fn start(behaviour: Behaviour) -> Self {
        let (behaviour, stop) = (Arc::new(behaviour), Arc::new(Notify::new()));
        let (tell, ended) = mpsc::channel();
        let (tell_port, port) = mpsc::channel();
        let (served, stopped) = (behaviour.clone(), stop.clone());
        thread::spawn(move || {
            let runtime = runtime::Builder::new_current_thread().enable_all().build().expect("is built");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
                tell_port.send(listener.local_addr().expect("is bound").port()).expect("is waited for");
                let service = HealthServer::new(Service(served));
                let incoming = TcpIncoming::from(listener);
                tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
                stopped.notified().await;
            });
            drop(runtime);
            tell.send(()).expect("is waited for");
        });
        Self { behaviour, port: port.recv().expect("is told"), stop, ended }
    }

    /// Closes all connections. When this returns their ends have arrived, and the client's runtime has done
    /// nothing meanwhile.
    fn end(&self) {
        self.stop.notify_one();
        self.ended.recv_timeout(LONG).expect("ends");
    }
}

/// Returns an instance that stays and another that can end, called in turn.
async fn two(mortal: &Mortal) -> (Fleet, Connection) {
    let mut fleet = fleet(plain::<1>()).await;
    let info = ServiceInfo::new("im-logic", "mortal", "127.0.0.1", mortal.port);
    fleet.registered.push(fleet.client.registry().register(info, LONG).await.expect("the store is there"));
    let options = ConnectOptions::new().policy(Policy::RoundRobin);
    let connection = fleet.connect(options, 2).await;
    for _ in 0..2 {
        check(&connection).await.expect("both are alive");
    }
    assert_eq!((fleet.shares(), mortal.behaviour.calls.load(Relaxed)), (vec![1], 1));
    (fleet, connection)
}

/// The value of a metric of `im-logic`, zero if there is none.
fn metric(snapshotter: &Snapshotter, name: &str) -> f64 {
    let all = snapshotter.snapshot().into_vec();
    let found = all.into_iter().find(|(key, ..)| {
        let key = key.key();
        key.name() == name
            && key.labels().any(|label| (label.key(), label.value()) == ("service", "im-logic"))
    });
    match found {
        #[expect(clippy::cast_precision_loss, reason = "counts are small")]
        Some((.., DebugValue::Counter(count))) => count as f64,
        Some((.., DebugValue::Gauge(value))) => value.0,
        _ => 0.0,
    }
}

#[tokio::test]
async fn unsent_request_goes_to_another_instance() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mortal = Mortal::start(Behaviour::default());
    let (fleet, connection) = two(&mortal).await;
    mortal.end();
    // The runtime looks at its sockets, and then polls this test before other tasks that were woken. So the calls choose
    // while the instance is still taken for ready, and its connection ends before they are sent.
    yield_now().await;
    let (one, other) = tokio::join!(check(&connection), check(&connection));
    one.and(other).expect("both are answered");
    assert_eq!(fleet.shares(), [3], "each is executed once");
    assert_eq!(connection.state().instances[1].calls, 2, "one of them had been given to the one that ended");
    assert_eq!(metric(&recorder.snapshotter(), "coord_grpc_retries_total"), 1.0);
}

#[tokio::test]
async fn request_that_may_have_been_sent_is_never_repeated() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    // It has the request, and ends before its answer.
    let gated = Behaviour { gate: Some(Notify::new()), ..Behaviour::default() };
    gated.gate.as_ref().expect("is there").notify_one();
    let mortal = Mortal::start(gated);
    let (fleet, connection) = two(&mortal).await;
    let calling = [(); 2].map(|()| {
        let connection = connection.clone();
        tokio::spawn(async move { check(&connection).await })
    });
    until(|| mortal.behaviour.calls.load(Relaxed) == 2 && fleet.shares() == [2]).await;
    mortal.end();
    let mut failed = Vec::new();
    for call in calling {
        failed.extend(call.await.expect("no panic").err());
    }
    assert_eq!(failed.iter().map(tonic::Status::code).collect::<Vec<_>>(), [Code::Unavailable], "{failed:?}");
    assert_eq!(fleet.shares(), [2], "is not made again");
    assert_eq!(metric(&recorder.snapshotter(), "coord_grpc_retries_total"), 0.0);
}

#[tokio::test]
async fn request_on_an_ended_connection_runs_at_most_once() {
    let mortal = Mortal::start(Behaviour::default());
    let (fleet, connection) = two(&mortal).await;
    mortal.end();
    // Here the client has not looked at its socket when it sends.
    let (one, other) = tokio::join!(check(&connection), check(&connection));
    let answered = usize::from(one.is_ok()) + usize::from(other.is_ok());
    assert_eq!(fleet.shares(), [1 + answered], "executed once if answered, else not at all");
    assert!(answered >= 1, "one went to the instance that stays");
}

#[tokio::test]
async fn instances_and_ejections_are_counted() {
    let recorder = DebuggingRecorder::new();
    let _recording = metrics::set_default_local_recorder(&recorder);
    let mut servers = plain::<2>();
    servers[1].0.unavailable = AtomicUsize::new(1);
    let mut fleet = fleet(servers).await;
    let options = ConnectOptions::new().policy(Policy::RoundRobin).eject_after(1).cool_off(LONG, LONG);
    let connection = fleet.connect(options, 2).await;
    let snapshotter = recorder.snapshotter();
    assert_eq!(metric(&snapshotter, "coord_grpc_instances"), 2.0);
    let failed = [check(&connection).await, check(&connection).await].map(|answer| answer.is_err());
    assert!(failed[0] != failed[1], "{failed:?}");
    assert_eq!(metric(&snapshotter, "coord_grpc_ejections_total"), 1.0);
    fleet.registered.pop().expect("two are").deregister().await.expect("is registered");
    until(|| connection.state().instances.len() == 1).await;
    until(|| metric(&snapshotter, "coord_grpc_instances") == 1.0).await;
}
