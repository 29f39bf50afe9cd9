//! Values stay byte by byte where nobody has edited them, and no output harms a terminal.

use std::path::Path;

use coord_api::{Provider, Scope};
use coord_config::SchemaExt;
use serde_json::{Value, json};

use crate::tools::{Shop, output, stderr, stdout};

/// More digits than a float has, fields twice and in no order, and an escape that need not be one.
const ODD: &str =
    r#"{"z":12345678901234567890123,"a":0.10000000000000000000001,"z":1.0,"e":1e400,"t":"\u00e9"}"#;

async fn put(shop: &Shop, key: &str, value: &str) {
    shop.server.etcdctl(&["put", key, "--", value]).await.expect("is written");
}

#[tokio::test]
async fn values_go_through_files_digit_by_digit() {
    let shop = Shop::open().await;
    put(&shop, "/shop/config/odd", ODD).await;
    let folder = tempfile::tempdir().expect("can be made");
    let dir = folder.path().to_str().expect("is UTF-8");
    shop.ok(&["config", "export", dir]).await;
    let file = std::fs::read_to_string(folder.path().join("odd.json")).expect("was written");
    assert_eq!(
        file.split_whitespace().collect::<String>(),
        ODD,
        "a line for each value, and nothing else is new"
    );
    assert!(file.starts_with("{\n  \"z\": 12345678901234567890123,\n"), "{file}");
    assert_eq!(shop.ok(&["config", "import", dir]).await, "0 of 1 values written\n");

    put(&shop, "/shop/config/odd", "12345678901234567890123").await;
    std::fs::write(folder.path().join("odd.json"), "12345678901234567890124\n").expect("is written");
    assert!(shop.ok(&["config", "import", dir]).await.starts_with("changed odd"));
    assert_eq!(shop.ok(&["config", "get", "odd"]).await, "12345678901234567890124\n");
}

#[tokio::test]
async fn values_are_printed_digit_by_digit() {
    let shop = Shop::open().await;
    put(&shop, "/shop/config/odd", ODD).await;
    for args in [&["config", "get", "odd", "--json"][..], &["config", "list", "--json"]] {
        let text = shop.ok(args).await;
        assert!(text.split_whitespace().collect::<String>().contains(ODD), "{text}");
    }
    let mut watch = crate::tools::Running::start(&mut shop.coord(&["config", "watch", "odd", "--json"]));
    assert!(watch.line().await.contains(ODD));
    let set = |value: &'static str| {
        let shop = &shop;
        async move { shop.json(&["config", "set", "n", value]).await["version"].to_string() }
    };
    let (first, second) = (set("[12345678901234567890123]").await, set("[12345678901234567890124]").await);
    let diff = shop.ok(&["config", "diff", "n", &first, &second]).await;
    assert_eq!(diff, "/0: 12345678901234567890123 -> 12345678901234567890124\n");
    let diff = shop.ok(&["config", "diff", "n", &first, &second, "--json"]).await;
    assert!(diff.contains("\"new\": 12345678901234567890124"), "{diff}");
}

#[tokio::test]
async fn edit_changes_what_was_edited_alone() {
    let shop = Shop::open().await;
    let values = [
        (r#"{"z":12345678901234567890123,"a":0.10000000000000000000001,"m":7}"#, "m\": 7", "m\":7"),
        (r#"{"z": 1.0, "a": [1, 2], "m": 7}"#, "m\": 7", "m\": 7"),
        ("{\n\t\"z\": 1.0,\n\t\"m\": 7}", "m\": 7", "m\": 7"),
    ];
    for (before, shown, stored) in values {
        put(&shop, "/shop/config/odd", before).await;
        let mut edit = shop.coord(&["config", "edit", "odd"]);
        edit.env("EDITOR", format!("sed -i 's/{shown}/{}/'", shown.replace('7', "8"))).env_remove("VISUAL");
        let edited = output(&mut edit).await;
        assert_eq!(edited.status.code(), Some(0), "{}", stderr(&edited));
        let expected = before.replace(stored, &stored.replace('7', "8"));
        assert_eq!(shop.ok(&["config", "get", "odd"]).await, expected + "\n");
    }
}

#[tokio::test]
async fn import_checks_all_files_before_it_writes_any() {
    let shop = Shop::open().await;
    let schema = json!({ "type": "integer", "maximum": 100 });
    let center = shop.client().await.config();
    center.schemas().set_json(Scope::Key("z/limits"), schema).await.expect("is a schema");
    let folder = tempfile::tempdir().expect("can be made");
    let dir = folder.path().to_str().expect("is UTF-8");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().expect("is in a folder")).expect("is made");
        std::fs::write(path, text).expect("is written");
    };
    file("a.json", "1");
    file("z/limits.json", "1000");
    file("z/large.json", &format!("\"{}\"", "x".repeat(400 << 10)));
    file("z/broken.json", "{");
    file("notes here/README.md", "none of ours");
    for args in [&["config", "import", dir][..], &["config", "import", dir, "--dry-run"]] {
        let (code, text) = shop.fails(args).await;
        assert_eq!(code, 2, "{text}");
        let named = [
            "z/limits.json",
            "does not fit its schema",
            "z/large.json",
            "z/broken.json",
            "nothing was imported",
        ];
        assert!(named.iter().all(|words| text.contains(words)) && !text.contains("a.json"), "{text}");
        assert_eq!(shop.json(&["config", "list"]).await, json!([]));
    }
    let bad_author = ["config", "import", dir, "--dry-run", "--author", "a\u{7}"];
    assert_eq!(shop.fails(&bad_author).await.0, 2, "the history would refuse it");
    file("z/limits.json", "10");
    std::fs::remove_file(folder.path().join("z/large.json")).expect("is there");
    std::fs::remove_file(folder.path().join("z/broken.json")).expect("is there");
    shop.ok(&["config", "import", dir, "--dry-run"]).await;
    assert_eq!(shop.json(&["config", "list"]).await, json!([]), "only said");
    shop.ok(&["config", "import", dir]).await;
    assert_eq!(shop.json(&["config", "list"]).await.as_array().map(Vec::len), Some(2));
}

