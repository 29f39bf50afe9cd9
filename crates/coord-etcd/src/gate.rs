//! What keeps a request that arrives late from taking anything.
//!
//! A request whose answer was lost may be under way for longer than anybody waits: a member that was frozen reads, when
//! it goes on, what its clients sent it minutes before. A place that comes to be then belongs to nobody, and bars its
//! queue for as long as the lease lives. So whatever takes something on a lease, a place, an id or a record, requires
//! that another key on the lease, the gate, is as this client knows it. Writing the gate shuts it for all that was sent
//! before, and a look after that tells for good whether it was taken.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use etcd_client::{Compare, CompareOp, GetOptions, KeyValue, KvClient, PutOptions, TxnOp, TxnOpResponse};

use crate::{
    core::Core,
    error::Failure,
    read::{pairs, revision},
    request::Repeat,
    session::Session,
};

/// What is tried when a gate is shut.
const SETTLE: &str = "settle what was not answered";

/// The gate of one lease.
#[derive(Debug)]
pub(crate) struct Gate {
    key: String,
    lease: i64,
    /// The revision at which it was written last, as far as this client knows; 0 for never. One that is not right
    /// costs another request, which tells it.
    at: AtomicI64,
    /// How often this client began to shut it,
    begun: AtomicU64,
    /// and which of these was done last; locked while it is shut.
    done: tokio::sync::Mutex<u64>,
}

/// A moment, counted in how often a gate was shut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark(u64);

impl Gate {
    pub(crate) fn new(key: String, lease: i64) -> Self {
        Self { key, lease, at: AtomicI64::new(0), begun: AtomicU64::new(0), done: tokio::sync::Mutex::new(0) }
    }

    /// The lease that the gate goes with.
    pub(crate) fn lease(&self) -> i64 {
        self.lease
    }

    /// The condition under which a request may pass that is made now.
    pub(crate) fn is_open(&self) -> Compare {
        Compare::mod_revision(self.key.as_str(), CompareOp::Equal, self.at.load(Ordering::SeqCst))
    }

    /// What to look at when that was not so,
    pub(crate) fn look(&self) -> TxnOp {
        TxnOp::get(self.key.as_str(), Some(GetOptions::new().with_keys_only()))
    }

    /// and what was found.
    pub(crate) fn looked(&self, found: Option<&TxnOpResponse>) {
        self.at.store(pairs(found).first().map_or(0, KeyValue::mod_revision), Ordering::SeqCst);
    }

    /// To be taken when the answer to a request is known to be lost.
    pub(crate) fn now(&self) -> Mark {
        Mark(self.begun.load(Ordering::SeqCst))
    }
}

impl Core {
    /// Makes sure that nothing passes the gate of `session` any more that was sent before `mark`. Those whose answers
    /// were lost together share one request.
    ///
    /// May be dropped and called again.
    pub(crate) async fn shut(&self, session: &Session, mark: Mark) -> Result<(), Failure> {
        let gate = &session.gate;
        let mut done = gate.done.lock().await;
        // Only one that began after the mark was certainly sent after what it is to keep out.
        if *done > mark.0 {
            return Ok(());
        }
        let this = gate.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let on_lease = PutOptions::new().with_lease(gate.lease);
        let put = async |mut kv: KvClient| kv.put(gate.key.as_str(), "", Some(on_lease.clone())).await;
        // Writing it once more than needed shuts out only what is then sent again.
        let answer = self.call(SETTLE, Repeat::Freely, put).await;
        let answer = answer.inspect_err(|failure| session.learn(&failure.error))?;
        gate.at.store(revision(answer.header()), Ordering::SeqCst);
        *done = this;
        Ok(())
    }

    /// Keeps out what may still be under way, if there is such, and undoes what may have passed: until it is done or the
    /// lease is over, with which everything is gone. `what` is for people.
    pub(crate) async fn undo<F>(
        &self,
        what: &str,
        session: &Session,
        since: Option<Mark>,
        undo: impl Fn() -> F,
    ) where
        F: Future<Output = Result<(), Failure>>,
    {
        let over = async {
            session.lease.lost().await;
        };
        let step = || async {
            let shut = match since {
                Some(since) => self.shut(session, since).await,
                None => Ok(()),
            };
            // In any case: a full store takes deletions, but no gate before it has room again.
            shut.and(undo().await)
        };
        self.clean_up(what, over, step).await;
    }
}
