//! Who gets a lock, and what `coord` ends with.

use std::{process::Stdio, time::Duration};

use coord_api::{Error, Provider};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

use crate::tools::{LIMIT, Running, Shop, output, stderr, stdout};

/// Prints its token and stays until its stdin is closed, or for as long as any test takes.
const STAY: &str = "echo $COORD_LOCK_NAME $COORD_LOCK_TOKEN; sleep 60";

#[tokio::test]
async fn a_lock_may_be_called_as_a_command_is() {
    let shop = Shop::open().await;
    for name in ["list", "hold", "help"] {
        let output = shop.run(&["lock", "hold", name, "--", "sh", "-c", "echo $COORD_LOCK_NAME"]).await;
        assert_eq!(
            (output.status.code(), stdout(&output)),
            (Some(0), format!("{name}\n")),
            "{}",
            stderr(&output)
        );
    }
}

#[tokio::test]
async fn the_exit_code_of_the_command_is_passed_on_and_nothing_is_added_to_its_output() {
    let shop = Shop::open().await;
    let script = "echo $COORD_LOCK_NAME; echo oops >&2; exit 7";
    let output = shop.run(&["lock", "nightly/report", "--", "sh", "-c", script]).await;
    assert_eq!(output.status.code(), Some(7));
    assert_eq!((stdout(&output), stderr(&output)), ("nightly/report\n".into(), "oops\n".into()));

    let (code, text) =
        shop.fails(&["lock", "job", "-v", "--", "sh", "-c", "exit $(( COORD_LOCK_TOKEN > 1 ))"]).await;
    assert_eq!(code, 1, "the token is a number that grows");
    assert!(text.contains("holding lock `job` with token") && text.contains("TTL of 10 s"), "{text}");
    assert!(text.contains("gave lock `job` back"), "{text}");

    let killed = shop.run(&["lock", "job", "--", "sh", "-c", "kill -9 $$"]).await;
    assert_eq!(killed.status.code(), Some(128 + 9));
    assert_eq!(shop.fails(&["lock", "job", "--", "/nonexistent/program"]).await.0, 127);
    assert_eq!(shop.fails(&["lock", "job", "--", "/etc/passwd"]).await.0, 126);
    assert_eq!(shop.fails(&["lock", "job"]).await.0, 2, "without a command");
    assert_eq!(shop.fails(&["lock", "a//b", "--", "true"]).await.0, 2, "a bad name");
    assert_eq!(shop.fails(&["lock", "job", "--ttl", "1ms", "--", "true"]).await.0, 2, "a bad TTL");
    assert_eq!(shop.json(&["lock", "list"]).await, Value::Array(vec![]), "all were given back");
}

#[tokio::test]
async fn traces_are_printed_on_stderr_if_asked_for() {
    let shop = Shop::open().await;
    let quiet = shop.run(&["lock", "job", "--", "echo", "hello"]).await;
    assert_eq!((stdout(&quiet), stderr(&quiet)), ("hello\n".into(), String::new()));

    let steps = shop.run(&["-v", "lock", "job", "--", "echo", "hello"]).await;
    let text = stderr(&steps);
    assert_eq!((steps.status.code(), stdout(&steps)), (Some(0), "hello\n".into()));
    for step in [
        "lock acquired lock=job",
        "acquire:",
        "name=job",
        "lease granted",
        "txn:",
        "operation=\"lock\"",
        "lease revoked",
        "holding lock `job` with token",
    ] {
        assert!(text.contains(step), "{step}: {text}");
    }
    assert!(!text.contains(" h2::") && !text.contains('\u{1b}'), "{text}");

    let all = shop.run(&["-vv", "lock", "job", "--", "echo", "hello"]).await;
    assert_eq!(stdout(&all), "hello\n");
    assert!(stderr(&all).contains(" h2::"), "{}", stderr(&all));

    let mut filtered = shop.coord(&["lock", "job", "--", "echo", "hello"]);
    let chosen = output(filtered.env("RUST_LOG", "coord_kv::lock=debug")).await;
    let lines = stderr(&chosen);
    assert_eq!((stdout(&chosen), lines.lines().count()), ("hello\n".into(), 1), "{lines}");
    assert!(lines.contains("lock acquired"), "{lines}");

    // For programs each line is JSON, this one as well.
    let json = shop.run(&["-v", "--json", "lock", "job", "--", "true"]).await;
    let lines: Vec<Value> =
        stderr(&json).lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    let acquired = |line: &Value| line["text"].as_str().is_some_and(|text| text.contains("lock acquired"));
    assert!(lines.iter().any(|line| line["event"] == "traced" && acquired(line)), "{lines:?}");
    assert!(lines.iter().any(|line| line["event"] == "acquired"), "{lines:?}");
}

