//! Values, their history, and files of them.

use coord_api::{ConfigExt, Provider, Scope};
use coord_config::SchemaExt;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::tools::{Running, Shop, output, stderr, stdout};

#[tokio::test]
async fn a_value_is_set_and_got_as_it_was_written() {
    let shop = Shop::open().await;
    let set = shop.json(&["config", "set", "common/mq", r#"{"brokers": ["a"],  "retries": 3}"#]).await;
    assert_eq!(set["key"], "common/mq");
    assert_eq!(shop.ok(&["config", "get", "common/mq"]).await, "{\"brokers\": [\"a\"],  \"retries\": 3}\n");
    let got = shop.json(&["config", "get", "common/mq"]).await;
    assert_eq!(
        got,
        json!({ "key": "common/mq", "version": set["version"], "value": { "brokers": ["a"], "retries": 3 } })
    );
    assert_eq!(shop.json(&["config", "list"]).await, json!([got]));
    assert_eq!(shop.json(&["config", "list", "common"]).await, json!([got]));
    assert_eq!(shop.json(&["config", "list", "other"]).await, json!([]));
    assert!(shop.ok(&["config", "list"]).await.contains(r#"{"brokers":["a"],"retries":3}"#));

    let mut piped = shop.coord(&["config", "set", "from/stdin", "-"]);
    let mut child = piped.stdin(std::process::Stdio::piped()).spawn().expect("is built");
    child.stdin.take().expect("is piped").write_all(b"[1, 2]\n").await.expect("is read");
    assert!(child.wait().await.expect("ends").success());
    assert_eq!(shop.ok(&["config", "get", "from/stdin"]).await, "[1, 2]\n");

    shop.ok(&["config", "set", "negative", "-5"]).await;
    assert_eq!(shop.ok(&["config", "get", "negative"]).await, "-5\n");

    let deleted = shop.json(&["config", "delete", "from/stdin"]).await;
    assert_eq!((&deleted["key"], &deleted["deleted"]), (&"from/stdin".into(), &true.into()));
    assert_eq!(shop.fails(&["config", "get", "from/stdin"]).await.0, 3);
    assert_eq!(shop.fails(&["config", "delete", "from/stdin"]).await.0, 3);
}

#[tokio::test]
async fn a_write_that_can_not_be_right_is_refused() {
    let shop = Shop::open().await;
    let (code, text) = shop.fails(&["config", "set", "limits", "{broken"]).await;
    assert_eq!(code, 2);
    assert!(text.contains("not JSON"), "{text}");
    shop.ok(&["config", "set", "limits", "10", "--if-version", "absent"]).await;
    let (code, text) = shop.fails(&["config", "set", "limits", "11", "--if-version", "absent"]).await;
    assert_eq!(code, 4, "{text}");
    let version = shop.json(&["config", "get", "limits"]).await["version"].to_string();
    shop.ok(&["config", "set", "limits", "11", "--if-version", &version]).await;
    assert_eq!(shop.fails(&["config", "delete", "limits", "--if-version", &version]).await.0, 4);

    let schema = json!({ "type": "integer", "maximum": 100 });
    let center = shop.client().await.config();
    center.schemas().set_json(Scope::Key("limits"), schema).await.expect("is a schema");
    let (code, text) = shop.fails(&["config", "set", "limits", "1000"]).await;
    assert_eq!(code, 2);
    assert!(text.contains("does not fit its schema"), "{text}");
    assert_eq!(shop.ok(&["config", "get", "limits"]).await, "11\n");
}

#[tokio::test]
async fn history_tells_who_when_and_why_and_leads_back() {
    let shop = Shop::open().await;
    let set = |value: &'static str, comment: &'static str| {
        let shop = &shop;
        async move { shop.json(&["config", "set", "limits", value, "-m", comment]).await["version"].to_string() }
    };
    let first = set(r#"{"max": 10}"#, "launch").await;
    let second = set(r#"{"max": 1000}"#, "more").await;
    let history = shop.json(&["config", "history", "limits"]).await;
    assert_eq!(history.as_array().map(Vec::len), Some(2));
    assert_eq!((&history[0]["author"], &history[0]["comment"]), (&"ann".into(), &"more".into()));
    assert_eq!((history[1]["version"].to_string(), &history[1]["deleted"]), (first.clone(), &false.into()));
    assert!(history[0]["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{history}");
    assert!(shop.ok(&["config", "history", "limits"]).await.contains("launch"));

    assert_eq!(shop.ok(&["config", "diff", "limits", &first]).await, "/max: 10 -> 1000\n");
    let diff = shop.json(&["config", "diff", "limits", &first, &second]).await;
    assert_eq!(diff, json!([{ "pointer": "/max", "old": 10, "new": 1000 }]));
    assert_eq!(shop.ok(&["config", "get", "limits", "--at", &first]).await, "{\"max\": 10}\n");
    shop.ok(&["config", "rollback", "limits", &first]).await;
    assert_eq!(shop.ok(&["config", "get", "limits"]).await, "{\"max\": 10}\n");
    assert_eq!(shop.fails(&["config", "rollback", "limits", "1"]).await.0, 3);
}

#[tokio::test]
async fn changes_are_watched() {
    let shop = Shop::open().await;
    let mut watch = Running::start(&mut shop.coord(&["config", "watch", "--prefix", "a", "--json"]));
    assert_eq!(watch.json().await["entries"], json!([]));
    shop.ok(&["config", "set", "ab", "1"]).await;
    shop.ok(&["config", "set", "a/b", "2"]).await;
    let set = watch.json().await;
    assert_eq!(
        (&set["event"], &set["entry"]["key"], &set["entry"]["value"]),
        (&"set".into(), &"a/b".into(), &2.into())
    );
    shop.ok(&["config", "delete", "a/b"]).await;
    let deleted = watch.json().await;
    assert_eq!((&deleted["event"], &deleted["key"]), (&"deleted".into(), &"a/b".into()));
    let mut one = Running::start(&mut shop.coord(&["config", "watch", "ab"]));
    assert!(one.line().await.starts_with("ab at version "));
}

#[tokio::test]
async fn an_edit_is_written_only_if_it_is_good_and_nobody_came_between() {
    let shop = Shop::open().await;
    let edit = |editor: &'static str, key: &'static str| {
        let mut command = shop.coord(&["config", "edit", key, "-m", "by hand"]);
        command.env("EDITOR", editor).env_remove("VISUAL");
        command
    };
    shop.ok(&["config", "set", "limits", r#"{"max":10}"#]).await;
    let edited = output(&mut edit("sed -i s/10/20/", "limits")).await;
    assert_eq!(edited.status.code(), Some(0), "{}", stderr(&edited));
    assert_eq!(shop.json(&["config", "get", "limits"]).await["value"], json!({ "max": 20 }));
    assert_eq!(shop.json(&["config", "history", "limits"]).await[0]["comment"], "by hand");
    let before = shop.json(&["config", "get", "limits"]).await;
    assert_eq!(output(&mut edit("true", "limits")).await.status.code(), Some(0));
    assert_eq!(
        shop.json(&["config", "get", "limits"]).await,
        before,
        "nothing was changed, nothing is written"
    );
    assert_eq!(output(&mut edit("false", "limits")).await.status.code(), Some(1));

    for (editor, code) in [("sed -i s/20/{/", 2), ("sh -c 'coord config set limits 7; echo 8 > $0'", 4)] {
        let path = std::path::Path::new(env!("CARGO_BIN_EXE_coord")).parent().expect("is in a folder");
        let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap_or_default());
        let refused = output(edit(editor, "limits").env("PATH", path)).await;
        let text = stderr(&refused);
        assert_eq!(refused.status.code(), Some(code), "{text}");
        let kept = text.rsplit("what you typed is in ").next().expect("names the file").trim();
        assert!(std::fs::read_to_string(kept).expect("is there").contains(['8', '{']), "{text}");
        std::fs::remove_file(kept).expect("is there");
    }
    assert_eq!(shop.ok(&["config", "get", "limits"]).await, "7\n");
    assert_eq!(output(&mut edit("sed -i s/null/1/", "fresh")).await.status.code(), Some(0));
    assert_eq!(shop.ok(&["config", "get", "fresh"]).await, "1\n");
}

#[tokio::test]
async fn what_was_exported_is_imported_again() {
    let shop = Shop::open().await;
    let values = [
        ("limits", json!({ "max": 10, "名": "日报" })),
        ("common/mq", json!([1, null])),
        ("common", json!("x")),
    ];
    let center = shop.client().await.config();
    for (key, value) in &values {
        center.set(key, value).await.expect("is written");
    }
    let folder = tempfile::tempdir().expect("can be made");
    let dir = folder.path().to_str().expect("is UTF-8");
    let exported = shop.json(&["config", "export", dir]).await;
    assert_eq!(exported.as_array().map(Vec::len), Some(3));
    assert!(folder.path().join("common/mq.json").is_file() && folder.path().join("common.json").is_file());

    let states = |imported: &Value| -> Vec<(String, String)> {
        let all = imported.as_array().expect("is a list").iter();
        all.map(|one| {
            (one["key"].as_str().expect("is text").into(), one["state"].as_str().expect("is text").into())
        })
        .collect()
    };
    let unchanged = shop.json(&["config", "import", dir]).await;
    assert!(states(&unchanged).iter().all(|(_, state)| state == "unchanged"), "{unchanged}");

    std::fs::write(folder.path().join("limits.json"), "{\"max\": 11}").expect("is written");
    center.delete("common/mq").await.expect("is deleted");
    let expected = [("common", "unchanged"), ("common/mq", "added"), ("limits", "changed")];
    let expected: Vec<_> =
        expected.iter().map(|(key, state)| ((*key).to_owned(), (*state).to_owned())).collect();
    let dry = shop.json(&["config", "import", dir, "--dry-run"]).await;
    assert_eq!(states(&dry), expected);
    assert_eq!(shop.fails(&["config", "get", "common/mq"]).await.0, 3, "only said");
    assert_eq!(states(&shop.json(&["config", "import", dir]).await), expected);
    assert_eq!(shop.json(&["config", "get", "limits"]).await["value"], json!({ "max": 11 }));
    assert_eq!(shop.ok(&["config", "get", "common/mq"]).await, "[\n  1,\n  null\n]\n");

    shop.ok(&["config", "import", dir, "--prefix", "copy"]).await;
    assert_eq!(shop.json(&["config", "list", "copy"]).await.as_array().map(Vec::len), Some(3));
    std::fs::write(folder.path().join("common.json"), "{").expect("is written");
    let (code, text) = shop.fails(&["config", "import", dir, "--prefix", "never"]).await;
    assert_eq!(code, 2);
    assert!(text.contains("common.json"), "{text}");
    assert_eq!(shop.json(&["config", "list", "never"]).await, json!([]), "all are checked first");

    shop.server.etcdctl(&["put", "/shop/config/../escape", "1"]).await.expect("is written");
    let other = tempfile::tempdir().expect("can be made");
    let inner = other.path().join("inner");
    let output = shop.run(&["config", "export", inner.to_str().expect("is UTF-8")]).await;
    assert!(output.status.success() && stdout(&output).contains("values are in"), "{}", stderr(&output));
    assert!(!other.path().join("escape.json").exists());
}
