//! Whether `coord doctor` finds what is wrong.

use serde_json::Value;

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

    let mut wrong = shop.coord(&["--username", "half", "doctor"]);
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
        let mut command = shop.coord(&[&["--username", "half"], args].concat());
        output(command.env("COORD_PASSWORD", "s3cret-half")).await.status.code()
    };
    assert_eq!(half(&["lock", "job", "--", "true"]).await, Some(0));
    assert_eq!(half(&["service", "list"]).await, Some(5));
}
