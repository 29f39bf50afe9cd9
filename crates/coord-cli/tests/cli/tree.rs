//! All that a command has started has ended before the lock goes, whatever ends it.

use std::{path::Path, process::Stdio, time::Duration};

use coord_api::Provider;
use coord_tests::signal;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

use crate::tools::{LIMIT, Running, Shop, lives, stdout};

/// Writes what is in `$TOKEN` to a file, again and again, and is deaf to signals that ask for an end.
const WRITER: &str =
    "trap '' TERM INT HUP; while :; do echo \"$COORD_LOCK_TOKEN$COORD_INSTANCE_ID\" >> log; sleep 0.02; done";

/// Three generations: a shell, another one, and the writer, which may have a session of its own.
fn write_family(folder: &Path, start_writer: &str) {
    std::fs::write(folder.join("writer.sh"), WRITER).expect("is written");
    let middle = format!("{start_writer} sh writer.sh & echo $!; wait");
    std::fs::write(folder.join("middle.sh"), middle).expect("is written");
    std::fs::write(folder.join("top.sh"), "sh middle.sh & wait").expect("is written");
    std::fs::write(folder.join("next.sh"), "echo next >> log; echo ran; sleep 0.3").expect("is written");
}

/// Waits until the writer has written: by then it is deaf.
async fn until_written(folder: &Path) {
    let written = async {
        while std::fs::read_to_string(folder.join("log")).unwrap_or_default().is_empty() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, written).await.expect("writes in time");
}

/// No line of an earlier holder stands behind the first one of the next.
fn assert_order(folder: &Path) {
    let log = std::fs::read_to_string(folder.join("log")).expect("was written");
    let (before, after) = log.split_once("next\n").expect("the next one has written");
    assert!(before.lines().count() > 0, "the first one has written");
    assert_eq!(after, "", "nothing of the first one follows");
}

/// The lines of a command's stderr.
async fn stderr_line(lines: &mut tokio::io::Lines<BufReader<tokio::process::ChildStderr>>) -> String {
    timeout(LIMIT, lines.next_line()).await.expect("in time").expect("is UTF-8").expect("has not ended")
}

async fn revoke_all(shop: &Shop) {
    let leases = shop.server.etcdctl(&["lease", "list"]).await.expect("etcd answers");
    for lease in leases.lines().skip(1) {
        shop.server.etcdctl(&["lease", "revoke", lease.trim()]).await.expect("is revoked");
    }
}

#[tokio::test]
async fn sigterm_frees_a_lock_after_three_generations_have_ended() {
    for start_writer in ["", "setsid"] {
        let shop = Shop::open().await;
        let folder = tempfile::tempdir().expect("can be made");
        write_family(folder.path(), start_writer);
        let run = |script: &'static str| {
            let mut coord = shop.coord(&["lock", "job", "--grace", "1s", "--", "sh", script]);
            coord.current_dir(folder.path());
            coord
        };
        let mut first = Running::start(&mut run("top.sh"));
        let writer = first.line().await;
        until_written(folder.path()).await;
        let mut next = Running::start(&mut run("next.sh"));
        shop.queue_becomes("job", 2).await;
        first.signal("TERM").await;
        assert_eq!(next.line().await, "ran");
        assert!(!lives(&writer), "it was killed before the lock went");
        assert_eq!(first.code().await, Some(128 + 15));
        assert_eq!(next.code().await, Some(0));
        assert_order(folder.path());
    }
}

#[tokio::test]
async fn sigterm_frees_an_id_after_three_generations_have_ended() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    write_family(folder.path(), "setsid");
    let run = |script: &'static str| {
        let args =
            ["id", "acquire", "gw", "--max", "2", "--identity", "a", "--grace", "1s", "--", "sh", script];
        let mut coord = shop.coord(&args);
        coord.current_dir(folder.path());
        coord
    };
    let mut first = Running::start(&mut run("top.sh"));
    let writer = first.line().await;
    until_written(folder.path()).await;
    let mut next = Running::start(&mut run("next.sh"));
    first.signal("TERM").await;
    assert_eq!(next.line().await, "ran");
    assert!(!lives(&writer), "it was killed before the id went");
    assert_eq!(first.code().await, Some(128 + 15));
    assert_eq!(next.code().await, Some(0));
    assert_order(folder.path());
}

