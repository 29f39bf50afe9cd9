//! The server that the other tests stand on keeps its promises.

use coord_tests::EtcdServer;

// base64 of `key` and `value`, as etcd's JSON gateway wants them.
const PUT: &str = r#"{"key":"a2V5","value":"dmFsdWU="}"#;
const GET: &str = r#"{"key":"a2V5"}"#;
const VALUE: &str = r#""value":"dmFsdWU=""#;

#[tokio::test]
async fn keeps_its_data_over_a_kill_and_loses_it_when_asked() {
    let mut server = EtcdServer::start().await.unwrap();
    let endpoint = server.endpoint().to_owned();
    server.gateway("/v3/kv/put", PUT).await.unwrap();

    server.kill9().await.unwrap();
    let dead = server.gateway("/v3/kv/range", GET).await;
    assert!(dead.is_err(), "{dead:?}");

    server.restart().await.unwrap();
    assert_eq!(server.endpoint(), endpoint);
    let found = server.gateway("/v3/kv/range", GET).await.unwrap();
    assert!(found.contains(VALUE), "{found}");

    server.restart_empty().await.unwrap();
    let found = server.gateway("/v3/kv/range", GET).await.unwrap();
    assert!(!found.contains(VALUE), "{found}");
    assert_eq!(server.endpoint(), endpoint);
    server.stop().await.unwrap();
}

#[tokio::test]
async fn passes_arguments_on() {
    let server = EtcdServer::start_with(&["--max-request-bytes", "1000"]).await.unwrap();
    let large = format!(r#"{{"key":"a2V5","value":"{}"}}"#, "AAAA".repeat(1000));
    let error = server.gateway("/v3/kv/put", &large).await.unwrap_err().to_string();
    assert!(error.contains("request is too large"), "{error}");
}

#[tokio::test]
async fn an_argument_that_etcd_refuses_ends_the_wait_at_once() {
    let start = std::time::Instant::now();
    let error = EtcdServer::start_with(&["--no-such-flag"]).await.unwrap_err().to_string();
    assert!(error.contains("ended at once"), "{error}");
    assert!(start.elapsed().as_secs() < 10, "{:?}", start.elapsed());
}

#[tokio::test]
async fn its_etcdctl_reaches_it() {
    let server = EtcdServer::start().await.unwrap();
    server.etcdctl(&["put", "key", "value"]).await.unwrap();
    let found = server.gateway("/v3/kv/range", GET).await.unwrap();
    assert!(found.contains(VALUE), "{found}");
    let refused = server.etcdctl(&["no-such-command"]).await.unwrap_err().to_string();
    assert!(refused.contains("no-such-command"), "{refused}");
}

/// A second test that starts servers at once must not be handed the same port.
#[tokio::test(flavor = "multi_thread")]
async fn several_start_at_once() {
    let (one, two) = tokio::join!(EtcdServer::start(), EtcdServer::start());
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_ne!(one.endpoint(), two.endpoint());
    assert_eq!(one.coord_url("/a"), one.endpoint().replace("http", "etcd") + "/a");
}

/// Harnesses that own their tests drop the server after the runtime that started it.
#[test]
fn may_be_dropped_outside_of_a_runtime() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(EtcdServer::start()).unwrap();
    let address = server.endpoint().replace("http://", "");
    drop(runtime);
    drop(server);
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[tokio::test]
async fn a_given_server_is_used_and_not_stopped() {
    let given = std::env::var_os("COORD_TEST_ETCD").is_some();
    let mut server = EtcdServer::shared().await.unwrap();
    server.gateway("/v3/kv/range", GET).await.unwrap();
    assert_eq!(server.kill9().await.is_err(), given);
}
