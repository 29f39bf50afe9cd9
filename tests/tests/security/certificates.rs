//! Certificates that are wrong, and certificates that are replaced.

use std::{path::PathBuf, time::Duration};

use coord_api::{ConfigExt, Error};
use coord_etcd::{EtcdConfig, TlsFiles};
use coord_tests::{Cert, Certs, Clients, EtcdServer, Fault, Proxy};
use tokio::time::sleep;

use crate::{again, config, connect, refused, told};

fn trusting(certs: &Certs, ca: &str) -> TlsFiles {
    let mut files = certs.trusted();
    files.ca_file = Some(certs.path(ca));
    files
}

fn with_key(certs: &Certs, key: PathBuf) -> TlsFiles {
    let mut files = certs.mutual();
    files.key_file = Some(key);
    files
}

/// The hint of an [`Error::Tls`].
async fn hint(config: EtcdConfig) -> String {
    match refused(config).await {
        (Error::Tls { hint, .. }, _) => hint,
        (other, text) => panic!("{text}: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_with_certificates_is_told_by_name() {
    let certs = Certs::new();
    let server = EtcdServer::start_tls(&certs, Clients::All, &[]).await.expect("starts");
    let strict = EtcdServer::start_tls(&certs, Clients::WithCertificate, &[]).await.expect("starts");
    let plain = EtcdServer::start().await.expect("starts");

    let wrong_ca = hint(config(&server).tls(trusting(&certs, "other-ca.pem"))).await;
    assert!(wrong_ca.contains("set `ca_file`"), "{wrong_ca}");
    let of_the_system = hint(config(&server)).await;
    assert!(of_the_system.contains("set `ca_file`"), "{of_the_system}");
    for (kind, part) in [
        (Cert::Expired, "has expired: renew it"),
        (Cert::WrongName, "set `server_name`"),
        (Cert::Untrusted, "set `ca_file`"),
    ] {
        certs.server(kind);
        let hint = hint(config(&server).tls(certs.trusted())).await;
        assert!(hint.contains(part), "{kind:?}: {hint}");
    }
    certs.server(Cert::Good);
    let mut by_name = certs.trusted();
    by_name.server_name = Some("localhost".into());
    connect(config(&server).tls(by_name)).await.close().await.expect("closes");

    let none = hint(config(&strict).tls(certs.trusted())).await;
    assert!(none.contains("set `cert_file` and `key_file`"), "{none}");
    for kind in [Cert::Expired, Cert::Untrusted] {
        certs.client("client", kind);
        let hint = hint(config(&strict).tls(certs.mutual())).await;
        assert!(hint.contains("set `cert_file` and `key_file`"), "{kind:?}: {hint}");
    }
    certs.client("client", Cert::Good);
    connect(config(&strict).tls(certs.mutual())).await.close().await.expect("closes");

    let without_tls = EtcdConfig::new([server.endpoint().replace("https://", "http://")]);
    let hint_of = hint(without_tls).await;
    assert!(hint_of.contains("use https endpoints"), "{hint_of}");
    let with_tls = EtcdConfig::new([plain.endpoint().replace("http://", "https://")]).tls(certs.trusted());
    let hint_of = hint(with_tls).await;
    assert!(hint_of.contains("use http endpoints"), "{hint_of}");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_can_not_be_used_are_named() {
    let certs = Certs::new();
    let strict = EtcdServer::start_tls(&certs, Clients::WithCertificate, &[]).await.expect("starts");
    let garbage = certs.path("garbage.pem");
    std::fs::write(&garbage, "s3cret").expect("is written");
    let table = [
        (trusting(&certs, "no-such.pem"), "no-such.pem"),
        (trusting(&certs, "garbage.pem"), "garbage.pem has no PEM `CERTIFICATE`"),
        (with_key(&certs, garbage), "garbage.pem has no PEM `PRIVATE KEY`"),
        (with_key(&certs, certs.path("server.key")), "server.key"),
    ];
    for (files, part) in table {
        let (error, text) = refused(config(&strict).tls(files)).await;
        assert!(matches!(error, Error::InvalidArgument { field: "tls", .. }), "{error:?}");
        assert!(text.contains(part) && !text.contains("s3cret"), "{text}");
    }
}

/// As a balancer in front of it does, or a machine that is being restarted.
#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_that_is_broken_off_is_no_matter_of_tls_once_there_was_one() {
    let certs = Certs::new();
    let server = EtcdServer::start_tls(&certs, Clients::All, &[]).await.expect("starts");
    let proxy =
        Proxy::start(server.endpoint().trim_start_matches("https://").to_owned()).await.expect("starts");
    let over_proxy = EtcdConfig::new([format!("https://{}", proxy.address())]).tls(certs.trusted());
    let client = connect(over_proxy.request_timeout(Duration::from_secs(1))).await;
    for fault in [Fault::Hangup, Fault::Refuse, Fault::Hangup] {
        proxy.fault(fault);
        for _ in 0..5 {
            let error = client.config().get::<u32>("limits").await.expect_err("etcd is away");
            let text = told(&error);
            assert!(matches!(error, Error::Unavailable { .. } | Error::Timeout { .. }), "{fault:?}: {text}");
        }
    }
    proxy.fault(Fault::None);
    again("etcd is back", async || client.config().get::<u32>("limits").await).await;
}

/// Rows "server certificate expires" and "is replaced" of the faults.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_certificate_that_expires_or_is_wrong_is_told_and_its_replacement_is_taken() {
    let certs = Certs::new();
    let mut server = EtcdServer::start_tls(&certs, Clients::All, &[]).await.expect("starts");
    let client = connect(config(&server).tls(certs.trusted())).await;
    let lock = client.lock().acquire("job", Duration::from_secs(60)).await.expect("is free");
    for kind in [Cert::ExpiresIn(Duration::from_secs(2)), Cert::Untrusted, Cert::WrongName] {
        certs.server(kind);
        sleep(Duration::from_secs(3)).await;
        client.config().set("limits", &1).await.expect("the connection that was made before is good");
        // Every connection has to be made anew.
        server.restart().await.expect("comes back");
        let seen = again("a named error", async || match client.config().set("limits", &2).await {
            Err(error @ Error::Tls { .. }) => Ok(error),
            Err(error) => Err(error),
            Ok(_) => panic!("no connection can be made"),
        })
        .await;
        println!("{kind:?}: {}", told(&seen));
        certs.server(Cert::Good);
        again("the certificate is good", async || client.config().set("limits", &3).await).await;
        assert!(!lock.is_lost());
    }
    lock.unlock().await.expect("was held all the time");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_certificates_and_authorities_that_are_replaced_are_read_anew() {
    let certs = Certs::new();
    let mut server = EtcdServer::start_tls(&certs, Clients::WithCertificate, &[]).await.expect("starts");
    // A file of the client's own, so that the server goes on knowing its authority.
    let ca = certs.path("trusted-by-the-client.pem");
    std::fs::copy(certs.path("ca.pem"), &ca).expect("is copied");
    let mut files = certs.mutual();
    files.ca_file = Some(ca.clone());
    let client = connect(config(&server).tls(files)).await;
    let fails_until_mended = async |server: &mut EtcdServer, mend: &dyn Fn()| {
        server.restart().await.expect("comes back");
        again("a named error", async || match client.config().set("limits", &2).await {
            Err(Error::Tls { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(_) => panic!("no connection can be made"),
        })
        .await;
        mend();
        again("the files are good", async || client.config().set("limits", &3).await).await;
    };

    certs.client("client", Cert::Expired);
    fails_until_mended(&mut server, &|| certs.client("client", Cert::Good)).await;
    std::fs::copy(certs.path("other-ca.pem"), &ca).expect("is copied");
    let mend = || assert!(std::fs::copy(certs.path("ca.pem"), &ca).is_ok());
    fails_until_mended(&mut server, &mend).await;
    std::fs::remove_file(&ca).expect("is removed");
    fails_until_mended(&mut server, &mend).await;
}

/// etcd takes the common name of a client's certificate for its user, so no password is needed.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_a_user() {
    let certs = Certs::new();
    let args = ["--bcrypt-cost", "4"];
    let mut server = EtcdServer::start_tls(&certs, Clients::WithCertificate, &args).await.expect("starts");
    server.enable_auth().await.expect("etcdctl works");
    server.add_user("shop", "s3cret", "readwrite", "/shop/").await.expect("etcdctl works");
    certs.client("shop", Cert::Good);
    let client = connect(config(&server).tls(certs.mutual())).await;
    let lock = client.lock().acquire("job", Duration::from_secs(60)).await.expect("may do that");
    client.config().set_if_held(&lock, "limits", &1).await.expect("may do that");
    let (error, text) = refused(config(&server).namespace("other").tls(certs.mutual())).await;
    assert!(matches!(error, Error::PermissionDenied { .. }), "{text}");
    certs.client("nobody", Cert::Good);
    let (error, text) = refused(config(&server).tls(certs.mutual())).await;
    assert!(matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }), "{text}");
}