#[tokio::test]
async fn service_ends_after_three_generations_have_ended() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    write_family(folder.path(), "setsid");
    let args = ["service", "register", "web", "--id", "1", "--address", "10.0.0.1:80", "--grace", "1s"];
    let rest = ["--drain", "0s", "--", "sh", "top.sh"];
    let mut coord = shop.coord(&[&args[..], &rest[..]].concat());
    let mut coord = Running::start(coord.current_dir(folder.path()));
    let writer = coord.line().await;
    until_written(folder.path()).await;
    coord.signal("TERM").await;
    assert_eq!(coord.code().await, Some(128 + 15));
    assert!(!lives(&writer));
}

#[tokio::test]
async fn loss_stops_three_generations_in_sessions_of_their_own() {
    let shop = Shop::open().await;
    for what in [&["lock", "job", "--ttl", "3s"][..], &["id", "acquire", "gw", "--max", "9", "--ttl", "3s"]] {
        let folder = tempfile::tempdir().expect("can be made");
        write_family(folder.path(), "setsid");
        let mut coord = shop.coord(&[what, &["--grace", "500ms", "--", "sh", "top.sh"]].concat());
        let mut coord = Running::start(coord.current_dir(folder.path()));
        let writer = coord.line().await;
        until_written(folder.path()).await;
        revoke_all(&shop).await;
        assert_eq!(coord.code().await, Some(76));
        assert!(!lives(&writer), "{what:?}");
    }
}

#[tokio::test]
async fn command_that_ends_leaves_no_process_behind() {
    let shop = Shop::open().await;
    let script = "setsid sleep 600 & echo $!; exit 3";
    let mut coord = shop.coord(&["lock", "job", "--grace", "1s", "--", "sh", "-c", script]);
    let output = crate::tools::output(&mut coord).await;
    assert_eq!(output.status.code(), Some(3), "that of the command");
    assert!(!lives(stdout(&output).trim()));
    assert!(crate::tools::stderr(&output).contains("left process"), "{output:?}");
    // A process that ends by itself in half of the grace is left alone, such as a `tee` that reads to the end.
    let script = "(sleep 0.2; echo late) & exit 0";
    let mut coord = shop.coord(&["lock", "job", "--grace", "20s", "--", "sh", "-c", script]);
    let output = crate::tools::output(&mut coord).await;
    assert_eq!((stdout(&output).as_str(), crate::tools::stderr(&output).as_str()), ("late\n", ""));
}

/// While it works, nobody else may have the lock: so `coord` does not stop, and renews it.
#[tokio::test]
async fn lock_is_renewed_while_a_child_ignores_ctrl_z() {
    const TTL: Duration = Duration::from_secs(3);
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    let worker = "trap '' TSTP; echo $$; while :; do sleep 0.05; done";
    std::fs::write(folder.path().join("worker.sh"), worker).expect("is written");
    std::fs::write(folder.path().join("top.sh"), "sh worker.sh & wait").expect("is written");
    let mut coord = shop.coord(&["lock", "job", "--ttl", "3s", "--", "sh", "top.sh"]);
    let mut coord = Running::start(coord.current_dir(folder.path()));
    let worker = coord.line().await;
    coord.signal("TSTP").await;
    let locks = shop.client().await.lock();
    let next = timeout(TTL * 3, locks.acquire("job", TTL)).await;
    assert!(lives(&worker) && next.is_err(), "somebody else has the lock");
    coord.signal("CONT").await;
    coord.signal("TERM").await;
    assert_eq!(coord.code().await, Some(128 + 15));
    assert!(!lives(&worker));
}

#[tokio::test]
async fn adopted_process_that_has_ended_is_no_zombie() {
    let shop = Shop::open().await;
    let script = "(setsid sh -c 'echo $$' &); exec sleep 600";
    let mut coord = Running::start(&mut shop.coord(&["lock", "job", "--", "sh", "-c", script]));
    let adopted = coord.line().await;
    let gone = async {
        while Path::new(&format!("/proc/{adopted}")).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, gone).await.expect("it was waited for");
    coord.signal("TERM").await;
    assert_eq!(coord.code().await, Some(128 + 15));
}

