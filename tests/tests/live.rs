//! Live config values beside an etcd that is killed, and beside etcdctl.

use std::{sync::Arc, time::Duration};

use coord_api::{ConfigCenter, ConfigEvent, ConfigExt, Error, Provider};
use coord_config::{Live, LiveExt, Origin, RejectionCause};
use coord_etcd::{Client, Connect, EtcdConfig, PlaintextPassword};
use coord_tests::EtcdServer;
use tokio::time::{Instant, sleep, timeout};

const LONG: Duration = Duration::from_secs(60);

async fn client(server: &EtcdServer) -> Client {
    Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers")
}

async fn until(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !check().await {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{what} did not come true within {LONG:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_updates_are_a_thousand_though_etcd_is_killed() {
    let mut server = EtcdServer::start().await.expect("starts");
    let mut writers = Vec::new();
    for _ in 0..10 {
        let config = client(&server).await.config();
        writers.push(tokio::spawn(async move {
            let mut done = 0;
            while done < 100 {
                match config.update("counter", |old: Option<u32>| old.unwrap_or(0) + 1).await {
                    Ok(_) => done += 1,
                    // Nothing was written then.
                    Err(Error::Unavailable { .. }) => sleep(Duration::from_millis(20)).await,
                    Err(error) => panic!("{error:?}"),
                }
            }
        }));
    }
    let config = client(&server).await.config();
    for at in [100, 400] {
        until("some updates are made", async || {
            config.get::<u32>("counter").await.is_ok_and(|found| found.is_some_and(|now| now.value >= at))
        })
        .await;
        server.restart().await.expect("comes back");
    }
    for writer in writers {
        timeout(LONG, writer).await.expect("in time").expect("does not panic");
    }
    until("etcd answers", async || config.get::<u32>("counter").await.is_ok()).await;
    assert_eq!(config.get::<u32>("counter").await.expect("is read").expect("exists").value, 1000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_starts_while_etcd_is_down() {
    let mut server = EtcdServer::start().await.expect("starts");
    let folder = std::env::temp_dir().join(format!("coord-live-{:016x}", fastrand::u64(..)));
    std::fs::create_dir(&folder).expect("can be made");
    let file = folder.join("limits.json");
    let config = client(&server).await.config();
    config.set("limits", &1).await.expect("is written");
    let live = config.live::<u32>("limits").snapshot_file(&file).start().await.expect("exists");
    until("the file is written", async || file.exists()).await;
    drop((live, config));

    server.kill9().await.expect("is killed");
    let lazy = EtcdConfig::new([server.endpoint()]).connect(Connect::Lazily);
    let config = Client::connect(lazy).await.expect("needs no etcd").config();
    let start = || config.live::<u32>("limits").start_within(Duration::from_millis(500));
    let live = start().snapshot_file(&file).start().await.expect("has a file");
    assert!(matches!(live.origin(), Origin::File(_)), "{live:?}");
    assert_eq!(*live.current(), 1);
    assert!(!live.state().freshness.is_fresh());
    let by_default = start().default(9).default_while_away().start().await.expect("has a default");
    assert_eq!(*by_default.current(), 9);
    let neither = start().start().await;
    assert!(matches!(neither, Err(Error::Timeout { .. } | Error::Unavailable { .. })), "{neither:?}");

    server.restart().await.expect("comes back");
    for live in [&live, &by_default] {
        until("it is fresh", async || live.state().is_good()).await;
        assert_eq!(*live.current(), 1);
        assert!(matches!(live.origin(), Origin::Store(_)), "{live:?}");
    }
    drop((live, by_default));
    // What they were still writing may come in between.
    until("the folder is removed", async || std::fs::remove_dir_all(&folder).is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_with_a_password_starts_while_etcd_is_down() {
    let mut server = EtcdServer::start().await.expect("starts");
    let config = client(&server).await.config();
    config.set("limits", &1).await.expect("is written");
    drop(config);
    for command in [
        "user add root:rootpw",
        "user grant-role root root",
        "role add coord-shop",
        "role grant-permission coord-shop --prefix=true readwrite /coord/",
        "user add shop:s3cret",
        "user grant-role shop coord-shop",
        "auth enable",
    ] {
        server.etcdctl(&command.split(' ').collect::<Vec<_>>()).await.expect("etcdctl works");
    }
    server.kill9().await.expect("is killed");

    let lazily = async |password: &str| {
        let config = EtcdConfig::new([server.endpoint()])
            .connect(Connect::Lazily)
            .user("shop", password)
            .plaintext_password(PlaintextPassword::Allowed);
        Client::connect(config).await.expect("needs no etcd").config()
    };
    let (config, wrong) = (lazily("s3cret").await, lazily("wr0ng").await);
    let start = |config: &Arc<dyn ConfigCenter>| {
        config.live::<u32>("limits").start_within(Duration::from_millis(300)).default(9).default_while_away()
    };
    let (live, never) = (start(&config).start().await.expect("a default"), start(&wrong).start().await);
    let never = never.expect("a default");
    assert_eq!((*live.current(), *never.current()), (9, 9));

    server.restart().await.expect("comes back");
    until("it is fresh", async || live.state().is_good()).await;
    assert_eq!(*live.current(), 1);
    until("it can write", async || config.set("limits", &2).await.is_ok()).await;
    until("the write arrives", async || *live.current() == 2).await;

    until("the wrong password is told", async || {
        matches!(wrong.set("limits", &3).await, Err(Error::Unauthenticated { .. }))
    })
    .await;
    let told = wrong.live::<u32>("limits").start().await.expect_err("is told");
    assert!(matches!(told, Error::Unauthenticated { .. }), "{told:?}");
    assert!(!format!("{told} {told:?}").contains("wr0ng"), "{told:?}");
    assert!(!never.state().freshness.is_fresh());
    assert_eq!(*never.current(), 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_of_etcdctl_is_told_and_the_next_good_write_taken() {
    let server = EtcdServer::start().await.expect("starts");
    let config = client(&server).await.config();
    config.set("pool", &vec![1_u8, 2]).await.expect("is written");
    let live = config.live::<Vec<u8>>("pool").start().await.expect("exists");
    server.etcdctl(&["put", "/coord/config/pool", r#"[1, "s3cret"]"#]).await.expect("etcdctl works");
    until("it is refused", async || live.counters().rejections == 1).await;
    let rejection = live.state().rejection.expect("is told");
    assert_eq!(rejection.cause, RejectionCause::Decode { path: "[1]".into() });
    assert_eq!(*live.current(), [1, 2]);
    server.etcdctl(&["put", "/coord/config/pool", "[3]"]).await.expect("etcdctl works");
    until("it is taken", async || *live.current() == [3]).await;
    assert!(live.state().is_good());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_watch_keeps_a_bounded_number_of_changes() {
    let server = EtcdServer::start().await.expect("starts");
    let (config, writer) = (client(&server).await.config(), client(&server).await.config());
    let mut stalled = config.watch::<u32>("limits").await.expect("is answered");
    let mut quick = config.watch::<u32>("limits").await.expect("is answered");
    for number in 1..=300 {
        writer.set("limits", &number).await.expect("is written");
        // They share one watch: what the quick one has, the stalled one was given.
        let told = async {
            while !matches!(quick.next().await, Some(Ok(ConfigEvent::Set(now))) if now.value == number) {}
        };
        timeout(LONG, told).await.expect("is told");
    }
    let (mut kept, mut snapshots) = (0, 0);
    let drained = async {
        loop {
            match stalled.next().await.expect("does not end").expect("is good") {
                ConfigEvent::Set(_) => kept += 1,
                ConfigEvent::Snapshot { settings, .. } => {
                    snapshots += 1;
                    if settings.first().is_some_and(|now| now.value == 300) {
                        return;
                    }
                }
                other => panic!("{other:?}"),
            }
        }
    };
    timeout(LONG, drained).await.expect("the last value comes");
    assert!(kept <= 128 && snapshots == 2, "{kept} changes and {snapshots} snapshots");
}

/// The time from a write until all of them have the new value.
async fn propagation(config: &Arc<dyn ConfigCenter>, live: &mut [Live<u32>], value: u32) -> Duration {
    let began = Instant::now();
    config.set("limits", &value).await.expect("is written");
    let all = live.iter_mut().map(|live| async move {
        while *live.current() != value {
            live.changed().await.expect("is open");
        }
    });
    timeout(LONG, futures::future::join_all(all)).await.expect("all are told");
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_live_values_of_one_key_are_one_watch_on_the_server() {
    let server = EtcdServer::start().await.expect("starts");
    let (config, writer) = (client(&server).await.config(), client(&server).await.config());
    writer.set("limits", &0).await.expect("is written");
    let mut all = Vec::new();
    for _ in 0..100 {
        all.push(config.live::<u32>("limits").start().await.expect("exists"));
    }
    assert_eq!(server.metric("etcd_debugging_mvcc_watcher_total", "").await.expect("etcd answers"), 1);
    let (mut one, mut hundred) = (Duration::ZERO, Duration::ZERO);
    for round in 0..20 {
        one += propagation(&writer, &mut all[..1], 2 * round + 1).await;
        hundred += propagation(&writer, &mut all, 2 * round + 2).await;
    }
    println!("to one of them {:?}, to all {:?}, writes included", one / 20, hundred / 20);
    drop(all);
    until("the watch is gone", async || {
        server.metric("etcd_debugging_mvcc_watcher_total", "").await.is_ok_and(|count| count == 0)
    })
    .await;
}
