//! What the tests share: clients, and patience that is measured.

use std::{sync::Arc, time::Duration};

use coord_api::{Provider, Result};
use coord_etcd::{Client, EtcdConfig};
use tokio::time::{Instant, sleep, timeout};

/// Longer than anything here takes, on a busy machine as well.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) async fn client(endpoints: impl IntoIterator<Item = String>) -> Arc<dyn Provider> {
    let config = EtcdConfig::new(endpoints)
        .request_timeout(Duration::from_secs(2))
        .instance_id_ttl(Duration::from_secs(5));
    Arc::new(Client::connect(config).await.expect("etcd answers"))
}

/// What a caller does who may repeat the call: again, as long as the error says that this is of use.
pub(crate) async fn again<T>(mut call: impl AsyncFnMut() -> Result<T>) -> T {
    let repeated = async {
        loop {
            match call().await {
                Ok(done) => return done,
                Err(error) => assert!(error.is_retryable(), "{error:?}"),
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, repeated).await.expect("succeeds in the end")
}

/// Waits until something is so, and says how long that took.
pub(crate) async fn until(mut is_so: impl AsyncFnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so().await {
        assert!(start.elapsed() < LONG, "it never came about");
        sleep(Duration::from_millis(20)).await;
    }
    start.elapsed()
}

/// What was awaited, which must not take for ever.
pub(crate) async fn soon<T>(wait: impl Future<Output = T>) -> T {
    timeout(LONG, wait).await.expect("in time")
}
