//! The epoch of a lease, which keeps a request that arrives late from taking anything.
//!
//! A request whose answer was lost may be in flight for longer than anybody waits: a member that was frozen reads, when
//! it goes on, what its clients sent it minutes before. A place that comes to be then belongs to nobody, and bars its
//! queue for as long as the lease lives. So each request that takes something on a lease, a place, an id or a record,
//! requires that another key on the lease, the epoch, is as this client knows it. Advancing the epoch voids every request
//! that was sent before. A read after that shows the final outcome.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::{
    request::{Rpc, pairs},
    session::Session,
    store::{
        Compare, CompareOp, Failure, GetOptions, LeaseId, Op, OpResult, PutOptions, Revision, Txn, TxnAnswer,
    },
};

/// What is tried when an epoch is advanced.
const SETTLE: &str = "settle what was not answered";

/// The epoch of one lease.
#[derive(Debug)]
pub(crate) struct LeaseEpoch {
    key: String,
    lease: LeaseId,
    /// The revision at which it was written last, as far as this client knows; 0 for never. One that is not right
    /// costs another request, which tells it.
    at: AtomicI64,
    /// How often this client began to advance it,
    begun: AtomicU64,
    /// and which of these was done last; locked while it is advanced.
    done: tokio::sync::Mutex<u64>,
}

/// A moment, counted in how often an epoch was advanced.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Epoch(u64);

impl LeaseEpoch {
    pub(crate) fn new(key: String, lease: LeaseId) -> Self {
        Self { key, lease, at: AtomicI64::new(0), begun: AtomicU64::new(0), done: tokio::sync::Mutex::new(0) }
    }

    /// Returns the lease that the epoch is of.
    pub(crate) fn lease(&self) -> LeaseId {
        self.lease
    }

    /// Returns the condition that the epoch is the present one.
    pub(crate) fn unchanged(&self) -> Compare {
        Compare::mod_revision(self.key.as_str(), CompareOp::Equal, self.at.load(Ordering::SeqCst))
    }

    /// Returns the read to make when that was not so; [`reloaded`](Self::reloaded) takes its result.
    pub(crate) fn reload(&self) -> Op {
        Op::get(self.key.as_str(), Some(GetOptions::new().with_keys_only()))
    }

    /// Takes the result of [`reload`](Self::reload).
    pub(crate) fn reloaded(&self, found: Option<&OpResult>) {
        self.at.store(pairs(found).first().map_or(0, |kv| kv.mod_revision), Ordering::SeqCst);
    }

    /// Returns the present moment, to be taken when the answer to a request is known to be lost.
    pub(crate) fn now(&self) -> Epoch {
        Epoch(self.begun.load(Ordering::SeqCst))
    }
}

impl Session {
    /// Makes a transaction that writes on the lease, which learns if it is over.
    pub(crate) async fn txn(
        &self,
        rpc: &Rpc,
        operation: &'static str,
        txn: Txn,
    ) -> Result<TxnAnswer, Failure> {
        let answer = rpc.txn(operation, txn).await;
        answer.inspect_err(|failure| self.learn(&failure.error))
    }

    /// Makes a transaction in the present epoch: once that is advanced, no request that was sent before takes effect.
    /// Returns the revision at which it was made, and the answer.
    pub(crate) async fn txn_in_epoch(
        &self,
        rpc: &Rpc,
        operation: &'static str,
        txn: Txn,
    ) -> Result<(Revision, TxnAnswer), Failure> {
        let (epoch, inner) = (&self.epoch, Op::txn(txn));
        loop {
            let guarded =
                Txn::new().when([epoch.unchanged()]).and_then([inner.clone()]).or_else([epoch.reload()]);
            let mut answer = self.txn(rpc, operation, guarded).await?;
            match answer.results.pop() {
                Some(OpResult::Txn(made)) => return Ok((answer.header.revision, made)),
                found => epoch.reloaded(found.as_ref()),
            }
        }
    }

    /// Makes sure that no request in an epoch takes effect any more that was sent before `since`. Callers whose answers
    /// were lost together share one request.
    ///
    /// May be dropped and called again.
    pub(crate) async fn advance(&self, rpc: &Rpc, since: Epoch) -> Result<(), Failure> {
        let epoch = &self.epoch;
        let mut done = epoch.done.lock().await;
        // Only one that began after the moment was certainly sent after what it is to keep out.
        if *done > since.0 {
            return Ok(());
        }
        let this = epoch.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let on_lease = PutOptions::new().with_lease(epoch.lease);
        // Writing it once more than needed keeps out only what is then sent again.
        let answer = rpc.put(SETTLE, &epoch.key, on_lease).await;
        let answer = answer.inspect_err(|failure| self.learn(&failure.error))?;
        epoch.at.store(answer.header.revision, Ordering::SeqCst);
        *done = this;
        Ok(())
    }

    /// Keeps out what may still be in flight, if there is such, and undoes what may have taken effect: until it is done or
    /// the lease is over, with which everything is gone. `what` is for people.
    pub(crate) async fn undo<F>(&self, rpc: &Rpc, what: &str, since: Option<Epoch>, undo: impl Fn() -> F)
    where
        F: Future<Output = Result<(), Failure>>,
    {
        let over = async {
            self.lease.lost().await;
        };
        let step = || async {
            let advanced = match since {
                Some(since) => self.advance(rpc, since).await,
                None => Ok(()),
            };
            // In any case: a full store takes deletions, but no epoch before it has room again.
            advanced.and(undo().await)
        };
        rpc.clean_up(what, over, step).await;
    }
}
