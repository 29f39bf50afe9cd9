//! A command at a terminal: Ctrl-C, Ctrl-Z, `fg`, prompts and pipes, and its end.

use std::{path::Path, process::Stdio, time::Duration};

use coord_api::Provider;
use coord_tests::signal;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStdin, ChildStdout},
    time::{sleep, timeout},
};

use crate::tools::{LIMIT, Shop, heeding_signals, lives};

/// A shell with job control in front of a terminal of its own, as a person has it.
struct Terminal {
    process: Child,
    keys: ChildStdin,
    screen: ChildStdout,
    /// Text that was shown and not looked for yet.
    shown: String,
}

impl Terminal {
    async fn open(shop: &Shop, folder: &Path) -> Self {
        let program = Path::new(env!("CARGO_BIN_EXE_coord")).parent().expect("is in a folder");
        let path = format!("{}:{}", program.display(), std::env::var("PATH").expect("is set"));
        let mut process = heeding_signals("script")
            .args(["-qec", "sh -i", "/dev/null"])
            .env("COORD_URL", shop.url())
            .env("SHELL", "/bin/sh")
            .env("PS1", "prompt> ")
            .env_remove("ENV")
            .env("PATH", path)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("`script` is there: it is in Debian's package bsdutils, elsewhere in util-linux");
        let keys = process.stdin.take().expect("is piped");
        let screen = process.stdout.take().expect("is piped");
        let mut terminal = Self { process, keys, screen, shown: String::new() };
        terminal.until("prompt> ").await;
        terminal
    }

    async fn type_(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).await.expect("is read");
    }

    /// Waits until a text is on the screen, and returns what was before it.
    async fn until(&mut self, text: &str) -> String {
        let appears = async {
            loop {
                if let Some((before, after)) = self.shown.split_once(text) {
                    let (before, after) = (before.to_owned(), after.to_owned());
                    self.shown = after;
                    return before;
                }
                let mut bytes = [0; 4096];
                let read = self.screen.read(&mut bytes).await.expect("can be read");
                assert!(read > 0, "{text:?} is shown; there is {:?}", self.shown);
                self.shown += &String::from_utf8_lossy(&bytes[..read]);
            }
        };
        let shown = timeout(LIMIT, appears).await;
        shown.unwrap_or_else(|_elapsed| panic!("{text:?} is shown in time; there is {:?}", self.shown))
    }

    async fn close(mut self) {
        self.type_("exit\n").await;
        timeout(LIMIT, self.process.wait()).await.expect("in time").expect("ends");
    }
}

/// Work that goes on for ever and starts no program: a shell waits for one that was stopped while it was being started, and
/// then no signal stops the shell.
const WORK: &str = "mkfifo pipe; echo pid=$$=; while :; do read line < pipe; done";

fn state(pid: &str) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit(") ").next()?.chars().next()
}

/// Waits until a process stands still. One that waits for a disk does so a moment after its signal.
async fn until_stopped(pid: &str) {
    let stopped = async {
        while state(pid) != Some('T') {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, stopped).await.unwrap_or_else(|_| panic!("{pid} is not stopped: {:?}", state(pid)));
}

/// Waits until a process that stood still goes on: the shell has given it the terminal by then.
async fn until_continued(pid: &str) {
    let continued = async {
        while state(pid) == Some('T') {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(LIMIT, continued).await.unwrap_or_else(|_| panic!("{pid} is still stopped"));
}

async fn coord_pid(shop: &Shop) -> String {
    let holder = shop.client().await.lock().holders("job").await.expect("etcd answers").remove(0);
    holder.owner.expect("says who it is").pid.to_string()
}

async fn revoke_all(shop: &Shop) {
    let leases = shop.server.etcdctl(&["lease", "list"]).await.expect("etcd answers");
    for lease in leases.lines().skip(1) {
        shop.server.etcdctl(&["lease", "revoke", lease.trim()]).await.expect("is revoked");
    }
}

#[tokio::test]
async fn ctrl_z_stops_coord_with_the_command_and_fg_continues_both() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    std::fs::write(folder.path().join("job.sh"), "echo pid=$$=; read line; echo got-$line")
        .expect("is written");
    let mut terminal = Terminal::open(&shop, folder.path()).await;
    terminal.type_("coord lock job --ttl 1h -- sh job.sh\n").await;
    terminal.until("pid=").await;
    let command = terminal.until("=").await;
    let coord = coord_pid(&shop).await;
    terminal.type_("\u{1a}").await;
    terminal.until("prompt> ").await;
    until_stopped(&command).await;
    until_stopped(&coord).await;
    terminal.type_("fg\n").await;
    terminal.until("coord lock job").await;
    terminal.type_("hello\n").await;
    terminal.until("got-hello").await;
    terminal.until("prompt> ").await;
    terminal.close().await;
}

/// Also where stdin is no terminal.
#[tokio::test]
async fn ctrl_z_stops_coord_with_a_command_that_reads_a_pipe() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    std::fs::write(folder.path().join("job.sh"), WORK).expect("is written");
    let mut terminal = Terminal::open(&shop, folder.path()).await;
    terminal.type_("true | coord lock job --ttl 1h -- sh job.sh; echo code=$?=\n").await;
    terminal.until("pid=").await;
    let command = terminal.until("=").await;
    let coord = coord_pid(&shop).await;
    terminal.type_("\u{1a}").await;
    terminal.until("prompt> ").await;
    until_stopped(&command).await;
    until_stopped(&coord).await;
    terminal.type_("fg\n").await;
    terminal.until("coord lock job").await;
    until_continued(&command).await;
    terminal.type_("\u{3}").await;
    terminal.until("prompt> ").await;
    assert!(!lives(&command) && !lives(&coord));
    terminal.close().await;
}

#[tokio::test]
async fn lock_that_was_lost_behind_ctrl_z_stops_the_command_after_fg() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    let mut terminal = Terminal::open(&shop, folder.path()).await;
    let worker = start_family(&mut terminal, folder.path()).await;
    terminal.type_("\u{1a}").await;
    terminal.until("prompt> ").await;
    revoke_all(&shop).await;
    let next = shop.client().await.lock().acquire("job", LIMIT).await.expect("it is free");
    until_stopped(&worker).await;
    terminal.type_("fg\n").await;
    terminal.until("was lost").await;
    terminal.until("prompt> ").await;
    assert!(!lives(&worker));
    next.unlock().await.expect("is held");
    terminal.close().await;
}

