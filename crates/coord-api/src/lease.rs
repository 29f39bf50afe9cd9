//! Leases as their holders see them: a local deadline that only acknowledged renewals move.
//!
//! The store frees a place some time after the lease's last renewal *reached* it. A holder counts from the
//! moment that renewal was *sent*, so its own deadline always comes first. Whatever happens to the network or
//! to the process, [`Lease::loss`] tells a holder that it lost before anyone else is let in.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::{Error, Result, lease_instant::LeaseInstant, mutex::lock, timer};

/// How a lock, a registration, an id or a lease was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum LossReason {
    /// No renewal was acknowledged before the local deadline: the process was frozen, the machine suspended, or the
    /// store out of reach.
    Expired,
    /// The store refused to renew the lease until its time was over: the user has lost its permission or its
    /// credentials. [`Lost::cause`] has the store's words.
    Refused,
    /// The store says that the lease is gone: it expired there, or an operator revoked it.
    Revoked,
    /// The entry is gone from the store, and nobody here has given it back. It was deleted from outside, or
    /// with a lease of whose end this client has not heard yet.
    Deleted,
    /// A later registration of the same instance by the same client took its place.
    Superseded,
    /// Its holder gave it back.
    Released,
    /// The provider was closed.
    Closed,
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "no renewal was acknowledged in time",
            Self::Refused => "the store refused to renew it, for want of a permission or of credentials",
            Self::Revoked => "the lease expired or was revoked at the store",
            Self::Deleted => "the entry was deleted from outside",
            Self::Superseded => "a later registration took its place",
            Self::Released => "it was released",
            Self::Closed => "the provider was closed",
        })
    }
}

/// How well a lease is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseHealth {
    /// Renewals arrive in time.
    Healthy,
    /// Less than half of the TTL is left: at least one renewal is overdue.
    Suspect,
    /// Lost, for good.
    Lost(LossReason),
}

#[derive(Clone, Copy, Debug)]
struct State {
    ttl: Duration,
    deadline: LeaseInstant,
    /// Whether the store refused the last renewal.
    refused: bool,
    lost: Option<LossReason>,
}

impl State {
    fn loss(&self, now: LeaseInstant) -> Option<LossReason> {
        let overdue = if self.refused { LossReason::Refused } else { LossReason::Expired };
        self.lost.or_else(|| (now >= self.deadline).then_some(overdue))
    }
}

/// An error with its sources, in one line.
fn in_words(error: &Error) -> String {
    let sources = std::iter::successors(std::error::Error::source(error), |error| error.source());
    sources.fold(error.to_string(), |words, source| format!("{words}: {source}"))
}

/// A lease with its local deadline, for backends: one clone renews it, the others look at it.
///
/// A lost lease stays lost, also when a late renewal is acknowledged.
#[derive(Clone, Debug)]
pub struct Lease(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: watch::Sender<State>,
    /// End of the time for which the lease is held for sure, in nanoseconds since `granted`; 0 once it is
    /// lost. It is for readers that look millions of times a second. Changed together with the state.
    held: AtomicU64,
    granted: LeaseInstant,
    /// The failure of the last renewal, in words.
    cause: Mutex<Option<Arc<str>>>,
}

impl Shared {
    fn hold_until(&self, deadline: LeaseInstant) {
        let nanos = deadline.since(self.granted).as_nanos();
        self.held.store(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    fn is_held(&self) -> bool {
        let since = LeaseInstant::now().since(self.granted).as_nanos();
        since < u128::from(self.held.load(Ordering::SeqCst))
    }
}

impl Lease {
    /// A lease that the store granted for `ttl` in answer to a request sent at `sent`.
    pub fn granted(sent: impl Into<LeaseInstant>, ttl: Duration) -> Self {
        let sent = sent.into();
        let state = watch::Sender::new(State { ttl, deadline: sent + ttl, refused: false, lost: None });
        let shared = Shared { state, held: AtomicU64::new(0), granted: sent, cause: Mutex::default() };
        shared.hold_until(sent + ttl);
        Self(Arc::new(shared))
    }

    /// The store acknowledged for `ttl` a renewal sent at `sent`.
    ///
    /// # Errors
    /// The reason, when the lease was lost before: whoever saw the loss may have acted on it already.
    pub fn renewed(&self, sent: impl Into<LeaseInstant>, ttl: Duration) -> Result<(), LossReason> {
        let sent = sent.into();
        let mut outcome = Ok(());
        // The clock is read under the lock, as in `loss`, so no two readers can disagree about the order.
        self.0.state.send_if_modified(|state| {
            if let Some(reason) = state.loss(LeaseInstant::now()) {
                state.lost = Some(reason);
                self.0.held.store(0, Ordering::SeqCst);
                outcome = Err(reason);
                return true;
            }
            state.ttl = ttl;
            state.refused = false;
            *self.cause_mut() = None;
            state.deadline = state.deadline.max(sent + ttl);
            self.0.hold_until(state.deadline);
            // Nobody waits for renewals: a waiter sleeps until the deadline that it knows and looks again.
            false
        });
        outcome
    }

    /// Takes note that a renewal failed. If none succeeds in time, this belongs to the loss: as its [`cause`](Self::cause),
    /// and a refusal as its reason.
    pub fn not_renewed(&self, error: &Error) {
        self.0.state.send_if_modified(|state| {
            // The reason of a loss that somebody may have seen does not change any more.
            if state.loss(LeaseInstant::now()).is_none() {
                state.refused =
                    matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. });
                *self.cause_mut() = Some(in_words(error).into());
            }
            false
        });
    }

