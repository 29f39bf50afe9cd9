//! Epoch of a lease, which keeps a request that arrives late from taking anything.
//!
//! A request whose answer is lost may be in flight for longer than anybody waits. When a frozen etcd member
//! goes on, it reads what its clients sent it minutes before. An entry that comes to be then belongs to
//! nobody, and bars its queue for as long as the lease lives. So there is another key on the lease, the
//! epoch. Each request that takes an entry, an id or a record on the lease requires that the epoch is as this
//! client knows it. Advancing the epoch voids every request that was sent before. A read after that shows the
//! final outcome.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use crate::{
    request::{Rpc, pairs},
    session::Session,
    store::{
        Compare, CompareOp, Failure, GetOptions, LeaseId, Op, OpResult, PutOptions, Revision, Txn, TxnAnswer,
    },
};

/// Operation that errors name when an epoch is advanced.
const SETTLE: &str = "settle what was not answered";

/// Epoch of one lease.
#[derive(Debug)]
pub(crate) struct LeaseEpoch {
    key: String,
    lease: LeaseId,
    /// Revision at which it was written last, as far as this client knows; 0 for never. A wrong revision
    /// costs another request, which tells the right one.
    at: AtomicI64,
    /// Number of times that this client began to advance it.
    begun: AtomicU64,
    /// Number of the advance that was done last, as `begun` counts them; locked while it is advanced.
    done: tokio::sync::Mutex<u64>,
}

/// Moment, counted in how often an epoch was advanced.
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

    /// Returns the read to make when the epoch is not the present one; [`reloaded`](Self::reloaded) takes its
    /// result.
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
    /// Makes a transaction that writes on the lease, which ends here if the store says that it is over.
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

    /// Makes sure that no request in an epoch takes effect any more that was sent before `since`. Callers
    /// whose answers were lost together share one request.
    ///
    /// May be dropped and called again.
    pub(crate) async fn advance(&self, rpc: &Rpc, since: Epoch) -> Result<(), Failure> {
        let epoch = &self.epoch;
        let mut done = epoch.done.lock().await;
        // Only an advance that began after the moment was certainly sent after the requests that it is to
        // void.
        if *done > since.0 {
            return Ok(());
        }
        let this = epoch.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let on_lease = PutOptions::new().with_lease(epoch.lease);
        // An advance more than needed voids only requests that are then sent again.
        let answer = rpc.put(SETTLE, &epoch.key, on_lease).await;
        let answer = answer.inspect_err(|failure| self.learn(&failure.error))?;
        epoch.at.store(answer.header.revision, Ordering::SeqCst);
        *done = this;
        Ok(())
    }

    /// Voids what may still be in flight, if there is a `since`, and undoes what may have taken effect. Both
    /// are repeated until they are done or the lease is over, with which everything is gone. `what` is for
    /// people.
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
            // In any case: a full store takes deletions, but no new epoch before it has room again.
            advanced.and(undo().await)
        };
        rpc.clean_up(what, over, step).await;
    }
}
