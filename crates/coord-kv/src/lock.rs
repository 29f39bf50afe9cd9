//! Locks: the head of a queue holds.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use coord_api::{
    DistributedLock, FencingToken, Holder, LockGuard, LockName, Result, Ttl,
    backend::waiting::{Queue, QueuedPlace, wait_for_turn, wait_within},
};
use tokio::time::Instant;

use crate::{
    queue::{Queues, Ticket},
    request::{Kept, timer},
    store::{KeyValue, Observation, Range, Store},
};

/// The locks of one client.
#[derive(Debug)]
pub(crate) struct KvLock {
    pub(crate) queues: Kept<Queues>,
}

/// The queue of one lock.
struct LockQueue<'a> {
    queues: &'a Kept<Queues>,
    name: &'a LockName,
    ttl: Ttl,
}

impl Queue for LockQueue<'_> {
    type Place = Ticket;

    async fn enter(&self) -> Result<Ticket> {
        // Boxed, since entering takes far more memory than waiting, which can take long.
        Box::pin(Ticket::enter(self.queues, self.queues.keys.lock_queue(self.name), self.ttl)).await
    }

    async fn pause(&self) {
        // Many lose their places at one moment. If the client is closed, the next request tells.
        let pause = timer::sleep(Duration::from_millis(fastrand::u64(20..150)));
        tokio::select! {
            () = self.queues.closed() => {}
            () = pause => {}
        }
    }
}

impl QueuedPlace for Ticket {
    async fn turn(&mut self) -> Result<()> {
        self.wait_for_turn().await
    }

    fn is_behind(&self) -> bool {
        Ticket::is_behind(self)
    }
}

#[async_trait]
impl DistributedLock for KvLock {
    async fn acquire(&self, name: &str, ttl: Duration) -> Result<LockGuard> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        let asked = Instant::now();
        let ticket = wait_for_turn(&LockQueue { queues: &self.queues, name: &name, ttl }).await?;
        Ok(guard(&*self.queues.store, name, ticket, asked))
    }

    async fn acquire_waiting(&self, name: &str, ttl: Duration, wait: Duration) -> Result<Option<LockGuard>> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        let asked = Instant::now();
        let ticket = wait_within(&LockQueue { queues: &self.queues, name: &name, ttl }, wait).await?;
        Ok(ticket.map(|ticket| guard(&*self.queues.store, name, ticket, asked)))
    }

    async fn try_acquire(&self, name: &str, ttl: Duration) -> Result<Option<LockGuard>> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        let asked = Instant::now();
        let queue = self.queues.keys.lock_queue(&name);
        let ticket = Ticket::enter_if_empty(&self.queues, queue, ttl).await?;
        Ok(ticket.map(|ticket| guard(&*self.queues.store, name, ticket, asked)))
    }

    async fn holders(&self, name: &str) -> Result<Vec<Holder>> {
        let name = LockName::parse(name)?;
        let queues = &self.queues;
        queues.check_open()?;
        let queue = Range::Prefix(queues.keys.lock_queue(&name).into());
        let (_, mut places) = queues.read("list holders", &queue).await?;
        places.sort_by_key(|kv| kv.create_revision);
        Ok(places.iter().filter_map(holder).collect())
    }

    async fn queues(&self) -> Result<BTreeMap<String, Vec<Holder>>> {
        let queues = &self.queues;
        queues.check_open()?;
        let all = Range::Prefix(queues.keys.lock_queues().into());
        let (_, mut places) = queues.read("list locks", &all).await?;
        places.sort_by_key(|kv| kv.create_revision);
        let mut by_name = BTreeMap::<_, Vec<_>>::new();
        for place in places.iter().filter_map(holder) {
            if let Some(name) = queues.keys.lock_of(&place.key) {
                by_name.entry(name.to_string()).or_default().push(place);
            }
        }
        Ok(by_name)
    }
}

/// Reads one key of a queue. A key that is not UTF-8 was not written by a program that uses the queue as a
/// lock.
fn holder(kv: &KeyValue) -> Option<Holder> {
    Some(Holder::new(serde_json::from_slice(&kv.value).ok(), kv.key_str().ok()?, token(kv.create_revision)))
}

fn token(created: i64) -> FencingToken {
    FencingToken::new(u64::try_from(created).expect("revisions are not negative"))
}

fn guard(store: &dyn Store, name: LockName, ticket: Ticket, asked: Instant) -> LockGuard {
    let key = ticket.key().to_owned();
    // The revision at which the place was created: a later contender has a larger one.
    let token = token(ticket.created());
    store.observe(Observation::Acquired { waited: asked.elapsed() });
    tracing::debug!(lock = %name, %token, waited = ?asked.elapsed(), "lock acquired");
    LockGuard::new(name, key, token, ticket.into_place())
}