#[tokio::test]
async fn two_who_want_one_lock_follow_each_other() {
    let shop = Shop::open().await;
    let mut first = Running::start(&mut shop.coord(&["lock", "job", "--", "sh", "-c", STAY]));
    let token: u64 =
        first.line().await.strip_prefix("job ").expect("has the name").parse().expect("a number");

    let (code, text) = shop.fails(&["lock", "job", "--try", "--", "echo", "ran"]).await;
    assert_eq!(code, 75);
    assert!(text.contains("`job` is held by sh ") && text.contains("CMD was not run"), "{text}");
    let started = tokio::time::Instant::now();
    assert_eq!(shop.fails(&["lock", "job", "--wait", "500ms", "--", "echo", "ran"]).await.0, 75);
    assert!(started.elapsed() >= Duration::from_millis(500));
    let output = shop.run(&["lock", "job", "--try", "--json", "--", "true"]).await;
    let note: Value = serde_json::from_str(&stderr(&output)).expect("is JSON");
    assert_eq!((&note["event"], &note["holder"]["token"]), (&"not_acquired".into(), &token.into()));

    let mut second = Running::start(&mut shop.coord(&["lock", "job", "--", "sh", "-c", STAY]));
    shop.queue_becomes("job", 2).await;
    let queues = shop.json(&["lock", "list"]).await;
    assert_eq!(queues[0]["lock"], "job");
    let (holder, waiting) = (&queues[0]["holder"], &queues[0]["waiting"][0]);
    assert_eq!((&holder["token"], &holder["owner"]["pid"]), (&token.into(), &first.pid().into()));
    assert_eq!((&holder["owner"]["label"], &waiting["owner"]["pid"]), (&"sh".into(), &second.pid().into()));
    assert_eq!(shop.json(&["lock", "list", "job"]).await, queues);
    let table = shop.ok(&["lock", "list"]).await;
    assert!(table.contains("holds") && table.contains("waits 1"), "{table}");

    first.signal("TERM").await;
    let next: u64 =
        second.line().await.strip_prefix("job ").expect("has the name").parse().expect("a number");
    assert!(next > token);
    assert_eq!(first.code().await, Some(128 + 15));
    second.signal("TERM").await;
    assert_eq!(second.code().await, Some(128 + 15));
    shop.queue_becomes("job", 0).await;
}

#[tokio::test]
async fn who_waits_and_gives_up_is_out_of_the_queue() {
    let shop = Shop::open().await;
    let guard = shop.client().await.lock().acquire("job", LIMIT).await.expect("is free");
    let waiting = Running::start(&mut shop.coord(&["lock", "job", "--", "echo", "ran"]));
    shop.queue_becomes("job", 2).await;
    waiting.signal("INT").await;
    assert_eq!(waiting.code().await, Some(128 + 2));
    let held = shop.client().await.lock().holders("job").await.expect("etcd answers");
    assert_eq!(held.len(), 1, "gone when the command has ended, not some time later");
    guard.unlock().await.expect("is held");
}

/// `etcdctl lock`, which prints its key once it holds the lock.
#[tokio::test]
async fn etcdctl_and_coord_exclude_each_other() {
    let shop = Shop::open().await;
    let mut coord = Running::start(&mut shop.coord(&["lock", "job", "--", "sh", "-c", STAY]));
    coord.line().await;
    let mut etcdctl = shop.server.etcdctl_process(&["lock", "/shop/locks/job"]).expect("the server runs");
    let mut etcdctl = etcdctl.stdout(Stdio::piped()).spawn().expect("COORD_TEST_ETCDCTL is an etcdctl");
    let mut lines = BufReader::new(etcdctl.stdout.take().expect("is piped")).lines();
    shop.queue_becomes("job", 2).await;
    assert_eq!(shop.json(&["lock", "list"]).await[0]["waiting"][0]["owner"], Value::Null);
    assert!(timeout(Duration::from_millis(300), lines.next_line()).await.is_err(), "coord holds it");

    coord.signal("TERM").await;
    let key =
        timeout(LIMIT, lines.next_line()).await.expect("in time").expect("is text").expect("prints its key");
    let (code, text) = shop.fails(&["lock", "job", "--try", "--", "echo", "ran"]).await;
    assert_eq!(code, 75);
    assert!(text.contains(&format!("another program ({key})")), "{text}");

    let mut behind = Running::start(&mut shop.coord(&["lock", "job", "--", "sh", "-c", STAY]));
    shop.queue_becomes("job", 2).await;
    let lease = key.rsplit('/').next().expect("has segments");
    shop.server.etcdctl(&["lease", "revoke", lease]).await.expect("is revoked");
    assert!(behind.line().await.starts_with("job "));
    etcdctl.kill().await.expect("has ended or ends");
}

