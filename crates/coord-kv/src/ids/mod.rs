//! Instance ids: a key for each id that is held or rests, and a queue for the clients that wait for one.

mod claim;
mod claimed;
mod held;
mod orphaned;
mod pick;
mod record;

use std::{ops::Deref, pin::pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    Error, IdHolder, IdOptions, InstanceIdAllocator, InstanceIds, Result, ServiceName, Ttl,
    backend::{ClaimedId, IdAllocator, IdRange, IdSource},
};
use tokio::time::Instant;

use crate::{
    queue::{Queues, Ticket},
    request::{
        Kept, Look, Rpc,
        acquiring::acquiring,
        background::{CallerGone, run_detached},
        pairs, timer,
    },
    session::{Session, Sessions},
    store::{Compare, CompareOp, Effect, Failure, GetOptions, Op, Range, is_transient},
    watch::{Delivery, Hub, Subscription},
};
use claim::{Answer, Candidate, Claim, Order, Stamped, number, stamped};
use held::{Held, HeldIds};
use pick::Choice;
use record::Record;
#[cfg(feature = "fuzz")]
pub(crate) use record::read_again;

/// State that the ids of one client share.
#[derive(Debug)]
pub(crate) struct Ids {
    rpc: Arc<Rpc>,
    sessions: Arc<Sessions>,
    hub: Arc<Hub>,
    queues: Arc<Queues>,
    /// The time to live of an id.
    ttl: Ttl,
    /// The ids that this client may hold.
    held: HeldIds,
}

impl Deref for Ids {
    type Target = Rpc;

    fn deref(&self) -> &Rpc {
        &self.rpc
    }
}

impl Ids {
    pub(crate) fn new(sessions: &Arc<Sessions>, queues: &Arc<Queues>, hub: &Arc<Hub>, ttl: Ttl) -> Arc<Self> {
        Arc::new(Self {
            rpc: sessions.rpc().clone(),
            sessions: sessions.clone(),
            hub: hub.clone(),
            queues: queues.clone(),
            ttl,
            held: HeldIds::default(),
        })
    }
}

impl Ids {
    /// Takes in that somebody has deleted the key of an id of this client.
    pub(crate) fn deleted(&self, key: &str) {
        self.held.look_at(|held| self.keys.id(&held.service, held.id) == key);
    }
}

/// The ids of one client.
#[derive(Debug)]
pub(crate) struct KvIds {
    pub(crate) ids: Kept<Ids>,
}

#[async_trait]
impl InstanceIds for KvIds {
    fn allocator(&self, options: IdOptions) -> Result<Arc<dyn InstanceIdAllocator>> {
        let range = Arc::new(IdRange::of(options, self.ids.ttl)?);
        self.ids.check_open()?;
        Ok(Arc::new(IdAllocator::new(Source { ids: self.ids.clone(), range })))
    }

    async fn holders(&self, service: &str) -> Result<Vec<IdHolder>> {
        let service = ServiceName::parse(service)?;
        let area = &self.ids;
        area.check_open()?;
        let (_, ids) = area.read("list holders", &Range::Prefix(area.keys.ids(&service).into())).await?;
        let mut holders: Vec<_> =
            ids.iter().filter_map(|kv| record::holder(kv.key_str().ok()?, &kv.value)).collect();
        holders.sort_by_key(|holder| holder.id);
        Ok(holders)
    }
}

/// Source of the ids of one allocator.
#[derive(Clone, Debug)]
struct Source {
    ids: Kept<Ids>,
    range: Arc<IdRange>,
}

#[async_trait]
impl IdSource for Source {
    fn bound(&self) -> u32 {
        self.range.max_id
    }

    async fn try_claim(&self) -> Result<ClaimedId> {
        let source = self.clone();
        run_detached(&self.ids.background, move |_gone| async move {
            source.claim_now().await?.ok_or(Error::Exhausted { max: source.range.max_id })
        })
        .await
    }

    async fn wait_and_claim(&self) -> Result<ClaimedId> {
        let source = self.clone();
        let wait = move |mut gone| async move { source.wait_in_queue(&mut gone).await };
        run_detached(&self.ids.background, wait).await
    }
}

