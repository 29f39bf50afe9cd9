//! etcd is put back to a snapshot while clients live, for less than their times to live: an operator's everyday repair.
//!
//! What was believed of the history that is gone ends soon after a client hears again, whether the revision of the store
//! is then below its own, the same, or above.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coord_api::{
    ConfigEvent, ConfigExt, DistributedLock, Error, IdOptions, LockGuard, Provider, RegistrationStatus,
    ServiceInfo,
};
use coord_config::{Live, LiveExt};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::{EtcdServer, Proxy, Snapshot};
use tokio::time::{sleep, timeout};

/// Longer than any outage here.
const TTL: Duration = Duration::from_secs(30);

/// How soon a client knows of the other history after it can hear of it, on a machine that is busy.
const SOON: Duration = Duration::from_secs(6);

/// Where the new history is when a client hears of it first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Revision {
    Below,
    Same,
    Above,
}

const REVISIONS: [Revision; 3] = [Revision::Below, Revision::Same, Revision::Above];

/// How many rounds of each case by hand, as in `COORD_TEST_RESTORES=20`.
fn rounds_by_hand() -> Option<usize> {
    std::env::var("COORD_TEST_RESTORES").ok().and_then(|rounds| rounds.parse().ok())
}

/// How long a restore takes; by hand also as long as an operator may need.
fn outage() -> Duration {
    let longest = if rounds_by_hand().is_some() { 10_000 } else { 2_000 };
    Duration::from_millis(fastrand::u64(500..longest))
}

/// An etcd and a way to it that can be cut.
struct Store {
    server: EtcdServer,
    way: Proxy,
}

impl Store {
    async fn start() -> Self {
        let server = EtcdServer::start_process().await.expect("starts");
        let address = server.endpoint().trim_start_matches("http://").to_owned();
        let way = Proxy::start(address).await.expect("a port is free");
        let store = Self { server, way };
        // Young histories have few revisions: what is below is to be far below.
        for n in 0..5 {
            store.put("/other/x", n).await;
        }
        store
    }

    async fn put(&self, key: &str, value: usize) {
        self.server.etcdctl(&["put", key, &value.to_string()]).await.expect("is written");
    }

    /// The client whose history ends.
    async fn client(&self) -> Arc<dyn Provider> {
        connect(&format!("http://{}", self.way.address())).await
    }

    /// A client that knows the new history alone.
    async fn rival(&self) -> Arc<dyn Provider> {
        connect(self.server.endpoint()).await
    }

    async fn revision(&self) -> usize {
        let found = self.server.etcdctl(&["get", "/other/x", "-w", "json"]).await.expect("answers");
        let revision = found.split("\"revision\":").nth(1).and_then(|rest| rest.split(',').next());
        revision.and_then(|number| number.parse().ok()).expect("is in the header")
    }

    /// Puts etcd back, and lets the client hear of it when the new history has got so far.
    async fn restore(&mut self, snapshot: &Snapshot, revision: Revision, args: &[&str]) {
        self.restore_and(snapshot, revision, args, async |_: &Arc<dyn Provider>| {}).await;
    }

    /// The same; `meanwhile` somebody works with the new history, whom the client has not heard.
    async fn restore_and<T>(
        &mut self,
        snapshot: &Snapshot,
        revision: Revision,
        args: &[&str],
        meanwhile: impl AsyncFnOnce(&Arc<dyn Provider>) -> T,
    ) -> (Arc<dyn Provider>, T) {
        let known = self.revision().await;
        self.way.refuse();
        self.server.kill9().await.expect("is killed");
        sleep(outage()).await;
        self.server.restore_killed(snapshot, args).await.expect("is restored");
        let rival = self.rival().await;
        let done = meanwhile(&rival).await;
        if revision != Revision::Below {
            let past = if revision == Revision::Above { 7 } else { 0 };
            let mut n = 0;
            while self.revision().await < known + past {
                n += 1;
                self.put("/other/x", 1000 + n).await;
            }
        }
        self.way.restore();
        (rival, done)
    }
}

async fn connect(endpoint: &str) -> Arc<dyn Provider> {
    let config = EtcdConfig::new([endpoint])
        .namespace("shop")
        .instance_id_ttl(TTL)
        .request_timeout(Duration::from_secs(2));
    Arc::new(Client::connect(config).await.expect("etcd answers"))
}