#[tokio::test]
async fn the_layout_of_the_go_original_is_looked_at_as_well() {
    let shop = Shop::open().await;
    shop.server.etcdctl(&["put", "/locks/job/1f", ""]).await.expect("is written");
    let go = ["--layout", "go-original"];
    let queues = shop.json(&[&["lock", "list"], &go[..]].concat()).await;
    assert_eq!((&queues[0]["lock"], &queues[0]["holder"]["key"]), (&"job".into(), &"/locks/job/1f".into()));
    let held = shop.run(&[&["lock", "job", "--try"], &go[..], &["--", "true"]].concat()).await;
    assert_eq!(held.status.code(), Some(75), "{}", stderr(&held));
    assert_eq!(shop.json(&["lock", "list"]).await, Value::Array(vec![]), "not that of the namespace");
}

#[tokio::test]
async fn a_failure_is_told_in_one_line_with_what_to_do_next() {
    let shop = Shop::open().await;
    let away = ["--url", "etcd://127.0.0.1:9/shop", "--timeout", "2s", "lock", "list"];
    let (code, text) = shop.fails(&away).await;
    assert_eq!(code, 69);
    assert!(text.contains("etcd is unavailable") && text.contains("--url and COORD_URL"), "{text}");
    let output = shop.run(&[&away[..], &["--json"]].concat()).await;
    let error: Value = serde_json::from_str(&stderr(&output)).expect("is JSON");
    assert_eq!((&error["kind"], &error["exit_code"]), (&"unavailable".into(), &69.into()));
    let (code, text) = shop.fails(&["--url", "etcd://root:s3cret@127.0.0.1:9", "lock", "list"]).await;
    assert_eq!(code, 2);
    assert!(!text.contains("s3cret"), "{text}");
    let _: Error =
        shop.client().await.lock().acquire("", LIMIT).await.expect_err("is the library's own check");
}

/// Time that is over is no answer: whether others hold it is for etcd to say.
#[tokio::test]
async fn wait_that_ends_in_an_outage_is_no_word_of_etcd() {
    let mut shop = Shop::open().await;
    let hold = |args: &'static [&'static str]| Running::start(&mut shop.coord(args));
    let mut lock = hold(&["lock", "job", "--ttl", "1h", "--", "sh", "-c", STAY]);
    let mut id =
        hold(&["id", "acquire", "gw", "--max", "2", "--ttl", "1h", "--", "sh", "-c", "echo ready; sleep 60"]);
    lock.line().await;
    id.line().await;
    let waiting = |args: &'static [&'static str]| {
        Running::start(
            shop.coord(&["--timeout", "1s"]).args(args).args(["--wait", "4s", "--", "echo", "ran"]),
        )
    };
    let lock_waits = waiting(&["lock", "job"]);
    let id_waits = waiting(&["id", "acquire", "gw", "--max", "2"]);
    shop.queue_becomes("job", 2).await;
    shop.server.kill9().await.expect("is killed");
    assert_eq!(lock_waits.code().await, Some(69));
    assert_eq!(id_waits.code().await, Some(69));
}

#[tokio::test]
async fn no_time_to_wait_is_an_attempt() {
    let shop = Shop::open().await;
    for what in [&["lock", "job"][..], &["id", "acquire", "gw", "--max", "9"]] {
        let free = shop.run(&[what, &["--wait", "0s", "--", "echo", "ran"]].concat()).await;
        assert_eq!((free.status.code(), stdout(&free).as_str()), (Some(0), "ran\n"), "{}", stderr(&free));
    }
    let _guard = shop.client().await.lock().acquire("job", LIMIT).await.expect("is free");
    assert_eq!(shop.fails(&["lock", "job", "--wait", "0s", "--", "echo", "ran"]).await.0, 75);
}

/// Only a place in the queue is lost, and nothing that was held: 76 is for a command that was stopped.
#[tokio::test]
async fn waiting_command_whose_place_is_lost_stands_in_the_queue_anew() {
    let shop = Shop::open().await;
    let locks = shop.client().await.lock();
    let guard = locks.acquire("job", LIMIT).await.expect("is free");
    let mut waiting = Running::start(&mut shop.coord(&["lock", "job", "--", "echo", "ran"]));
    shop.queue_becomes("job", 2).await;
    let place = locks.holders("job").await.expect("etcd answers").remove(1).key;
    let lease = place.rsplit('/').next().and_then(|last| last.split('-').next()).expect("names its lease");
    shop.server.etcdctl(&["lease", "revoke", lease]).await.expect("is revoked");
    let stands_again = async {
        loop {
            let queue = locks.holders("job").await.expect("etcd answers");
            if queue.len() == 2 && queue[1].key != place {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, stands_again).await.expect("in time");
    guard.unlock().await.expect("is held");
    assert_eq!(waiting.line().await, "ran");
    assert_eq!(waiting.code().await, Some(0));
}