/// Outcome of looking for a free id.
enum Found {
    Claimed(Box<Claimed>),
    /// Others came earlier.
    Queue,
    /// No id is free.
    Full,
}

/// An id that was claimed, and up to when data may have been stamped with it.
struct Claimed {
    id: u32,
    stamped: Stamped,
    place: ClaimedId,
}

impl Source {
    fn ids(&self) -> &Arc<Ids> {
        &self.ids
    }

    fn choice(&self) -> Choice {
        Choice::at(self.ids.store.description().distance)
    }

    /// Takes a free id; `None` when there is none, or others wait for one.
    async fn claim_now(&self) -> Result<Option<ClaimedId>> {
        acquiring("id", &self.range.service, pin!(self.claim_or_none())).await
    }

    async fn claim_or_none(&self) -> Result<Option<ClaimedId>> {
        let area = self.ids();
        let begun = Instant::now();
        loop {
            let claim = |session| self.claim_free(session, Order::BehindTheQueue);
            match area.sessions.on_session(area.ttl, claim).await {
                Ok(Found::Claimed(claimed)) => return Ok(Some(claimed.place)),
                Ok(Found::Queue | Found::Full) => return Ok(None),
                // The id that this claim may have taken is given back; the next claim has another value.
                Err(error) => area.retry_from_start(begun, error).await?,
            }
        }
    }

    /// Takes a free id; rather one with which a generator can be started than one whose earlier holder had a clock that
    /// was ahead. The id that belongs to the identity is taken as it is.
    async fn claim_free(&self, session: Arc<Session>, order: Order) -> Result<Found> {
        let (area, max_id) = (self.ids(), self.range.max_id);
        let (own, tries) = match &self.range.identity {
            Some(identity) => self.look_for_own(identity).await?,
            None => (None, pick::some_of(max_id, self.choice())),
        };
        let own_id = own.as_ref().map(|own| own.id);
        let found = self.claim_some(session.clone(), order, own, tries).await?;
        let ttl = session.lease.ttl();
        match &found {
            Found::Claimed(claimed) if claimed.stamped.is_ahead(ttl) && own_id != Some(claimed.id) => {}
            _ => return Ok(found),
        }
        let better = area.look("claim an id", Claim::better(&area.keys, &self.range)).await;
        let better = better
            .map(|answer| Claim::read_better(&answer, ttl).some_free(max_id, self.choice()))
            .unwrap_or_default();
        if !better.is_empty()
            && let Ok(Found::Claimed(other)) = self.claim_some(session, order, None, better).await
            && !other.stamped.is_ahead(ttl)
        {
            // The first one is given back; it need not rest, since nobody was told of it.
            return Ok(Found::Claimed(other));
        }
        Ok(found)
    }

