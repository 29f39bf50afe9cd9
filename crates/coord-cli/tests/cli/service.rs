//! Instances, ids, and the page of both.

use std::time::Duration;

use coord_api::Provider;
use serde_json::{Value, json};

use crate::tools::{Running, Shop, output, stderr, stdout};

#[tokio::test]
async fn an_instance_is_registered_as_long_as_its_command_runs() {
    let shop = Shop::open().await;
    let mut watch = Running::start(&mut shop.coord(&["service", "watch", "web", "--json"]));
    let snapshot = watch.json().await;
    assert_eq!((&snapshot["event"], &snapshot["instances"]), (&"snapshot".into(), &json!([])));

    let script = "trap 'echo asked; exit 4' TERM; echo $COORD_SERVICE_NAME/$COORD_SERVICE_ID; while :; do sleep 0.05; done";
    let register = [
        "service",
        "register",
        "web",
        "--id",
        "web-1",
        "--address",
        "[::1]:8080",
        "--meta",
        "zone=eu",
        "--drain",
        "1s",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut coord = Running::start(&mut shop.coord(&register));
    assert_eq!(coord.line().await, "web/web-1");
    let added = watch.json().await;
    let instance =
        json!({"id": "web-1", "name": "web", "address": "::1", "port": 8080, "metadata": {"zone": "eu"}});
    assert_eq!(added["event"], "added");
    for (field, value) in instance.as_object().expect("is one") {
        assert_eq!(&added["instance"][field], value, "{added}");
    }
    let services = shop.json(&["service", "list"]).await;
    assert_eq!(
        (&services[0]["service"], &services[0]["instances"][0]["id"]),
        (&"web".into(), &"web-1".into())
    );
    assert_eq!(shop.json(&["service", "list", "web"]).await, services);
    assert!(shop.ok(&["service", "list"]).await.contains("[::1]:8080  zone=eu"));
    let (code, text) =
        shop.fails(&["service", "register", "web", "--id", "web-1", "--address", "h:1", "--", "true"]).await;
    assert_eq!(code, 4, "{text}");

    coord.signal("TERM").await;
    assert_eq!(watch.json().await["event"], "removed");
    let gone = std::time::Instant::now();
    assert_eq!(coord.line().await, "asked");
    assert!(gone.elapsed() > Duration::from_millis(500), "clients had time to see that it leaves");
    assert_eq!(coord.code().await, Some(4));
    watch.signal("INT").await;
    assert_eq!(watch.code().await, Some(128 + 2));
}

#[tokio::test]
async fn without_a_command_an_instance_is_registered_until_a_signal() {
    let shop = Shop::open().await;
    let mut watch = Running::start(&mut shop.coord(&["service", "watch", "web"]));
    assert_eq!(watch.line().await, "nobody is there");
    let register = ["service", "register", "web", "--id", "1", "--address", "10.0.0.1:80"];
    let coord = Running::start(&mut shop.coord(&register));
    assert_eq!(watch.line().await, "added 1 10.0.0.1:80");
    coord.signal("TERM").await;
    assert_eq!(coord.code().await, Some(0));
    assert_eq!(watch.line().await, "removed 1 10.0.0.1:80");
    let bad = ["service", "register", "web", "--id", "1", "--address", "0.0.0.0:80"];
    assert_eq!(shop.fails(&bad).await.0, 2);
}

#[tokio::test]
async fn a_command_has_an_id_that_no_other_has() {
    let shop = Shop::open().await;
    let stay = "echo $COORD_INSTANCE_ID; sleep 60";
    let acquire =
        |max: &'static str| ["id", "acquire", "gw", "--max", max, "--identity", "a", "--", "sh", "-c", stay];
    let mut one = Running::start(&mut shop.coord(&acquire("2")));
    assert_eq!(one.line().await, "1");
    let holders = shop.json(&["id", "list", "gw"]).await;
    assert_eq!((&holders[0]["id"], &holders[0]["identity"]), (&1.into(), &"a".into()));
    assert_eq!(holders[0]["owner"]["pid"], one.pid());
    assert!(holders[0]["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{holders}");
    assert!(shop.ok(&["id", "list", "gw"]).await.contains("IDENTITY"));
    let full = ["id", "acquire", "gw", "--max", "2", "--try", "--", "echo", "ran"];
    assert_eq!(shop.fails(&full).await.0, 75);
    let full = ["id", "acquire", "gw", "--max", "2", "--wait", "300ms", "--", "echo", "ran"];
    assert_eq!(shop.fails(&full).await.0, 75);
    one.signal("TERM").await;
    assert_eq!(one.code().await, Some(128 + 15));
    let again = shop.run(&[
        "id",
        "acquire",
        "gw",
        "--max",
        "2",
        "--identity",
        "a",
        "--",
        "sh",
        "-c",
        "exit $COORD_INSTANCE_ID",
    ]);
    assert_eq!(again.await.status.code(), Some(1), "its id, although it rests");
    assert_eq!(shop.fails(&["id", "acquire", "gw", "--max", "1", "--", "true"]).await.0, 2);
}

#[tokio::test]
async fn a_lost_id_stops_the_command() {
    let shop = Shop::open().await;
    let args =
        ["id", "acquire", "gw", "--max", "9", "--ttl", "3s", "--", "sh", "-c", "echo ready; exec sleep 600"];
    let mut coord = Running::start(&mut shop.coord(&args));
    assert_eq!(coord.line().await, "ready");
    let leases = shop.server.etcdctl(&["lease", "list"]).await.expect("etcd answers");
    for lease in leases.lines().skip(1) {
        shop.server.etcdctl(&["lease", "revoke", lease.trim()]).await.expect("is revoked");
    }
    assert_eq!(coord.code().await, Some(76));
}

#[tokio::test]
async fn top_prints_what_there_is_for_programs() {
    let shop = Shop::open().await;
    let client = shop.client().await;
    let _guard = client.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
    let seen = shop.json(&["top", "--once"]).await;
    assert_eq!((&seen["locks"][0]["lock"], &seen["services"]), (&"job".into(), &json!([])));
    assert_eq!(shop.fails(&["top"]).await.0, 2, "no terminal");
    let mut top = Running::start(&mut shop.coord(&["top", "--json", "--interval", "200ms"]));
    assert_eq!(top.json().await["locks"], seen["locks"]);
    assert_eq!(top.json().await["locks"], seen["locks"]);
    top.signal("TERM").await;
    assert_eq!(top.code().await, Some(128 + 15));
}

#[tokio::test]
async fn colours_are_for_terminals_and_for_who_asks() {
    let shop = Shop::open().await;
    let client = shop.client().await;
    let _guard = client.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
    let is_coloured = |text: &str| text.contains('\u{1b}');
    for args in [&["lock", "list"][..], &["doctor"], &["--help"]] {
        assert!(!is_coloured(&shop.ok(args).await), "{args:?}");
    }
    assert!(!is_coloured(&shop.fails(&["lock", "a//b", "--", "true"]).await.1));
    assert!(is_coloured(&shop.ok(&["lock", "list", "--color", "always"]).await));
    let forced =
        output(shop.coord(&["lock", "list", "--color", "always", "--json"]).env("NO_COLOR", "1")).await;
    let _: Value =
        serde_json::from_str(&stdout(&forced)).unwrap_or_else(|error| panic!("{error}: {}", stderr(&forced)));
}

#[tokio::test]
async fn completions_and_the_manual_need_no_etcd() {
    let shop = Shop::open().await;
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(
            shop.ok(&["--url", "etcd://127.0.0.1:9", "completions", shell]).await.contains("coord"),
            "{shell}"
        );
    }
    assert!(shop.ok(&["man"]).await.contains(".TH coord 1"));
    let folder = tempfile::tempdir().expect("can be made");
    shop.ok(&["man", folder.path().to_str().expect("is UTF-8")]).await;
    assert!(folder.path().join("coord-lock.1").is_file());
    let help = shop.ok(&["--help"]).await;
    assert!(["75 ", "76 ", "69 "].iter().all(|code| help.contains(code)), "{help}");
}
