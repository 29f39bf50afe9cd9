//! The network: the way of one client to the store, with all that goes wrong on it.

mod controls;
mod faults;
mod peer;
mod streams;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use coord_api::{
    Error,
    backend::{after, sleep, sleep_until},
};
use coord_kv::store::{
    Attempts, Call, Compare, Description, Distance, Extent, Failure, GetAnswer, GetOptions, Granted, Header,
    Lateness, LeaseDetail, LeaseId, LeaseStatus, Limits, Notice, Op, RenewalStream, Target, Txn, TxnAnswer,
    WatchRequest, WatchStream,
};
use futures::stream::BoxStream;
use tokio::{sync::oneshot, time::Instant};

pub use faults::NetworkFaults;
pub(crate) use peer::Peer;

use crate::store::{MOST_OPERATIONS, Shared, State};
use faults::{Answer, Fate, broken, is_cut_off};
use peer::Reach;
use streams::{Renewals, Watches};

/// The largest request, as that of etcd.
const MOST_BYTES: usize = 1_572_864;

/// The way of one client to its store.
#[derive(Clone)]
pub(crate) struct Network {
    store: Shared,
    peer: Arc<Peer>,
    description: Arc<Description>,
}

impl fmt::Debug for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Network").field(&self.peer).finish()
    }
}

impl Network {
    /// Makes the way of a new client.
    pub(crate) fn join(store: Shared) -> Self {
        let (peer, cluster) = {
            let mut state = store.lock();
            (state.join(Peer::new), state.header().cluster)
        };
        let description = Description {
            name: "memory store",
            if_unreachable: "it stands still",
            members: 1,
            addresses: vec![format!("memory/{cluster:016x}")],
            limits: Limits { operations: MOST_OPERATIONS, bytes: MOST_BYTES },
            lateness: Lateness::Possible,
            distance: Distance::Process,
        };
        Self { store, peer, description: Arc::new(description) }
    }

    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Takes note that the client was dropped.
    pub(crate) fn leave(&self) {
        self.peer.close();
        self.store.lock().leave(self.peer.id());
    }

    /// Makes a request.
    async fn request<T: fmt::Debug + Send + 'static>(
        &self,
        what: Option<String>,
        work: impl FnOnce(&mut State, Instant) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let fate = self.peer.admitted().await?;
        self.executed(fate, what, work).await
    }

    /// Has a request executed, if and when it arrives, and waits for its answer.
    async fn executed<T: fmt::Debug + Send + 'static>(
        &self,
        fate: Fate,
        what: Option<String>,
        work: impl FnOnce(&mut State, Instant) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let client = self.peer.id();
        self.note_fate(fate, what.as_deref());
        let Some(arrives) = fate.arrives else { return std::future::pending().await };
        let work = move |state: &mut State, now| {
            let done = work(state, now);
            state.note(now, || format!("client {client}: {} -> {done:?}", what.unwrap_or_default()));
            done
        };
        let late = {
            let (mut state, now) = self.store.lock_now();
            if arrives.is_zero() && !state.is_still(now) {
                Ok(work(&mut state, now))
            } else {
                let (reply, answer) = oneshot::channel();
                let at = if arrives.is_zero() { now } else { after(arrives) };
                // The caller may have given it up.
                state.send(at, Box::new(move |state, now| drop(reply.send(work(state, now)))));
                Err((at, answer))
            }
        };
        let outcome = match late {
            Ok(outcome) => outcome,
            Err((at, answer)) => self.answered(at, answer).await,
        };
        match fate.answer {
            Answer::After(time) if time.is_zero() => outcome,
            Answer::After(time) => {
                sleep(time).await;
                outcome
            }
            Answer::Broken => Err(broken()),
            Answer::Lost => std::future::pending().await,
        }
    }

    /// Returns what a request is, if there is a trace of requests.
    fn traced(&self, what: impl FnOnce() -> String) -> Option<String> {
        self.store.lock().is_traced().then(what)
    }

    /// Takes note of a request that is not executed at once.
    fn note_fate(&self, fate: Fate, what: Option<&str>) {
        let Some(what) = what else { return };
        let (mut state, now) = self.store.lock_now();
        if fate != Fate::GOOD || state.is_still(now) {
            state.note(now, || format!("client {}: sends with {fate:?}: {what}", self.peer.id()));
        }
    }

    /// Waits for the answer to a request that arrives later.
    async fn answered<T>(
        &self,
        at: Instant,
        mut answer: oneshot::Receiver<Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let mut link = self.peer.link();
        let connection = link.borrow().connection;
        loop {
            let happens = self.store.lock_now().0.happens(at);
            tokio::select! {
                biased;
                answer = &mut answer => return answer.unwrap_or_else(|_| Err(broken())),
                _ = link.changed() => {
                    let link = *link.borrow_and_update();
                    if link.connection != connection || link.reach() == Reach::Down {
                        return Err(broken());
                    }
                }
                // The next look at the store lets the request arrive.
                () = sleep_until(happens) => {}
            }
        }
    }
}

