//! Servers that take pings for an attack, as those in Go do that come more than once in five minutes.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use coord_api::{Error, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection};
use futures::{StreamExt, stream};
use tokio::time::timeout;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tower::discover::Change;

const PREFACE: usize = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len();
const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
const HEADERS: u8 = 1;
const END_HEADERS: u8 = 4;
/// The status 200 and the type of the content.
const BEGUN: &[u8] = b"\x88\x5f\x10application/grpc";
const PING: u8 = 6;
const ACK: u8 = 1;
/// With `ENHANCE_YOUR_CALM`, after all streams.
const GO_AWAY: [u8; 17] = [0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 11];

const INTERVAL: Duration = Duration::from_millis(50);
/// How many pings of a connection are answered.
const PATIENCE: usize = 3;

/// Begins to answer each request, and then sends no message; throws out who sends too many pings.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(&SETTINGS)?;
    stream.read_exact(&mut [0; PREFACE])?;
    let mut pings = 0;
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, ..] = head;
        let mut payload = vec![0; usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)];
        stream.read_exact(&mut payload)?;
        if kind == HEADERS {
            let stream_id = &head[5..];
            stream.write_all(&[0, 0, u8::try_from(BEGUN.len()).expect("is short"), HEADERS, END_HEADERS])?;
            stream.write_all(stream_id)?;
            stream.write_all(BEGUN)?;
        }
        if kind == PING && flags & ACK == 0 {
            pings += 1;
            if pings > PATIENCE {
                return stream.write_all(&GO_AWAY);
            }
            head[4] = ACK;
            stream.write_all(&head)?;
            stream.write_all(&payload)?;
        }
    }
}

#[tokio::test]
async fn server_that_refuses_pings_gets_fewer_of_them() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream));
        }
    });
    let info = ServiceInfo::new("calm", "1", "127.0.0.1", port);
    let list = stream::iter([Ok::<_, Error>(Change::Insert("1".to_owned(), info))]).chain(stream::pending());
    let options = ConnectOptions::new().keep_alive(INTERVAL, Duration::from_secs(5));
    let connection = Connection::balance("calm", list, options).expect("the name is good");
    let message = async || {
        let request = HealthCheckRequest { service: String::new() };
        let stream = HealthClient::new(connection.clone()).watch(request).await;
        stream.expect("is begun").into_inner().message().await
    };
    let first = timeout(Duration::from_secs(10), message()).await.expect("is thrown out");
    let status = first.expect_err("is not the end of the stream");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(status.message().starts_with("calm at 127.0.0.1:"), "{status:?}");
    let second = timeout(INTERVAL * 20, message()).await;
    assert!(second.is_err(), "is open as long as it likes: {second:?}");
}