/// Tries until it is done or the time is over.
async fn soon<T>(what: &str, mut call: impl AsyncFnMut() -> Option<T>) -> T {
    let tries = async {
        loop {
            if let Some(done) = call().await {
                return done;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, tries).await.unwrap_or_else(|_| panic!("{what}: not within {SOON:?}"))
}

async fn acquire(lock: &Arc<dyn DistributedLock>, name: &str) -> LockGuard {
    lock.acquire(name, TTL).await.expect("is free")
}

fn instance(id: &str) -> ServiceInfo {
    ServiceInfo::new("im-logic", id, "10.0.0.1", 80)
}

async fn each(case: impl AsyncFn(Revision)) {
    for _ in 0..rounds_by_hand().unwrap_or(1) {
        for revision in REVISIONS {
            case(revision).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_taken_after_the_snapshot_is_lost_to_its_holder() {
    each(async |revision| {
        let mut store = Store::start().await;
        let client = store.client().await;
        // Its lease is in the snapshot, so renewals alone tell nothing.
        let before = acquire(&client.lock(), "before").await;
        let snapshot = store.server.snapshot().await.expect("is saved");
        let guard = acquire(&client.lock(), "job").await;
        let (_rival, other) = store
            .restore_and(&snapshot, revision, &[], async |rival| acquire(&rival.lock(), "job").await)
            .await;
        soon(&format!("{revision:?}: the loss"), async || guard.is_lost().then_some(())).await;
        assert!(before.is_lost(), "all that was held before is");
        assert!(!other.is_lost());
        let refused = client.config().set_if_held(&guard, "x", &1).await;
        assert!(matches!(refused, Err(Error::Lost { .. })), "{refused:?}");
        // Nothing of the old history stands in the way of the next.
        other.unlock().await.expect("is held");
        drop(
            soon("the next holder", async || client.lock().try_acquire("job", TTL).await.ok().flatten())
                .await,
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_given_back_after_the_snapshot_is_free_again() {
    each(async |revision| {
        let mut store = Store::start().await;
        let client = store.client().await;
        let guard = acquire(&client.lock(), "job").await;
        let snapshot = store.server.snapshot().await.expect("is saved");
        guard.unlock().await.expect("is held");
        let (rival, ()) = store.restore_and(&snapshot, revision, &[], async |_| {}).await;
        let _next = soon(&format!("{revision:?}: the lock"), async || {
            rival.lock().try_acquire("job", TTL).await.expect("etcd answers")
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn id_taken_after_the_snapshot_is_lost_to_its_holder() {
    each(async |revision| {
        let mut store = Store::start().await;
        let client = store.client().await;
        let options = || IdOptions::new("im-logic", 2).quarantine(Duration::ZERO);
        let _before = acquire(&client.lock(), "before").await;
        let snapshot = store.server.snapshot().await.expect("is saved");
        let ids = client.instance_ids().allocator(options()).expect("is valid");
        let id = ids.acquire_id().await.expect("is free");
        let (rival, others) = store
            .restore_and(&snapshot, revision, &[], async |rival| {
                let others = rival.instance_ids().allocator(options()).expect("is valid");
                assert_eq!(others.acquire_id().await.expect("is free"), id);
                others
            })
            .await;
        soon(&format!("{revision:?}: the loss"), async || ids.id().is_none().then_some(())).await;
        sleep(Duration::from_millis(500)).await;
        assert_eq!(others.id(), Some(id), "the end of the first hold is none of the second");
        let holders = rival.instance_ids().holders("im-logic").await.expect("etcd answers");
        assert_eq!(holders.len(), 1, "{holders:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn registration_under_update_survives_a_restored_store() {
    each(async |revision| {
        let mut store = Store::start().await;
        let client = store.client().await;
        let registry = client.registry();
        let registration = registry.register(instance("1"), TTL).await.expect("registers");
        let late = registry;
        let snapshot = store.server.snapshot().await.expect("is saved");
        let after = late.register(instance("2"), TTL).await.expect("registers");
        for n in 0..6 {
            registration.update(metadata(n)).await.expect("is updated");
        }
        let updating = async {
            for n in 6..200 {
                let _ = timeout(Duration::from_millis(500), registration.update(metadata(n))).await;
                sleep(Duration::from_millis(20)).await;
                if registration.is_lost() {
                    break;
                }
            }
        };
        let restoring = async {
            store.restore(&snapshot, revision, &[]).await;
            sleep(Duration::from_secs(1)).await;
        };
        tokio::select! {
            () = updating => panic!("{revision:?}: {:?}", registration.status()),
            () = restoring => {}
        }
        registration.update(metadata(999)).await.expect("is registered");
        let rival = store.rival().await;
        soon(&format!("{revision:?}: the registrations"), async || {
            let found = rival.registry().discover("im-logic").await.expect("etcd answers");
            let is_latest = |found: &ServiceInfo| found.id == "2" || found.metadata == metadata(999);
            (found.len() == 2 && found.iter().all(is_latest)).then_some(())
        })
        .await;
        assert_eq!(registration.status(), RegistrationStatus::Registered);
        assert_eq!(after.status(), RegistrationStatus::Registered);
    })
    .await;
}

fn metadata(n: usize) -> BTreeMap<String, String> {
    BTreeMap::from([("n".to_owned(), n.to_string())])
}

#[tokio::test(flavor = "multi_thread")]
async fn view_watch_and_live_value_follow_a_restored_store() {
    each(async |revision| {
        let mut store = Store::start().await;
        let client = store.client().await;
        let writer = store.rival().await;
        writer.config().set("limits", &1).await.expect("is written");
        writer.config().set("gone", &1).await.expect("is written");
        let stays = writer.registry().register(instance("1"), TTL).await.expect("registers");
        let snapshot = store.server.snapshot().await.expect("is saved");
        let view = client.registry().view("im-logic").await.expect("etcd answers");
        let live: Live<u32> = client.config().live("limits").start().await.expect("is there");
        let mut watch = client.config().watch::<u32>("limits").await.expect("is watched");
        // Changes that are not in the snapshot: one that is heard of, and one that is part of what is read first.
        writer.config().delete("gone").await.expect("is there");
        let mut idle = client.config().watch::<u32>("gone").await.expect("is watched");
        assert_eq!(value(idle.next().await), None);
        let added = writer.registry().register(instance("2"), TTL).await.expect("registers");
        writer.config().set("limits", &2).await.expect("is written");
        soon("the change", async || {
            (*live.current() == 2 && view.look(|found| found.len() == 2)).then_some(())
        })
        .await;
        drop((stays, added));
        writer.close().await.expect("closes");
        soon("the end", async || view.look(|found| found.is_empty()).then_some(())).await;
        let (rival, third) = store
            .restore_and(&snapshot, revision, &[], async |rival| {
                rival.registry().register(instance("3"), TTL).await.expect("registers")
            })
            .await;
        soon(&format!("{revision:?}: the view"), async || {
            // The first is there again until its lease is over.
            ["1", "3"].iter().all(|id| view.look(|found| found.get(id).is_some())).then_some(())
        })
        .await;
        soon(&format!("{revision:?}: the live value"), async || (*live.current() == 1).then_some(())).await;
        for (watch, name) in [(&mut watch, "watch"), (&mut idle, "idle watch")] {
            let watching = async { while value(watch.next().await) != Some(1) {} };
            timeout(SOON, watching).await.unwrap_or_else(|_| panic!("{revision:?}: the {name}"));
        }
        rival.config().set("limits", &9).await.expect("is written");
        soon("what comes then", async || (*live.current() == 9).then_some(())).await;
        drop(third);
    })
    .await;
}

/// The value that an item of a watch of one key tells.
fn value(item: Option<coord_api::Result<ConfigEvent<u32>>>) -> Option<u32> {
    match item.expect("never ends").expect("is readable") {
        ConfigEvent::Set(setting) => Some(setting.value),
        ConfigEvent::Snapshot { settings, .. } => settings.first().map(|setting| setting.value),
        _ => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn store_restored_under_another_cluster_id_is_noticed_in_any_form() {
    let ways: [&[&str]; 3] = [
        &["--initial-cluster-token", "other"],
        &["--bump-revision", "1000000", "--mark-compacted"],
        &["--initial-cluster-token", "other", "--bump-revision", "1000000", "--mark-compacted"],
    ];
    for args in ways {
        let mut store = Store::start().await;
        let client = store.client().await;
        let given_back = acquire(&client.lock(), "given-back").await;
        client.config().set("limits", &1).await.expect("is written");
        let snapshot = store.server.snapshot().await.expect("is saved");
        let guard = acquire(&client.lock(), "job").await;
        given_back.unlock().await.expect("is held");
        client.config().set("limits", &2).await.expect("is written");
        let live: Live<u32> = client.config().live("limits").start().await.expect("is there");
        let (rival, other) = store
            .restore_and(&snapshot, Revision::Below, args, async |rival| acquire(&rival.lock(), "job").await)
            .await;
        soon(&format!("{args:?}: the loss"), async || guard.is_lost().then_some(())).await;
        soon(&format!("{args:?}: the live value"), async || (*live.current() == 1).then_some(())).await;
        let _next = soon(&format!("{args:?}: the lock"), async || {
            rival.lock().try_acquire("given-back", TTL).await.expect("etcd answers")
        })
        .await;
        drop(other);
    }
}

async fn of_another_cluster() -> EtcdServer {
    EtcdServer::start_with(&["--initial-cluster-token", "other"]).await.expect("starts")
}

/// The error of a client whose endpoints are of two clusters.
fn names(error: &Error, endpoints: [&str; 2]) -> bool {
    let Error::InvalidArgument { field: "endpoints", reason } = error else { return false };
    endpoints.iter().all(|endpoint| reason.contains(endpoint.trim_start_matches("http://")))
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoints_of_two_clusters_are_refused_by_name_at_connect() {
    let (one, other) = (EtcdServer::start().await.expect("starts"), of_another_cluster().await);
    let endpoints = [one.endpoint(), other.endpoint()];
    let refused = Client::connect(EtcdConfig::new(endpoints)).await.expect_err("are two clusters");
    assert!(names(&refused, endpoints), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn endpoint_of_another_cluster_is_refused_by_name_while_it_is_there() {
    let (one, other) = (EtcdServer::start().await.expect("starts"), of_another_cluster().await);
    let way = Proxy::start(other.endpoint().trim_start_matches("http://").to_owned()).await.expect("starts");
    way.refuse();
    let endpoints = [one.endpoint(), way.address()];
    let client = Client::connect(EtcdConfig::new(endpoints)).await.expect("one cluster answers");
    let guard = acquire(&client.lock(), "job").await;
    way.restore();
    soon("the refusal", async || {
        let error = client.config().get::<u32>("limits").await.err()?;
        names(&error, endpoints).then_some(())
    })
    .await;
    assert!(guard.is_lost(), "which of the two knows it, nobody can tell");
    way.refuse();
    soon("the other endpoint", async || client.config().get::<u32>("limits").await.ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_made_anew_to_the_same_history_costs_no_hold() {
    let mut store = Store::start().await;
    let client = store.client().await;
    let guard = acquire(&client.lock(), "job").await;
    let ids = client.instance_ids().allocator(IdOptions::new("im-logic", 9)).expect("is valid");
    let id = ids.acquire_id().await.expect("is free");
    let registration = client.registry().register(instance("1"), TTL).await.expect("registers");
    let live: Live<usize> = {
        client.config().set("limits", &0).await.expect("is written");
        client.config().live("limits").start().await.expect("is there")
    };
    for round in 1..7 {
        let other = acquire(&client.lock(), "other").await;
        other.unlock().await.expect("is held");
        if round % 2 == 0 {
            // What this client wrote can be read no more as of then, only as of now.
            let revision = store.revision().await.to_string();
            store.server.etcdctl(&["compaction", &revision]).await.expect("is compacted");
        }
        if round % 3 == 0 {
            store.server.restart().await.expect("comes back");
        } else {
            store.way.reset();
        }
        soon("a write", async || client.config().set("limits", &round).await.ok()).await;
        soon("the live value", async || (*live.current() == round).then_some(())).await;
        assert!(!guard.is_lost(), "round {round}");
        assert_eq!(ids.id(), Some(id), "round {round}");
        assert_eq!(registration.status(), RegistrationStatus::Registered, "round {round}");
        client.config().set_if_held(&guard, "x", &round).await.expect("is held");
    }
    guard.unlock().await.expect("is held");
}
