//! A holder that is frozen past its TTL, as by a stop-the-world pause or a suspended machine.

use std::{process::Stdio, time::Duration};

use coord_api::{ConfigExt, FencingToken, Provider};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, signal};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Command,
    time::{Instant, timeout},
};

const TTL: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_holder_is_succeeded_in_time_and_knows_at_once_when_it_wakes() {
    let server = EtcdServer::start().await.expect("starts");
    let mut holder = Command::new(env!("CARGO_BIN_EXE_holder"))
        .args([server.endpoint(), &TTL.as_secs().to_string()])
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("is built");
    let mut lines = BufReader::new(holder.stdout.take().expect("is piped")).lines();
    let mut line = async || {
        timeout(LIMIT, lines.next_line()).await.expect("in time").expect("is text").expect("is there")
    };
    let held = line().await;
    let token: u64 =
        held.strip_prefix("held ").and_then(|token| token.parse().ok()).expect("tells its token");

    let client = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    client.config().set("written-by", "the test").await.expect("is written");
    let (lock, config) = (client.lock(), client.config());
    let successor = tokio::spawn(async move {
        let guard = lock.acquire("job", TTL).await.expect("its turn comes");
        config.set_if_held(&guard, "written-by", "the successor").await.expect("is held");
        (guard, Instant::now())
    });
    signal(holder.id().expect("runs"), "STOP").await;
    let frozen = Instant::now();
    let (guard, succeeded) = timeout(LIMIT, successor).await.expect("in time").expect("no panic");
    let took = succeeded - frozen;
    println!("the successor came after {took:?} of a TTL of {TTL:?}");
    assert!(took < TTL + Duration::from_secs(1), "{took:?}");
    assert!(guard.token() > FencingToken::new(token));

    signal(holder.id().expect("runs"), "CONT").await;
    assert_eq!(line().await, "lost true");
    assert_eq!(line().await, "refused by the store true");
    assert_eq!(line().await, "refused true");
    let value = client.config().get::<String>("written-by").await.expect("is read").expect("exists").value;
    assert_eq!(value, "the successor");
    guard.unlock().await.expect("is held");
    timeout(LIMIT, holder.wait()).await.expect("ends").expect("is waited for");
}
