//! Workload: those who follow the config and the instances, some of them slowly.
//!
//! A follower goes on after the others have stopped, until all followers have seen what the store has then.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use coord_api::{ConfigEvent, ConfigExt, Error, Provider, ServiceEvent, ServiceView, Watch};
use tokio::time::timeout;

use crate::{
    config,
    history::{Covers, Item, Name, Seen, Value, What},
    lock, registry,
    worker::{Outcome, Worker},
};

/// What one follower knows.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Known {
    /// Nothing yet.
    Nothing,
    /// The values that its watch covers, with their versions.
    Values(Covers, BTreeMap<Name, (Value, u64)>),
    /// The instances with the counts in their records.
    Instances(BTreeMap<Name, u64>),
}

/// What each follower of a run knows now.
#[derive(Debug, Default)]
pub(crate) struct Followers(Mutex<BTreeMap<u64, Known>>);

impl Followers {
    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, Known>> {
        self.0.lock().expect("nothing panics while this is locked")
    }

    /// Whether all of them know these values and instances.
    pub(crate) fn agree(&self, values: &[(Name, Value, u64)], instances: &[(Name, u64)]) -> bool {
        self.known().values().all(|known| match known {
            Known::Nothing => false,
            Known::Values(scope, known) => {
                let covered = values.iter().filter(|(key, ..)| scope.covers(key));
                covered.map(|(key, value, at)| (key, (*value, *at))).eq(known.iter().map(|(k, v)| (k, *v)))
            }
            Known::Instances(known) => instances.iter().map(|(id, n)| (id, n)).eq(known.iter()),
        })
    }
}

/// Follows one scope after the other, until the task is aborted.
pub(crate) async fn config(mut worker: Worker) {
    loop {
        worker.pause().await;
        let Some(client) = worker.client() else { return };
        let scope = match worker.random.u8(..4) {
            0 => Covers::Key(config::name("torture/config/a")),
            1 => Covers::Below(config::name(config::PAIRS)),
            2 => Covers::Below(config::name("torture")),
            _ => Covers::Below(config::name(config::PREFIX)),
        };
        let watcher = worker.fresh();
        worker.add(What::AsksToWatch { watcher });
        if let Some(watch) = open(&mut worker, &*client, &scope).await {
            worker.add(What::Watches { watcher, scope: scope.clone() });
            worker.world.followers.known().insert(watcher, Known::Nothing);
            follow(&mut worker, watcher, watch, scope).await;
            stop(&worker, watcher);
        }
    }
}

async fn open(
    worker: &mut Worker,
    client: &dyn Provider,
    scope: &Covers,
) -> Option<Watch<ConfigEvent<Value>>> {
    let config = client.config();
    let opened = match scope {
        Covers::Key(key) => worker.call("watch", config.watch(key)).await,
        Covers::Below(prefix) => worker.call("watch_prefix", config.watch_prefix(prefix)).await,
        Covers::Instances => return None,
    };
    match opened {
        Outcome::Answer(watch) => Some(watch),
        Outcome::Failed(_) | Outcome::Dropped => None,
    }
}

async fn follow(worker: &mut Worker, watcher: u64, mut watch: Watch<ConfigEvent<Value>>, scope: Covers) {
    let mut known = None::<BTreeMap<Name, (Value, u64)>>;
    while let Some(event) = next_event(worker, &mut watch).await {
        let item = match event {
            ConfigEvent::Snapshot { version, settings } => {
                let values =
                    settings.iter().map(|one| (config::name(&one.key), one.value, one.version.get()));
                let values: Vec<_> = values.collect();
                known = Some(values.iter().map(|(key, value, at)| (key.clone(), (*value, *at))).collect());
                Item::Snapshot(version.get(), values)
            }
            ConfigEvent::Set(one) => {
                let (key, version) = (config::name(&one.key), one.version.get());
                known.get_or_insert_default().insert(key.clone(), (one.value, version));
                Item::Set(key, one.value, version)
            }
            ConfigEvent::Deleted { key, version } => {
                let key = config::name(&key);
                known.get_or_insert_default().remove(&key);
                Item::Deleted(key, version.get())
            }
            other => {
                worker.add(What::Unexpected(format!("an event that nobody knows: {other:?}")));
                continue;
            }
        };
        worker.add(What::Told { watcher, item });
        let known = Known::Values(scope.clone(), known.clone().unwrap_or_default());
        worker.world.followers.known().insert(watcher, known);
    }
}

