//! The records that this client has registered. Each service has a single watch, which tells which of its
//! records someone else has deleted or overwritten, however many there are. Users who watch the service share
//! that watch.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use async_trait::async_trait;
use coord_api::{
    Error, Hold, Result, ServiceName,
    backend::{Place, Release, Views},
};
use tokio::{sync::watch, task::AbortHandle};

use super::owned::OwnedRecords;
use crate::{
    registry::release::{KeyRelease, OwnedKey},
    request::{Kept, Rpc, timer},
    session::Sessions,
    store::Range,
    watch::{Delivery, Hub, Subscription},
};

/// The records of one client by service.
#[derive(Debug)]
pub(crate) struct Records {
    rpc: Arc<Rpc>,
    pub(super) sessions: Arc<Sessions>,
    pub(super) hub: Arc<Hub>,
    pub(super) views: Views,
    by_service: Mutex<BTreeMap<ServiceName, Service>>,
}

impl Deref for Records {
    type Target = Rpc;

    fn deref(&self) -> &Rpc {
        &self.rpc
    }
}

/// The records of one service, with the task that guards them: both go with the last record.
#[derive(Debug)]
struct Service {
    known: OwnedRecords,
    is_guarded: watch::Receiver<bool>,
    guard: AbortHandle,
}

impl Drop for Service {
    fn drop(&mut self) {
        self.guard.abort();
    }
}

impl Records {
    pub(crate) fn new(rpc: &Arc<Rpc>, sessions: &Arc<Sessions>, hub: &Arc<Hub>) -> Arc<Self> {
        Arc::new(Self {
            rpc: rpc.clone(),
            sessions: sessions.clone(),
            hub: hub.clone(),
            views: Views::default(),
            by_service: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ServiceName, Service>> {
        self.by_service.lock().expect("nothing panics while this is locked")
    }

    /// Changes the known records of a service; forgets the service with its last record.
    fn update<T>(&self, service: &ServiceName, change: impl FnOnce(&mut OwnedRecords) -> T) -> Option<T> {
        let mut services = self.lock();
        let Entry::Occupied(mut found) = services.entry(service.clone()) else { return None };
        let changed = change(&mut found.get_mut().known);
        if found.get().known.is_empty() {
            found.remove();
        }
        Some(changed)
    }

    /// Returns the revision of a record that is held.
    pub(crate) fn revision(&self, service: &ServiceName, key: &str) -> Option<i64> {
        self.lock().get(service)?.known.revision(key)
    }

    /// Forgets which changes were seen: they were of a history of the store that is over.
    pub(crate) fn forget_revisions(&self) {
        for service in self.lock().values_mut() {
            service.known.forget_revisions();
        }
    }

    /// Returns whether someone relies on a record, or is just writing it.
    pub(crate) fn is_wanted(&self, key: &str) -> bool {
        self.lock().values().any(|service| service.known.is_wanted(key))
    }
}

/// A record whose write has begun. Dropping it says that the write failed.
#[derive(Debug)]
pub(crate) struct Writing {
    records: Arc<Records>,
    service: ServiceName,
    key: String,
    is_done: bool,
}

impl Writing {
    /// Takes note that the record was written. It is held until its lease is lost or someone else changes it,
    /// and then deleted.
    pub(crate) fn done(mut self, own: OwnedKey, kept: &Kept<Records>) -> Place {
        let (hold, revision) = (Hold::on(own.session.lease.clone()), own.written);
        self.is_done = true;
        self.records.update(&self.service, |known| known.wrote(&self.key, revision, hold.clone()));
        let listed = Listed {
            records: self.records.clone(),
            service: self.service.clone(),
            key: self.key.clone(),
            hold: hold.clone(),
        };
        Place::new(hold, RecordRelease { key: KeyRelease::new(kept, own), _listed: listed })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if !self.is_done {
            self.records.update(&self.service, |known| known.gave_up(&self.key));
        }
    }
}

/// A record that someone relies on.
struct Listed {
    records: Arc<Records>,
    service: ServiceName,
    key: String,
    hold: Hold,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.records.update(&self.service, |known| known.released(&self.key, &self.hold));
    }
}

/// Gives back one record.
struct RecordRelease {
    key: KeyRelease,
    _listed: Listed,
}

impl fmt::Debug for RecordRelease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.key.fmt(f)
    }
}

