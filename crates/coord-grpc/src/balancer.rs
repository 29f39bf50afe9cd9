//! The shell around the roster: what calls read without a lock, and the one task that connects.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use coord_api::{BoxError, Contact, Error, ServiceInfo};
use futures::{FutureExt, Stream, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tonic::Status;
use tower::discover::Change;

use crate::{
    ConnectOptions, HashKey, Tries,
    calm::Calm,
    deadline::{Deadline, Patience},
    health,
    outlier::{Failure, Verdict},
    peak_ewma::PoolLatency,
    picker::{Slot, Table},
    probe,
    roster::{Dial, Roster, Serving},
    tries::{too_late, unsent},
    wire::{Link, dial},
};

/// So many changes are taken in at once.
const CHANGES: usize = 4096;

/// What a request says about where it should go.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) key: Option<HashKey>,
    pub(crate) tries: Option<Tries>,
}

/// See [the module](self).
pub(crate) struct Balancer {
    pub(crate) service: Arc<str>,
    pub(crate) options: ConnectOptions,
    pub(crate) contact: Option<Contact>,
    roster: Mutex<Roster<Link>>,
    table: ArcSwap<Table<Link>>,
    calm: Arc<Calm>,
    pub(crate) pool: Arc<PoolLatency>,
    /// Tells whoever follows the connections that there may be others.
    changed: Notify,
    /// Tells the task that there may be something to connect to.
    wake: Notify,
    counts: watch::Sender<Counts>,
}

/// How many instances there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) known: usize,
    pub(crate) ready: usize,
    /// How many connections were made so far.
    pub(crate) made: u64,
    /// No more changes will come.
    pub(crate) ended: bool,
}

impl Balancer {
    pub(crate) fn new(service: Arc<str>, options: ConnectOptions, contact: Option<Contact>) -> Self {
        let roster = Roster::new(options.plan());
        let (pool, roster) = (roster.pool(), Mutex::new(roster));
        let (table, wake, counts) = (ArcSwap::default(), Notify::new(), watch::Sender::default());
        Self {
            service,
            options,
            contact,
            roster,
            table,
            calm: Arc::default(),
            pool,
            changed: Notify::new(),
            wake,
            counts,
        }
    }

    /// An instance for a call, and when it was chosen. Waits for one as long as `patience` says if none is ready.
    pub(crate) async fn choose(
        &self,
        wish: &Wish,
        now: Instant,
        patience: &Patience,
    ) -> Result<(Arc<Slot<Link>>, Instant), Status> {
        if let Some(slot) = self.pick(wish, now) {
            return Ok((slot, now));
        }
        let mut counts = self.counts.subscribe();
        let waiting = async {
            loop {
                // The sender is here, so this waits as long as it takes.
                let _ = counts.wait_for(|counts| counts.ready > 0).await;
                let now = Instant::now();
                if let Some(slot) = self.pick(wish, now) {
                    return (slot, now);
                }
                let _ = counts.changed().await;
            }
        };
        let Some(end) = patience.end() else { return Ok(waiting.await) };
        timeout_at(end, waiting).await.map_err(|_| match patience.callers() {
            Some(Deadline { given, .. }) => late(&self.nobody(given)),
            None => status(&self.nobody(self.options.wait())),
        })
    }

    fn pick(&self, wish: &Wish, now: Instant) -> Option<Arc<Slot<Link>>> {
        let table = self.table.load();
        let Some(tries) = &wish.tries else { return table.pick(wish.key, now).cloned() };
        tries.waits();
        let slot = table.pick_again(wish.key, now, tries)?;
        tries.given_to(&slot.node.id);
        Some(slot.clone())
    }

    /// Why no call could be made within `limit`.
    pub(crate) fn nobody(&self, limit: Duration) -> Error {
        let roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let reason = roster.why_nobody(limit);
        Error::Unavailable { what: format!("service {}", self.service), source: Some(reason.into()) }
    }

    /// A connection takes no more calls.
    pub(crate) fn lost(&self, slot: &Slot<Link>) {
        self.left(&slot.node.id, slot.turn, slot.link.suspicion());
    }

    fn left(&self, id: &str, turn: u64, suspicion: Option<&str>) {
        if self.change(|roster| roster.lost(id, turn, suspicion, Instant::now())) {
            self.wake.notify_one();
        }
    }

    /// A call has failed.
    pub(crate) fn failed(&self, slot: &Slot<Link>, failure: Failure) {
        let (id, turn, now) = (slot.node.id.as_str(), slot.turn, Instant::now());
        let rules = self.options.outlier_detection.as_ref();
        // Most failures have no consequence, and need no look at the others.
        if failure == Failure::Answer && !rules.is_some_and(|rules| rules.suspects(&slot.node, now)) {
            return;
        }
        let verdict = self.change(|roster| roster.failed(id, turn, failure, now));
        if failure == Failure::Silence && self.options.probe.is_some() {
            // Streams on it would wait for nothing.
            slot.link.sever();
        }
        if let Verdict::Eject { .. } = verdict {
            let service = self.service.to_string();
            metrics::counter!("coord_grpc_ejections_total", "service" => service).increment(1);
        }
        if verdict != Verdict::Stay {
            self.wake.notify_one();
        }
    }

