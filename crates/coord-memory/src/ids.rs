//! Instance ids: a pool per service, and those who ask it.

mod pool;

use std::{num::NonZeroU32, sync::Arc};

use async_trait::async_trait;
use coord_api::{
    Error, IdHolder, IdOptions, InstanceIdAllocator, InstanceIds, LossReason, Result, ServiceName, Ttl,
    backend::{ClaimedId, IdAllocator, IdRange, IdSource, Place, Stamps},
};
use tokio::sync::oneshot;

pub(crate) use pool::Pool;
use pool::{Claimant, Granted};

use crate::{connection::Connection, keys, store::Grip};

fn number(id: u32) -> NonZeroU32 {
    NonZeroU32::new(id).expect("ids begin with 1")
}

/// The ids of one client.
#[derive(Debug)]
pub(crate) struct Ids {
    pub(crate) connection: Arc<Connection>,
    pub(crate) ttl: Ttl,
}

#[async_trait]
impl InstanceIds for Ids {
    fn allocator(&self, options: IdOptions) -> Result<Arc<dyn InstanceIdAllocator>> {
        let range = Arc::new(IdRange::of(options, self.ttl)?);
        let connection = self.connection.clone();
        connection.check_open()?;
        let claimant = Claimant { owner: Arc::new(connection.owner().clone()), range };
        Ok(Arc::new(IdAllocator::new(Source { connection, claimant, ttl: self.ttl })))
    }

    async fn holders(&self, service: &str) -> Result<Vec<IdHolder>> {
        let service = ServiceName::parse(service)?;
        Ok(self.connection.call().await?.id_holders(&service))
    }
}

/// Where one allocator's ids come from.
struct Source {
    connection: Arc<Connection>,
    claimant: Claimant,
    ttl: Ttl,
}

impl std::fmt::Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Source").field(&self.claimant.range).finish()
    }
}

/// What comes of asking for an id.
enum Claim {
    Taken(Granted, Grip),
    Queued(Grip, oneshot::Receiver<Granted>),
}

impl Source {
    async fn begin(&self) -> Result<Claim> {
        let mut state = self.connection.call().await?;
        if let Some((id, grip)) = state.take_id(self) {
            return Ok(Claim::Taken(id, grip));
        }
        let (grip, granted) = state.wait_for_id(self);
        Ok(Claim::Queued(grip, granted))
    }

    /// `grip` is the same as that of the `place`.
    fn claimed(&self, granted: Granted, grip: Grip, place: Place) -> ClaimedId {
        let Granted { id, stamped, told } = granted;
        let service = self.claimant.range.service.clone();
        let stamps = Arc::new(StampsOf { connection: Arc::downgrade(&self.connection), service, id, grip });
        ClaimedId::new(number(id), place, stamps, stamped, told)
    }
}

#[async_trait]
impl IdSource for Source {
    fn bound(&self) -> u32 {
        self.claimant.range.max_id
    }

    async fn wait_and_claim(&self) -> Result<ClaimedId> {
        loop {
            let (grip, granted) = match self.begin().await? {
                Claim::Taken(id, grip) => {
                    return Ok(self.claimed(id, grip.clone(), self.connection.place(grip)));
                }
                Claim::Queued(grip, granted) => (grip, granted),
            };
            let place = self.connection.place(grip.clone());
            match self.connection.granted(place.hold().lost(), granted, |_| true).await {
                Ok(id) => return Ok(self.claimed(id, grip, place)),
                // Nothing was held, so nothing is lost but the place in the queue: take another.
                Err(Error::Lost { .. }) => self.connection.online().await?,
                Err(error) => return Err(error),
            }
        }
    }

    async fn try_claim(&self) -> Result<ClaimedId> {
        let taken = self.connection.call().await?.take_id(self);
        let (id, grip) = taken.ok_or(Error::Exhausted { max: self.claimant.range.max_id })?;
        Ok(self.claimed(id, grip.clone(), self.connection.place(grip)))
    }
}

