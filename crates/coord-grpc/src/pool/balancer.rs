//! Balancer: the async shell around the [`Pool`]. Calls read its picker without a lock, and one task connects instances.

use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use coord_api::{BoxError, Connectivity, Error, ServiceInfo, backend::lock};
use futures::{FutureExt, Stream, StreamExt, stream::FuturesUnordered};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep_until, timeout_at},
};
use tonic::Status;
use tower::discover::Change;

use super::{Dial, Pool, PoolOptions, Serving};
use crate::{
    attempts::{Attempts, too_late, unsent},
    deadline::{Deadline, WaitLimit},
    options::ConnectOptions,
    pick::{
        HashKey,
        outlier::{Decision, Failure},
        peak_ewma::PoolLatency,
        picker::{Picker, Ready},
    },
    transport::{Connection, PingBackoff, connect},
};

/// Largest number of changes that are applied at once.
const CHANGES: usize = 4096;

/// Hint of a request to the picker.
#[derive(Debug)]
pub(crate) struct PickHint {
    pub(crate) key: Option<HashKey>,
    pub(crate) attempts: Option<Attempts>,
}

/// Balancer of one service; see [the module](self).
pub(crate) struct Balancer {
    pub(crate) service: Arc<str>,
    pub(crate) options: ConnectOptions,
    pub(crate) connectivity: Option<Connectivity>,
    pool: Mutex<Pool<Connection>>,
    picker: ArcSwap<Picker<Connection>>,
    ping_backoff: Arc<PingBackoff>,
    pub(crate) pool_latency: Arc<PoolLatency>,
    /// Notified when connections may have changed.
    changed: Notify,
    /// Notified when there may be an instance to connect.
    wake: Notify,
    counts: watch::Sender<Counts>,
}

/// Numbers of instances and connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) known: usize,
    pub(crate) ready: usize,
    /// Connections made so far.
    pub(crate) made: u64,
    /// Whether the list of instances has ended.
    pub(crate) ended: bool,
}

impl Balancer {
    pub(crate) fn new(
        service: Arc<str>,
        options: ConnectOptions,
        connectivity: Option<Connectivity>,
    ) -> Self {
        let pool = Pool::new(PoolOptions::from(&options));
        let (pool_latency, pool) = (pool.pool_latency(), Mutex::new(pool));
        let (picker, wake, counts) = (ArcSwap::default(), Notify::new(), watch::Sender::default());
        Self {
            service,
            options,
            connectivity,
            pool,
            picker,
            ping_backoff: Arc::default(),
            pool_latency,
            changed: Notify::new(),
            wake,
            counts,
        }
    }

    /// Chooses an instance for a call, and returns the time of the choice. Waits up to `wait_limit` if none is ready.
    pub(crate) async fn choose(
        &self,
        hint: &PickHint,
        now: Instant,
        wait_limit: &WaitLimit,
    ) -> Result<(Arc<Ready<Connection>>, Instant), Status> {
        if let Some(ready) = self.pick(hint, now) {
            return Ok((ready, now));
        }
        let mut counts = self.counts.subscribe();
        let waiting = async {
            loop {
                // `self` has the sender, so this does not end early.
                let _ = counts.wait_for(|counts| counts.ready > 0).await;
                let now = Instant::now();
                if let Some(ready) = self.pick(hint, now) {
                    return (ready, now);
                }
                let _ = counts.changed().await;
            }
        };
        let Some(end) = wait_limit.end() else { return Ok(waiting.await) };
        timeout_at(end, waiting).await.map_err(|_| match wait_limit.callers_deadline() {
            Some(Deadline { given, .. }) => late(&self.unavailable(given)),
            None => status(&self.unavailable(self.options.wait())),
        })
    }

    fn pick(&self, hint: &PickHint, now: Instant) -> Option<Arc<Ready<Connection>>> {
        let picker = self.picker.load();
        let Some(attempts) = &hint.attempts else { return picker.pick(hint.key, now).cloned() };
        attempts.waits();
        let ready = picker.pick_again(hint.key, now, attempts)?;
        attempts.given_to(&ready.stats.id);
        Some(ready.clone())
    }

    /// Returns the error of a call that found no instance within `limit`.
    pub(crate) fn unavailable(&self, limit: Duration) -> Error {
        let pool = lock(&self.pool);
        let reason = pool.unavailable_reason(limit);
        Error::Unavailable { what: format!("service {}", self.service), source: Some(reason.into()) }
    }

    /// Takes in that a connection takes no more calls.
    pub(crate) fn connection_lost(&self, ready: &Ready<Connection>) {
        self.lost(&ready.stats.id, ready.generation, ready.connection.early_close());
    }

    fn lost(&self, id: &str, generation: u64, early_close: Option<&str>) {
        if self.change(|pool| pool.connection_lost(id, generation, early_close, Instant::now())) {
            self.wake.notify_one();
        }
    }

