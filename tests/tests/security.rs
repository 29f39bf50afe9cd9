//! Users, passwords and certificates: mistakes are told by name, and what is replaced is taken without a restart.

use std::{error::Error as _, time::Duration};

use coord_api::{ConfigExt, Error, Provider};
use coord_etcd::{Client, EtcdConfig, PlaintextPassword};
use coord_tests::{Cert, Certs, Clients, EtcdServer};

const LONG: Duration = Duration::from_secs(30);

/// The message of an error with those of its causes.
fn whole(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn config(server: &EtcdServer) -> EtcdConfig {
    EtcdConfig::new([server.endpoint()])
        .namespace("shop")
        .request_timeout(Duration::from_secs(2))
        .plaintext_password(PlaintextPassword::Allowed)
}

async fn refused(config: EtcdConfig) -> Error {
    match Client::connect(config).await {
        Ok(_) => panic!("is let in"),
        Err(error) => error,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_with_certificates_is_told_by_name() {
    let certs = Certs::new();
    let server = EtcdServer::start_tls(&certs, Clients::All, &[]).await.expect("starts");
    let strict = EtcdServer::start_tls(&certs, Clients::WithCertificate, &[]).await.expect("starts");
    let plain = EtcdServer::start().await.expect("starts");
    let trusting = |ca: &str| {
        let mut files = certs.trusted();
        files.ca_file = Some(certs.path(ca));
        files
    };
    let as_https = |server: &EtcdServer| server.endpoint().replace("http://", "https://");

    let show = async |what: &str, config: EtcdConfig| {
        let error = refused(config).await;
        println!("{what}: {} | {error:?}", whole(&error));
    };
    show("wrong ca", config(&server).tls(trusting("other-ca.pem"))).await;
    show("system roots", config(&server)).await;
    show("no client cert", config(&strict).tls(certs.trusted())).await;
    certs.client("client", Cert::Untrusted);
    show("untrusted client cert", config(&strict).tls(certs.mutual())).await;
    certs.client("client", Cert::Expired);
    show("expired client cert", config(&strict).tls(certs.mutual())).await;
    certs.client("client", Cert::Good);
    for kind in [Cert::Expired, Cert::WrongName, Cert::Untrusted] {
        certs.server(kind);
        show(&format!("{kind:?}"), config(&server).tls(certs.trusted())).await;
    }
    certs.server(Cert::Good);
    show("plaintext client on tls", EtcdConfig::new([server.endpoint().replace("https://", "http://")]))
        .await;
    show("tls client on plaintext", EtcdConfig::new([as_https(&plain)]).tls(certs.trusted())).await;
    let mut files = certs.trusted();
    files.ca_file = Some(certs.path("nope.pem"));
    show("missing ca", config(&server).tls(files.clone())).await;
    std::fs::write(certs.path("garbage.pem"), "no pem").expect("written");
    files.ca_file = Some(certs.path("garbage.pem"));
    show("garbage ca", config(&server).tls(files.clone())).await;
    let mut files = certs.mutual();
    files.key_file = Some(certs.path("garbage.pem"));
    show("garbage key", config(&strict).tls(files.clone())).await;
    files.key_file = Some(certs.path("server.key"));
    show("other key", config(&strict).tls(files.clone())).await;
    let ok = Client::connect(config(&strict).tls(certs.mutual())).await.expect("is let in");
    ok.config().set("x", &1).await.expect("is written");
}
