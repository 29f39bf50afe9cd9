//! Sessions: one lease per time to live and client, shared by everything that is held on it, renewed here.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use coord_api::{Contact, Error, Lease, LeaseHealth, LossReason, Result, Ttl, backend::Moment};
use coord_grpc::Tries;
use etcd_client::{LeaseGrantOptions, LeaseKeepAliveStream, LeaseKeeper};
use futures::future::{self, BoxFuture};
use tokio::{sync::Notify, time::Instant};

use crate::{
    background::owned,
    core::Core,
    error::{Effect, Failure, again},
    gate::Gate,
    request::Repeat,
    telemetry,
};

/// The most users of one session. Revoking a lease deletes its keys in one commit, which should stay bounded.
const MOST_USERS: usize = 1 << 14;

/// From this many users on the next session is made ready.
const MANY_USERS: usize = MOST_USERS - MOST_USERS / 8;

/// A granted lease with its local deadline. Whoever holds something on it holds a reference.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: i64,
    pub(crate) lease: Lease,
    pub(crate) gate: Arc<Gate>,
    /// Tells the task that renews it that it should do so at once.
    renew: Notify,
    class: Ttl,
}

/// A lease as it was granted.
pub(crate) struct Granted {
    pub(crate) id: i64,
    /// When it was asked for.
    sent: Moment,
    ttl: Duration,
}

/// The sessions of one client.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// The sessions that new places are taken on, by time to live. The inner lock is held while one is
    /// granted, so that many first users share one grant.
    current: Mutex<HashMap<Ttl, Arc<tokio::sync::Mutex<Current>>>>,
    /// Every session that may still be alive at the server.
    alive: Mutex<HashMap<i64, Arc<Session>>>,
}

/// The sessions of one time to live.
#[derive(Debug, Default)]
struct Current {
    session: Option<Arc<Session>>,
    /// The one for when the first has too many users.
    next: Option<Arc<Session>>,
    is_preparing: bool,
    /// When the last one could not be granted, and why. Who waited for it meanwhile shares that.
    failed: Option<(Instant, Error)>,
}

impl Current {
    /// A session that places can be taken on.
    fn usable(&mut self) -> Option<Arc<Session>> {
        let usable = |session: &Arc<Session>| {
            session.lease.loss().is_none() && Arc::strong_count(session) < MOST_USERS
        };
        if !self.session.as_ref().is_some_and(usable) {
            self.session = self.next.take().filter(usable);
        }
        self.session.clone()
    }

    /// Why no session was granted, if that was found out after `asked`: each trying for itself would let the last of
    /// them wait many times as long as the first.
    fn failed_since(&self, asked: Instant) -> Result<()> {
        match &self.failed {
            Some((at, error)) if *at >= asked => Err(again(error)),
            _ => Ok(()),
        }
    }

    /// Whether the next session should be prepared; said once.
    fn begins_preparing(&mut self) -> bool {
        let has_many = self.session.as_ref().is_some_and(|session| Arc::strong_count(session) > MANY_USERS);
        let begins = has_many && self.next.is_none() && !self.is_preparing;
        self.is_preparing |= begins;
        begins
    }
}

impl Session {
    /// A session that nobody renews, for tests.
    #[cfg(test)]
    pub(crate) fn unrenewed(id: i64, ttl: Duration) -> Arc<Self> {
        let gate = Arc::new(Gate::new(String::new(), id));
        let class = Ttl::parse(ttl).expect("is a time to live");
        Arc::new(Self { id, lease: Lease::granted(Instant::now(), ttl), gate, renew: Notify::new(), class })
    }

    /// If an error says that etcd does not know the lease any more, all that is held on it learns so now, and not at the
    /// next renewal.
    pub(crate) fn learn(&self, error: &Error) {
        if let Error::Lost { reason } = error {
            self.lease.lose(*reason);
        }
    }

    /// Asks for a renewal at once, which tells whether etcd still has the lease.
    pub(crate) fn renew_now(&self) {
        self.renew.notify_one();
    }
}

