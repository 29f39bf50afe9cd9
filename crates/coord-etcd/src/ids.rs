//! Instance ids: one key per taken id, and a queue for those who wait for one.

use std::{num::NonZeroU32, sync::Arc};

use async_trait::async_trait;
use coord_api::{
    Error, Result, ServiceName,
    backend::{ClaimedId, IdSource},
};
use etcd_client::{Compare, CompareOp, PutOptions, Txn, TxnOp};

use crate::{
    background::{CallerGone, owned},
    core::{Core, Shared},
    error::{Effect, Failure},
    keys::Range,
    place::{OwnKey, Written},
    queue::Spot,
    read::revision,
    session::Session,
    watch::hub::Delivery,
};

/// The ids of one service.
#[derive(Clone, Debug)]
pub(crate) struct EtcdIds {
    pub(crate) shared: Arc<Shared>,
    pub(crate) service: ServiceName,
    pub(crate) max_id: u32,
}

#[async_trait]
impl IdSource for EtcdIds {
    async fn claim(&self) -> Result<ClaimedId> {
        let ids = self.clone();
        owned(&self.shared.core.runtime, move |mut gone| async move {
            match ids.claim_now().await? {
                Some(claimed) => Ok(claimed),
                None => ids.claim_in_turn(&mut gone).await,
            }
        })
        .await
    }

    async fn try_claim(&self) -> Result<ClaimedId> {
        let ids = self.clone();
        owned(&self.shared.core.runtime, move |_gone| async move {
            ids.claim_now().await?.ok_or(Error::Exhausted { max: ids.max_id })
        })
        .await
    }
}

/// Whether a free id may be taken while others wait for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    BehindTheQueue,
    AtTheHead,
}

impl EtcdIds {
    fn core(&self) -> &Arc<Core> {
        &self.shared.core
    }

    async fn claim_now(&self) -> Result<Option<ClaimedId>> {
        let core = self.core();
        core.on_session(core.id_ttl, |session| self.claim_free(session, Order::BehindTheQueue)).await
    }

    /// Takes the lowest free id; `None` when there is none, or others wait for one.
    async fn claim_free(&self, session: Arc<Session>, order: Order) -> Result<Option<ClaimedId>> {
        let core = self.core();
        loop {
            let (_, taken) = core.read("claim an id", &Range::Prefix(core.keys.ids(&self.service))).await?;
            let mut taken: Vec<_> = taken
                .iter()
                .filter_map(|kv| core.keys.id_number(&self.service, kv.key_str().ok()?))
                .collect();
            taken.sort_unstable();
            let Some(id) = lowest_free(&taken, self.max_id) else {
                return Ok(None);
            };
            match self.claim_one(id, &session, order).await? {
                Claim::Done(claimed) => return Ok(Some(claimed)),
                Claim::Queue => return Ok(None),
                Claim::Taken => {}
            }
        }
    }

    async fn claim_one(&self, id: NonZeroU32, session: &Arc<Session>, order: Order) -> Result<Claim> {
        let core = self.core();
        let key = core.keys.id(&self.service, id.get());
        let mut conditions = vec![Compare::create_revision(key.as_str(), CompareOp::Equal, 0)];
        if order == Order::BehindTheQueue {
            let queue = core.keys.id_queue(&self.service);
            conditions.push(Compare::create_revision(queue, CompareOp::Equal, 0).with_prefix());
        }
        let attempt = core.next_attempt();
        let value = core.holder_of(attempt);
        let put = TxnOp::put(key.as_str(), value.clone(), Some(PutOptions::new().with_lease(session.id)));
        // When it fails: was it the id or the queue?
        let look = TxnOp::get(key.as_str(), None);
        let answer = core
            .txn_on(session, "claim an id", Txn::new().when(conditions).and_then([put]).or_else([look]))
            .await;
        let created = match answer {
            Ok(answer) if answer.succeeded() => revision(answer.header()),
            Ok(answer) => {
                let taken = matches!(answer.op_responses().first(),
                    Some(etcd_client::TxnOpResponse::Get(found)) if !found.kvs().is_empty());
                return Ok(if taken { Claim::Taken } else { Claim::Queue });
            }
            Err(Failure { error, effect: Effect::None }) => return Err(error),
            // The answer was lost. The value names this very attempt, so it tells whether we have the id.
            Err(Failure { error, effect: Effect::Unknown }) => {
                match core.call("claim an id", async { core.kv().get(key.as_str(), None).await }).await {
                    Ok(found) if found.kvs().first().is_some_and(|kv| kv.value() == value) => {
                        found.kvs()[0].create_revision()
                    }
                    _ => {
                        core.delete_stray(key, value, session.clone());
                        return Err(error);
                    }
                }
            }
        };
        let own = OwnKey { key, written: Written::Created(created), session: session.clone() };
        tracing::debug!(service = %self.service, %id, "instance id claimed");
        Ok(Claim::Done(ClaimedId::new(id, own.into_place(&self.shared))))
    }

