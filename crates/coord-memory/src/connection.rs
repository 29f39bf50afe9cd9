//! A client's end of things: calls, places that it has taken, and waiting for them.

use std::{
    fmt,
    sync::{Arc, MutexGuard, OnceLock},
};

use async_trait::async_trait;
use coord_api::{
    Connectivity, Error, HEALTH_LIMIT, Health, LeaseHealth, LossReason, Lost, Owner, Result, UpdateLocks,
    backend::{Driver, Place, Release, Views, driven, sleep_until, within},
};
use tokio::{
    runtime::Handle,
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    lease::LeaseId,
    session::{ClientId, Link, Reach},
    store::{Grip, State, Store},
};

/// One client. All that its user holds shares this, and when the last of it is dropped, the client is closed.
pub(crate) struct Connection {
    store: Store,
    id: ClientId,
    owner: Arc<Owner>,
    link: watch::Receiver<Link>,
    views: Views,
    update_locks: UpdateLocks,
    /// What drives the tasks of this client.
    driver: OnceLock<Driver>,
}

impl Connection {
    pub(crate) fn open(store: Store, name: impl FnOnce(u64) -> Owner) -> Self {
        let (id, owner, link) = store.lock().open(name);
        let (views, update_locks, driver) = (Views::default(), UpdateLocks::new(), OnceLock::new());
        Self { store, id, owner, link, views, update_locks, driver }
    }

    pub(crate) fn id(&self) -> ClientId {
        self.id
    }

    pub(crate) fn owner(&self) -> &Owner {
        &self.owner
    }

    pub(crate) fn link(&self) -> watch::Receiver<Link> {
        self.link.clone()
    }

    pub(crate) fn views(&self) -> &Views {
        &self.views
    }

    pub(crate) fn update_locks(&self) -> &UpdateLocks {
        &self.update_locks
    }

    /// What users are told of the link.
    pub(crate) fn contact(&self) -> Connectivity {
        self.store.lock_now().session(self.id).contact.connectivity()
    }

    pub(crate) fn store(&self) -> &Store {
        &self.store
    }

    /// Where a task is begun that goes on whoever drives the caller's runtime, as long as this client.
    pub(crate) fn driven(&self) -> Handle {
        let (runtime, driver) = driven();
        if let Some(driver) = driver {
            self.driver.get_or_init(|| driver);
        }
        runtime
    }

    /// One call to the store, which waits while the client is stalled.
    pub(crate) async fn call(&self) -> Result<MutexGuard<'_, State>> {
        loop {
            if let Some(state) = self.call_now()? {
                return Ok(state);
            }
            self.going().await;
        }
    }

    /// One call to the store; `None` while the client is stalled.
    fn call_now(&self) -> Result<Option<MutexGuard<'_, State>>> {
        let mut state = self.store.lock_now();
        let session = state.session(self.id);
        session.start_keeper(self.store.shared(), self.id);
        Ok(session.admit()?.then_some(state))
    }

    /// Waits until the client is not stalled.
    async fn going(&self) {
        let mut link = self.link();
        loop {
            let reach = link.borrow_and_update().reach;
            let Reach::Stalled(until) = reach else {
                return;
            };
            tokio::select! {
                () = sleep_until(until) => drop(self.store.lock_now()),
                _ = link.changed() => {}
            }
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.link.borrow().closed { Err(Error::Closed) } else { Ok(()) }
    }

    pub(crate) fn lease_health(&self) -> LeaseHealth {
        self.store.lock_now().lease_health(self.id)
    }

    pub(crate) async fn health(&self) -> Result<Health> {
        let begun = Instant::now();
        let answered = within(HEALTH_LIMIT, self.call()).await;
        let answered = answered.map(|answer| answer.map(drop));
        match answered {
            Some(Ok(())) => Ok(Health::new(begun.elapsed(), self.lease_health())),
            Some(Err(error)) => Err(error),
            None => Err(Error::Timeout { operation: "health", after: HEALTH_LIMIT }),
        }
    }

    pub(crate) fn close(&self) -> Result<()> {
        self.store.lock().close(self.id)
    }

    /// A place that this client has taken.
    pub(crate) fn place(self: &Arc<Self>, grip: Grip) -> Place {
        let taken = Taken { connection: self.clone(), lease: grip.lease, place: grip.revision };
        Place::new(grip.hold, taken)
    }

    /// Waits until the link is up.
    pub(crate) async fn online(&self) -> Result<()> {
        let mut link = self.link();
        match link.wait_for(|link| link.is_up() || link.closed).await {
            Ok(link) if !link.closed => Ok(()),
            _ => Err(Error::Closed),
        }
    }

    /// Waits until what the place in its queue was taken for is granted, and this client hears of it.
    pub(crate) async fn granted<T>(
        &self,
        lost: Lost,
        grant: impl Future<Output = Result<T, oneshot::error::RecvError>>,
        needs_link: impl Fn(&T) -> bool,
    ) -> Result<T> {
        let granted = async {
            match grant.await {
                Ok(granted) if needs_link(&granted) => self.online().await.map(|()| granted),
                Ok(granted) => Ok(granted),
                // The place is gone from the queue, as `lost` will tell.
                Err(_) => std::future::pending().await,
            }
        };
        let reason = tokio::select! {
            biased;
            reason = lost.clone() => reason,
            granted = granted => match lost.reason() {
                None => return granted,
                Some(reason) => reason,
            },
        };
        Err(match reason {
            LossReason::Closed => Error::Closed,
            reason => Error::Lost { reason },
        })
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // What a client with a cut link could not free is freed when its leases expire.
        let _ = self.close();
        self.store.lock().forget(self.id);
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.owner)
    }
}

/// How a place is given back.
struct Taken {
    connection: Arc<Connection>,
    lease: LeaseId,
    place: u64,
}

#[async_trait]
impl Release for Taken {
    async fn release(&self) -> Result<()> {
        self.connection.store.lock().hand_on(self.connection.id, self.lease, self.place);
        if self.connection.call().await?.free(self.lease, self.place) {
            return Ok(());
        }
        let reason = LossReason::Deleted;
        Err(Error::Lost { reason })
    }

    fn release_in_background(&self) {
        let mut state = self.connection.store.lock();
        state.free_soon(self.connection.id, self.lease, self.place);
    }
}