impl Sessions {
    fn current(&self, ttl: Ttl) -> Arc<tokio::sync::Mutex<Current>> {
        let mut current = self.current.lock().expect("nothing panics while this is locked");
        current.entry(ttl).or_default().clone()
    }

    /// Whether nobody uses a session and nobody will.
    fn is_retired(&self, session: &Arc<Session>) -> bool {
        // The task that renews it and the list of those alive are no users.
        let unused = Arc::strong_count(session) <= 2;
        unused
            && self.current(session.class).try_lock().is_ok_and(|current| {
                ![&current.session, &current.next].into_iter().flatten().any(|used| used.id == session.id)
            })
    }

    fn alive(&self) -> MutexGuard<'_, HashMap<i64, Arc<Session>>> {
        self.alive.lock().expect("nothing panics while this is locked")
    }

    /// The worst health of all sessions.
    pub(crate) fn health(&self) -> LeaseHealth {
        let healths = self.alive().values().map(|session| session.lease.health()).collect::<Vec<_>>();
        if healths.iter().all(|health| *health == LeaseHealth::Healthy) {
            return LeaseHealth::Healthy;
        }
        healths
            .iter()
            .copied()
            .find(|health| matches!(health, LeaseHealth::Lost(_)))
            .unwrap_or(LeaseHealth::Suspect)
    }
}

impl Core {
    /// The live session for `ttl`; granted now if there is none.
    ///
    /// May be dropped: a lease that is being granted then serves the next who asks.
    pub(crate) async fn session(self: &Arc<Self>, ttl: Ttl) -> Result<Arc<Session>> {
        self.check_open()?;
        let classes = self.sessions.current(ttl);
        let asked = Instant::now();
        {
            let mut current = classes.lock().await;
            if let Some(session) = current.usable() {
                if current.begins_preparing() {
                    self.runtime.spawn(self.clone().prepare(ttl));
                }
                return Ok(session);
            }
            current.failed_since(asked)?;
        }
        let core = self.clone();
        let granted = move |_caller_gone| async move {
            let mut current = classes.lock().await;
            // Someone else may have been here first.
            if let Some(session) = current.usable() {
                return Ok(session);
            }
            current.failed_since(asked)?;
            let granted = core.grant(ttl).await;
            match &granted {
                Ok(session) => current.session = Some(session.clone()),
                Err(error) => current.failed = Some((Instant::now(), again(error))),
            }
            granted
        };
        Box::pin(owned(&self.runtime, granted)).await
    }

    /// Makes the next session ready, so that nobody waits for it.
    async fn prepare(self: Arc<Self>, ttl: Ttl) {
        let granted = self.grant(ttl).await;
        let classes = self.sessions.current(ttl);
        let mut current = classes.lock().await;
        current.is_preparing = false;
        // If it failed, the next user tries again.
        current.next = granted.ok();
    }

    /// Takes a place on a live session, on another one if etcd turns out not to know the lease any more. That
    /// is only safe for a `take` that has written nothing when it answers [`Error::Lost`].
    pub(crate) async fn on_session<T, F>(
        self: &Arc<Self>,
        ttl: Ttl,
        take: impl Fn(Arc<Session>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let session = self.session(ttl).await?;
        // Not the session itself, since its users are counted.
        let lease = session.lease.clone();
        match take(session).await {
            Err(Error::Lost { .. }) if lease.loss().is_some() => take(self.session(ttl).await?).await,
            outcome => outcome,
        }
    }

    /// Grants a lease, and another one if the answer is lost, for as long as a request may take. Ids are of our own
    /// choosing, so that leases can be revoked that may have been granted: `unanswered` is told of them.
    pub(crate) async fn grant_lease(
        &self,
        operation: &'static str,
        seconds: i64,
        unanswered: impl Fn(i64),
    ) -> Result<Granted, Failure> {
        let begun = Instant::now();
        loop {
            let id = fastrand::i64(1..i64::MAX);
            let ask = |_| async {
                let sent = Moment::now();
                let options = LeaseGrantOptions::new().with_id(id);
                Ok((sent, self.lease().grant(seconds, Some(options)).await?))
            };
            match self.call(operation, Repeat::WithoutEffect, ask).await {
                Ok((sent, answer)) => {
                    let ttl = Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or_default());
                    return Ok(Granted { id, sent, ttl });
                }
                Err(failure) => {
                    if failure.effect != Effect::None {
                        unanswered(id);
                    }
                    if !self.may_begin_anew(begun, &failure.error).await {
                        return Err(failure);
                    }
                }
            }
        }
    }