    /// The health service of an instance has answered.
    pub(crate) fn heard(&self, id: &str, turn: u64, serving: Serving) {
        if self.change(|roster| roster.heard(id, turn, serving, Instant::now())) {
            // One that is ejected may be needed now.
            self.wake.notify_one();
        }
    }

    /// Waits until the connections may be others than before.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Instances that calls are in flight to.
    pub(crate) fn in_use(&self) -> Vec<Arc<Slot<Link>>> {
        self.table.load().slots().filter(|slot| slot.node.load.pending() > 0).cloned().collect()
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.table.load().len() > 0
    }

    pub(crate) fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Roster<Link>) -> T) -> T {
        read(&self.roster.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Roster<Link>) -> T) -> T {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        let outcome = change(&mut roster);
        let table = roster.table();
        let (known, ready) = (roster.known(), table.len());
        // Under the lock, so that the latest table is the last one stored.
        self.table.store(Arc::new(table));
        self.changed.notify_one();
        self.counts.send_if_modified(|counts| {
            let now = Counts { known, ready, ..*counts };
            std::mem::replace(counts, now) != now
        });
        outcome
    }

    /// Follows `changes` and keeps connections, until it is dropped.
    pub(crate) async fn run<E: Into<BoxError>>(
        self: Arc<Self>,
        changes: impl Stream<Item = Result<Change<String, ServiceInfo>, E>> + Send,
    ) {
        let mut changes = pin!(changes.fuse());
        let mut dialling = FuturesUnordered::new();
        let mut ended = false;
        let mut probing = pin!(probe::keep(&self));
        let mut following = pin!(health::keep(&self));
        loop {
            let (dials, next) = self.due();
            dialling.extend(dials.into_iter().map(|dial| self.clone().dial(dial)));
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                change = changes.next(), if !ended => {
                    let Some(change) = change else {
                        ended = true;
                        self.counts.send_modify(|counts| counts.ended = true);
                        continue;
                    };
                    let mut batch = vec![change];
                    while let (true, Some(Some(change))) = (batch.len() < CHANGES, changes.next().now_or_never()) {
                        batch.push(change);
                    }
                    self.apply(batch);
                }
                Some((dial, outcome)) = dialling.next() => self.dialled(&dial, outcome),
                () = self.wake.notified() => {}
                () = due => {}
                () = &mut probing => {}
                () = &mut following => {}
            }
        }
    }

    fn due(&self) -> (Vec<Dial>, Option<Instant>) {
        let mut roster = self.roster.lock().unwrap_or_else(PoisonError::into_inner);
        (roster.due(Instant::now()), roster.next_due())
    }

    fn apply<E: Into<BoxError>>(&self, batch: Vec<Result<Change<String, ServiceInfo>, E>>) {
        let good = batch.into_iter().filter_map(|change| {
            let skip = |error: E| {
                let error = error.into();
                tracing::warn!(service = &*self.service, %error, "going on with the instances known so far");
            };
            change.map_err(skip).ok()
        });
        self.change(|roster| roster.apply(good, Instant::now()));
        let counts = *self.counts.borrow();
        let known = f64::from(u32::try_from(counts.known).unwrap_or(u32::MAX));
        metrics::gauge!("coord_grpc_instances", "service" => self.service.to_string()).set(known);
    }

    async fn dial(self: Arc<Self>, order: Dial) -> (Dial, Result<Link, String>) {
        let (balancer, id, turn) = (Arc::downgrade(&self), order.id.clone(), order.turn);
        let closed = move |suspicion: Option<&str>| {
            if let Some(balancer) = balancer.upgrade() {
                balancer.left(&id, turn, suspicion);
            }
        };
        let outcome = dial(&order.authority, &self.options, &self.calm, closed).await;
        (order, outcome.map_err(|error| error.to_string()))
    }

    fn dialled(&self, dial: &Dial, outcome: Result<Link, String>) {
        let is_made = outcome.is_ok();
        self.change(|roster| {
            // It tells of its end under the same lock: either it is seen here, or `lost` finds it ready.
            let outcome = match outcome {
                Ok(link) if link.is_closed() => Err("the connection was closed at once".into()),
                other => other,
            };
            roster.dialled(dial, outcome, Instant::now());
        });
        if is_made {
            self.counts.send_modify(|counts| counts.made += 1);
        }
    }
}

/// An error of coord's as an answer to a call that was not sent.
fn status(error: &Error) -> Status {
    unsent(shown(error))
}

/// The same when it is the caller's time that is over.
fn late(error: &Error) -> Status {
    too_late(shown(error))
}

fn shown(error: &Error) -> String {
    let source = std::error::Error::source(error).map_or_else(String::new, |source| format!(": {source}"));
    format!("{error}{source}")
}

impl fmt::Debug for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Balancer").field("service", &self.service).finish_non_exhaustive()
    }
}
