//! Whether `coord doctor` finds what is wrong.

use std::net::Ipv4Addr;

use coord_tests::Certs;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, copy_bidirectional, sink},
    net::{TcpListener, TcpStream},
};

use crate::tools::{Shop, output, stdout};

/// The finding of a check.
fn finding<'a>(report: &'a Value, check: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("is a list");
    findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("{check}: {report}"))
}

/// Its report, and its exit code.
async fn report(command: &mut tokio::process::Command) -> (Value, Option<i32>) {
    let output = output(command.arg("--json")).await;
    let report = serde_json::from_str(&stdout(&output));
    (report.unwrap_or_else(|error| panic!("{error}: {output:?}")), output.status.code())
}

#[tokio::test]
async fn a_good_etcd_has_no_problem_and_nothing_stays_in_it() {
    let shop = Shop::open().await;
    let (report, code) = report(&mut shop.coord(&["doctor"])).await;
    assert_eq!((code, &report["ok"]), (Some(0), &true.into()), "{report}");
    for check in ["connection", "clock", "locks", "services", "config", "ids", "latency"] {
        assert_eq!(finding(&report, check)["level"], "ok", "{report}");
    }
    // Whether it is a good version depends on which etcd the tests have.
    assert!(
        finding(&report, "server")["said"].as_str().is_some_and(|said| said.starts_with("etcd 3.")),
        "{report}"
    );
    let left = shop.server.etcdctl(&["get", "--prefix", "/", "--keys-only"]).await.expect("etcd answers");
    assert_eq!(left.trim(), "", "nothing that was tried is left");
    let text = shop.ok(&["doctor"]).await;
    assert!(text.contains("ok  locks") && text.contains("a commit takes"), "{text}");
}

#[tokio::test]
async fn a_wrong_port_is_found() {
    let shop = Shop::open().await;
    let (report, code) =
        report(&mut shop.coord(&["--url", "etcd://127.0.0.1:9", "--timeout", "2s", "doctor"])).await;
    assert_eq!((code, &report["ok"]), (Some(1), &false.into()));
    let found = finding(&report, "connection");
    assert_eq!(found["level"], "problem");
    assert!(found["advice"].as_str().is_some_and(|advice| advice.contains("--url")), "{found}");
}

#[tokio::test]
async fn a_wrong_password_and_missing_permissions_are_found() {
    let shop = Shop::open().await;
    for args in [
        &["user", "add", "root:s3cret-root"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "half"],
        &["role", "grant-permission", "half", "--prefix=true", "readwrite", "/shop/locks/"],
        &["role", "grant-permission", "half", "--prefix=true", "readwrite", "/shop/internal/"],
        &["role", "grant-permission", "half", "--prefix=true", "read", "/shop/config/"],
        &["user", "add", "half:s3cret-half"],
        &["user", "grant-role", "half", "half"],
        &["auth", "enable"],
    ] {
        shop.server.etcdctl(args).await.unwrap_or_else(|error| panic!("{args:?}: {error:#}"));
    }
    let (anonymous, code) = report(&mut shop.coord(&["doctor"])).await;
    assert_eq!((code, &finding(&anonymous, "connection")["level"]), (Some(1), &"problem".into()));

    let mut wrong = shop.coord(&["--username", "half", "--allow-plaintext-password", "doctor"]);
    let (found, code) = report(wrong.env("COORD_PASSWORD", "s3cret-wrong")).await;
    assert_eq!(code, Some(1));
    let connection = finding(&found, "connection");
    assert!(
        connection["advice"].as_str().is_some_and(|advice| advice.contains("--password-file")),
        "{connection}"
    );
    assert!(!found.to_string().contains("s3cret"), "{found}");

    let file = tempfile::NamedTempFile::new().expect("can be made");
    std::fs::write(file.path(), "s3cret-half\n").expect("is written");
    let mut half = shop.coord(&[
        "--allow-plaintext-password",
        "--username",
        "half",
        "--password-file",
        file.path().to_str().expect("is UTF-8"),
        "doctor",
    ]);
    let (found, code) = report(&mut half).await;
    assert_eq!(code, Some(1), "{found}");
    assert_eq!(finding(&found, "locks")["level"], "ok", "{found}");
    for denied in ["services", "config", "ids"] {
        let denied = finding(&found, denied);
        assert_eq!(denied["level"], "problem", "{found}");
        assert!(
            denied["advice"].as_str().is_some_and(|advice| advice.contains("grant-permission")),
            "{denied}"
        );
    }
    let half = async |args: &[&str]| {
        let mut command = shop.coord(&[&["--username", "half", "--allow-plaintext-password"], args].concat());
        output(command.env("COORD_PASSWORD", "s3cret-half")).await.status.code()
    };
    assert_eq!(half(&["lock", "job", "--", "true"]).await, Some(0));
    assert_eq!(half(&["service", "list"]).await, Some(5));
}

