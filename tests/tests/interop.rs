//! etcd's own tools and coord in one queue.

use std::{process::Stdio, sync::Arc, time::Duration};

use coord_api::{LockGuard, Provider};
use coord_etcd::{Client, EtcdConfig};
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
