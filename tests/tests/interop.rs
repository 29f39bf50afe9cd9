//! etcd's own tools and coord in one queue.

use std::{process::Stdio, sync::Arc, time::Duration};

use coord_api::{ConfigExt, IdOptions, LockGuard, Provider, ServiceInfo};
use coord_etcd::{Client, EtcdConfig, Layout};
use coord_tests::EtcdServer;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    time::{sleep, timeout},
};

const TTL: Duration = Duration::from_secs(10);
const LIMIT: Duration = Duration::from_secs(20);

async fn client(server: &EtcdServer) -> Arc<dyn Provider> {
    let config = EtcdConfig::new([server.endpoint()]).namespace("shop");
    Arc::new(Client::connect(config).await.expect("etcd answers"))
}

async fn wait_for_places(client: &Arc<dyn Provider>, count: usize) {
    timeout(LIMIT, async {
        while client.lock().holders("job").await.expect("etcd answers").len() != count {
            sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the places appear");
}

/// `etcdctl lock`, which prints its key when it has the lock and holds it until its lease is gone.
struct Etcdctl<'a> {
    server: &'a EtcdServer,
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl<'a> Etcdctl<'a> {
    fn lock(server: &'a EtcdServer) -> Self {
        let mut command = server.etcdctl_process(&["lock", "/shop/locks/job"]).expect("the server runs");
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("etcdctl: {error}; set COORD_TEST_ETCDCTL to an etcdctl"));
        let output = child.stdout.take().expect("is piped");
        Self { server, child, lines: BufReader::new(output).lines() }
    }

    /// Waits until it has the lock, and returns its key.
    async fn has_it(&mut self) -> String {
        let line = timeout(LIMIT, self.lines.next_line()).await.expect("in time");
        line.expect("is readable").expect("prints its key")
    }

    async fn has_it_within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.lines.next_line()).await.is_ok()
    }

    /// Takes the lock with this key away from it, which ends it.
    async fn unlock(mut self, key: &str) {
        let lease = key.rsplit('/').next().expect("a key has segments");
        self.server.etcdctl(&["lease", "revoke", lease]).await.expect("is revoked");
        timeout(LIMIT, self.child.wait()).await.expect("ends").expect("is waited for");
    }
}

async fn acquire(client: &Arc<dyn Provider>) -> LockGuard {
    client.lock().acquire("job", TTL).await.expect("is granted")
}

#[tokio::test(flavor = "multi_thread")]
async fn etcdctl_and_coord_exclude_each_other_first_come_first_served() {
    let server = EtcdServer::start().await.expect("starts");
    let (one, other) = (client(&server).await, client(&server).await);

    // coord holds, etcdctl waits, coord waits behind it.
    let held = acquire(&one).await;
    let mut ctl = Etcdctl::lock(&server);
    wait_for_places(&one, 2).await;
    let behind = tokio::spawn({
        let other = other.clone();
        async move { acquire(&other).await }
    });
    wait_for_places(&one, 3).await;
    assert!(!ctl.has_it_within(Duration::from_millis(300)).await, "coord holds the lock");

    let holders = one.lock().holders("job").await.expect("etcd answers");
    assert_eq!(holders[0].token, held.token());
    assert!(holders[0].owner.is_some() && holders[1].owner.is_none(), "etcdctl does not say who it is");

    held.unlock().await.expect("is held");
    let key = ctl.has_it().await;
    assert!(key.starts_with("/shop/locks/job/"), "{key}");
    assert!(one.lock().try_acquire("job", TTL).await.expect("etcd answers").is_none());
    assert!(!behind.is_finished(), "etcdctl holds the lock");

    ctl.unlock(&key).await;
    let next = timeout(LIMIT, behind).await.expect("is its turn").expect("no panic");

    // And again with the process behind, now that its tasks share a watch.
    let mut ctl = Etcdctl::lock(&server);
    wait_for_places(&one, 2).await;
    let two_behind = [tokio::spawn({
        let other = other.clone();
        async move { acquire(&other).await }
    })];
    wait_for_places(&one, 3).await;
    next.unlock().await.expect("is held");
    let key = ctl.has_it().await;
    sleep(Duration::from_millis(200)).await;
    assert!(two_behind.iter().all(|task| !task.is_finished()), "etcdctl holds the lock");
    ctl.unlock(&key).await;
    for task in two_behind {
        timeout(LIMIT, task).await.expect("is its turn").expect("no panic").unlock().await.expect("is held");
    }
    one.close().await.expect("closes");
    other.close().await.expect("closes");
}