    /// Takes in a failed call.
    pub(crate) fn failed(&self, ready: &Ready<Connection>, failure: Failure) {
        let (id, generation, now) = (ready.stats.id.as_str(), ready.generation, Instant::now());
        let rules = self.options.outlier_detection.as_ref();
        // Most failures have no consequence, and need no comparison with other instances.
        if failure == Failure::Answer && !rules.is_some_and(|rules| rules.suspects(&ready.stats, now)) {
            return;
        }
        let decision = self.change(|pool| pool.failed(id, generation, failure, now));
        if failure == Failure::Silence && self.options.probe.is_some() {
            // Streams on it would wait in vain.
            ready.connection.abort();
        }
        if let Decision::Eject { .. } = decision {
            let service = self.service.to_string();
            metrics::counter!("coord_grpc_ejections_total", "service" => service).increment(1);
        }
        if decision != Decision::Keep {
            self.wake.notify_one();
        }
    }

    /// Takes in an answer of an instance's health service.
    pub(crate) fn set_health(&self, id: &str, generation: u64, serving: Serving) {
        if self.change(|pool| pool.set_health(id, generation, serving, Instant::now())) {
            // An ejected instance may be needed now.
            self.wake.notify_one();
        }
    }

    /// Waits until connections may have changed.
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Returns the instances with calls in flight.
    pub(crate) fn in_use(&self) -> Vec<Arc<Ready<Connection>>> {
        self.picker.load().ready().filter(|ready| ready.stats.load.pending() > 0).cloned().collect()
    }

    pub(crate) fn has_ready(&self) -> bool {
        self.picker.load().len() > 0
    }

    pub(crate) fn counts(&self) -> watch::Receiver<Counts> {
        self.counts.subscribe()
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Pool<Connection>) -> T) -> T {
        read(&lock(&self.pool))
    }

    fn change<T>(&self, change: impl FnOnce(&mut Pool<Connection>) -> T) -> T {
        let mut pool = lock(&self.pool);
        let outcome = change(&mut pool);
        let picker = pool.picker();
        let (known, ready) = (pool.known(), picker.len());
        // Under the lock, so that the latest picker is the last one stored.
        self.picker.store(Arc::new(picker));
        self.changed.notify_one();
        self.counts.send_if_modified(|counts| {
            let now = Counts { known, ready, ..*counts };
            std::mem::replace(counts, now) != now
        });
        outcome
    }

    /// Follows `changes` and keeps instances connected, until it is dropped.
    pub(crate) async fn run<E: Into<BoxError>>(
        self: &Arc<Self>,
        changes: impl Stream<Item = Result<Change<String, ServiceInfo>, E>> + Send,
    ) {
        let mut changes = pin!(changes.fuse());
        let mut dialling = FuturesUnordered::new();
        let mut ended = false;
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
            }
        }
    }

    fn due(&self) -> (Vec<Dial>, Option<Instant>) {
        let mut pool = lock(&self.pool);
        (pool.due(Instant::now()), pool.next_due())
    }

    fn apply<E: Into<BoxError>>(&self, batch: Vec<Result<Change<String, ServiceInfo>, E>>) {
        let good = batch.into_iter().filter_map(|change| {
            let skip = |error: E| {
                let error = error.into();
                tracing::warn!(service = &*self.service, %error, "going on with the instances known so far");
            };
            change.map_err(skip).ok()
        });
        self.change(|pool| pool.apply(good, Instant::now()));
        let counts = *self.counts.borrow();
        let known = f64::from(u32::try_from(counts.known).unwrap_or(u32::MAX));
        metrics::gauge!("coord_grpc_instances", "service" => self.service.to_string()).set(known);
    }

    async fn dial(self: Arc<Self>, order: Dial) -> (Dial, Result<Connection, String>) {
        let (balancer, id, generation) = (Arc::downgrade(&self), order.id.clone(), order.generation);
        let closed = move |early_close: Option<&str>| {
            if let Some(balancer) = balancer.upgrade() {
                balancer.lost(&id, generation, early_close);
            }
        };
        let outcome = connect(&order.authority, &self.options, &self.ping_backoff, closed).await;
        (order, outcome.map_err(|error| error.to_string()))
    }

    fn dialled(&self, dial: &Dial, outcome: Result<Connection, String>) {
        let is_made = outcome.is_ok();
        self.change(|pool| {
            // Its end is reported under the same lock: either it is seen here, or `lost` finds the instance ready.
            let outcome = match outcome {
                Ok(connection) if connection.is_closed() => Err("the connection was closed at once".into()),
                other => other,
            };
            pool.dialled(dial, outcome, Instant::now());
        });
        if is_made {
            self.counts.send_modify(|counts| counts.made += 1);
        }
    }
}

/// Returns the status of a call that was not sent, for an error of coord.
fn status(error: &Error) -> Status {
    unsent(shown(error))
}

/// Returns the status of a call whose deadline passed before it was sent.
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