    /// Tries some ids first, then some of the ids that were told to be free.
    async fn claim_some(
        &self,
        session: Arc<Session>,
        order: Order,
        own: Option<Candidate>,
        mut tries: Vec<u32>,
    ) -> Result<Found> {
        let area = self.ids();
        let (attempt, max_id) = (area.next_attempt(), self.range.max_id);
        let record = Record::held(&area.owner, &self.range, session.lease.ttl(), attempt);
        let value = record.to_bytes();
        let (keys, range) = (&area.keys, &*self.range);
        let claim = Claim { keys, range, order, value: &value, lease: session.id };
        let (mut own, mut has_freed) = (own, false);
        loop {
            let candidates: Vec<_> =
                own.take().into_iter().chain(tries.iter().map(|id| claim.free(*id))).collect();
            let ids: Vec<_> = candidates.iter().map(|candidate| candidate.id).collect();
            let answer = session.txn_in_epoch(area, "claim an id", claim.txn(candidates)).await;
            let taken = match answer {
                Ok((at, answer)) => match Claim::read(&answer, &ids) {
                    Answer::Taken(id, stamped, note) => {
                        // Its writer may be gone by now.
                        if let Some(note) = note {
                            area.revoke_note(note);
                        }
                        (id, at, stamped)
                    }
                    Answer::Listed(listed) => {
                        let is_late = listed.queued && order == Order::BehindTheQueue;
                        tries = if is_late { Vec::new() } else { listed.some_free(max_id, self.choice()) };
                        if tries.is_empty() && !std::mem::replace(&mut has_freed, true) {
                            // Before anybody is told that there is none: a caller may look once, and be gone.
                            tries = area.free_orphaned(&range.service, listed.vanished(max_id)).await;
                            tries.truncate(pick::TRIES);
                        }
                        if is_late {
                            return Ok(Found::Queue);
                        }
                        if tries.is_empty() {
                            return Ok(Found::Full);
                        }
                        continue;
                    }
                },
                Err(Failure { error, effect: Effect::None }) => return Err(error),
                // The answer was lost. The value names this very attempt, so it tells which id we have.
                Err(Failure { error, effect: Effect::Unknown }) => {
                    let since = session.epoch.now();
                    let settled = async {
                        session.advance(area, since).await?;
                        self.read_back(&ids, &value).await
                    };
                    match settled.await {
                        Ok(Some(taken)) => taken,
                        Ok(None) => return Err(error),
                        Err(_) => {
                            area.roll_back_claim(range.service.clone(), ids, value, session, since);
                            return Err(error);
                        }
                    }
                }
            };
            let (id, revision, stamped) = taken;
            tracing::debug!(service = %range.service, id, "instance id claimed");
            let (service, rest) = (range.service.clone(), range.quarantine);
            let held = Held { service, id, revision, record, rest, session, look: Arc::default() };
            let place = held.into_claimed(&self.ids, stamped);
            return Ok(Found::Claimed(Box::new(Claimed { id, stamped, place })));
        }
    }

    /// Looks up the id that `identity` had last, if it can have that again, and other ids to try.
    async fn look_for_own(&self, identity: &str) -> Result<(Option<Candidate>, Vec<u32>)> {
        let (area, service) = (self.ids(), &self.range.service);
        let below = || Some(GetOptions::new().with_prefix());
        let look = Look::of([
            Op::get(area.keys.id_identities(service), below()),
            Op::get(area.keys.ids(service), below()),
        ]);
        let found = area.look("claim an id", look).await?.results;
        let (identities, ids) = (pairs(found.first()), pairs(found.get(1)));
        let last = identities
            .iter()
            .filter(|kv| kv.value == identity.as_bytes())
            .filter_map(|kv| Some((kv.mod_revision, number(kv)?)))
            .filter(|(_, id)| *id < self.range.max_id)
            .max();
        let own = last.and_then(|(since, id)| {
            let (key, named) = (area.keys.id(service, id), area.keys.id_identity(service, id));
            // Nobody had it since, or the name would have been written or deleted.
            let unchanged = Compare::mod_revision(named, CompareOp::Equal, since);
            let free = match ids.iter().find(|kv| number(kv) == Some(id)) {
                None => Compare::create_revision(key, CompareOp::Equal, 0),
                Some(kv) => {
                    let record = Record::read(&kv.value)?;
                    let is_ours = record.resting && record.identity.as_deref() == Some(identity);
                    is_ours.then(|| Compare::mod_revision(key, CompareOp::Equal, kv.mod_revision))?
                }
            };
            Some(Candidate { id, conditions: vec![free, unchanged] })
        });
        let taken = ids.iter().filter_map(number).chain(own.as_ref().map(|own| own.id)).collect();
        let others = pick::Listed { taken, ..pick::Listed::default() };
        Ok((own, others.some_free(self.range.max_id, self.choice())))
    }

    /// Finds out which of some ids carries a value of ours, since when, and with which high-water mark from
    /// before.
    async fn read_back(&self, ids: &[u32], value: &[u8]) -> Result<Option<(u32, i64, Stamped)>, Failure> {
        let (area, service) = (self.ids(), &self.range.service);
        let looks = ids.iter().flat_map(|id| {
            let keys = [area.keys.id(service, *id), area.keys.id_stamped(service, *id)];
            keys.map(|key| Op::get(key, None))
        });
        let looks: Vec<_> = looks.collect();
        let found = area.look("claim an id", Look::of(looks)).await?.results;
        Ok(ids.iter().zip(found.chunks(2)).find_map(|(id, found)| {
            let kv = pairs(found.first()).first().filter(|kv| kv.value == value)?;
            Some((*id, kv.mod_revision, stamped(found.get(1))))
        }))
    }

