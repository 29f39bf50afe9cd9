//! Users, passwords, certificates and roles: mistakes are told by name, and what is replaced is taken without a restart.

mod certificates;
mod credentials;
mod roles;

use std::{error::Error as _, sync::Arc, time::Duration};

use coord_api::{Error, Provider, Result};
use coord_etcd::{Client, EtcdConfig, PlaintextPassword};
use coord_tests::EtcdServer;
use tokio::time::{sleep, timeout};

const LIMIT: Duration = Duration::from_secs(30);

/// An etcd with users, of which `shop` may use its namespace.
async fn with_users(args: &[&str]) -> EtcdServer {
    // Passwords are checked cheaply, since the machine has other things to do.
    let args: Vec<_> = ["--bcrypt-cost", "4"].iter().chain(args).copied().collect();
    let mut server = EtcdServer::start_with(&args).await.expect("starts");
    add_users(&mut server).await;
    server
}

async fn add_users(server: &mut EtcdServer) {
    server.enable_auth().await.expect("etcdctl works");
    server.add_user("shop", "s3cret", "readwrite", "/shop/").await.expect("etcdctl works");
}

fn config(server: &EtcdServer) -> EtcdConfig {
    EtcdConfig::new([server.endpoint()])
        .namespace("shop")
        .request_timeout(Duration::from_secs(3))
        .plaintext_password(PlaintextPassword::Allowed)
}

async fn connect(config: EtcdConfig) -> Arc<dyn Provider> {
    Arc::new(Client::connect(config).await.expect("is let in"))
}

/// The error and what it tells, with all of its causes.
async fn refused(config: EtcdConfig) -> (Error, String) {
    match Client::connect(config).await {
        Ok(_) => panic!("is let in"),
        Err(error) => {
            let text = told(&error);
            (error, text)
        }
    }
}

/// The message of an error with those of its causes.
fn told(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Tries until it succeeds.
async fn again<T>(what: &str, mut call: impl AsyncFnMut() -> Result<T>) -> T {
    let mut last = None;
    let trying = timeout(LIMIT, async {
        loop {
            match call().await {
                Ok(done) => return done,
                Err(error) => last = Some(error),
            }
            sleep(Duration::from_millis(50)).await;
        }
    });
    let done = trying.await.ok();
    done.unwrap_or_else(|| panic!("{what}: {last:?}"))
}
