//! Fair queues: one key per waiter below a prefix, on the waiter's lease; the lowest create revision is at
//! the head. The layout is that of etcd's own lock service, so both stand in one queue.

use std::sync::Arc;

use coord_api::{Error, LossReason, Result};
use etcd_client::{
    Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use crate::{
    background::CallerGone,
    core::Core,
    error::{Effect, Failure},
    keys::{Keys, Range},
    place::{OwnKey, Written},
    read::revision,
    session::Session,
    watch::hub::Delivery,
};

/// What [`Core::enter`] does when someone else is in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IfOccupied {
    Wait,
    LeaveAlone,
}

/// A place in a queue, perhaps its head.
#[derive(Debug)]
pub(crate) struct Entered {
    pub(crate) own: OwnKey,
    pub(crate) created: i64,
    queue: String,
    is_head: bool,
}

impl Core {
    /// Enters the queue in one request; `None` if it is occupied and should be left alone, in which case
    /// nothing is written.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        queue: String,
        session: Arc<Session>,
        value: Vec<u8>,
        if_occupied: IfOccupied,
    ) -> Result<Option<Entered>> {
        let key = Keys::place_in(&queue, session.id, self.next_attempt());
        let put = || {
            TxnOp::put(
                key.as_str(),
                value.clone(),
                Some(PutOptions::new().with_lease(session.id)),
            )
        };
        let nobody = Compare::create_revision(queue.as_str(), CompareOp::Equal, 0).with_prefix();
        let mut txn = Txn::new().when([nobody]).and_then([put()]);
        if if_occupied == IfOccupied::Wait {
            txn = txn.or_else([put()]);
        }
        let (created, is_head) = match self.txn("acquire", txn).await {
            Ok(answer) if answer.succeeded() => (revision(answer.header()), true),
            Ok(_) if if_occupied == IfOccupied::LeaveAlone => return Ok(None),
            Ok(answer) => (revision(answer.header()), false),
            Err(Failure {
                error,
                effect: Effect::None,
            }) => return Err(error),
            // The answer was lost, but the key is ours alone: if it is there, the request took effect.
            Err(Failure {
                error,
                effect: Effect::Unknown,
            }) => {
                match self
                    .call("acquire", async { self.kv().get(key.as_str(), None).await })
                    .await
                {
                    Ok(found) if !found.kvs().is_empty() => (found.kvs()[0].create_revision(), false),
                    _ => {
                        self.delete_stray(key, value, session);
                        return Err(error);
                    }
                }
            }
        };
        let own = OwnKey {
            key,
            written: Written::Created(created),
            session,
        };
        Ok(Some(Entered {
            own,
            created,
            queue,
            is_head,
        }))
    }

    /// Waits until the place is at the head. If the caller goes away, or this fails, the place is left.
    pub(crate) async fn wait_for_turn(
        self: &Arc<Self>,
        entered: &Entered,
        gone: &mut CallerGone,
    ) -> Result<()> {
        let turn = async {
            if entered.is_head {
                Ok(())
            } else {
                self.follow_predecessors(entered).await
            }
        };
        let outcome = tokio::select! {
            biased;
            () = self.closed() => Err(Error::Closed),
            // Its own place is gone: whatever the queue looks like, it is not our turn.
            reason = entered.own.session.lease.lost() => Err(Error::Lost { reason }),
            outcome = turn => outcome,
            () = gone.wait() => Err(Error::Closed),
        };
        if outcome.is_err() && self.check_open().is_ok() {
            self.delete_later(entered.own.clone());
        }
        outcome
    }

    async fn follow_predecessors(self: &Arc<Self>, entered: &Entered) -> Result<()> {
        loop {
            let Some(predecessor) = self.predecessor(entered).await? else {
                return Ok(());
            };
            // Watch first and look again then: a watch from a revision of the past is served by etcd only
            // every 100 ms, and one from now on might begin after the predecessor went.
            let mut changes = self.hub.subscribe(Range::Key(predecessor.clone()), None);
            match changes.next().await {
                Some(Delivery::Started) => {}
                Some(Delivery::Refused(error)) => return Err(error),
                _ => continue,
            }
            if self.predecessor(entered).await?.as_ref() != Some(&predecessor) {
                continue;
            }
            tracing::debug!(
                key = entered.own.key,
                behind = predecessor,
                "waiting in the queue"
            );
            loop {
                match changes.next().await {
                    Some(Delivery::Changes(changes)) if changes.iter().all(|c| c.value.is_some()) => {}
                    Some(Delivery::Refused(error)) => return Err(error),
                    _ => break,
                }
            }
        }
    }

    /// Who is next before us in the queue; `None` at the head. Tries on while etcd is away.
    async fn predecessor(&self, entered: &Entered) -> Result<Option<String>> {
        let before = GetOptions::new()
            .with_prefix()
            .with_keys_only()
            .with_max_create_revision(entered.created - 1)
            .with_sort(SortTarget::Create, SortOrder::Descend)
            .with_limit(1);
        let look = || {
            Txn::new().and_then([
                TxnOp::get(entered.own.key.as_str(), Some(GetOptions::new().with_keys_only())),
                TxnOp::get(entered.queue.as_str(), Some(before.clone())),
            ])
        };
        loop {
            match self.txn("wait in a queue", look()).await {
                Ok(answer) => return read_predecessor(&answer),
                Err(failure) if failure.error.is_retryable() => {
                    let pause = std::time::Duration::from_millis(fastrand::u64(50..250));
                    tokio::time::sleep(pause).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }
}

fn read_predecessor(answer: &TxnResponse) -> Result<Option<String>> {
    let answers = answer.op_responses();
    let keys = |index: usize| match answers.get(index) {
        Some(TxnOpResponse::Get(found)) => found.kvs().first().map(|kv| kv.key_str().map(ToOwned::to_owned)),
        _ => None,
    };
    if keys(0).is_none() {
        return Err(Error::Lost {
            reason: LossReason::Deleted,
        });
    }
    keys(1).transpose().map_err(|error| Error::Backend {
        operation: "wait in a queue",
        source: Box::new(error),
    })
}