/// What is kept beside one held id.
struct StampsOf {
    /// Weak, since nobody holds an id by stamping with it.
    connection: std::sync::Weak<Connection>,
    service: ServiceName,
    id: u32,
    grip: Grip,
}

impl std::fmt::Debug for StampsOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StampsOf({} {})", self.service, self.id)
    }
}

impl StampsOf {
    async fn write(&self, write: impl FnOnce(&mut Pool, u32) + Send) -> Result<()> {
        let connection = self.connection.upgrade().ok_or(Error::Closed)?;
        let mut state = connection.call().await?;
        let holds = state
            .id_holder(&self.service, self.id)
            .is_some_and(|holder| (holder.lease, holder.revision) == (self.grip.lease, self.grip.revision));
        match state.ids.get_mut(&self.service).filter(|_| holds) {
            Some(pool) => {
                write(pool, self.id);
                Ok(())
            }
            None => Err(Error::Lost { reason: self.grip.hold.loss().unwrap_or(LossReason::Deleted) }),
        }
    }
}

#[async_trait]
impl Stamps for StampsOf {
    async fn stamp(&self, until: u64) -> Result<()> {
        self.write(|pool, id| pool.stamp(id, until)).await
    }

    async fn settle(&self, until: u64) -> Result<()> {
        self.write(|pool, id| pool.settle(id, until)).await
    }

    fn key(&self) -> String {
        keys::stamped(&self.service, self.id)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::Provider;
    use futures::FutureExt;

    use super::*;
    use crate::{Client, Store};

    fn allocator(client: &Client, max_id: u32) -> Arc<dyn InstanceIdAllocator> {
        let options = IdOptions::new("svc", max_id).quarantine(Duration::ZERO);
        client.instance_ids().allocator(options).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_lowest_free_id_goes_to_the_first_waiter_that_may_have_it() -> Result<()> {
        let client = Store::new().client();
        let (one, two) = (allocator(&client, 3), allocator(&client, 3));
        assert_eq!((one.acquire_id().await?.get(), two.acquire_id().await?.get()), (1, 2));
        let (low, high) = (allocator(&client, 2), allocator(&client, 3));
        let (mut first, mut second) = (low.acquire_id(), high.acquire_id());
        assert!((&mut first).now_or_never().is_none() && (&mut second).now_or_never().is_none());
        two.release_id().await?;
        assert_eq!(second.now_or_never().expect("2 is not for the first waiter")?.get(), 2);
        one.release_id().await?;
        assert!(one.try_acquire_id().await.is_err(), "1 has been given to the waiter");
        assert_eq!(first.await?.get(), 1);
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_is_dropped_just_when_it_was_granted_passes_the_id_on() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let resting = client.instance_ids().allocator(IdOptions::new("svc", 2))?;
        let (held, gone, next) = (allocator(&client, 2), resting, allocator(&client, 2));
        held.acquire_id().await?;
        let (mut cancelled, mut waiting) = (gone.acquire_id(), next.acquire_id());
        assert!((&mut cancelled).now_or_never().is_none() && (&mut waiting).now_or_never().is_none());
        held.release_id().await?;
        drop(cancelled);
        assert_eq!(waiting.now_or_never().expect("is granted at once")?.get(), 1);
        drop(next);
        assert!(store.lock().ids.is_empty(), "nothing is kept of a service without ids");
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_outlast_the_loss_of_their_lease() -> Result<()> {
        let store = Store::new();
        let (one, other) = (store.client(), store.client());
        let (held, waiting) = (allocator(&one, 2), allocator(&one, 2));
        let elsewhere = allocator(&other, 2);
        held.acquire_id().await?;
        let mut waiters = [waiting.acquire_id(), elsewhere.acquire_id()];
        assert!(waiters.iter_mut().all(|waiter| waiter.now_or_never().is_none()));
        store.revoke_leases();
        assert_eq!(held.id(), None);
        let [first, second] = waiters;
        let got = tokio::time::timeout(Duration::from_secs(1), first).await.expect("1 is free");
        assert_eq!(got?.get(), 1);
        assert!(second.now_or_never().is_none());
        Ok(())
    }
}