/// A Go process of the same fleet sees our keys where it keeps its own, and we see its.
#[tokio::test(flavor = "multi_thread")]
async fn with_the_layout_of_the_go_original_both_share_keys() {
    let server = EtcdServer::start().await.expect("starts");
    let config = EtcdConfig::new([server.endpoint()]).layout(Layout::GoOriginal);
    let client = Client::connect(config).await.expect("etcd answers");

    let theirs = r#"{"id":"1","name":"im-logic","address":"10.0.1.10","port":8080,"metadata":null}"#;
    server.etcdctl(&["put", "/services/im-logic/1", theirs]).await.expect("is written");
    server.etcdctl(&["put", "/config/common/mq", r#"{"brokers":3}"#]).await.expect("is written");
    let found = client.registry().discover("im-logic").await.expect("etcd answers");
    assert_eq!(found, [ServiceInfo::new("im-logic", "1", "10.0.1.10", 8080)]);
    let mq = client.config().get::<serde_json::Value>("common/mq").await.expect("etcd answers");
    assert_eq!(mq.expect("is there").value["brokers"], 3);

    let ours = ServiceInfo::new("im-logic", "2", "10.0.1.11", 8080).with("region", "us-east-1");
    let _registration = client.registry().register(ours, TTL).await.expect("is registered");
    client.config().set("common/db", &"postgres").await.expect("is written");
    let _lock = client.lock().acquire("job", TTL).await.expect("is free");
    let ids = client.instance_id_allocator("im-gateway", 1023).expect("is valid");
    let id = ids.acquire_id().await.expect("is granted");

    let record =
        server.etcdctl(&["get", "/services/im-logic/2", "--print-value-only"]).await.expect("is read");
    let record: serde_json::Value = serde_json::from_str(record.trim()).expect("is JSON");
    let expected = [("id", "2"), ("name", "im-logic"), ("address", "10.0.1.11")];
    assert!(expected.iter().all(|(field, value)| record[field] == *value), "{record}");
    assert_eq!((&record["port"], &record["metadata"]["region"]), (&8080.into(), &"us-east-1".into()));
    let value = server.etcdctl(&["get", "/config/common/db", "--print-value-only"]).await.expect("is read");
    assert_eq!(value.trim(), r#""postgres""#);
    for prefix in ["/locks/job/".to_owned(), format!("/im-infra/allocators/im-gateway/ids/{id}")] {
        let found = server.etcdctl(&["get", "--prefix", "--keys-only", &prefix]).await.expect("is read");
        assert!(found.starts_with(&prefix), "nothing of ours is under {prefix}");
    }
    client.close().await.expect("closes");
}

/// What the Go original does to take an id: from 1 on, it writes the first key that does not exist.
async fn take_as_the_go_original(server: &EtcdServer, max_id: u32) -> Option<u32> {
    use etcd_client::{Compare, CompareOp, Txn, TxnOp};
    let client = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    for id in 1..=max_id {
        let key = format!("/im-infra/allocators/im-gateway/ids/{id}");
        let free = Compare::mod_revision(key.as_str(), CompareOp::Equal, 0);
        let txn = Txn::new().when([free]).and_then([TxnOp::put(key, id.to_string(), None)]);
        if client.kv_client().txn(txn).await.expect("etcd answers").succeeded() {
            return Some(id);
        }
    }
    None
}

/// Go and Rust instances share one range: neither takes what the other has, also while it rests.
#[tokio::test(flavor = "multi_thread")]
async fn go_and_rust_instances_share_one_range_of_ids() {
    const REST: Duration = Duration::from_secs(3);
    let server = EtcdServer::start().await.expect("starts");
    let config = EtcdConfig::new([server.endpoint()]).layout(Layout::GoOriginal);
    let client = Client::connect(config).await.expect("etcd answers");
    let options = || IdOptions::new("im-gateway", 5).identity("web").quarantine(REST);
    let (one, other) =
        (client.instance_ids(), client.instance_id_allocator("im-gateway", 5).expect("is valid"));
    let one = one.allocator(options()).expect("is valid");
    let mut ids = vec![one.acquire_id().await.expect("is free").get()];
    ids.extend([take_as_the_go_original(&server, 4).await.expect("is free")]);
    ids.extend([other.acquire_id().await.expect("is free").get()]);
    ids.extend([take_as_the_go_original(&server, 4).await.expect("is free")]);
    ids.sort_unstable();
    assert_eq!(ids, [1, 2, 3, 4]);
    assert_eq!(take_as_the_go_original(&server, 4).await, None);
    let third = client.instance_id_allocator("im-gateway", 5).expect("is valid");
    assert!(third.try_acquire_id().await.is_err());
    let holders = client.instance_ids().holders("im-gateway").await.expect("etcd answers");
    assert_eq!(holders.iter().filter(|holder| holder.owner.is_none()).count(), 2, "those of Go say nothing");

    let id = one.id().expect("is held").get();
    one.release_id().await.expect("is held");
    assert_eq!(take_as_the_go_original(&server, 4).await, None, "it rests");
    sleep(REST + Duration::from_secs(2)).await;
    assert_eq!(take_as_the_go_original(&server, 4).await, Some(id));
    assert!(one.try_acquire_id().await.is_err(), "what another program has is not ours again");
    server.etcdctl(&["del", &format!("/im-infra/allocators/im-gateway/ids/{id}")]).await.expect("is deleted");
    assert_eq!(one.try_acquire_id().await.expect("is free").get(), id);
}