/// The next event of a watch; nothing when the follower has had enough, or its client is closed.
async fn next_event<E>(worker: &mut Worker, watch: &mut Watch<E>) -> Option<E> {
    loop {
        match next(worker, watch.next()).await? {
            Some(Ok(event)) => return Some(event),
            Some(Err(Error::Closed)) => return None,
            // Somebody else's value, or nobody may look now.
            Some(Err(_)) => {}
            None => {
                worker.add(What::Unexpected("a watch ended without a word".into()));
                return None;
            }
        }
    }
}

/// The next item, now and then late; nothing when the follower has had enough.
async fn next<T>(worker: &mut Worker, next: impl Future<Output = T>) -> Option<T> {
    if worker.is_over() {
        return Some(next.await);
    }
    if worker.one_in(8) {
        worker.pause().await;
    }
    // Long enough for the end of the run to be noticed, also by one who hears nothing.
    let mut next = std::pin::pin!(next);
    loop {
        if let Ok(item) = timeout(Duration::from_secs(1), &mut next).await {
            return Some(item);
        }
        if !worker.is_over() && worker.one_in(16) {
            return None;
        }
    }
}

/// Follows the instances by watches and views, until the task is aborted.
pub(crate) async fn registry(mut worker: Worker) {
    loop {
        worker.pause().await;
        let Some(client) = worker.client() else { return };
        let registry = client.registry();
        let watcher = worker.fresh();
        worker.add(What::AsksToWatch { watcher });
        if worker.random.bool() {
            let opened = worker.call("watch", registry.watch(registry::SERVICE)).await;
            let Outcome::Answer(watch) = opened else { continue };
            start(&worker, watcher);
            follow_events(&mut worker, watcher, watch).await;
        } else {
            let opened = worker.call("view", registry.view(registry::SERVICE)).await;
            let Outcome::Answer(view) = opened else { continue };
            start(&worker, watcher);
            follow_view(&mut worker, watcher, view).await;
        }
        stop(&worker, watcher);
    }
}

/// A follower of the instances begins.
fn start(worker: &Worker, watcher: u64) {
    worker.world.followers.known().insert(watcher, Known::Nothing);
    worker.add(What::Watches { watcher, scope: Covers::Instances });
}

fn stop(worker: &Worker, watcher: u64) {
    worker.world.followers.known().remove(&watcher);
    worker.add(What::Unwatches { watcher });
}

async fn follow_events(worker: &mut Worker, watcher: u64, mut watch: Watch<ServiceEvent>) {
    let mut known = BTreeMap::new();
    while let Some(event) = next_event(worker, &mut watch).await {
        let item = match &event {
            ServiceEvent::Snapshot { instances, .. } => {
                Seen::All(instances.iter().map(registry::counted).collect())
            }
            ServiceEvent::Added(info) => {
                let (id, n) = registry::counted(info);
                Seen::Added(id, n)
            }
            ServiceEvent::Updated { old, new } => {
                let ((_, old), (id, new)) = (registry::counted(old), registry::counted(new));
                Seen::Updated(id, old, new)
            }
            ServiceEvent::Removed(info) => {
                let (id, n) = registry::counted(info);
                Seen::Removed(id, n)
            }
            other => {
                worker.add(What::Unexpected(format!("an event that nobody knows: {other:?}")));
                continue;
            }
        };
        match &item {
            Seen::All(all) => known = all.iter().cloned().collect(),
            Seen::Added(id, n) | Seen::Updated(id, _, n) => drop(known.insert(id.clone(), *n)),
            Seen::Removed(id, _) => drop(known.remove(id)),
        }
        worker.add(What::Sees { watcher, item });
        worker.world.followers.known().insert(watcher, Known::Instances(known.clone()));
    }
}

async fn follow_view(worker: &mut Worker, watcher: u64, mut view: ServiceView) {
    let mut first = true;
    loop {
        let instances = if std::mem::take(&mut first) {
            view.instances()
        } else {
            match next(worker, async { view.changed().await }).await {
                Some(Ok(instances)) => instances,
                Some(Err(_)) | None => return,
            }
        };
        let all = registry::all(&instances);
        worker.add(What::Sees { watcher, item: Seen::All(all.clone()) });
        worker.world.followers.known().insert(watcher, Known::Instances(all.into_iter().collect()));
    }
}

/// Every key that a workload writes.
pub(crate) fn keys() -> Vec<String> {
    let counters = lock::names().iter().map(|name| lock::counter(name));
    config::keys().map(str::to_owned).chain(config::pair_keys().map(str::to_owned)).chain(counters).collect()
}