    /// Returns why the last renewal failed, in words; `None` if it did not, or the lease was not lost for that.
    pub fn cause(&self) -> Option<Arc<str>> {
        let is_overdue = matches!(self.loss(), None | Some(LossReason::Expired | LossReason::Refused));
        self.cause_mut().clone().filter(|_| is_overdue)
    }

    fn cause_mut(&self) -> MutexGuard<'_, Option<Arc<str>>> {
        lock(&self.0.cause)
    }

    /// Ends the lease; the first reason stays.
    pub fn lose(&self, reason: LossReason) {
        self.0.state.send_if_modified(|state| {
            let first = state.lost.is_none();
            state.lost = state.loss(LeaseInstant::now()).or(Some(reason));
            self.0.held.store(0, Ordering::SeqCst);
            first
        });
    }

    /// Returns why the lease is lost, or `None` while it is held. It is exact at the moment of the call. A
    /// process that was frozen past the deadline sees the loss with its first instruction; on Linux also one
    /// whose machine was suspended.
    pub fn loss(&self) -> Option<LossReason> {
        if self.0.is_held() { None } else { self.0.state.borrow().loss(LeaseInstant::now()) }
    }

    /// Returns how well the lease is doing.
    pub fn health(&self) -> LeaseHealth {
        let (state, now) = (*self.0.state.borrow(), LeaseInstant::now());
        match state.loss(now) {
            Some(reason) => LeaseHealth::Lost(reason),
            None if state.deadline.since(now) < state.ttl / 2 => LeaseHealth::Suspect,
            None => LeaseHealth::Healthy,
        }
    }

    /// The TTL that the store granted.
    pub fn ttl(&self) -> Duration {
        self.0.state.borrow().ttl
    }

    /// Returns how long the lease is held without another renewal; zero once lost.
    pub fn remaining(&self) -> Duration {
        let (state, now) = (*self.0.state.borrow(), LeaseInstant::now());
        match state.loss(now) {
            Some(_) => Duration::ZERO,
            None => state.deadline.since(now),
        }
    }

    /// Waits until the lease is lost.
    pub async fn lost(&self) -> LossReason {
        let mut changes = self.0.state.subscribe();
        loop {
            let (state, now) = (*changes.borrow_and_update(), LeaseInstant::now());
            if let Some(reason) = state.loss(now) {
                return reason;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = timer::sleep(state.deadline.since(now)) => {}
            }
        }
    }
}

/// Hold of one holder on something that lives on a lease: ends with the lease, or on its own.
#[derive(Clone, Debug)]
pub struct Hold {
    lease: Lease,
    end: Arc<End>,
}

/// Set once. Not a channel: most holds end with nobody waiting, and that should cost nothing.
#[derive(Debug, Default)]
struct End {
    reason: OnceLock<LossReason>,
    ended: Notify,
    is_fence: AtomicBool,
}

impl Hold {
    /// A grip on something that lives on `lease`.
    pub fn on(lease: Lease) -> Self {
        Self { lease, end: Arc::default() }
    }

    /// Ends this grip alone; the first reason stays. Why it was lost before, or `None` if it ends now.
    pub fn end(&self, reason: LossReason) -> Option<LossReason> {
        let before = self.loss();
        if self.end.reason.set(before.unwrap_or(reason)).is_err() {
            return self.end.reason.get().copied();
        }
        self.end.ended.notify_waiters();
        before
    }

    /// Takes note that writes may be under way which the store lets in for as long as it knows of this hold. For
    /// backends.
    pub fn fences(&self) {
        self.end.is_fence.store(true, Ordering::Relaxed);
    }