#[tokio::test]
async fn export_leaves_out_what_can_not_be_a_file_and_writes_the_rest() {
    let shop = Shop::open().await;
    for key in ["a", "a.json/b", "c", "linked", "z"] {
        shop.ok(&["config", "set", key, "1"]).await;
    }
    let (folder, outside) =
        (tempfile::tempdir().expect("can be made"), tempfile::tempdir().expect("can be made"));
    let secret = outside.path().join("secret");
    std::fs::write(&secret, "kept").expect("is written");
    std::os::unix::fs::symlink(&secret, folder.path().join("linked.json")).expect("is made");
    let exported = shop.run(&["config", "export", folder.path().to_str().expect("is UTF-8")]).await;
    assert_eq!(exported.status.code(), Some(1));
    let told = stderr(&exported);
    assert!(told.contains("`a.json/b` is left out") && told.contains("`linked` is left out"), "{told}");
    assert_eq!(std::fs::read_to_string(&secret).expect("is there"), "kept");
    let is_there = |name: &str| Path::new(&folder.path().join(name)).is_file();
    assert!(["a.json", "c.json", "z.json"].into_iter().all(is_there));
    let names = folder.path().read_dir().expect("is a folder").count();
    assert_eq!(names, 4, "and no file of the command's own");
}

/// A terminal takes U+009B for the beginning of a command, and U+202E shows what follows backwards.
#[tokio::test]
async fn no_output_has_characters_that_a_terminal_acts_on() {
    let shop = Shop::open().await;
    shop.ok(&["config", "set", "k", "{\"a\": \"\u{9b}2J\u{202e}x\"}"]).await;
    let version =
        shop.json(&["config", "set", "k", "{\"a\": \"\u{85}\"}", "-m", "fine"]).await["version"].to_string();
    put(&shop, "/shop/config/not-json", "\u{9b}31m\u{1b}[2J{").await;
    put(&shop, "/shop/locks/job/\u{9b}5m", "").await;
    let first = shop.json(&["config", "history", "k"]).await[1]["version"].to_string();
    for args in [
        &["config", "list"][..],
        &["config", "list", "--json"],
        &["config", "get", "k", "--json"],
        &["config", "get", "not-json", "--json"],
        &["config", "diff", "k", &first, &version],
        &["config", "diff", "k", &first, &version, "--json"],
        &["config", "history", "k"],
        &["lock", "list"],
        &["lock", "list", "--json"],
    ] {
        let text = shop.ok(args).await;
        let harmful = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!text.contains(harmful), "{args:?}: {text:?}");
    }
    let (_, told) = shop.fails(&["lock", "job", "--try", "--", "true"]).await;
    assert!(told.contains("held by") && !told.contains('\u{9b}'), "{told:?}");
    let value: Value = shop.json(&["config", "get", "k"]).await;
    assert_eq!(value["value"]["a"], "\u{85}", "the value is the same");
    assert_eq!(
        shop.ok(&["config", "get", "k"]).await,
        "{\"a\": \"\u{85}\"}\n",
        "as it is stored, for scripts"
    );
}

#[tokio::test]
async fn history_with_a_time_after_the_year_9999_is_shown() {
    let shop = Shop::open().await;
    shop.ok(&["config", "set", "k", "1", "-m", "soon"]).await;
    let all = shop.server.etcdctl(&["get", "--prefix", "/shop", "--keys-only"]).await.expect("etcd answers");
    let index = all.lines().find(|key| key.ends_with("index")).expect("is beside the value").to_owned();
    let text = shop.server.etcdctl(&["get", &index, "--print-value-only"]).await.expect("etcd answers");
    let mut records: Value = serde_json::from_str(&text).expect("is JSON");
    records[0]["at_ms"] = json!(u64::MAX);
    put(&shop, &index, &records.to_string()).await;
    let output = shop.run(&["config", "history", "k"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("soon"));
    assert_eq!(shop.json(&["config", "history", "k"]).await[0]["at"], Value::Null);
}