    async fn grant(self: &Arc<Self>, ttl: Ttl) -> Result<Arc<Session>> {
        let granted = self.grant_lease("grant a lease", ttl.as_secs().into(), |id| self.revoke_later(id));
        let Granted { id, sent, ttl: granted } = granted.await?;
        let gate = Arc::new(Gate::new(self.keys.gate(id), id));
        let lease = Lease::granted(sent, granted);
        let session = Arc::new(Session { id, lease, gate, renew: Notify::new(), class: ttl });
        self.sessions.alive().insert(id, session.clone());
        // Closing marks first and revokes then, so either it sees this session or we see that it is closed.
        if self.check_open().is_err() {
            session.lease.lose(LossReason::Closed);
            self.revoke_later(id);
            return Err(Error::Closed);
        }
        tracing::debug!(lease = format!("{id:x}"), ttl = ?granted, "lease granted");
        self.runtime.spawn(keep_alive(self.clone(), session.clone()));
        Ok(session)
    }

    async fn revoke(&self, id: i64) -> Result<(), Failure> {
        let ask = |_| async { self.lease().revoke(id).await };
        let revoked = self.call("revoke a lease", Repeat::Freely, ask).await;
        match revoked {
            Ok(_) | Err(Failure { error: Error::Lost { .. }, .. }) => {
                self.sessions.alive().remove(&id);
                Ok(())
            }
            Err(failure) => Err(failure),
        }
    }

    /// Revokes a lease that nobody relies on any more, trying for as long as the server could keep it.
    fn revoke_later(self: &Arc<Self>, id: i64) {
        let core = self.clone();
        self.runtime.spawn(async move {
            for pause in [0, 1, 2, 4, 8, 16] {
                tokio::time::sleep(Duration::from_secs(pause)).await;
                if core.revoke(id).await.is_ok() {
                    break;
                }
            }
            core.sessions.alive().remove(&id);
        });
    }

    /// Closes: every guard learns that it lost, every wait ends, every lease is revoked.
    pub(crate) async fn shut_down(&self) -> Result<()> {
        self.mark_closed();
        let sessions: Vec<_> = self.sessions.alive().values().cloned().collect();
        for session in &sessions {
            session.lease.lose(LossReason::Closed);
        }
        let revoking = async {
            // Before their lease goes, and they with it.
            self.rest_all().await;
            future::join_all(sessions.iter().map(|session| self.revoke(session.id))).await
        };
        let outcome = match tokio::time::timeout(self.close_timeout, revoking).await {
            Ok(outcomes) => outcomes.into_iter().collect::<Result<(), _>>().map_err(Error::from),
            Err(_elapsed) => Err(Error::Timeout { operation: "close", after: self.close_timeout }),
        };
        self.sessions.alive().clear();
        outcome
    }
}

