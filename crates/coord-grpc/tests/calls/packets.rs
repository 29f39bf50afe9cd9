//! Packets on the wire.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use coord_api::{Error, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection};
use futures::{StreamExt, stream};
use tokio::{sync::mpsc, task::JoinSet, time::timeout};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::discover::Change;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const NO_SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// The kinds of the frames that came together, with their flags.
fn frames(mut bytes: &[u8]) -> Vec<(u8, u8)> {
    let mut frames = Vec::new();
    bytes = bytes.strip_prefix(PREFACE).unwrap_or(bytes);
    while let [a, b, c, kind, flags, _, _, _, _, rest @ ..] = bytes {
        let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
        frames.push((*kind, *flags));
        bytes = rest.get(length..).unwrap_or_default();
    }
    frames
}

/// Says hello and answers nothing; tells what comes together with each head of a request.
fn listen(mut stream: TcpStream, requests: &mpsc::UnboundedSender<Vec<(u8, u8)>>) {
    stream.write_all(&NO_SETTINGS).expect("the client is there");
    let mut bytes = [0; 16 << 10];
    while let Ok(length @ 1..) = stream.read(&mut bytes) {
        let frames = frames(&bytes[..length]);
        if frames.iter().any(|(kind, _)| *kind == HEADERS) {
            let _ = requests.send(frames);
        }
    }
}

#[tokio::test]
async fn request_is_one_packet() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    let (sender, mut requests) = mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            listen(stream, &sender);
        }
    });
    let info = ServiceInfo::new("silent", "1", "127.0.0.1", port);
    let list = stream::iter([Ok::<_, Error>(Change::Insert("1".to_owned(), info))]).chain(stream::pending());
    let connection = Connection::balance("silent", list, ConnectOptions::new()).expect("the name is good");
    connection.ready().await.expect("it listens");
    let mut calls = JoinSet::new();
    // A small message, and one that is too large to be copied behind its frame's head.
    for size in [10, 1000] {
        let mut client = HealthClient::new(connection.clone());
        let request = HealthCheckRequest { service: "x".repeat(size) };
        calls.spawn(async move { client.check(request).await.map(drop) });
        let heard = timeout(Duration::from_secs(10), requests.recv()).await.expect("the request arrives");
        let frames = heard.expect("the server listens");
        let kinds: Vec<_> = frames.iter().map(|(kind, _)| *kind).collect();
        assert!(kinds.ends_with(&[HEADERS, DATA]), "{frames:?} of a message of {size} bytes");
        assert_eq!(frames[frames.len() - 1].1 & END_STREAM, END_STREAM, "{frames:?}");
    }
}