/// An etcd that says of itself that it is old, and has an old clock: all but that comes from the real one.
async fn old(server: String) -> String {
    const SAID: &[u8] = b"HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 49\r\n\
        Content-Type: application/json\r\n\r\n{\"etcdserver\":\"3.4.23\",\"etcdcluster\":\"3.4.0\"}    ";
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
    let address = listener.local_addr().expect("is bound").to_string();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                let mut begin = [0; 3];
                client.read_exact(&mut begin).await?;
                if &begin == b"GET" {
                    let mut request = vec![0; 4096];
                    let length = client.read(&mut request).await?;
                    client.write_all(SAID).await?;
                    if !String::from_utf8_lossy(&request[..length]).contains("Connection: close") {
                        copy(&mut client, &mut sink()).await?;
                    }
                    return Ok(());
                }
                let mut etcd = TcpStream::connect(server).await?;
                etcd.write_all(&begin).await?;
                copy_bidirectional(&mut client, &mut etcd).await.map(drop)
            });
        }
    });
    address
}

#[tokio::test]
async fn an_old_version_and_a_wrong_clock_are_found() {
    let shop = Shop::open().await;
    let old = old(shop.server.endpoint().trim_start_matches("http://").to_owned()).await;
    let (report, code) = report(&mut shop.coord(&["--url", &format!("etcd://{old}/shop"), "doctor"])).await;
    let server = finding(&report, "server");
    assert_eq!(server["level"], "warning", "{report}");
    assert!(
        server["said"].as_str().is_some_and(|said| said.contains("3.4.23") && said.contains("15247")),
        "{server}"
    );
    let clock = finding(&report, "clock");
    assert_eq!(clock["level"], "warning");
    assert!(clock["said"].as_str().is_some_and(|said| said.contains("ahead of etcd's")), "{clock}");
    assert_eq!((code, &report["ok"]), (Some(0), &true.into()), "warnings are no problems");
}

#[tokio::test]
async fn over_tls_good_files_work_and_bad_ones_are_found() {
    let certs = Certs::new();
    let shop = Shop::open_tls(&certs).await;
    let file = |name: &str| certs.path(name).to_str().expect("is UTF-8").to_owned();
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key"));
    let with = |ca: &str, last: &[&str]| {
        shop.coord(&[&["--ca-file", ca, "--cert-file", &cert, "--key-file", &key][..], last].concat())
    };
    let (good, code) = report(&mut with(&ca, &["doctor"])).await;
    assert_eq!((code, &good["ok"]), (Some(0), &true.into()), "{good}");
    let held = output(&mut with(&ca, &["lock", "job", "--", "sh", "-c", "exit 7"])).await;
    assert_eq!(held.status.code(), Some(7));

    let other = file("other-ca.pem");
    let (bad, code) = report(&mut with(&other, &["doctor"])).await;
    assert_eq!(code, Some(1));
    let connection = finding(&bad, "connection");
    assert!(connection["advice"].as_str().is_some_and(|advice| advice.contains("--ca-file")), "{connection}");
    let held = output(&mut with(&other, &["lock", "job", "--", "true"])).await;
    assert_eq!(held.status.code(), Some(5), "{held:?}");
}
