//! Attacks with a network that is slow, but works.

use std::time::Duration;

use coord_api::Provider;
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{Conditions, EtcdServer, Proxy};
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
