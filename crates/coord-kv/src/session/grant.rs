//! How sessions begin: one lease is granted for all callers that ask for one at the same moment.

use std::{sync::Arc, time::Duration};

use coord_api::{Error, Lease, LossReason, Result, Ttl, backend::LeaseInstant};
use tokio::time::Instant;

use super::{Leased, Session, Sessions, keep_alive::keep_alive};
use crate::{
    request::{Repeat, Rpc, background::run_detached},
    session::LeaseEpoch,
    store::{Effect, Failure},
};

const GRANT: &str = "grant a lease";

/// Lease as it was granted.
pub(crate) struct Granted {
    pub(crate) id: i64,
    /// Moment at which it was asked for.
    sent: LeaseInstant,
    ttl: Duration,
}

/// Caller that asks for a lease of this time to live.
struct Asking<'a>(&'a Sessions, Ttl);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.pool().asked(self.1);
    }
}

impl Rpc {
    /// Grants a lease, and another one if the answer is lost, for as long as a request may take. Ids are of
    /// our own choosing, so that leases can be revoked that may have been granted. `asked` is told of each that is asked
    /// for, `unanswered` of each whose answer is lost.
    pub(crate) async fn grant_lease(
        &self,
        operation: &'static str,
        seconds: i64,
        asked: impl Fn(i64),
        unanswered: impl Fn(i64),
    ) -> Result<Granted, Failure> {
        let begun = Instant::now();
        loop {
            let id = fastrand::i64(1..i64::MAX);
            asked(id);
            let granted = self.call(operation, Repeat::WithoutEffect, |store, call| {
                Box::pin(async move {
                    let sent = LeaseInstant::now();
                    Ok((sent, store.grant(call, id, seconds).await?))
                })
            });
            match granted.await {
                Ok((sent, answer)) => {
                    let ttl = Duration::from_secs(u64::try_from(answer.ttl).unwrap_or_default());
                    return Ok(Granted { id, sent, ttl });
                }
                Err(failure) => {
                    if failure.effect != Effect::None {
                        unanswered(id);
                    }
                    if !self.may_retry_from_start(begun, &failure.error).await {
                        return Err(failure);
                    }
                }
            }
        }
    }
}

impl Sessions {
    /// Returns the live session for `ttl`, which is granted now if there is none.
    ///
    /// May be dropped: a lease that is being granted then serves the next caller.
    pub(crate) async fn session(self: &Arc<Self>, ttl: Ttl) -> Result<Arc<Session>> {
        self.rpc.check_open()?;
        if let Some(session) = self.use_session(ttl) {
            return Ok(session);
        }
        let (sessions, asked) = (self.clone(), Instant::now());
        let granted = move |_caller_gone| async move { sessions.ask_for_session(ttl, asked).await };
        Box::pin(run_detached(&self.rpc.background, granted)).await
    }

    /// Uses a lease that is there.
    fn use_session(self: &Arc<Self>, ttl: Ttl) -> Option<Arc<Session>> {
        let taken = self.pool().take(ttl, |leased| leased.lease.loss().is_none())?;
        if taken.prepare {
            self.rpc.background.spawn(self.clone().prepare(ttl));
        }
        Some(Session::new(&taken.lease, Arc::downgrade(&self.pool)))
    }

    /// Has a lease granted, or uses the lease that another caller had granted meanwhile.
    async fn ask_for_session(self: &Arc<Self>, ttl: Ttl, asked: Instant) -> Result<Arc<Session>> {
        let turn = self.pool().ask(ttl);
        let _asking = Asking(self, ttl);
        let mut failed = turn.lock().await;
        let (begun, after) = (Instant::now(), self.rpc.request_timeout);
        loop {
            if let Some(session) = self.use_session(ttl) {
                return Ok(session);
            }
            failed.since(asked)?;
            // A lease may be over when its grant is answered: so slow a path does not become faster by
            // asking.
            if begun.elapsed() >= after {
                let late = Error::Timeout { operation: GRANT, after };
                failed.note(Instant::now(), &late);
                return Err(late);
            }
            let granted = self.grant(ttl).await.inspect_err(|error| failed.note(Instant::now(), error))?;
            self.pool().add(granted.id, ttl, granted.clone(), Instant::now());
            self.keep(granted)?;
        }
    }

    /// Makes the next session ready, so that nobody waits for it.
    async fn prepare(self: Arc<Self>, ttl: Ttl) {
        // If it failed, the next user tries again.
        let granted = self.grant(ttl).await.ok();
        let next = granted.clone().map(|leased| (leased.id, leased));
        self.pool().prepared(ttl, next, Instant::now());
        if let Some(granted) = granted {
            // Only a client that is closed does not keep it.
            let _ = self.keep(granted);
        }
    }

    /// Runs `take` on a live session, and on another one if the store turns out not to know the lease any
    /// more. This is only safe for a `take` that has written nothing when it answers [`Error::Lost`].
    pub(crate) async fn on_session<T, F>(
        self: &Arc<Self>,
        ttl: Ttl,
        take: impl Fn(Arc<Session>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let session = self.session(ttl).await?;
        let lease = session.lease.clone();
        match take(session).await {
            Err(Error::Lost { .. }) if lease.loss().is_some() => take(self.session(ttl).await?).await,
            outcome => outcome,
        }
    }

    async fn grant(self: &Arc<Self>, ttl: Ttl) -> Result<Arc<Leased>> {
        let stray = |id| self.revoke_stray(id, ttl.as_duration());
        let granted = self.rpc.grant_lease(GRANT, ttl.as_secs().into(), |_asked| {}, stray).await?;
        let Granted { id, sent, ttl: granted } = granted;
        let epoch = Arc::new(LeaseEpoch::new(self.rpc.keys.epoch(id), id));
        let span = self.spans.begin(id);
        span.in_scope(|| tracing::debug!(lease = format_args!("{id:x}"), ttl = ?granted, "lease granted"));
        Ok(Leased::new(id, Lease::granted(sent, granted), epoch, ttl))
    }

    /// Renews a lease of the pool from now on.
    fn keep(self: &Arc<Self>, leased: Arc<Leased>) -> Result<()> {
        // Closing marks first and revokes then: either it sees this lease, or we see that the client is
        // closed.
        if self.rpc.check_open().is_err() {
            leased.lease.lose(LossReason::Closed);
            self.pool().remove(leased.id);
            self.revoke_later(leased.id, None);
            return Err(Error::Closed);
        }
        for superfluous in self.pool().superfluous() {
            superfluous.look.notify_one();
        }
        self.rpc.background.spawn(keep_alive(self.clone(), leased));
        Ok(())
    }
}
