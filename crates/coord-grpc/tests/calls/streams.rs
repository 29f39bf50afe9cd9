//! Streams and connections, and how they end.

use std::{pin::Pin, sync::mpsc, time::Duration};

use coord_grpc::{ConnectOptions, Connection};
use http_body::Body as _;
use tokio::time::{Instant, timeout};
use tonic::{Code, Status, body::Body};

use crate::{
    fleet::{LONG, check},
    messages::{message, stream},
    raw::{Scripted, connect},
};

const CANCEL: u32 = 8;

/// Waits for a message of the server, without blocking the client's runtime.
async fn told<T: Send + 'static>(receiver: mpsc::Receiver<T>) -> T {
    let told = tokio::task::spawn_blocking(move || receiver.recv_timeout(LONG));
    told.await.expect("no panic").expect("is told")
}

async fn frame(body: &mut Body) -> Option<Result<usize, Status>> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx));
    let frame = timeout(LONG, frame).await.expect("comes")?;
    Some(frame.map(|frame| frame.into_data().map_or(0, |data| data.len())))
}

async fn one(server: &Scripted) -> Connection {
    connect(&[server], ConnectOptions::new()).await
}

#[tokio::test]
async fn messages_go_both_ways_on_one_stream() {
    let server = Scripted::start(None, |_, peer| {
        let id = peer.head()?;
        peer.begin(id)?;
        for count in 1..4 {
            peer.data(count * 1005)?;
            peer.message(id)?;
        }
        peer.finish(id)?;
        peer.drain()
    });
    let connection = one(&server).await;
    let (feed, call) = stream(&connection);
    let mut answer = call.await.expect("no panic").expect("is begun");
    for _ in 0..3 {
        feed.send(message(1000)).expect("is read");
        assert_eq!(frame(&mut answer).await.expect("goes on").expect("is good"), 5);
    }
}

#[tokio::test]
async fn answer_that_is_dropped_gives_the_stream_up() {
    let (tell, reason) = mpsc::channel();
    let server = Scripted::start(None, move |_, peer| {
        let id = peer.head()?;
        peer.begin(id)?;
        peer.message(id)?;
        let _ = tell.send(peer.given_up(id)?);
        peer.answer_all()
    });
    let connection = one(&server).await;
    let (feed, call) = stream(&connection);
    let mut answer = call.await.expect("no panic").expect("is begun");
    assert_eq!(frame(&mut answer).await.expect("is there").expect("is good"), 5);
    assert_eq!(connection.state().instances[0].in_flight, 1);
    drop(answer);
    assert_eq!(told(reason).await, CANCEL);
    assert_eq!(connection.state().instances[0].in_flight, 0);
    timeout(LONG, feed.closed()).await.expect("nobody reads the request any more");
    check(&connection).await.expect("the connection is good");
}

#[tokio::test]
async fn call_that_is_dropped_gives_the_stream_up() {
    let (tell, reason) = mpsc::channel();
    let server = Scripted::start(None, move |_, peer| {
        let id = peer.request()?;
        let _ = tell.send(peer.given_up(id)?);
        peer.answer_all()
    });
    let connection = one(&server).await;
    let call = timeout(Duration::from_millis(50), check(&connection)).await;
    call.expect_err("is not answered");
    assert_eq!(told(reason).await, CANCEL);
    check(&connection).await.expect("the connection is good");
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn connection_is_closed_with_its_last_clone() {
    let (tell, closed) = mpsc::channel();
    let server = Scripted::start(None, move |_, peer| {
        let id = peer.request()?;
        peer.answer(id)?;
        let ended = peer.drain();
        let _ = tell.send(());
        ended
    });
    let connection = one(&server).await;
    check(&connection).await.expect("is answered");
    drop(connection);
    told(closed).await;
}

#[tokio::test]
async fn connection_with_a_stream_is_closed_after_it() {
    let (tell, closed) = mpsc::channel();
    let server = Scripted::start(None, move |_, peer| {
        let id = peer.head()?;
        peer.begin(id)?;
        peer.data(1005)?;
        peer.finish(id)?;
        let ended = peer.drain();
        let _ = tell.send(());
        ended
    });
    let connection = one(&server).await;
    let (feed, call) = stream(&connection);
    let mut answer = call.await.expect("no panic").expect("is begun");
    drop(connection);
    feed.send(message(1000)).expect("is read");
    assert_eq!(frame(&mut answer).await.expect("goes on").expect("is good"), 5);
    drop((feed, answer));
    told(closed).await;
}

#[tokio::test]
async fn ping_without_an_answer_ends_the_connection() {
    let server = Scripted::start(None, |number, peer| {
        if number > 0 {
            return peer.answer_all();
        }
        peer.ignore_pings();
        peer.drain()
    });
    let (interval, limit) = (Duration::from_millis(100), Duration::from_millis(100));
    let options = ConnectOptions::new().keep_alive(interval, limit);
    let connection = connect(&[&server], options).await;
    let begun = Instant::now();
    let call = timeout(LONG, check(&connection)).await.expect("ends");
    let status = call.expect_err("nothing comes");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().contains("ping"), "{status:?}");
    assert!(begun.elapsed() >= limit, "{:?}", begun.elapsed());
    check(&connection).await.expect("another connection is good");
}
