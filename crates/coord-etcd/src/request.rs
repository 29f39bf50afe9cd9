//! One request to etcd: within its time, over as many members as it takes, and never twice where that would matter.

use std::time::Duration;

use coord_api::{Error, Result};
use coord_grpc::Attempts;
use etcd_client::{
    DeleteResponse, GetOptions, GetResponse, KvClient, Txn, TxnOp, TxnOpResponse, TxnResponse,
};
use tokio::time::{Instant, sleep, timeout_at};

use crate::{
    core::Core,
    error::{Effect, Failure, classify},
    read::{Look, revision},
    session::Session,
    telemetry,
    transport::noted,
    verify::Answered,
    watch::pauses,
};

/// Between two beginnings of the same thing.
const SHORTEST: Duration = Duration::from_millis(20);
const LONGEST: Duration = Duration::from_millis(100);

/// When a request may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// Always: it changes nothing, or the same again.
    Freely,
    /// Only while it has certainly had no effect. Else the caller has to look.
    WithoutEffect,
}

impl Core {
    /// Makes a request until it is answered, refused, or its time is over. It is given the way to take, if it is one
    /// about keys.
    pub(crate) async fn call<T, F>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        request: impl Fn(KvClient) -> F,
    ) -> Result<T, Failure>
    where
        T: Answered,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let begun = Instant::now();
        let outcome = self.tried(operation, repeat, request).await;
        telemetry::requested(operation, begun.elapsed(), outcome.is_ok());
        outcome
    }

    async fn tried<T, F>(
        &self,
        operation: &'static str,
        repeat: Repeat,
        request: impl Fn(KvClient) -> F,
    ) -> Result<T, Failure>
    where
        T: Answered,
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let tries = Attempts::new();
        let limit = self.request_timeout;
        let deadline = Instant::now() + limit;
        let mut pauses = pauses();
        let mut before = None;
        let mut near = self.near_kv();
        loop {
            let short_way = near.take();
            let is_short_way = short_way.is_some();
            let kv = short_way.unwrap_or_else(|| self.kv());
            // Boxed: what the client library makes of a request takes kilobytes, and would be moved from hand to hand.
            let request = Box::pin(request(kv));
            let sent = self.history.now();
            let failure = match self.try_until(deadline, operation, &tries, request).await {
                Ok(answer) => {
                    self.heard(sent, &answer, repeat, &tries).await?;
                    return Ok(answer);
                }
                // It was given hardly any time to be ready, so that its error is not the store's: the other way tells.
                Err(_) if is_short_way && tries.instance().is_none() && Instant::now() < deadline => continue,
                // Why no member was ready before tells more than that this one waited in vain.
                Err(failure) if tries.instance().is_none() => before.take().unwrap_or(failure),
                Err(failure) => failure,
            };
            let may_repeat = repeat == Repeat::Freely || failure.effect == Effect::None;
            if !may_repeat || !failure.error.is_retryable() {
                return Err(failure);
            }
            // At once where it was not yet. One that no member was given, for want of a token or of a member, waits.
            let is_elsewhere = tries.instance().is_some() && tries.count() < self.members;
            let pause = if is_elsewhere { Duration::ZERO } else { pauses.next().unwrap_or_default() };
            if Instant::now() + pause >= deadline {
                return Err(match failure.error {
                    Error::Timeout { .. } => Failure::timeout(operation, limit),
                    _ => failure,
                });
            }
            tracing::debug!(operation, error = %failure.error, "a request is made again");
            before = Some(failure);
            sleep(pause).await;
        }
    }

    /// Makes a request once, which `tries` takes note of.
    pub(crate) async fn try_until<T>(
        &self,
        deadline: Instant,
        operation: &'static str,
        tries: &Attempts,
        request: impl Future<Output = Result<T, etcd_client::Error>>,
    ) -> Result<T, Failure> {
        let limit = deadline.saturating_duration_since(Instant::now());
        match timeout_at(deadline, noted(tries, request)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(classify(operation, self.try_limit.unwrap_or(limit), error)),
            Err(_elapsed) if tries.instance().is_none() => Err(Failure::not_sent()),
            Err(_elapsed) => Err(Failure::timeout(operation, limit)),
        }
    }

    /// Whether what failed with `error` may be begun anew, with a request that the one before can not disturb. One
    /// that certainly had no effect was made again until its time was over.
    ///
    /// Answers after a pause that grows with the time that was spent: some failures come at once, and would be repeated
    /// thousands of times, each with what it leaves to be cleaned up.
    pub(crate) async fn may_begin_anew(&self, begun: Instant, error: &Error) -> bool {
        if !error.is_retryable() || self.check_open().is_err() {
            return false;
        }
        let pause = (begun.elapsed() / 4).clamp(SHORTEST, LONGEST);
        sleep(pause.mul_f64(fastrand::f64() + 0.5)).await;
        begun.elapsed() < self.request_timeout && self.check_open().is_ok()
    }

    /// The same for what has nothing else to do then than to tell the error.
    pub(crate) async fn begin_anew(&self, begun: Instant, error: Error) -> Result<()> {
        if self.may_begin_anew(begun, &error).await { Ok(()) } else { Err(error) }
    }

    /// Reads one key, or what the options say.
    pub(crate) async fn get(
        &self,
        operation: &'static str,
        key: impl AsRef<[u8]>,
        options: Option<GetOptions>,
    ) -> Result<GetResponse, Failure> {
        let request = async |mut kv: KvClient| kv.get(key.as_ref(), options.clone()).await;
        self.call(operation, Repeat::Freely, request).await
    }

    /// One transaction that only reads, as of now.
    pub(crate) async fn look(&self, operation: &'static str, look: Look) -> Result<TxnResponse, Failure> {
        let txn = look.txn(&self.keys.probe());
        self.call(operation, Repeat::Freely, async |mut kv| kv.txn(txn.clone()).await).await
    }

    /// One transaction that writes in one of its branches at least; others are a [`Look`].
    pub(crate) async fn txn(&self, operation: &'static str, txn: Txn) -> Result<TxnResponse, Failure> {
        self.txn_from(operation, || txn.clone()).await
    }

    /// The same for a large one, which is made where it is sent, and not once more to be kept.
    pub(crate) async fn txn_from(
        &self,
        operation: &'static str,
        txn: impl Fn() -> Txn,
    ) -> Result<TxnResponse, Failure> {
        self.call(operation, Repeat::WithoutEffect, async |mut kv| kv.txn(txn()).await).await
    }

    /// Deletes one key, without a condition.
    pub(crate) async fn delete(&self, operation: &'static str, key: &str) -> Result<DeleteResponse, Failure> {
        self.call(operation, Repeat::WithoutEffect, async |mut kv| kv.delete(key, None).await).await
    }

    /// One transaction that writes on the lease of `session`, which learns if it is over.
    pub(crate) async fn txn_on(
        &self,
        session: &Session,
        operation: &'static str,
        txn: Txn,
    ) -> Result<TxnResponse, Failure> {
        let answer = self.txn(operation, txn).await;
        answer.inspect_err(|failure| session.learn(&failure.error))
    }

    /// The same through the gate of the lease: once that is shut, no request that was sent before takes effect. The
    /// revision at which it was made, and the answer.
    pub(crate) async fn txn_through(
        &self,
        session: &Session,
        operation: &'static str,
        txn: Txn,
    ) -> Result<(i64, TxnResponse), Failure> {
        let (gate, inner) = (&session.gate, TxnOp::txn(txn));
        loop {
            let through = Txn::new().when([gate.is_open()]).and_then([inner.clone()]).or_else([gate.look()]);
            let answer = self.txn_on(session, operation, through).await?;
            match answer.op_responses().pop() {
                Some(TxnOpResponse::Txn(made)) => return Ok((revision(answer.header()), made)),
                found => gate.looked(found.as_ref()),
            }
        }
    }
}