    /// Waits for an id, whatever becomes of the lease and of the way to the store meanwhile.
    async fn wait_in_queue(&self, gone: &mut CallerGone) -> Result<ClaimedId> {
        acquiring("id", &self.range.service, pin!(self.queue_until_claimed(gone))).await
    }

    async fn queue_until_claimed(&self, gone: &mut CallerGone) -> Result<ClaimedId> {
        loop {
            let error = match self.claim_in_turn(gone).await {
                Err(error @ Error::Lost { .. }) => error,
                Err(error) if error.is_retryable() => error,
                outcome => return outcome,
            };
            tracing::debug!(service = %self.range.service, %error, "who waits for an id queues again");
            tokio::select! {
                () = gone.wait() => return Err(Error::Closed),
                () = self.ids().closed() => return Err(Error::Closed),
                () = pause() => {}
            }
        }
    }

    /// Waits in the queue, then for an id to become free.
    async fn claim_in_turn(&self, gone: &mut CallerGone) -> Result<ClaimedId> {
        let area = self.ids();
        let queue = area.keys.id_queue(&self.range.service, self.range.max_id);
        let mut ticket = Ticket::enter(&self.ids.with(&self.ids.queues), queue, area.ttl).await?;
        tokio::select! {
            turn = ticket.wait_for_turn() => turn?,
            () = gone.wait() => return Err(Error::Closed),
        }
        let session = ticket.session();
        // Dropping a claim half-way is safe in these two cases: nobody else takes what it may have marked.
        tokio::select! {
            biased;
            () = area.closed() => Err(Error::Closed),
            reason = session.lease.lost() => Err(Error::Lost { reason }),
            claimed = self.claim_at_the_head(session, gone) => claimed,
        }
    }

    async fn claim_at_the_head(&self, session: &Arc<Session>, gone: &mut CallerGone) -> Result<ClaimedId> {
        let (area, service) = (self.ids(), &self.range.service);
        loop {
            let watch = |prefix: String| area.hub.subscribe(Range::Prefix(prefix.into()));
            // An id becomes free when its key is deleted, or its mark.
            let mut ids = watch(area.keys.ids(service));
            let mut marks = watch(area.keys.id_marks(service));
            let begun = tokio::select! {
                () = gone.wait() => return Err(Error::Closed),
                begun = futures::future::join(ids.next(), marks.next()) => begun,
            };
            match begun {
                (Some(Delivery::Refused(error)), _) | (_, Some(Delivery::Refused(error))) => {
                    return Err(*error);
                }
                (Some(_), Some(_)) => {}
                _ => continue,
            }
            loop {
                match self.claim_free(session.clone(), Order::AtTheHead).await {
                    Ok(Found::Claimed(claimed)) => return Ok(claimed.place),
                    Ok(_) => {}
                    Err(error) if is_transient(&error) => tokio::select! {
                        () = gone.wait() => return Err(Error::Closed),
                        () = pause() => continue,
                    },
                    Err(error) => return Err(error),
                }
                tracing::debug!(%service, "no instance id is free, waiting for one");
                let change = tokio::select! {
                    () = gone.wait() => return Err(Error::Closed),
                    change = next_free(&mut ids) => change,
                    change = next_free(&mut marks) => change,
                };
                match change {
                    Some(Delivery::Refused(error)) => return Err(*error),
                    Some(_) => {}
                    None => break,
                }
            }
        }
    }
}

/// Waits a moment before a waiter for an id tries again.
async fn pause() {
    timer::sleep(Duration::from_millis(fastrand::u64(50..250))).await;
}

/// Waits until an id may have become free; `None` when changes may have been missed.
async fn next_free(changes: &mut Subscription) -> Option<Delivery> {
    loop {
        match changes.next().await? {
            Delivery::Changes(changes) if changes.iter().all(|change| change.value.is_some()) => {}
            other => return Some(other),
        }
    }
}
