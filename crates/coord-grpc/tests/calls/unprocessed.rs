//! Requests that a server certainly did not process: it said so with GOAWAY or `REFUSED_STREAM`. They are sent again, all
//! others are not.

use std::{
    sync::atomic::{AtomicBool, Ordering::SeqCst},
    time::Duration,
};

use coord_grpc::{ConnectOptions, Connection, Policy, is_unsent};
use tokio::{task::JoinSet, time::timeout};
use tonic::{Code, Status};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    fleet::check,
    messages::{message, stream},
    raw::{ALL_STREAMS, ENHANCE_YOUR_CALM, NO_ERROR, Peer, REFUSED_STREAM, Scripted, connect},
};

const LONG: Duration = Duration::from_secs(20);

async fn all(connection: &Connection, calls: usize) -> Vec<Result<(), Status>> {
    let mut calling = JoinSet::new();
    for _ in 0..calls {
        let connection = connection.clone();
        calling.spawn(async move { check(&connection).await });
    }
    timeout(LONG, calling.join_all()).await.expect("no call hangs")
}

/// A call whose message has so many bytes.
async fn large(connection: &Connection, bytes: usize) -> Result<(), Status> {
    let request = HealthCheckRequest { service: "x".repeat(bytes) };
    let mut client = HealthClient::new(connection.clone());
    timeout(LONG, client.check(request)).await.expect("does not hang").map(drop)
}