#[async_trait]
impl Release for RecordRelease {
    async fn release(&self) -> Result<()> {
        self.key.release().await
    }

    fn release_in_background(&self) {
        self.key.release_in_background();
    }
}

impl Records {
    /// Begins to write a record, when every later change of it will be seen.
    pub(crate) async fn begin_record(self: &Arc<Self>, service: &ServiceName, key: &str) -> Result<Writing> {
        let (writing, mut is_guarded) = {
            let mut services = self.lock();
            let known = services.entry(service.clone()).or_insert_with(|| {
                let (guarding, is_guarded) = watch::channel(false);
                let guard = self.background.spawn(guard(self.clone(), service.clone(), guarding));
                Service { known: OwnedRecords::default(), is_guarded, guard: guard.abort_handle() }
            });
            known.known.begin(key);
            let (service, key) = (service.clone(), key.to_owned());
            let writing = Writing { records: self.clone(), service, key, is_done: false };
            (writing, known.is_guarded.clone())
        };
        let after = self.request_timeout;
        match timer::timeout(after, is_guarded.wait_for(|is_guarded| *is_guarded)).await {
            Ok(Ok(_)) => Ok(writing),
            Ok(Err(_)) => Err(Error::Closed),
            Err(_elapsed) => Err(Error::Timeout { operation: "watch", after }),
        }
    }
}

/// Tells the holders of a service's records when their records are changed, until there are none or the
/// client is closed.
async fn guard(records: Arc<Records>, service: ServiceName, is_guarded: watch::Sender<bool>) {
    tokio::select! {
        () = records.closed() => {}
        () = async {
            // A write from before the watch began is not in the watch.
            let mut look = false;
            loop {
                watch_once(&records, &service, &is_guarded, look).await;
                look = true;
                timer::sleep(Duration::from_millis(fastrand::u64(20..200))).await;
            }
        } => {}
    }
}

/// Watches until changes may have been missed.
async fn watch_once(records: &Records, service: &ServiceName, is_guarded: &watch::Sender<bool>, look: bool) {
    let range = Range::Prefix(records.keys.instances(service).into());
    let mut changes = records.hub.subscribe(range.clone());
    match changes.next().await {
        Some(Delivery::Started { .. }) => {}
        Some(Delivery::Refused(error)) => {
            tracing::warn!(%service, %error, "registrations are not guarded against deletion, trying again");
            // The record is written all the same; whether it may be, is another permission.
            is_guarded.send_replace(true);
            return timer::sleep(Duration::from_secs(1)).await;
        }
        _ => return,
    }
    if look {
        let expected = records.update(service, OwnedRecords::expected).unwrap_or_default();
        match records.read("register", &range).await {
            Ok((now, found)) => {
                let found: HashMap<_, _> =
                    found.iter().filter_map(|kv| Some((kv.key_str().ok()?, kv.mod_revision))).collect();
                records.update(service, |known| {
                    for (key, revision) in &expected {
                        known.looked(key, *revision, found.get(key.as_str()).copied(), now);
                    }
                });
            }
            Err(failure) => {
                tracing::debug!(%service, error = %failure.error, "registrations not checked, trying again");
                return;
            }
        }
    }
    is_guarded.send_replace(true);
    follow(records, service, &mut changes).await;
}

async fn follow(records: &Records, service: &ServiceName, changes: &mut Subscription) {
    while let Some(delivery) = changes.next().await {
        match delivery {
            Delivery::Started { .. } => {}
            Delivery::Changes(changes) => drop(records.update(service, |known| {
                for change in &*changes {
                    known.seen(&change.key, change.revision);
                }
            })),
            Delivery::Refused(error) => {
                tracing::warn!(%service, %error, "registrations are not guarded against deletion, trying again");
                return;
            }
        }
    }
}