    /// Returns whether [`fences`](Self::fences) was called: then the next may hold only when the store has
    /// freed this one.
    pub fn is_fence(&self) -> bool {
        self.end.is_fence.load(Ordering::Relaxed)
    }

    /// Returns why it is lost, or `None` while it is held.
    pub fn loss(&self) -> Option<LossReason> {
        self.end.reason.get().copied().or_else(|| self.lease.loss())
    }

    /// Returns what the store said to the last renewal, if it was lost for that; see [`Lost::cause`].
    pub fn cause(&self) -> Option<Arc<str>> {
        let is_overdue = matches!(self.loss(), Some(LossReason::Expired | LossReason::Refused));
        self.lease.cause().filter(|_| is_overdue)
    }

    /// `Ok` while held.
    ///
    /// # Errors
    /// [`Error::Lost`] once lost.
    pub fn check(&self) -> Result<()> {
        self.loss().map_or(Ok(()), |reason| Err(Error::Lost { reason }))
    }

    /// Returns whether this is that very grip, and not another one on the same lease.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.end, &other.end)
    }

    /// The lease below.
    pub fn lease(&self) -> &Lease {
        &self.lease
    }

    /// A future of the loss.
    pub fn lost(&self) -> Lost {
        Lost::of(self.clone())
    }

    async fn wait(self) -> LossReason {
        // Registered before the reason is read, so that no end falls between.
        let ended = self.end.ended.notified();
        if let Some(reason) = self.loss() {
            return reason;
        }
        tokio::select! {
            () = ended => *self.end.reason.get().expect("is set before it is told"),
            reason = self.lease.lost() => reason,
        }
    }
}

/// A future that resolves when something held is lost, to the reason.
///
/// Clones wait independently, and one that is made after the loss resolves at once. Any executor may poll it; a tokio
/// runtime needs its timers enabled, since the local deadline is a timer.
///
/// # Cancel safety
/// Dropping it changes nothing; a clone or a new one can be awaited later.
pub struct Lost {
    hold: Hold,
    wait: std::pin::Pin<Box<dyn Future<Output = LossReason> + Send + Sync>>,
}

impl Lost {
    fn of(hold: Hold) -> Self {
        Self { wait: Box::pin(hold.clone().wait()), hold }
    }

    /// The reason, without waiting; `None` while held.
    pub fn reason(&self) -> Option<LossReason> {
        self.hold.loss()
    }

    /// Returns why no renewal succeeded, in the words of the last one that failed: for people and logs. It is
    /// `None` while held, and after any loss but [`Expired`](LossReason::Expired) and
    /// [`Refused`](LossReason::Refused). It is also `None` if no renewal was answered or given up, as in a
    /// process that was frozen.
    pub fn cause(&self) -> Option<Arc<str>> {
        self.hold.cause()
    }
}

impl Clone for Lost {
    fn clone(&self) -> Self {
        Self::of(self.hold.clone())
    }
}

impl fmt::Debug for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lost").field(&self.reason()).finish()
    }
}

impl Future for Lost {
    type Output = LossReason;