#[tokio::test]
async fn children_from_before_coord_are_left_alone() {
    let shop = Shop::open().await;
    let coord = env!("CARGO_BIN_EXE_coord");
    let script = format!("sleep 600 >/dev/null 2>&1 & echo $!; exec {coord} lock job --grace 1h -- echo ran");
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &script]).env("COORD_URL", shop.url()).stdin(Stdio::null());
    let output = crate::tools::output(&mut shell).await;
    let text = stdout(&output);
    let (before, ran) = text.split_once('\n').expect("two lines");
    assert_eq!((ran, output.status.code()), ("ran\n", Some(0)));
    assert!(lives(before), "it is none of CMD's");
    signal(before, "KILL").await;
}

/// It comes to `coord` when its own parent ends, while CMD runs.
#[tokio::test]
async fn grandchild_from_before_coord_is_left_alone() {
    let shop = Shop::open().await;
    let coord = env!("CARGO_BIN_EXE_coord");
    let parent = "sleep 600 >/dev/null 2>&1 & echo $!; sleep 1";
    let script = format!(
        "sh -c '{parent}' & sleep 0.3; exec {coord} lock job --grace 1s -- sh -c 'echo ready; sleep 1.5'"
    );
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", &script]).env("COORD_URL", shop.url()).stdin(Stdio::null());
    let output = crate::tools::output(&mut shell).await;
    let text = stdout(&output);
    let (before, ready) = text.split_once('\n').expect("two lines");
    assert_eq!((ready, output.status.code()), ("ready\n", Some(0)));
    assert!(lives(before), "it is none of CMD's: {}", crate::tools::stderr(&output));
    signal(before, "KILL").await;
}

#[tokio::test]
async fn loss_is_told_before_anything_is_stopped() {
    let shop = Shop::open().await;
    let script = "trap '' TERM; echo $$; while :; do sleep 0.1; done";
    let args = ["--json", "lock", "job", "--ttl", "3s", "--grace", "1h", "--", "sh", "-c", script];
    let mut coord = shop.coord(&args);
    let mut child = coord.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("is built");
    let mut out = BufReader::new(child.stdout.take().expect("is piped")).lines();
    let mut told = BufReader::new(child.stderr.take().expect("is piped")).lines();
    let pid = timeout(LIMIT, out.next_line()).await.expect("in time").expect("is UTF-8").expect("is one");
    revoke_all(&shop).await;
    let note: serde_json::Value = serde_json::from_str(&stderr_line(&mut told).await).expect("is JSON");
    assert_eq!((&note["event"], &note["lock"]), (&"lost".into(), &"job".into()));
    assert!(lives(&pid), "it has an hour to end");
    signal(&pid, "KILL").await;
    assert_eq!(timeout(LIMIT, child.wait()).await.expect("in time").expect("ends").code(), Some(76));
}

/// As where CMD runs as root, through sudo: the system refuses every signal.
#[tokio::test]
async fn command_out_of_reach_is_told_of_and_not_waited_for() {
    let shop = Shop::open().await;
    let strace = std::env::var("COORD_TEST_STRACE").unwrap_or_else(|_| "strace".into());
    let mut command = tokio::process::Command::new(strace);
    command.args(["-qq", "-o", "/dev/null", "-e", "trace=kill", "-e", "inject=kill:error=EPERM"]);
    command.arg(env!("CARGO_BIN_EXE_coord"));
    command.args(["--json", "lock", "job", "--ttl", "3s", "--grace", "500ms", "--", "sh", "-c"]);
    command.args(["echo $$; exec sleep 600"]).env("COORD_URL", shop.url()).stdin(Stdio::null());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("strace is there: `cargo xtask test` finds one, or set COORD_TEST_STRACE");
    let mut out = BufReader::new(child.stdout.take().expect("is piped")).lines();
    let mut told = BufReader::new(child.stderr.take().expect("is piped")).lines();
    let pid = timeout(LIMIT, out.next_line()).await.expect("in time").expect("is UTF-8").expect("is one");
    shop.queue_becomes("job", 1).await;
    let holder = shop.client().await.lock().holders("job").await.expect("etcd answers").remove(0);
    signal(holder.owner.expect("says who it is").pid, "TERM").await;
    assert!(stderr_line(&mut told).await.contains("not_signalled"));
    revoke_all(&shop).await;
    assert!(stderr_line(&mut told).await.contains(r#""event":"lost""#));
    let last: serde_json::Value = serde_json::from_str(&stderr_line(&mut told).await).expect("is JSON");
    assert_eq!(last["event"], "not_stopped");
    assert_eq!(last["processes"][0].to_string(), pid);
    assert_eq!(timeout(LIMIT, child.wait()).await.expect("in time").expect("ends").code(), Some(76));
}