/// Renews one lease until it is lost, then frees what is left of it at the server.
async fn keep_alive(core: Arc<Core>, session: Arc<Session>) {
    let mut renewals = Renewals::default();
    let mut contact = core.hub.contact();
    let reason = loop {
        let ttl = session.lease.ttl();
        // At most three times a TTL, and not all leases that were granted together at once.
        let pause = ttl.mul_f64(fastrand::f64().mul_add(0.05, 0.34));
        let reason = tokio::select! {
            reason = session.lease.lost() => Some(reason),
            () = tokio::time::sleep(pause) => renew(&core, &session, &mut renewals).await,
            // An etcd that was away may have come back without the lease: better to know now.
            () = heard_again(&mut contact) => renew(&core, &session, &mut renewals).await,
            // What was on it is gone, and perhaps it is as well.
            () = session.renew.notified() => renew(&core, &session, &mut renewals).await,
        };
        if let Some(reason) = reason {
            break reason;
        }
        if core.sessions.is_retired(&session) {
            core.queues.forget(session.id);
            core.revoke_later(session.id);
            return;
        }
    };
    core.queues.forget(session.id);
    if reason != LossReason::Closed {
        telemetry::lease_lost(reason);
        tracing::warn!(lease = format!("{:x}", session.id), %reason, "lease lost, with all that was held on it");
        core.revoke_later(session.id);
        // Whoever lost something on it wants to acquire again soon.
        have_session(core, session.class).await;
    }
}

/// The stream for the renewals of one lease, and the member that it goes to.
#[derive(Default)]
struct Renewals {
    stream: Option<(LeaseKeeper, LeaseKeepAliveStream)>,
    tries: Tries,
}

impl Renewals {
    /// Another stream, to another member if one is ready.
    fn elsewhere(&self) -> Self {
        Self { stream: None, tries: Tries::new().avoiding(self.tries.instance()) }
    }
}

/// Waits until etcd is heard after it was not. May be dropped and called again.
async fn heard_again(contact: &mut Contact) {
    while !contact.changed().await.is_fresh() {}
}

/// Boxed, since granting a session starts the task that this is called from.
fn have_session(core: Arc<Core>, ttl: Ttl) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        // If it fails, the next user tries again.
        let _ = core.session(ttl).await;
    })
}

/// Renews once, trying again until an answer comes or the lease is lost; the reason if it is.
async fn renew(core: &Arc<Core>, session: &Session, renewals: &mut Renewals) -> Option<LossReason> {
    let ttl = session.lease.ttl();
    // At least three tries fit into what is left after a third of the TTL.
    let limit = (ttl / 5).min(core.request_timeout);
    let retry = ttl / 20;
    loop {
        let (sent, begun) = (Moment::now(), Instant::now());
        let Renewals { stream, tries } = renewals;
        let renewing = renew_on(core, session.id, stream);
        let answer = tokio::select! {
            reason = session.lease.lost() => return Some(reason),
            answer = core.try_until(begun + limit, "renew a lease", tries, renewing) => answer,
        };
        match answer {
            Ok(Some(granted)) => return session.lease.renewed(sent, granted).err(),
            Ok(None) | Err(Failure { error: Error::Lost { .. }, .. }) => {
                session.lease.lose(LossReason::Revoked);
                return session.lease.loss();
            }
            Err(failure) => {
                *renewals = renewals.elsewhere();
                telemetry::renewal_failed();
                tracing::debug!(lease = format!("{:x}", session.id), error = %failure.error, "renewal failed");
                tokio::time::sleep(retry.mul_f64(fastrand::f64() + 0.5)).await;
            }
        }
    }
}

/// One renewal on the open stream, or on a new one. `None`: the server does not know the lease.
async fn renew_on(
    core: &Core,
    id: i64,
    stream: &mut Option<(LeaseKeeper, LeaseKeepAliveStream)>,
) -> Result<Option<Duration>, etcd_client::Error> {
    // Opening a stream renews as well, but does not say for how long, so it is asked once more.
    let (keeper, answers) = match stream {
        Some(open) => open,
        None => stream.insert(core.lease().keep_alive(id).await?),
    };
    keeper.keep_alive().await?;
    let ended = || etcd_client::Error::LeaseKeepAliveError(format!("the stream of {:x} ended", keeper.id()));
    let answer = answers.message().await?.ok_or_else(ended)?;
    Ok(u64::try_from(answer.ttl()).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs))
}
