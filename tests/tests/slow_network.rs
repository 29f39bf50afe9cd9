//! Answers that are lost, or come too late.

use std::time::Duration;

use coord_api::{ConfigExt, Error, Provider};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{Conditions, EtcdServer, Late, Proxy};
use etcd_client::CompactionOptions;
use tokio::time::timeout;

/// A lease that is over when its grant is answered is of no use, and a caller is told in time.
#[tokio::test(flavor = "multi_thread")]
async fn lease_that_comes_too_late_fails_a_call_in_time() {
    let server = EtcdServer::start().await.expect("starts");
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let network = Proxy::start(target).await.expect("a port is free");
    let config = EtcdConfig::new([network.address()]).request_timeout(Duration::from_secs(5));
    let client = Client::connect(config).await.expect("etcd answers");
    let delay = Duration::from_millis(2_600);
    network.down().set(Conditions::Slow { delay, jitter: Duration::ZERO });
    let locks = client.lock();
    let tried = timeout(Duration::from_secs(30), locks.try_acquire("job", Duration::from_secs(1))).await;
    tried.expect("ends: a request may take 5 s").expect_err("no lease can be had in its time");
}

/// The deletion is known to have happened, but its revision is compacted. Then its outcome is open, and no
/// error says that nothing was written.
#[tokio::test(flavor = "multi_thread")]
async fn deletion_whose_past_is_compacted_has_an_open_outcome() {
    let server = EtcdServer::start().await.expect("starts");
    let late = Late::start(server.endpoint()).await.expect("a port is free");
    let config = EtcdConfig::new([late.address()]).request_timeout(Duration::from_secs(2));
    let client = Client::connect(config).await.expect("etcd answers");
    let values = client.config();
    values.set("a", &1).await.expect("is written");
    late.keep_the_next();
    let deleting = tokio::spawn({
        let values = values.clone();
        async move { values.delete("a").await }
    });
    late.has_kept().await;
    // It is done, and its answer lost.
    late.let_it_arrive().await;
    let admin = etcd_client::Client::connect([server.endpoint()], None).await.expect("etcd answers");
    let put = admin.kv_client().put("/other", "", None).await.expect("is written");
    let now = put.header().expect("has one").revision();
    let physical = CompactionOptions::new().with_physical();
    admin.kv_client().compact(now, Some(physical)).await.expect("is compacted");
    let deleted = deleting.await.expect("no panic");
    assert_eq!(values.get::<u32>("a").await.expect("etcd answers").map(|found| found.value), None);
    assert!(matches!(deleted, Ok(true) | Err(Error::Timeout { .. })), "{deleted:?}");
}