/// Returns a transaction as people read it.
fn shown(txn: &Txn) -> String {
    let bytes = |bytes: &[u8]| bytes.escape_ascii().to_string();
    let conditions = txn.conditions.iter().map(|Compare { key, is_prefix, op, target }| {
        let below = if *is_prefix { "*" } else { "" };
        match target {
            Target::Value(value) => format!("{}{below} value {op:?} {}", bytes(key), bytes(value)),
            target => format!("{}{below} {op:?} {target:?}", bytes(key)),
        }
    });
    let ops = |ops: &[Op]| {
        let ops = ops.iter().map(|op| match op {
            Op::Get { key, options } if options.extent == Extent::Key => format!("get {}", bytes(key)),
            Op::Get { key, .. } => format!("get {}*", bytes(key)),
            Op::Put { key, value, options } => {
                format!("put {}={} on {:x}", bytes(key), bytes(value), options.lease)
            }
            Op::Delete { key } => format!("delete {}", bytes(key)),
            Op::Txn(nested) => format!("({})", shown(nested)),
        });
        ops.collect::<Vec<_>>().join(", ")
    };
    let conditions = conditions.collect::<Vec<_>>().join(" and ");
    format!("if [{conditions}] then [{}] else [{}]", ops(&txn.operations), ops(&txn.otherwise))
}

#[async_trait]
impl coord_kv::store::Store for Network {
    fn description(&self) -> &Description {
        &self.description
    }

    async fn range(&self, call: Call<'_>, key: Vec<u8>, options: GetOptions) -> Result<GetAnswer, Failure> {
        let operation = call.operation;
        let what = self.traced(|| format!("range {} {options:?}", key.escape_ascii()));
        self.request(what, move |state, _| state.range(operation, &key, &options)).await
    }

    async fn txn(&self, call: Call<'_>, txn: Txn) -> Result<TxnAnswer, Failure> {
        let (operation, client) = (call.operation, self.peer.id());
        let what = self.traced(|| format!("{operation}: {}", shown(&txn)));
        self.request(what, move |state, _| state.txn(operation, client, &txn)).await
    }

    async fn grant(&self, call: Call<'_>, lease: LeaseId, ttl: i64) -> Result<Granted, Failure> {
        let (operation, client) = (call.operation, self.peer.id());
        let what = self.traced(|| format!("grant {lease:x} for {ttl} s"));
        self.request(what, move |state, now| state.grant(operation, client, (lease, ttl), now)).await
    }

    async fn revoke(&self, _call: Call<'_>, lease: LeaseId) -> Result<Header, Failure> {
        let what = self.traced(|| format!("revoke {lease:x}"));
        self.request(what, move |state, _| state.revoke(lease)).await
    }

    async fn lease(
        &self,
        _call: Call<'_>,
        lease: LeaseId,
        detail: LeaseDetail,
    ) -> Result<LeaseStatus, Failure> {
        let what = self.traced(|| format!("look up lease {lease:x}"));
        self.request(what, move |state, now| Ok(state.lease(lease, detail, now))).await
    }

    fn renewals(&self) -> Arc<dyn RenewalStream> {
        Arc::new(Renewals::open(self))
    }

    async fn watch(
        &self,
        _attempts: &dyn Attempts,
        first: Vec<WatchRequest>,
    ) -> Result<Box<dyn WatchStream>, Failure> {
        self.peer.going().await?;
        Ok(Box::new(Watches::open(self, first)))
    }

    fn connections(&self) -> BoxStream<'static, ()> {
        streams::connections(&self.peer)
    }

    fn notices(&self) -> Option<BoxStream<'static, Notice>> {
        streams::notices(&self.peer)
    }

    fn is_final(&self, error: &Error) -> bool {
        is_cut_off(error)
    }
}
