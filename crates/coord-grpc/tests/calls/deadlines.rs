//! How long a caller waits is for the caller to say.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use coord_api::{Error, Provider, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt};
use coord_memory::Store;
use futures::stream;
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tonic::{Code, Request, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::discover::Change;

use crate::{
    fleet::{Behaviour, LONG, Metadata, fleet},
    raw::{Scripted, connect},
};

fn nobody(options: ConnectOptions) -> Connection {
    let list = stream::pending::<Result<Change<String, ServiceInfo>, Error>>();
    Connection::balance("nobody", list, options).expect("the name is good")
}

async fn within(connection: &Connection, timeout: Duration) -> Result<(), Status> {
    let mut request = Request::new(HealthCheckRequest::default());
    request.set_timeout(timeout);
    HealthClient::new(connection.clone()).check(request).await.map(drop)
}

async fn with_header(connection: &Connection, timeout: &str) -> Result<(), Status> {
    let mut request = Request::new(HealthCheckRequest::default());
    let timeout = timeout.parse().expect("is a value");
    request.metadata_mut().insert("grpc-timeout", timeout);
    HealthClient::new(connection.clone()).check(request).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn deadline_counts_while_no_instance_is_ready() {
    let connection = nobody(ConnectOptions::new());
    let begun = Instant::now();
    let mut calling = JoinSet::new();
    for _ in 0..1000 {
        let connection = connection.clone();
        calling.spawn(async move { within(&connection, Duration::from_millis(200)).await });
    }
    for answer in calling.join_all().await {
        let status = answer.expect_err("nobody is there");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
        assert!(status.message().contains("nobody"), "{status:?}");
    }
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(199) && took < Duration::from_millis(210), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn sooner_of_deadline_and_wait_counts() {
    let connection = nobody(ConnectOptions::new().wait_timeout(Duration::from_millis(100)));
    for (timeout, code, expected) in
        [(10_000, Code::Unavailable, 100), (30, Code::DeadlineExceeded, 30), (0, Code::DeadlineExceeded, 0)]
    {
        let begun = Instant::now();
        let status = within(&connection, Duration::from_millis(timeout)).await.expect_err("nobody is there");
        assert_eq!(status.code(), code, "{timeout}: {status:?}");
        let took = begun.elapsed();
        assert!(
            took.abs_diff(Duration::from_millis(expected)) <= Duration::from_millis(5),
            "{timeout}: {took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn odd_timeouts_overflow_nothing() {
    for wait in [Duration::from_millis(100), Duration::MAX] {
        let connection = nobody(ConnectOptions::new().connect_timeout(wait));
        for odd in
            ["99999999H", "123456789S", "", "S", "-1S", "+1S", "1.5S", "1x", "1 S", "18446744073709551616n"]
        {
            let call = with_header(&connection, odd);
            let answer = tokio::time::timeout(Duration::from_secs(1), call).await;
            match answer {
                Ok(answer) => {
                    let status = answer.expect_err("nobody is there");
                    assert_eq!(
                        (status.code(), wait),
                        (Code::Unavailable, Duration::from_millis(100)),
                        "{odd}: {status:?}"
                    );
                }
                Err(_) => assert_eq!(wait, Duration::MAX, "{odd}"),
            }
        }
    }
}

#[tokio::test]
async fn silent_server_is_deadline_exceeded() {
    let silent = Scripted::start(None, |_, peer| peer.drain());
    let connection = connect(&[&silent], ConnectOptions::new().without_ejection()).await;
    let begun = Instant::now();
    let status = within(&connection, Duration::from_millis(100)).await.expect_err("nothing comes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    assert!(begun.elapsed() >= Duration::from_millis(99), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn answer_that_stalls_is_deadline_exceeded() {
    let stalling = Scripted::start(None, |_, peer| {
        let id = peer.request()?;
        peer.begin(id)?;
        peer.drain()
    });
    let connection = connect(&[&stalling], ConnectOptions::new()).await;
    let call = within(&connection, Duration::from_millis(100));
    let status = tokio::time::timeout(LONG, call).await.expect("ends").expect_err("no message comes");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
}

#[tokio::test]
async fn server_that_ends_a_late_call_is_deadline_exceeded() {
    let gated = Behaviour { gate: Some(Notify::new()), ..Behaviour::default() };
    let none: Metadata = &[];
    let fleet = fleet([(gated, none)]).await;
    let connection = fleet.connect(ConnectOptions::new(), 1).await;
    for _ in 0..20 {
        let status = within(&connection, Duration::from_millis(20)).await.expect_err("is not answered");
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    }
    assert!(fleet.servers[0].calls.load(Relaxed) <= 20);
}

#[tokio::test]
async fn try_gets_what_is_left_of_the_deadline() {
    let none: Metadata = &[];
    let fleet = fleet([(Behaviour::default(), none)]).await;
    let mut info = fleet.client.registry().discover("im-logic").await.expect("the store is there").remove(0);
    info.name = "late".into();
    let store = Store::new().client();
    let gone = store.registry().register(info.clone(), LONG).await.expect("the store is there");
    let connection = store.registry().connection("late").await.expect("is registered");
    gone.deregister().await.expect("is registered");
    crate::fleet::until(|| connection.state().instances.is_empty()).await;
    let (answer, _registered) = tokio::join!(within(&connection, Duration::from_secs(10)), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        store.registry().register(info, LONG).await
    });
    answer.expect("an instance came in time");
    let told = fleet.servers[0].timeout.lock().expect("no panic").take().expect("the server is told");
    let micros = told.strip_suffix('u').expect(&told).parse().expect(&told);
    let left = Duration::from_micros(micros);
    assert!(left > Duration::from_secs(2) && left <= Duration::from_millis(9_700), "{left:?}");
}
