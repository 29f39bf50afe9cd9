//! A request to the store: within its time, over as many members as it takes, and never twice where a repeat
//! would matter.

use std::time::Duration;

use coord_api::{Error, Result};
use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    request::{
        Look, Rpc, backoff,
        timer::{sleep, timeout_at},
        verify::Answered,
    },
    store::{
        Attempts, Call, Effect, Failure, GetAnswer, GetOptions, LeaseDetail, LeaseId, LeaseStatus,
        Observation, Op, PutOptions, Route, Store, Txn, TxnAnswer,
    },
};

/// Pause between two beginnings of the same work.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(100);

/// Condition under which a request may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Always: it is idempotent, since it changes nothing, or the same again.
    Freely,
    /// Only while it has certainly had no effect. Else the caller has to look.
    WithoutEffect,
}

/// The answer to a write that may be repeated, or to a [`Look`], which is as of now.
struct AsOfNow(TxnAnswer);

impl Answered for AsOfNow {
    fn header(&self) -> crate::store::Header {
        self.0.header
    }
}

impl Rpc {
    /// Makes a request until it is answered, refused, or its time is over.
    pub(crate) async fn call<T: Answered>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        request: impl for<'a> Fn(&'a dyn Store, Call<'a>) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let begun = Instant::now();
        let span = tracing::debug_span!("txn", operation);
        let attempted = self.attempted(operation, repeat, request);
        let outcome = tracing::Instrument::instrument(attempted, span.clone()).await;
        let (took, succeeded) = (begun.elapsed(), outcome.is_ok());
        span.in_scope(|| match &outcome {
            Ok(_) => tracing::debug!(?took, "answered"),
            Err(failure) => {
                tracing::debug!(?took, error = %failure.reason(), effect = ?failure.effect, "failed");
            }
        });
        self.store.observe(Observation::Requested { operation, took, succeeded });
        outcome
    }

    async fn attempted<T: Answered>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        request: impl for<'a> Fn(&'a dyn Store, Call<'a>) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let attempts = self.store.attempts(None);
        let limit = self.request_timeout;
        let deadline = Instant::now() + limit;
        let mut backoff = backoff();
        let mut before = None;
        loop {
            let sent = self.history.now();
            let attempt = self.attempt(deadline, operation, (&*attempts, Route::Fastest), &request);
            let failure = match attempt.await {
                Ok(answer) => {
                    self.heard(sent, &answer, repeat, &*attempts).await?;
                    return Ok(answer);
                }
                // Its error is not the store's: the other connection tells.
                Err(_) if attempts.takes_other_route() && Instant::now() < deadline => {
                    tracing::debug!(operation, "a request goes over the other connection");
                    continue;
                }
                // Why no member was ready before tells more than that this one waited in vain.
                Err(failure) if attempts.member().is_none() => before.take().unwrap_or(failure),
                Err(failure) => failure,
            };
            let may_repeat = repeat == Repeat::Freely || failure.effect == Effect::None;
            if !may_repeat || !self.is_worth_repeating(&failure.error) {
                return Err(failure);
            }
            // A member that was not tried yet is tried at once. An attempt that no member was given, for want
            // of a token or of a member, waits.
            let is_elsewhere = attempts.member().is_some() && attempts.count() < self.members();
            let pause = if is_elsewhere { Duration::ZERO } else { backoff.pause() };
            if Instant::now() + pause >= deadline {
                return Err(match failure.error {
                    Error::Timeout { .. } => Failure::timeout(operation, limit),
                    _ => failure,
                });
            }
            let member = attempts.member();
            tracing::debug!(operation, member, ?pause, error = %failure.reason(), "a request is made again");
            before = Some(failure);
            sleep(pause).await;
        }
    }

    /// Returns whether a request that failed with `error` is worth another attempt.
    pub(crate) fn is_worth_repeating(&self, error: &Error) -> bool {
        error.is_retryable() && !self.store.is_final(error)
    }

    /// Makes a request once, of which `attempts` take note.
    pub(crate) async fn attempt<T>(
        &self,
        deadline: Instant,
        operation: &'static str,
        (attempts, route): (&dyn Attempts, Route),
        request: impl for<'a> Fn(&'a dyn Store, Call<'a>) -> BoxFuture<'a, Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let limit = deadline.saturating_duration_since(Instant::now());
        let request = request(&*self.store, Call { operation, limit, attempts, route });
        match timeout_at(deadline, request).await {
            Ok(outcome) => outcome,
            Err(_elapsed) if attempts.member().is_none() => Err(self.store.not_sent()),
            Err(_elapsed) => Err(Failure::timeout(operation, limit)),
        }
    }

    /// Returns whether the work that failed with `error` may be begun anew, with a request that the failed
    /// request can not disturb. A request that certainly had no effect was already made again until its time
    /// was over.
    ///
    /// Answers after a pause that grows with the time that was spent. Some failures come at once, and would
    /// be repeated thousands of times, each with something to clean up.
    pub(crate) async fn may_retry_from_start(&self, begun: Instant, error: &Error) -> bool {
        if !self.is_worth_repeating(error) || self.check_open().is_err() {
            return false;
        }
        let pause = (begun.elapsed() / 4).clamp(SHORTEST, LONGEST);
        sleep(pause.mul_f64(fastrand::f64() + 0.5)).await;
        begun.elapsed() < self.request_timeout && self.check_open().is_ok()
    }

    /// Pauses before a new attempt at something that certainly never happened, or answers its error if there is no time
    /// left for one.
    pub(crate) async fn retry_from_start(&self, begun: Instant, error: Error) -> Result<()> {
        if self.may_retry_from_start(begun, &error).await { Ok(()) } else { Err(error) }
    }

    /// Reads one key, or what the options say.
    pub(crate) async fn get(
        &self,
        operation: &'static str,
        key: impl AsRef<[u8]>,
        options: Option<GetOptions>,
    ) -> Result<GetAnswer, Failure> {
        let (key, options) = (key.as_ref(), options.unwrap_or_default());
        self.call(operation, Repeat::Freely, |store, call| store.range(call, key.to_vec(), options.clone()))
            .await
    }

    /// Makes one transaction that only reads, as of now.
    pub(crate) async fn look(&self, operation: &'static str, look: Look) -> Result<TxnAnswer, Failure> {
        let txn = look.txn(&self.keys.probe());
        let looked = self.call(operation, Repeat::Freely, |store, call| {
            let txn = txn.clone();
            Box::pin(async move { store.txn(call, txn).await.map(AsOfNow) })
        });
        Ok(looked.await?.0)
    }

    /// Makes one transaction that writes in one of its branches at least; others are a [`Look`].
    pub(crate) async fn txn(&self, operation: &'static str, txn: Txn) -> Result<TxnAnswer, Failure> {
        self.txn_from(operation, || txn.clone()).await
    }

    /// Makes a large transaction, which is made where it is sent, and not once more to be kept.
    pub(crate) async fn txn_from(
        &self,
        operation: &'static str,
        txn: impl Fn() -> Txn,
    ) -> Result<TxnAnswer, Failure> {
        self.call(operation, Repeat::WithoutEffect, |store, call| store.txn(call, txn())).await
    }

    /// Writes one key, without a condition. May be repeated, so only where another write of the same does no harm.
    pub(crate) async fn put(
        &self,
        operation: &'static str,
        key: &str,
        options: PutOptions,
    ) -> Result<TxnAnswer, Failure> {
        let written = self.call(operation, Repeat::Freely, |store, call| {
            let txn = Txn::new().and_then([Op::put(key, "", Some(options))]);
            Box::pin(async move { store.txn(call, txn).await.map(AsOfNow) })
        });
        Ok(written.await?.0)
    }

    /// Looks up a lease.
    pub(crate) async fn lease_status(
        &self,
        operation: &'static str,
        lease: LeaseId,
        detail: LeaseDetail,
    ) -> Result<LeaseStatus, Failure> {
        self.call(operation, Repeat::Freely, |store, call| store.lease(call, lease, detail)).await
    }

    /// Deletes one key, without a condition.
    pub(crate) async fn delete(&self, operation: &'static str, key: &str) -> Result<TxnAnswer, Failure> {
        self.txn_from(operation, || Txn::new().and_then([Op::delete(key)])).await
    }
}
