//! Encrypted connections, with certificates made here.

use std::time::Duration;

use coord_api::{Provider, ServiceInfo};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt};
use coord_memory::{Client, Store};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use tonic::{
    Code,
    transport::{Certificate, ClientTlsConfig, Identity, Server, ServerTlsConfig, server::TcpIncoming},
};

use crate::fleet::{LONG, check, until};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Authority::self_signed(params, KeyPair::generate().expect("has a source of chance")).expect("is good")
}

/// Serves, encrypted if there is an authority, with a certificate for the address of loopback.
async fn serve(client: &Client, service: &str, authority: Option<&Authority>) -> u16 {
    let mut server = Server::builder();
    if let Some(authority) = authority {
        let key = KeyPair::generate().expect("has a source of chance");
        let params = CertificateParams::new(["127.0.0.1".to_owned()]).expect("is an address");
        let certificate = params.signed_by(&key, authority).expect("is good");
        let identity = Identity::from_pem(certificate.pem(), key.serialize_pem());
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).expect("is good");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let port = listener.local_addr().expect("is bound").port();
    let (_reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(server.add_service(health).serve_with_incoming(TcpIncoming::from(listener)));
    let info = ServiceInfo::new(service, "1", "127.0.0.1", port);
    let registration = client.registry().register(info, LONG).await.expect("the store is there");
    // It stays for the test.
    std::mem::forget(registration);
    port
}

async fn connect(client: &Client, service: &str, trusted: &Authority, limit: Duration) -> Connection {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(trusted.pem()));
    let options = ConnectOptions::new().tls(tls).connect_timeout(limit);
    client.registry().connection_with(service, options).await.expect("is registered")
}

#[tokio::test]
async fn authority_that_is_not_trusted_is_an_error_of_tls() {
    let (ours, another) = (authority(), authority());
    let client = Store::new().client();
    serve(&client, "encrypted", Some(&ours)).await;
    serve(&client, "plain", None).await;
    check(&connect(&client, "encrypted", &ours, LONG).await).await.expect("is trusted");

    let table = [("encrypted", &another, "invalid peer certificate: "), ("plain", &ours, "corrupt message")];
    for (service, trusted, reason) in table {
        let connection = connect(&client, service, trusted, Duration::from_secs(1)).await;
        let status = check(&connection).await.expect_err(reason);
        assert_eq!(status.code(), Code::Unavailable);
        let message = status.message();
        assert!(message.contains("TLS handshake: ") && message.contains(reason), "{service}: {message}");
    }
}

/// A way to a server that carries one connection until it is told to break it, and then takes others for nothing.
async fn way_to(port: u16) -> (u16, oneshot::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
    let own = listener.local_addr().expect("is bound").port();
    let (break_off, broken) = oneshot::channel();
    tokio::spawn(async move {
        let (mut near, _) = listener.accept().await.expect("is connected");
        let mut far = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => {}
            _ = broken => {}
        }
        drop((near, far));
        // Later connections are accepted and hear nothing.
        let mut silent = Vec::new();
        while let Ok(accepted) = listener.accept().await {
            silent.push(accepted);
        }
    });
    (own, break_off)
}

#[tokio::test]
async fn connection_that_breaks_after_accept_is_no_error_of_tls() {
    let (ours, client) = (authority(), Store::new().client());
    let (way, break_off) = way_to(serve(&client, "encrypted", Some(&ours)).await).await;
    let info = ServiceInfo::new("behind", "1", "127.0.0.1", way);
    let _registered = client.registry().register(info, LONG).await.expect("the store is there");
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ours.pem()));
    // Less than it takes to hear what is wrong now.
    let options = ConnectOptions::new().tls(tls).wait_timeout(Duration::from_millis(5));
    let connection = client.registry().connection_with("behind", options).await.expect("is registered");
    connection.ready().await.expect("is trusted");
    break_off.send(()).expect("is waited for");
    until(|| !connection.is_ready()).await;
    let status = check(&connection).await.expect_err("nobody answers");
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    assert!(!status.message().contains("TLS"), "{status:?}");
}

#[tokio::test]
async fn times_that_no_clock_reaches_are_good_over_tls() {
    let ours = authority();
    let client = Store::new().client();
    serve(&client, "patient", Some(&ours)).await;
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(ours.pem()));
    let options = ConnectOptions::new()
        .tls(tls)
        .connect_timeout(Duration::MAX)
        .try_timeout(Duration::MAX)
        .keep_alive(Duration::MAX, Duration::MAX);
    let connection = client.registry().connection_with("patient", options).await.expect("is registered");
    for _ in 0..2 {
        let call = tokio::time::timeout(LONG, check(&connection)).await;
        call.expect("comes to an end").expect("is well");
    }
}