/// Receives so many requests, and returns their streams in order.
fn requests(peer: &mut Peer, count: usize) -> std::io::Result<Vec<u32>> {
    let mut ids = (0..count).map(|_| peer.request()).collect::<std::io::Result<Vec<_>>>()?;
    ids.sort_unstable();
    Ok(ids)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_above_the_last_of_a_goaway_are_sent_again() {
    for reason in [NO_ERROR, ENHANCE_YOUR_CALM] {
        let server = Scripted::start(None, move |number, peer| {
            if number > 0 {
                return peer.answer_all();
            }
            let ids = requests(peer, 5)?;
            peer.go_away(ids[1], reason)?;
            peer.answer(ids[0])?;
            peer.answer(ids[1])?;
            peer.drain()
        });
        let connection = connect(&[&server], ConnectOptions::new()).await;
        for answer in all(&connection, 5).await {
            answer.expect("is answered");
        }
        assert_eq!((server.executed(), server.connections()), (5, 2), "each once");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn goaway_in_two_steps_fails_no_call() {
    let server = Scripted::start(None, |number, peer| {
        if number > 0 {
            return peer.answer_all();
        }
        let ids = requests(peer, 3)?;
        peer.go_away(ALL_STREAMS, NO_ERROR)?;
        peer.answer(ids[0])?;
        peer.go_away(ids[0], NO_ERROR)?;
        peer.drain()
    });
    let connection = connect(&[&server], ConnectOptions::new()).await;
    for answer in all(&connection, 3).await {
        answer.expect("is answered");
    }
    assert_eq!((server.executed(), server.connections()), (3, 2), "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_below_the_last_of_a_goaway_are_not_repeated() {
    let server = Scripted::start(None, |number, peer| {
        if number > 0 {
            return peer.answer_all();
        }
        let ids = requests(peer, 4)?;
        peer.execute();
        peer.execute();
        // The connection breaks before these are answered.
        peer.go_away(ids[1], NO_ERROR)
    });
    let connection = connect(&[&server], ConnectOptions::new()).await;
    let answers = all(&connection, 4).await;
    let failed: Vec<_> = answers.into_iter().filter_map(Result::err).collect();
    assert_eq!(failed.len(), 2, "{failed:?}");
    for status in failed {
        assert_eq!(status.code(), Code::Unavailable, "{status:?}");
        assert!(!is_unsent(&status), "{status:?}");
    }
    assert_eq!(server.executed(), 4, "each once");
}

#[tokio::test]
async fn calls_that_wait_for_a_stream_go_to_the_next_connection() {
    let server = Scripted::start(Some(1), |number, peer| {
        if number > 0 {
            return peer.answer_all();
        }
        let id = peer.request()?;
        peer.go_away(ALL_STREAMS, NO_ERROR)?;
        peer.go_away(id, NO_ERROR)?;
        peer.answer(id)?;
        peer.drain()
    });
    let connection = connect(&[&server], ConnectOptions::new()).await;
    for answer in all(&connection, 6).await {
        answer.expect("is answered");
    }
    assert_eq!((server.executed(), server.connections()), (6, 2), "each once");
}

#[tokio::test]
async fn refused_stream_is_sent_again_elsewhere() {
    let refusing = Scripted::start(None, |_, peer| {
        loop {
            let id = peer.request()?;
            peer.reset(id, REFUSED_STREAM)?;
        }
    });
    let good = Scripted::start(None, |_, peer| peer.answer_all());
    let options = ConnectOptions::new().policy(Policy::RoundRobin).without_ejection();
    let connection = connect(&[&refusing, &good], options).await;
    for _ in 0..8 {
        check(&connection).await.expect("the other one answers");
    }
    assert_eq!((refusing.executed(), good.executed()), (0, 8));
}

#[tokio::test]
async fn refused_stream_is_sent_again_to_a_lone_instance() {
    let server = Scripted::start(None, |_, peer| {
        for _ in 0..3 {
            let id = peer.request()?;
            peer.reset(id, REFUSED_STREAM)?;
        }
        peer.answer_all()
    });
    let connection = connect(&[&server], ConnectOptions::new()).await;
    check(&connection).await.expect("is answered in the end");
    assert_eq!((server.executed(), server.connections()), (1, 1));
}

#[tokio::test]
async fn refused_stream_for_ever_is_unavailable_in_time() {
    let server = Scripted::start(None, |_, peer| {
        loop {
            let id = peer.request()?;
            peer.reset(id, REFUSED_STREAM)?;
        }
    });
    let options = ConnectOptions::new().wait_timeout(Duration::from_millis(300));
    let connection = connect(&[&server], options).await;
    let status = timeout(LONG, check(&connection)).await.expect("ends").expect_err("is refused");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().starts_with("raw at 127.0.0.1:"), "{status:?}");
    assert!(is_unsent(&status), "{status:?}");
}

#[tokio::test]
async fn stream_reset_for_another_reason_is_not_repeated() {
    for reason in [2, 8, ENHANCE_YOUR_CALM] {
        let server = Scripted::start(None, move |_, peer| {
            let id = peer.request()?;
            peer.execute();
            peer.reset(id, reason)?;
            peer.answer_all()
        });
        let connection = connect(&[&server], ConnectOptions::new()).await;
        let status = check(&connection).await.expect_err("is reset");
        assert!(!is_unsent(&status), "{status:?}");
        assert_eq!(server.executed(), 1, "once");
    }
}

/// A server that sends the first request away and answers all others.
fn once_away(bytes: usize) -> Scripted {
    Scripted::start(None, move |number, peer| {
        if number > 0 {
            return peer.answer_all();
        }
        peer.head()?;
        peer.data(bytes)?;
        peer.go_away(0, NO_ERROR)?;
        peer.drain()
    })
}

#[tokio::test]
async fn body_within_the_bound_is_sent_again() {
    let server = once_away(60_000);
    let connection = connect(&[&server], ConnectOptions::new()).await;
    large(&connection, 60_000).await.expect("is kept");
    assert_eq!(server.executed(), 1);
}

#[tokio::test]
async fn body_beyond_the_bound_is_unavailable_and_not_repeated() {
    let server = once_away(60_000);
    let connection = connect(&[&server], ConnectOptions::new()).await;
    let status = large(&connection, 100_000).await.expect_err("is not kept");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(is_unsent(&status), "it had no effect: {status:?}");
    large(&connection, 100_000).await.expect("another call is answered");
    assert_eq!(server.executed(), 1);
}

#[tokio::test]
async fn stream_of_messages_is_sent_again_while_it_is_kept() {
    let server = Scripted::start(None, |number, peer| {
        let id = peer.head()?;
        if number == 0 {
            peer.data(2 * 1005)?;
            peer.go_away(0, NO_ERROR)?;
            return peer.drain();
        }
        peer.data(3 * 1005)?;
        peer.answer(id)?;
        peer.drain()
    });
    let connection = connect(&[&server], ConnectOptions::new()).await;
    let (feed, call) = stream(&connection);
    for _ in 0..2 {
        feed.send(message(1000)).expect("is read");
    }
    crate::fleet::until(|| server.connections() == 2).await;
    feed.send(message(1000)).expect("is read");
    timeout(LONG, call).await.expect("is answered").expect("no panic").expect("all three arrive");
    assert_eq!(server.executed(), 1);
}

#[tokio::test]
async fn stream_of_messages_beyond_the_bound_is_not_repeated() {
    let server = once_away(65 * 1005);
    let connection = connect(&[&server], ConnectOptions::new()).await;
    let (feed, call) = stream(&connection);
    for _ in 0..66 {
        feed.send(message(1000)).expect("is read");
    }
    let status = timeout(LONG, call).await.expect("ends").expect("no panic").expect_err("is not kept");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert_eq!(server.executed(), 0);
}

#[tokio::test]
async fn answer_that_has_begun_is_not_begun_again() {
    static SEEN: AtomicBool = AtomicBool::new(false);
    let server = Scripted::start(None, |number, peer| {
        if number > 0 {
            SEEN.store(true, SeqCst);
            return peer.answer_all();
        }
        let id = peer.request()?;
        peer.execute();
        peer.begin(id)?;
        peer.reset(id, REFUSED_STREAM)?;
        peer.drain()
    });
    let connection = connect(&[&server], ConnectOptions::new()).await;
    let status = check(&connection).await.expect_err("has no message");
    assert!(!is_unsent(&status), "{status:?}");
    assert_eq!(server.executed(), 1);
    assert!(!SEEN.load(SeqCst));
}
