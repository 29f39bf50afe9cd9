//! Waiting for the predecessors, one by one, where an entry is the only one of this client in its queue.

use std::time::Duration;

use coord_api::{Error, LossReason, Result};

use super::Ticket;
use crate::{
    request::{Look, pairs, timer},
    store::{GetOptions, Op, Range, TxnAnswer, is_transient},
    watch::Delivery,
};

/// Entry that existed at a revision.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) key: String,
    pub(super) at: i64,
}

impl Ticket {
    /// Waits for the predecessors one by one, until the client watches the whole queue.
    pub(super) async fn wait_alone(&self) -> Result<()> {
        tokio::select! {
            biased;
            () = self.member().local().shared() => {}
            // Boxed, since most of the time nobody is here while many wait. Polled also if there are other
            // entries: they may be gone again before anybody begins to watch the whole queue.
            turn = Box::pin(self.follow_predecessors()) => return turn,
        }
        std::future::pending().await
    }

    async fn follow_predecessors(&self) -> Result<()> {
        let mut before = match self.predecessor.clone() {
            Some(seen) => Some(seen),
            None => self.predecessor().await?,
        };
        while let Some(Seen { key, at }) = before {
            self.is_told_behind(&key);
            // Watches from now on: etcd serves a watch from a past revision only every 100 ms. A watch that
            // begins after the predecessor was seen may have missed its end, so the predecessor is read
            // again.
            let mut changes = self.queues().hub.subscribe(Range::Key(key.as_str().into()));
            match changes.next().await {
                Some(Delivery::Started { from }) if from <= at + 1 => {}
                Some(Delivery::Started { .. }) => {
                    if !self.is_before(&key).await? {
                        before = self.predecessor().await?;
                        continue;
                    }
                }
                Some(Delivery::Refused(error)) if !is_transient(&error) => return Err(*error),
                _ => {
                    timer::sleep(Duration::from_millis(fastrand::u64(20..100))).await;
                    before = self.predecessor().await?;
                    continue;
                }
            }
            tracing::debug!(key = self.key, behind = key, "waiting in the queue");
            loop {
                match changes.next().await {
                    Some(Delivery::Changes(changes)) => {
                        if changes.iter().any(|change| change.value.is_none()) {
                            break;
                        }
                    }
                    Some(Delivery::Refused(error)) if !is_transient(&error) => return Err(*error),
                    _ => break,
                }
            }
            before = self.predecessor().await?;
        }
        Ok(())
    }

    /// Returns whether a key is an entry before this one. The key may be a later entry by now: a contender
    /// that leaves a queue and enters it again may use its key again. Retries while the store is unavailable.
    async fn is_before(&self, key: &str) -> Result<bool> {
        loop {
            let options = GetOptions::new().with_keys_only();
            match self.queues().get("wait in a queue", key, Some(options)).await {
                Ok(found) => {
                    return Ok(found.kvs.first().is_some_and(|kv| kv.create_revision < self.created()));
                }
                Err(failure) if is_transient(&failure.error) => {
                    timer::sleep(Duration::from_millis(fastrand::u64(50..250))).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Returns the next entry before this one; `None` at the head. Retries while the store is unavailable.
    async fn predecessor(&self) -> Result<Option<Seen>> {
        let before = GetOptions::new()
            .with_prefix()
            .with_max_create_revision(self.created() - 1)
            .latest_first()
            .with_limit(1);
        loop {
            // Read as of now: an etcd member that lags behind may not know yet that this entry is gone.
            let get = |key: &str, options: GetOptions| Op::get(key, Some(options.with_keys_only()));
            let look = Look::of([
                get(&self.key, GetOptions::new()),
                get(&self.member().local().queue, before.clone()),
            ]);
            match self.queues().look("wait in a queue", look).await {
                Ok(answer) => return self.read_predecessor(&answer),
                Err(failure) if is_transient(&failure.error) => {
                    timer::sleep(Duration::from_millis(fastrand::u64(50..250))).await;
                }
                Err(failure) => return Err(failure.into()),
            }
        }
    }
    /// Reads the own entry and the next one before it, as they were at one revision.
    fn read_predecessor(&self, answer: &TxnAnswer) -> Result<Option<Seen>> {
        let answers = &answer.results;
        let own = pairs(answers.first()).first();
        if own.is_none_or(|own| own.create_revision != self.created()) {
            self.is_gone();
            return Err(Error::Lost { reason: LossReason::Deleted });
        }
        let at = answer.header.revision;
        pairs(answers.get(1))
            .first()
            .map(|kv| kv.key_str().map(|key| Seen { key: key.to_owned(), at }))
            .transpose()
            .map_err(|error| Error::Backend { operation: "wait in a queue", source: Box::new(error) })
    }
}
