//! How each lease is renewed, until it is lost or of no more use.

use std::sync::Arc;

use coord_api::{Error, LossReason, Ttl, backend::LeaseInstant};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::time::Instant;

use super::{Leased, Sessions, pool::Need};
use crate::{
    request::{Rpc, heard_again, timer::sleep_until},
    store::{Failure, LeaseId, Observation, RenewalEnded, RenewalStream, Renewed},
};

/// Operation that errors of renewals name.
const RENEW: &str = "renew a lease";

/// Renews one lease until it is lost or of no more use, then frees what is left of it at the server.
pub(super) async fn keep_alive(sessions: Arc<Sessions>, leased: Arc<Leased>) {
    let rpc = &sessions.rpc;
    let mut renewals = Renewals::default();
    let mut connectivity = rpc.connectivity.clone();
    let mut due = next_renewal(&leased);
    let lost = loop {
        let look_at = match sessions.pool().need(leased.id, Instant::now()) {
            Need::Over => break None,
            Need::Until(at) => at,
        };
        let reason = tokio::select! {
            reason = leased.lease.lost() => Some(reason),
            () = leased.look.notified() => continue,
            () = sleep_until(look_at) => continue,
            () = sleep_until(due) => renew(rpc, &leased, &mut renewals).await,
            // A key on it is gone, and perhaps the lease is as well.
            () = leased.renew.notified() => renew(rpc, &leased, &mut renewals).await,
            // A store that was away may have come back without the lease: better to know now.
            () = heard_again(&mut connectivity) => renew(rpc, &leased, &mut renewals).await,
        };
        if reason.is_some() {
            break reason;
        }
        due = next_renewal(&leased);
    };
    if let Some(beliefs) = rpc.beliefs.upgrade() {
        beliefs.lease_ended(leased.id);
    }
    rpc.history.keep_on(|lease| lease != leased.id);
    let lease = format!("{:x}", leased.id);
    match lost {
        None => {
            tracing::debug!(lease, "lease given back, nobody uses it");
            leased.lease.lose(LossReason::Released);
            sessions.revoke_later(leased.id, None);
        }
        // Closing revokes it.
        Some(LossReason::Closed) => {}
        Some(reason) => {
            rpc.store.observe(Observation::LeaseLost(reason));
            let cause = leased.lease.cause();
            let cause = cause.as_deref();
            tracing::warn!(lease, %reason, cause, "lease lost, with all that was held on it");
            sessions.revoke_later(leased.id, Some(reason));
            if sessions.pool().remove(leased.id) {
                // A task that lost something on it wants to acquire again soon.
                have_session(sessions.clone(), leased.ttl).await;
            }
        }
    }
}

/// Returns when a lease is to be renewed: at most three times a TTL. Leases that were granted together are
/// not all renewed at once (jitter). The time is counted from the request whose answer came last, as the
/// deadline is: that answer may have taken long.
fn next_renewal(leased: &Leased) -> Instant {
    let kept = leased.lease.ttl().mul_f64(fastrand::f64().mul_add(0.05, 0.61));
    Instant::now() + leased.lease.remaining().saturating_sub(kept)
}

/// Gets a session for `ttl`. Boxed, since granting a session starts the task that this is called from.
fn have_session(sessions: Arc<Sessions>, ttl: Ttl) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        // If it fails, the next user tries again.
        let _ = sessions.session(ttl).await;
    })
}

/// Stream over which the next renewal of a lease is asked for.
#[derive(Default)]
struct Renewals {
    /// Whether the store refused the last renewal, which ended the stream for others as well. The next
    /// renewal has its own stream.
    is_refused: bool,
    own: Option<Arc<dyn RenewalStream>>,
}

impl Renewals {
    fn stream(&mut self, rpc: &Rpc) -> Arc<dyn RenewalStream> {
        if !self.is_refused {
            self.own = None;
            return rpc.store.renewals();
        }
        self.own.get_or_insert_with(|| rpc.store.own_renewals()).clone()
    }

    /// Leaves a stream that did not answer in time, or ended.
    fn leave(&mut self, rpc: &Rpc, stream: &Arc<dyn RenewalStream>) {
        self.own = None;
        rpc.store.leave_renewals(stream);
    }
}

/// Renews once, trying again until an answer comes or the lease is lost. Returns the reason if the lease is
/// lost. A try whose answer is late is not given up. Another one is made elsewhere, and the first answer
/// counts from the moment of its own request.
async fn renew(rpc: &Rpc, leased: &Leased, renewals: &mut Renewals) -> Option<LossReason> {
    let ttl = leased.lease.ttl();
    // At least three tries fit into what is left after a third of the TTL.
    let limit = (ttl / 5).min(rpc.request_timeout);
    let mut tries = FuturesUnordered::new();
    // Stream of the last try, while that has no answer.
    let mut latest: Option<Arc<dyn RenewalStream>> = None;
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
                Ok(None) | Err(RenewalEnded::Refused(Failure { error: Error::Lost { .. }, .. })) => {
                    leased.lease.lose(LossReason::Revoked);
                    return leased.lease.loss();
                }
                Err(ended) => {
                    if latest.take_if(|latest| Arc::ptr_eq(latest, &stream)).is_some() {
                        renewals.leave(rpc, &stream);
                        let retry = (ttl / 20).mul_f64(fastrand::f64() + 0.5);
                        next_try = next_try.min(Instant::now() + retry);
                    }
                    renewals.is_refused = matches!(ended, RenewalEnded::Refused(_));
                    let (RenewalEnded::Broken(failure) | RenewalEnded::Refused(failure)) = ended;
                    failure
                }
            },
            () = sleep_until(next_try) => {
                let late = latest.take();
                if let Some(stream) = &late {
                    renewals.leave(rpc, stream);
                }
                let stream = renewals.stream(rpc);
                tries.push(ask(stream.clone(), leased.id));
                latest = Some(stream);
                next_try = Instant::now() + limit;
                if late.is_none() {
                    continue;
                }
                Failure::timeout(RENEW, limit)
            }
        };
        rpc.store.observe(Observation::RenewalFailed);
        rpc.history.doubts.notify_one();
        leased.lease.not_renewed(&failure.error);
        tracing::debug!(lease = format!("{:x}", leased.id), error = %failure.error, "renewal failed");
    }
}

/// Request for a renewal, and what came of it.
struct Try {
    stream: Arc<dyn RenewalStream>,
    sent: LeaseInstant,
    answer: Renewed,
}

/// Asks once over a stream, which is kept until it answers.
async fn ask(stream: Arc<dyn RenewalStream>, id: LeaseId) -> Try {
    let sent = LeaseInstant::now();
    let answer = stream.renew(id).await;
    Try { stream, sent, answer }
}
