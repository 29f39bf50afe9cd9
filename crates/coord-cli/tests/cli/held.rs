//! What becomes of a command whose lock is lost, whose `coord` is killed, and whose terminal sends Ctrl-C.

use std::{process::Stdio, time::Duration};

use coord_api::Provider;
use coord_tests::signal;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    time::{Instant, sleep, timeout},
};

use crate::tools::{LIMIT, Running, Shop, heeding_signals, lives, until_dead};

const TTL: Duration = Duration::from_secs(3);

/// Tells the process ids of itself and of a child, then works. Traps nothing.
const WORK: &str = "sleep 600 & echo $$ $!; wait";

fn pids(line: &str) -> (String, String) {
    let (shell, sleep) = line.split_once(' ').expect("two ids");
    (shell.to_owned(), sleep.to_owned())
}

#[tokio::test]
async fn ctrl_c_ends_the_command_and_frees_the_lock_at_once() {
    let shop = Shop::open().await;
    let script = "trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done";
    let mut coord =
        Running::start(&mut shop.coord(&["lock", "job", "--ttl", "1h", "--", "sh", "-c", script]));
    assert_eq!(coord.line().await, "ready");
    coord.signal("INT").await;
    assert_eq!(coord.line().await, "interrupted");
    assert_eq!(coord.code().await, Some(3));
    // An hour before the TTL, and without a retry: it was free when coord had ended.
    let locks = shop.client().await.lock();
    assert!(locks.try_acquire("job", TTL).await.expect("etcd answers").is_some());
}

/// The command is busy, since two signals that come while it sleeps would be one to it.
#[tokio::test]
async fn each_signal_is_forwarded_once() {
    let shop = Shop::open().await;
    let script = "for s in HUP USR1 USR2 TERM QUIT; do trap \"echo $s\" $s; done; trap 'echo INT; exit 0' INT; \
                  echo ready; while :; do :; done";
    let mut coord = Running::start(&mut shop.coord(&["lock", "job", "--", "sh", "-c", script]));
    assert_eq!(coord.line().await, "ready");
    for name in ["HUP", "USR1", "USR2", "TERM", "QUIT"] {
        coord.signal(name).await;
        assert_eq!(coord.line().await, name);
    }
    coord.signal("INT").await;
    assert_eq!(coord.line().await, "INT", "and none came twice before it");
    assert_eq!(coord.code().await, Some(0));
}

#[tokio::test]
async fn a_lost_lock_stops_the_command_and_what_it_started() {
    let shop = Shop::open().await;
    let script = "trap '' TERM; sleep 600 & echo $$ $!; wait; wait; sleep 600";
    let args = ["lock", "job", "--ttl", "3s", "--grace", "500ms", "--", "sh", "-c", script];
    let mut coord = Running::start(&mut shop.coord(&args));
    let (shell, child) = pids(&coord.line().await);
    let key = shop.client().await.lock().holders("job").await.expect("etcd answers").remove(0).key;
    let lease = key.rsplit('/').next().and_then(|last| last.split('-').next()).expect("names its lease");
    shop.server.etcdctl(&["lease", "revoke", lease]).await.expect("is revoked");
    assert_eq!(coord.code().await, Some(76));
    until_dead(&shell).await;
    until_dead(&child).await;
}

#[tokio::test]
async fn a_frozen_holder_stops_its_command_when_it_wakes() {
    let shop = Shop::open().await;
    let args = ["lock", "job", "--ttl", "3s", "--", "sh", "-c", WORK];
    let mut coord = Running::start(&mut shop.coord(&args));
    let (shell, child) = pids(&coord.line().await);
    coord.signal("STOP").await;
    for pid in [&shell, &child] {
        signal(pid, "STOP").await;
    }
    let locks = shop.client().await.lock();
    let next = timeout(LIMIT, locks.acquire("job", TTL)).await.expect("in time").expect("its TTL is over");
    assert!(lives(&shell), "it sleeps");
    for pid in [&shell, &child] {
        signal(pid, "CONT").await;
    }
    coord.signal("CONT").await;
    assert_eq!(coord.code().await, Some(76));
    until_dead(&shell).await;
    until_dead(&child).await;
    next.unlock().await.expect("is held: the frozen one has not touched it");
}

#[tokio::test]
async fn who_is_cut_off_from_etcd_stops_the_command() {
    let mut shop = Shop::open().await;
    let args = ["lock", "job", "--ttl", "3s", "--timeout", "1s", "--", "sh", "-c", WORK];
    let mut coord = Running::start(&mut shop.coord(&args));
    let (shell, child) = pids(&coord.line().await);
    shop.server.kill9().await.expect("is killed");
    assert_eq!(coord.code().await, Some(76));
    until_dead(&shell).await;
    until_dead(&child).await;
}

