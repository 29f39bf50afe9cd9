//! Where the instances come from: a list of one's own, and one channel for all who ask at once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    Error, Provider, Registration, Result, ServiceEvent, ServiceInfo, ServiceRegistry, ServiceView, Watch,
};
use coord_grpc::{ConnectOptions, Connection, ConnectionExt, InstanceStatus};
use futures::channel::mpsc;
use tokio::sync::Barrier;
use tower::discover::Change;

use crate::fleet::{LONG, calls, check, fleet, plain, until};

#[tokio::test]
async fn stream_of_changes_is_balanced_over() {
    let fleet = fleet(plain::<3>()).await;
    let known = fleet.client.registry().discover("im-logic").await.expect("the store is there");
    let insert = |id: &str, place: usize| Ok(Change::Insert(id.to_owned(), known[place].clone()));
    let (changes, list) = mpsc::unbounded::<Result<_, Error>>();
    let change = |change| changes.unbounded_send(change).expect("is read");
    let options = ConnectOptions::new().connect_timeout(Duration::from_millis(200));
    let connection = Connection::balance("members", list, options).expect("is good");
    let status = check(&connection).await.expect_err("nobody is there");
    assert!(
        status.message().contains("service members") && status.message().contains("no instance"),
        "{status}"
    );

    change(insert("a", 0));
    change(insert("b", 1));
    until(|| connection.state().ready() == 2).await;
    calls(&connection, 40).await;
    let shares = fleet.shares();
    assert!(shares[0] > 0 && shares[1] > 0 && shares[2] == 0, "{shares:?}");
    assert_eq!(connection.state().stale_for, None, "there is no registry to lose");

    // `a` moves, `b` goes, and an error between them changes nothing.
    change(insert("a", 2));
    change(Err(Error::Closed));
    change(Ok(Change::Remove("b".into())));
    let state = || connection.state().instances;
    let is_moved = || state().len() == 1 && state()[0].status == InstanceStatus::Ready;
    until(is_moved).await;
    calls(&connection, 40).await;
    assert_eq!((&fleet.shares()[..2], fleet.shares()[2]), (&shares[..2], 40));

    // The end of the list is no end of its instances.
    changes.close_channel();
    calls(&connection, 40).await;
    assert_eq!(fleet.shares()[2], 80);
}

/// A registry whose watches begin only when two are asked for.
#[derive(Debug)]
struct Together {
    registry: Arc<dyn ServiceRegistry>,
    both: Barrier,
    watches: AtomicUsize,
}

#[async_trait]
impl ServiceRegistry for Together {
    async fn register(&self, service: ServiceInfo, ttl: Duration) -> Result<Registration> {
        self.registry.register(service, ttl).await
    }

    async fn discover(&self, service: &str) -> Result<Vec<ServiceInfo>> {
        self.registry.discover(service).await
    }

    async fn services(&self) -> Result<BTreeMap<String, Vec<ServiceInfo>>> {
        self.registry.services().await
    }

    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>> {
        self.watches.fetch_add(1, Relaxed);
        self.both.wait().await;
        self.registry.watch(service).await
    }

    async fn view(&self, service: &str) -> Result<ServiceView> {
        self.registry.view(service).await
    }
}

#[tokio::test]
async fn concurrent_connects_share_one_channel() {
    let fleet = fleet(plain::<1>()).await;
    let both = Barrier::new(2);
    let registry = fleet.client.registry();
    let registry = Arc::new(Together { registry, both, watches: AtomicUsize::new(0) });
    let connecting = async { tokio::join!(registry.connection("im-logic"), registry.connection("im-logic")) };
    let (one, two) = tokio::time::timeout(LONG, connecting).await.expect("both have come");
    let (one, two) = (one.expect("is registered"), two.expect("is registered"));
    assert_eq!(registry.watches.load(Relaxed), 2, "neither found the other's");
    check(&one).await.expect("is served");
    assert_eq!(two.state().instances[0].calls, 1, "counted by the same channel");
    let third = registry.connection("im-logic").await.expect("is registered");
    assert_eq!(third.state().instances[0].calls, 1);
    assert_eq!(registry.watches.load(Relaxed), 2);
}