    fn poll(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<LossReason> {
        self.wait.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::Instant;

    use super::*;
    use crate::lease_instant::tests::suspend;

    const TTL: Duration = Duration::from_secs(10);

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_counts_from_the_moment_of_sending() {
        let sent = Instant::now();
        pass(Duration::from_secs(4)).await; // the answer took four seconds
        let lease = Lease::granted(sent, TTL);
        assert_eq!(lease.remaining(), Duration::from_secs(6));
        pass(Duration::from_secs(6)).await;
        assert_eq!(lease.loss(), Some(LossReason::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_moves_the_deadline_and_never_back() {
        let start = Instant::now();
        let lease = Lease::granted(start, TTL);
        pass(Duration::from_secs(5)).await;
        lease.renewed(Instant::now(), TTL).expect("is held");
        lease.renewed(start, TTL).expect("an answer that overtook the other changes nothing");
        assert_eq!(lease.remaining(), TTL);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_never_heals() {
        let lease = Lease::granted(Instant::now(), TTL);
        pass(TTL).await;
        assert_eq!(lease.renewed(Instant::now(), TTL), Err(LossReason::Expired));
        lease.lose(LossReason::Closed);
        assert_eq!(lease.loss(), Some(LossReason::Expired), "the first reason stays");
        assert_eq!(lease.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_renewal_is_the_reason_and_the_cause_of_the_loss() {
        let refusal = || Error::PermissionDenied { operation: "renew a lease", source: "no role".into() };
        let away = || Error::Unavailable { what: "store".into(), source: None };
        let lease = Lease::granted(Instant::now(), TTL);
        let hold = Hold::on(lease.clone());
        lease.not_renewed(&refusal());
        assert_eq!(hold.cause(), None, "is held");
        lease.renewed(Instant::now(), TTL).expect("is held");
        assert_eq!(lease.cause(), None, "the last one succeeded");
        lease.not_renewed(&away());
        lease.not_renewed(&refusal());
        pass(TTL).await;
        assert_eq!(hold.loss(), Some(LossReason::Refused));
        let cause = hold.lost().cause().expect("has one");
        assert!(cause.contains("no permission") && cause.ends_with(": no role"), "{cause}");
        lease.not_renewed(&away());
        assert_eq!((hold.loss(), hold.cause()), (Some(LossReason::Refused), Some(cause)), "the first stays");

        let lease = Lease::granted(Instant::now(), TTL);
        lease.not_renewed(&refusal());
        lease.not_renewed(&away());
        pass(TTL).await;
        assert_eq!(lease.loss(), Some(LossReason::Expired), "the last one counts");
        let revoked = Lease::granted(Instant::now(), TTL);
        revoked.not_renewed(&refusal());
        revoked.lose(LossReason::Revoked);
        assert_eq!((revoked.loss(), revoked.cause()), (Some(LossReason::Revoked), None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_machine_loses_as_a_frozen_process_does() {
        let (overdue, left) = (Duration::from_secs(6), Duration::from_secs(4));
        let lease = Lease::granted(LeaseInstant::now(), TTL);
        let sent = LeaseInstant::now();
        suspend(overdue);
        assert_eq!((lease.health(), lease.remaining()), (LeaseHealth::Suspect, left));
        lease.renewed(sent, TTL).expect("is held");
        assert_eq!(lease.remaining(), left, "it was sent before");
        suspend(left);
        assert_eq!((lease.loss(), lease.remaining()), (Some(LossReason::Expired), Duration::ZERO));
        assert_eq!(lease.renewed(LeaseInstant::now(), TTL), Err(LossReason::Expired));
        assert_eq!(Hold::on(lease).lost().now_or_never(), Some(LossReason::Expired));
    }

    #[tokio::test(start_paused = true)]
    async fn health_turns_suspect_when_renewals_are_overdue() {
        let lease = Lease::granted(Instant::now(), TTL);
        assert_eq!(lease.health(), LeaseHealth::Healthy);
        pass(Duration::from_secs(6)).await;
        assert_eq!(lease.health(), LeaseHealth::Suspect);
        lease.renewed(Instant::now(), TTL).expect("is held");
        assert_eq!(lease.health(), LeaseHealth::Healthy);
        lease.lose(LossReason::Revoked);
        assert_eq!(lease.health(), LeaseHealth::Lost(LossReason::Revoked));
    }

    #[tokio::test(start_paused = true)]
    async fn lost_sleeps_through_renewals_and_wakes_at_the_last_deadline() {
        let lease = Lease::granted(Instant::now(), TTL);
        let lost = Hold::on(lease.clone()).lost();
        let start = Instant::now();
        let renewing = async {
            for _ in 0..3 {
                tokio::time::sleep(Duration::from_secs(5)).await;
                lease.renewed(Instant::now(), TTL).expect("is held");
            }
            std::future::pending::<()>().await;
        };
        let reason = tokio::select! { reason = lost.clone() => reason, () = renewing => unreachable!() };
        assert_eq!(reason, LossReason::Expired);
        assert_eq!(start.elapsed(), Duration::from_secs(25));
        assert_eq!(lost.await, LossReason::Expired, "a clone resolves as well");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_ends_alone_or_with_its_lease() {
        let lease = Lease::granted(Instant::now(), TTL);
        let (one, other) = (Hold::on(lease.clone()), Hold::on(lease.clone()));
        assert_eq!(one.end(LossReason::Deleted), None);
        assert_eq!(one.lost().await, LossReason::Deleted);
        assert!(other.check().is_ok());
        lease.lose(LossReason::Revoked);
        assert_eq!(other.lost().await, LossReason::Revoked);
        assert_eq!(one.loss(), Some(LossReason::Deleted), "the first reason stays");
        let ends = [&one, &other].map(|hold| hold.end(LossReason::Released));
        assert_eq!(
            ends,
            [LossReason::Deleted, LossReason::Revoked].map(Some),
            "whoever ends it anew is told why"
        );
    }
}
