//! etcd's own tools and coord in one queue.

use std::{process::Stdio, sync::Arc, time::Duration};

use coord_api::{LockGuard, Provider};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::EtcdServer;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
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

/// `etcdctl lock`, which prints its key when it has the lock and holds it until it is interrupted.
struct Etcdctl {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
}

impl Etcdctl {
    fn lock(server: &EtcdServer) -> Self {
        let program = std::env::var("COORD_TEST_ETCDCTL").unwrap_or_else(|_| "etcdctl".to_owned());
        let mut child = Command::new(&program)
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", server.endpoint(), "lock", "/shop/locks/job"])
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("`{program}`: {error}; set COORD_TEST_ETCDCTL to an etcdctl"));
        let output = child.stdout.take().expect("is piped");
        Self { child, lines: BufReader::new(output).lines() }
    }

    /// Waits until it has the lock.
    async fn has_it(&mut self) -> String {
        let line = timeout(LIMIT, self.lines.next_line()).await.expect("in time");
        line.expect("is readable").expect("prints its key")
    }

    async fn has_it_within(&mut self, limit: Duration) -> bool {
        timeout(limit, self.lines.next_line()).await.is_ok()
    }

    /// Interrupts it, which makes it give the lock back.
    async fn unlock(mut self) {
        let pid = self.child.id().expect("runs").to_string();
        let killed = Command::new("kill").args(["-INT", &pid]).status().await.expect("kill exists");
        assert!(killed.success());
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

    ctl.unlock().await;
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
    ctl.has_it().await;
    sleep(Duration::from_millis(200)).await;
    assert!(two_behind.iter().all(|task| !task.is_finished()), "etcdctl holds the lock");
    ctl.unlock().await;
    for task in two_behind {
        timeout(LIMIT, task).await.expect("is its turn").expect("no panic").unlock().await.expect("is held");
    }
    one.close().await.expect("closes");
    other.close().await.expect("closes");
}