/// A command that ignores Ctrl-Z works on, and so its lock is renewed on.
#[tokio::test]
async fn command_that_ignores_ctrl_z_keeps_its_coord() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    let script = "trap '' TSTP; echo ready; read line; echo got-$line";
    std::fs::write(folder.path().join("job.sh"), script).expect("is written");
    let mut terminal = Terminal::open(&shop, folder.path()).await;
    terminal.type_("coord lock job -- sh job.sh\n").await;
    terminal.until("ready").await;
    let coord = coord_pid(&shop).await;
    terminal.type_("\u{1a}").await;
    terminal.type_("hello\n").await;
    terminal.until("got-hello").await;
    assert_ne!(state(&coord), Some('T'));
    terminal.until("prompt> ").await;
    terminal.close().await;
}

#[tokio::test]
async fn prompt_at_the_terminal_is_answered_while_stdin_is_a_pipe() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    let script = "read a; echo asked-$a; read b </dev/tty; echo typed-$b";
    std::fs::write(folder.path().join("job.sh"), script).expect("is written");
    let mut terminal = Terminal::open(&shop, folder.path()).await;
    terminal.type_("echo piped | coord lock job -- sh job.sh | cat\n").await;
    terminal.until("asked-piped").await;
    terminal.type_("hello\n").await;
    terminal.until("typed-hello").await;
    terminal.until("prompt> ").await;
    terminal.close().await;
}

#[tokio::test]
async fn signal_to_coord_alone_is_passed_on_at_a_terminal() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    let script = "for s in INT QUIT; do trap \"echo had-$s\" $s; done; trap 'exit 5' TERM; echo ready\n\
                  while :; do sleep 0.05; done";
    std::fs::write(folder.path().join("job.sh"), script).expect("is written");
    let mut terminal = Terminal::open(&shop, folder.path()).await;
    terminal.type_("coord lock job -- sh job.sh; echo code=$?=\n").await;
    terminal.until("ready").await;
    let coord = coord_pid(&shop).await;
    for name in ["INT", "QUIT"] {
        signal(&coord, name).await;
        terminal.until(&format!("had-{name}")).await;
    }
    signal(&coord, "TERM").await;
    terminal.until("code=5=").await;
    terminal.until("prompt> ").await;
    terminal.close().await;
}

/// Starts a family whose youngest is deaf to signals that ask for an end, and returns its id.
async fn start_family(terminal: &mut Terminal, folder: &Path) -> String {
    let worker = format!("trap '' TERM INT HUP; {WORK}");
    std::fs::write(folder.join("worker.sh"), worker).expect("is written");
    std::fs::write(folder.join("job.sh"), "sh -c 'sh worker.sh & wait' & wait").expect("is written");
    terminal.type_("coord lock job --ttl 3s --grace 500ms -- sh job.sh; echo code=$?=\n").await;
    terminal.until("pid=").await;
    terminal.until("=").await
}

#[tokio::test]
async fn loss_at_a_terminal_stops_three_generations() {
    let shop = Shop::open().await;
    let folder = tempfile::tempdir().expect("can be made");
    let mut terminal = Terminal::open(&shop, folder.path()).await;
    let worker = start_family(&mut terminal, folder.path()).await;
    revoke_all(&shop).await;
    terminal.until("was lost").await;
    terminal.until("code=76=").await;
    assert!(!lives(&worker));
    terminal.close().await;
}

#[tokio::test]
async fn ctrl_c_and_sigterm_at_a_terminal_leave_no_process_behind() {
    let shop = Shop::open().await;
    for ctrl_c in [true, false] {
        let folder = tempfile::tempdir().expect("can be made");
        let mut terminal = Terminal::open(&shop, folder.path()).await;
        let worker = start_family(&mut terminal, folder.path()).await;
        if ctrl_c {
            terminal.type_("\u{3}").await;
            terminal.until("code=130=").await;
        } else {
            signal(coord_pid(&shop).await, "TERM").await;
            terminal.until("code=143=").await;
        }
        assert!(!lives(&worker));
        terminal.until("prompt> ").await;
        terminal.close().await;
    }
}