    /// Waits in the queue, then for an id to become free.
    async fn claim_in_turn(&self, gone: &mut CallerGone) -> Result<ClaimedId> {
        let core = self.core();
        let mut spot = Spot::enter(&self.shared, core.keys.id_queue(&self.service), core.id_ttl).await?;
        tokio::select! {
            turn = spot.wait_for_turn() => turn?,
            () = gone.wait() => return Err(Error::Closed),
        }
        let session = spot.session();
        // Dropping a claim half-way is safe in these two cases: its key goes with the lease.
        tokio::select! {
            biased;
            () = core.closed() => Err(Error::Closed),
            reason = session.lease.lost() => Err(Error::Lost { reason }),
            claimed = self.claim_at_the_head(session, gone) => claimed,
        }
    }

    async fn claim_at_the_head(&self, session: &Arc<Session>, gone: &mut CallerGone) -> Result<ClaimedId> {
        let core = self.core();
        loop {
            let mut changes = core.hub.subscribe(Range::Prefix(core.keys.ids(&self.service)));
            match changes.next().await {
                Some(Delivery::Refused(error)) => return Err(error),
                Some(_) => {}
                None => continue,
            }
            loop {
                match self.claim_free(session.clone(), Order::AtTheHead).await {
                    Ok(Some(claimed)) => return Ok(claimed),
                    Ok(None) => {}
                    Err(error) if error.is_retryable() => {
                        tokio::time::sleep(std::time::Duration::from_millis(fastrand::u64(50..250))).await;
                        continue;
                    }
                    Err(error) => return Err(error),
                }
                tracing::debug!(service = %self.service, "every instance id is taken, waiting for one");
                let change = tokio::select! {
                    () = gone.wait() => return Err(Error::Closed),
                    change = changes.next() => change,
                };
                match change {
                    Some(Delivery::Refused(error)) => return Err(error),
                    Some(_) => {}
                    None => break,
                }
            }
        }
    }
}

enum Claim {
    Done(ClaimedId),
    /// Someone else has the id.
    Taken,
    /// The id is free, but others wait for one.
    Queue,
}

/// The lowest number from 1 to `max_id - 1` that is not in the sorted list.
fn lowest_free(taken: &[u32], max_id: u32) -> Option<NonZeroU32> {
    let mut candidate = 1;
    for id in taken {
        if *id == candidate {
            candidate += 1;
        }
    }
    NonZeroU32::new(candidate).filter(|_| candidate < max_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_id() {
        let table: &[(&[u32], u32, Option<u32>)] = &[
            (&[], 2, Some(1)),
            (&[1], 2, None),
            (&[1, 2, 3], 5, Some(4)),
            (&[2, 3], 4, Some(1)),
            (&[1, 3], 4, Some(2)),
            (&[1, 2, 3, 900], 4, None),
            (&[0, 1], 4, Some(2)),
        ];
        for (taken, max_id, expected) in table {
            let found = lowest_free(taken, *max_id).map(NonZeroU32::get);
            assert_eq!(found, *expected, "{taken:?} below {max_id}");
        }
    }
}
