//! How each lease is renewed, until it is lost or of no more use.

use std::sync::Arc;

use coord_api::{Error, LossReason, Ttl, backend::LeaseInstant};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::{Instant, sleep_until};

use super::{
    Leased,
    pool::Need,
    stream::{Answer, Ended, RENEW, Stream},
    undo::heard_again,
};
use crate::{core::Core, error::Failure, telemetry};

/// Renews one lease until it is lost or of no more use, then frees what is left of it at the server.
pub(super) async fn keep_alive(core: Arc<Core>, leased: Arc<Leased>) {
    let mut renewals = Renewals::default();
    let mut contact = core.hub.contact();
    let mut due = next_renewal(&leased);
    let lost = loop {
        let look_at = match core.sessions.pool().need(leased.id, Instant::now()) {
            Need::Over => break None,
            Need::Until(at) => at,
        };
        let reason = tokio::select! {
            reason = leased.lease.lost() => Some(reason),
            () = leased.look.notified() => continue,
            () = sleep_until(look_at) => continue,
            () = sleep_until(due) => renew(&core, &leased, &mut renewals).await,
            // What was on it is gone, and perhaps it is as well.
            () = leased.renew.notified() => renew(&core, &leased, &mut renewals).await,
            // An etcd that was away may have come back without the lease: better to know now.
            () = heard_again(&mut contact) => renew(&core, &leased, &mut renewals).await,
        };
        if reason.is_some() {
            break reason;
        }
        due = next_renewal(&leased);
    };
    core.queues.forget(leased.id);
    core.history.keep_on(|lease| lease != leased.id);
    let lease = format!("{:x}", leased.id);
    match lost {
        None => {
            tracing::debug!(lease, "lease given back, nobody uses it");
            leased.lease.lose(LossReason::Released);
            core.revoke_later(leased.id, None);
        }
        // Closing revokes it.
        Some(LossReason::Closed) => {}
        Some(reason) => {
            telemetry::lease_lost(reason);
            let cause = leased.lease.cause();
            let cause = cause.as_deref();
            tracing::warn!(lease, %reason, cause, "lease lost, with all that was held on it");
            core.revoke_later(leased.id, Some(reason));
            if core.sessions.pool().remove(leased.id) {
                // Whoever lost something on it wants to acquire again soon.
                have_session(core, leased.ttl).await;
            }
        }
    }
}

/// Returns when a lease is to be renewed: at most three times a TTL, and not all leases that were granted together at
/// once. Counted from the request whose answer came last, as the deadline is: that answer may have taken long.
fn next_renewal(leased: &Leased) -> Instant {
    let kept = leased.lease.ttl().mul_f64(fastrand::f64().mul_add(0.05, 0.61));
    Instant::now() + leased.lease.remaining().saturating_sub(kept)
}

/// Boxed, since granting a session starts the task that this is called from.
fn have_session(core: Arc<Core>, ttl: Ttl) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        // If it fails, the next user tries again.
        let _ = core.session(ttl).await;
    })
}

/// The way on which the next renewal of a lease is asked for.
#[derive(Default)]
struct Renewals {
    /// Whether etcd refused the last one, which ended the stream for others as well. The next one has its own.
    is_refused: bool,
    own: Option<Arc<Stream>>,
}

impl Renewals {
    fn stream(&mut self, core: &Core) -> Arc<Stream> {
        if !self.is_refused {
            self.own = None;
            return core.keep_alives.shared();
        }
        self.own.get_or_insert_with(|| core.keep_alives.own()).clone()
    }

    /// Leaves a stream that did not answer in time, or ended.
    fn leave(&mut self, core: &Core, stream: &Arc<Stream>) {
        self.own = None;
        core.keep_alives.leave(stream);
    }
}

/// Renews once, trying again until an answer comes or the lease is lost; the reason if it is. A try whose answer is late
/// is not given up: another one is made elsewhere, and the first answer counts from the moment of its own request.
async fn renew(core: &Arc<Core>, leased: &Leased, renewals: &mut Renewals) -> Option<LossReason> {
    let ttl = leased.lease.ttl();
    // At least three tries fit into what is left after a third of the TTL.
    let limit = (ttl / 5).min(core.request_timeout);
    let mut tries = FuturesUnordered::new();
    // The stream of the last try, while that has no answer.
    let mut latest: Option<Arc<Stream>> = None;
    let mut next_try = Instant::now();
    loop {
        let failure = tokio::select! {
            biased;
            reason = leased.lease.lost() => return Some(reason),
            Some(Try { stream, sent, answer }) = tries.next() => match answer {
                Ok(Some(granted)) => {
                    renewals.is_refused = false;
                    return leased.lease.renewed(sent, granted).err();
                }
                Ok(None) | Err(Ended::Refused(Failure { error: Error::Lost { .. }, .. })) => {
                    leased.lease.lose(LossReason::Revoked);
                    return leased.lease.loss();
                }
                Err(ended) => {
                    if latest.take_if(|latest| Arc::ptr_eq(latest, &stream)).is_some() {
                        renewals.leave(core, &stream);
                        let retry = (ttl / 20).mul_f64(fastrand::f64() + 0.5);
                        next_try = next_try.min(Instant::now() + retry);
                    }
                    renewals.is_refused = matches!(ended, Ended::Refused(_));
                    let (Ended::Broken(failure) | Ended::Refused(failure)) = ended;
                    failure
                }
            },
            () = sleep_until(next_try) => {
                let late = latest.take();
                if let Some(stream) = &late {
                    renewals.leave(core, stream);
                }
                let stream = renewals.stream(core);
                tries.push(ask(stream.clone(), leased.id));
                latest = Some(stream);
                next_try = Instant::now() + limit;
                if late.is_none() {
                    continue;
                }
                Failure::timeout(RENEW, limit)
            }
        };
        telemetry::renewal_failed();
        core.history.doubts.notify_one();
        leased.lease.not_renewed(&failure.error);
        tracing::debug!(lease = format!("{:x}", leased.id), error = %failure.error, "renewal failed");
    }
}

/// A request for a renewal, and what came of it.
struct Try {
    stream: Arc<Stream>,
    sent: LeaseInstant,
    answer: Answer,
}

/// Asks once over a stream, which stays until it is answered.
async fn ask(stream: Arc<Stream>, id: i64) -> Try {
    let sent = LeaseInstant::now();
    let answer = stream.ask(id).await.unwrap_or_else(|_| Err(Ended::Broken(Failure::not_sent())));
    Try { stream, sent, answer }
}
