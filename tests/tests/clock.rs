//! A client whose wall clock is moved while it holds things.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coord_api::Provider;
use coord_etcd::{Client, EtcdConfig};
use coord_tests::EtcdServer;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    time::{Instant, timeout},
};

const TTL: Duration = Duration::from_secs(3);
const HOUR: i64 = 3600;
const LIMIT: Duration = Duration::from_secs(30);

/// A process whose wall clock is this file's many seconds away from the machine's. Its monotonic clock is not touched,
/// as it is not when somebody sets the clock of a machine.
struct Keeper {
    offset: PathBuf,
    lines: Lines<BufReader<ChildStdout>>,
    _child: Child,
}

/// What it said at one moment.
#[derive(Debug)]
struct Look {
    /// How far its wall clock is from ours.
    ahead: i64,
    /// What it has: the same as long as it keeps everything.
    has: String,
}

impl Keeper {
    fn start(endpoint: &str) -> Self {
        let library =
            std::env::var("COORD_TEST_FAKETIME").ok().filter(|library| Path::new(library).is_file());
        let library = library.expect(
            "no libfaketime: run `cargo xtask test`, or set COORD_TEST_FAKETIME to its libfaketimeMT.so.1 (Debian has it \
             in the package libfaketime)",
        );
        let name = format!("coord-tests-clock-{:016x}", fastrand::u64(..));
        let offset = std::env::temp_dir().join(name);
        std::fs::write(&offset, "+0").expect("temporary files can be written");
        let mut child = Command::new(env!("CARGO_BIN_EXE_keeper"))
            .args([endpoint, &TTL.as_secs().to_string()])
            .env("LD_PRELOAD", library)
            .env("FAKETIME_TIMESTAMP_FILE", &offset)
            // It is read at each look at the clock.
            .env("FAKETIME_NO_CACHE", "1")
            .env("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            .env_remove("FAKETIME")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("is built");
        let lines = BufReader::new(child.stdout.take().expect("is piped")).lines();
        Self { offset, lines, _child: child }
    }

    fn move_to(&self, ahead: i64) {
        // Renamed, so that it is never read half written.
        let new = self.offset.with_extension("new");
        std::fs::write(&new, format!("{ahead:+}")).expect("temporary files can be written");
        std::fs::rename(&new, &self.offset).expect("temporary files can be renamed");
    }

    async fn look(&mut self) -> Look {
        let line = timeout(LIMIT, self.lines.next_line()).await.expect("in time").expect("is text");
        let line = line.expect("it goes on");
        let (wall, has) = line.split_once(' ').expect("tells its clock first");
        let ours = SystemTime::now().duration_since(UNIX_EPOCH).expect("is after 1970").as_secs();
        let ahead = wall.parse::<i64>().expect("is a number") - i64::try_from(ours).expect("is small");
        Look { ahead, has: has.to_owned() }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.offset);
    }
}

async fn leases(server: &EtcdServer) -> u64 {
    server.requests().await.expect("etcd answers").get("LeaseGrant").copied().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wall_clock_that_moves_by_an_hour_changes_nothing_for_what_is_held() {
    let server = EtcdServer::start().await.expect("starts");
    let store = Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    let mut keeper = Keeper::start(server.endpoint());
    let first = keeper.look().await;
    println!("{first:?}");
    let words: Vec<_> = first.has.split(' ').collect();
    let [token, "true", "true", id] = words[..] else { panic!("{first:?}") };
    let granted = leases(&server).await;

    // Forward, back to where it was, and further back.
    for ahead in [HOUR, 0, -HOUR] {
        keeper.move_to(ahead);
        let moved = Instant::now();
        // The machine may be slow, but not by a minute.
        while (keeper.look().await.ahead - ahead).abs() > 60 {
            assert!(moved.elapsed() < LIMIT, "libfaketime does not move the clock to {ahead}");
        }
        let (begun, mut looks) = (Instant::now(), 0);
        while begun.elapsed() < TTL * 2 + Duration::from_secs(1) {
            let look = keeper.look().await;
            assert_eq!(look.has, first.has, "{looks} looks after the clock was {ahead} s ahead");
            assert!((look.ahead - ahead).abs() <= 60, "{look:?}");
            looks += 1;
        }
        println!("{ahead} s ahead: {looks} looks in {:?}", begun.elapsed());

        let queue = store.lock().holders("job").await.expect("is read");
        assert_eq!(queue.len(), 1, "{queue:?}");
        assert_eq!(queue[0].token.to_string(), token);
        let instances = store.registry().discover("im").await.expect("is read");
        assert!(matches!(&instances[..], [one] if one.id == "keeper"), "{instances:?}");
        let ids = store.instance_ids().holders("im").await.expect("is read");
        assert!(matches!(&ids[..], [one] if one.id.to_string() == id), "{ids:?}");
    }
    assert_eq!(leases(&server).await, granted, "nothing was lost and had again");
}