/// In front of a terminal, the terminal itself sends Ctrl-C to the command. It is busy, since two signals that come while it
/// sleeps would be one to it.
#[tokio::test]
async fn at_a_terminal_the_command_reads_it_and_gets_ctrl_c_once() {
    let shop = Shop::open().await;
    let coord = env!("CARGO_BIN_EXE_coord");
    let folder = tempfile::tempdir().expect("can be made");
    let job = folder.path().join("job.sh");
    let script = "trap 'echo interrupted' INT; trap 'echo over; exit 5' USR1; echo ready\n\
                  read line; echo \"read $line\"; while :; do :; done\n";
    std::fs::write(&job, script).expect("is written");
    let mut terminal = heeding_signals("script");
    // Without `exec`, a shell may stay in between; Ctrl-C ends that one too, and then the exit code is not coord's.
    let line = format!("exec {coord} lock job -- sh {}", job.display());
    let url = shop.url();
    let mut terminal = terminal
        .args(["-qec", &line, "/dev/null"])
        .env("COORD_URL", &url)
        .env("SHELL", "/bin/sh")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("`script` is there: it is in Debian's package bsdutils, elsewhere in util-linux");
    let mut keys = terminal.stdin.take().expect("is piped");
    let mut lines = BufReader::new(terminal.stdout.take().expect("is piped")).lines();
    let mut line = async || {
        let line = timeout(LIMIT, lines.next_line()).await.expect("in time").expect("is UTF-8");
        line.expect("has not ended").trim_end().to_owned()
    };
    assert_eq!(line().await, "ready");
    keys.write_all(b"hello\n").await.expect("is read");
    // The terminal shows what is typed.
    assert_eq!(line().await, "hello");
    assert_eq!(line().await, "read hello");
    keys.write_all(b"\x03").await.expect("is read");
    assert_eq!(line().await, "^Cinterrupted");
    let holder = shop.client().await.lock().holders("job").await.expect("etcd answers").remove(0);
    signal(holder.owner.expect("says who it is").pid, "USR1").await;
    assert_eq!(line().await, "over", "and it was interrupted once");
    assert_eq!(timeout(LIMIT, terminal.wait()).await.expect("in time").expect("ends").code(), Some(5));
}

#[tokio::test]
async fn who_kills_coord_kills_the_command_and_the_lock_is_free_after_the_ttl() {
    let shop = Shop::open().await;
    let args = ["lock", "job", "--ttl", "3s", "--", "sh", "-c", "echo $$; exec sleep 600"];
    let mut coord = Running::start(&mut shop.coord(&args));
    let command = coord.line().await;
    let locks = shop.client().await.lock();
    let killed = Instant::now();
    coord.signal("KILL").await;
    until_dead(&command).await;
    assert!(killed.elapsed() < TTL, "it did not live as long as the lock");
    assert_eq!(coord.code().await, None);
    let guard = timeout(LIMIT, locks.acquire("job", TTL)).await.expect("in time").expect("its TTL is over");
    guard.unlock().await.expect("is held");
}

/// The parent may be dead before its child can ask the system to be told.
#[tokio::test]
async fn a_child_whose_parent_has_gone_does_not_begin() {
    let shop = Shop::open().await;
    // Process 1 is nobody's `coord`.
    let output = shop.run(&["__child", "1", "echo", "ran"]).await;
    assert_eq!((output.status.code(), output.stdout.len()), (Some(1), 0));
    let own = std::process::id().to_string();
    let output = shop.run(&["__child", &own, "echo", "ran"]).await;
    assert_eq!((output.status.code(), output.stdout), (Some(0), b"ran\n".to_vec()));
}

#[tokio::test]
async fn what_was_started_to_ignore_a_signal_goes_on_ignoring_it() {
    let shop = Shop::open().await;
    let mut nohup = shop.coord(&[]);
    let coord = env!("CARGO_BIN_EXE_coord");
    let script = format!("trap '' HUP; exec {coord} lock job -- sh -c 'echo $$; exec sleep 600'");
    let mut command = tokio::process::Command::new("sh");
    command.envs(nohup.as_std_mut().get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut coord = Running::start(command.args(["-c", &script]).stdin(Stdio::null()).kill_on_drop(true));
    let command = coord.line().await;
    coord.signal("HUP").await;
    signal(&command, "HUP").await;
    sleep(Duration::from_millis(300)).await;
    assert!(lives(&command), "as nohup wants it");
    coord.signal("TERM").await;
    assert_eq!(coord.code().await, Some(128 + 15));
}
