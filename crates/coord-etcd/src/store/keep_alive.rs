//! The stream for the renewals of all leases of a client.
//!
//! etcd renews any number of leases over one stream. Requests are answered in their order. When etcd refuses
//! a request, it ends the stream; the first request without an answer is the refused one.
//!
//! The client library has a stream for each lease, and drops the answer to its opening, so the call is made
//! here.
//!
//! etcd's gRPC proxy answers a second request for a lease only with its own next renewal. This can be up to a
//! third of a time to live later. So a stream whose answer is late is only left for another one; it ends when
//! nobody waits for it any more.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use coord_api::{Error, backend::lock};
use coord_grpc::Attempts;
use coord_kv::store::{Failure, LeaseId, RenewalEnded, RenewalStream, Renewed};
use etcd_client::Channel;
use futures::{future::BoxFuture, stream};
use http::uri::PathAndQuery;
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::AbortHandle,
};
use tonic::{Status, client::Grpc, metadata::MetadataValue};
use tonic_prost::ProstCodec;

use crate::{
    error::{classify, not_sent},
    transport::channel::noted,
};

/// Name of the operation, for errors.
const RENEW: &str = "renew a lease";

/// Most requests that may wait to be sent. There is one for each lease at a time.
const MOST_WAITING: usize = 1 << 12;

#[derive(Clone, PartialEq, prost::Message)]
struct KeepAlive {
    #[prost(int64, tag = "1")]
    id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct KeptAlive {
    #[prost(int64, tag = "2")]
    id: i64,
    #[prost(int64, tag = "3")]
    ttl: i64,
}

/// The way to the streams of one client.
pub(crate) struct KeepAlives {
    channel: Channel,
    runtime: runtime::Handle,
    limit: Duration,
    /// The stream that is shared.
    shared: Mutex<Shared>,
}

#[derive(Default)]
struct Shared {
    stream: Option<Arc<Stream>>,
    /// The member to avoid with the next one.
    left: Attempts,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl fmt::Debug for KeepAlives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeepAlives").finish_non_exhaustive()
    }
}

/// A stream, which ends with the last who holds this.
pub(super) struct Stream {
    requests: mpsc::Sender<KeepAlive>,
    asked: Arc<Mutex<Asked>>,
    tries: Attempts,
    task: AbortHandle,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The requests of one stream that have no answer, in their order. No I/O.
#[derive(Debug, Default)]
struct Asked {
    unanswered: VecDeque<(i64, oneshot::Sender<Renewed>)>,
    has_ended: bool,
}

impl Asked {
    fn ask(&mut self, id: i64) -> oneshot::Receiver<Renewed> {
        let (reply, answer) = oneshot::channel();
        if !self.has_ended {
            self.unanswered.push_back((id, reply));
        }
        answer
    }

    /// Takes an answer, which is for the first request about the lease.
    fn answered(&mut self, id: i64, ttl: i64) {
        let at = self.unanswered.iter().position(|(asked, _)| *asked == id);
        if let Some((_, reply)) = at.and_then(|at| self.unanswered.remove(at)) {
            let ttl = u64::try_from(ttl).ok().filter(|ttl| *ttl > 0).map(Duration::from_secs);
            // The caller may have its answer from another stream.
            let _ = reply.send(Ok(ttl));
        }
    }

    /// Takes the end of the stream.
    fn ended(&mut self, failure: &Failure) {
        self.has_ended = true;
        let passes = failure.error.is_retryable() || matches!(failure.error, Error::Unauthenticated { .. });
        for (n, (_, reply)) in self.unanswered.drain(..).enumerate() {
            let ended = match n {
                0 if !passes => RenewalEnded::Refused(failure.duplicate()),
                _ if passes => RenewalEnded::Broken(failure.duplicate()),
                _ => RenewalEnded::Broken(not_sent()),
            };
            let _ = reply.send(Err(ended));
        }
    }
}

impl KeepAlives {
    /// Streams over `channel`, driven by `runtime`.
    pub(crate) fn new(channel: Channel, runtime: runtime::Handle, limit: Duration) -> Self {
        Self { channel, runtime, limit, shared: Mutex::default() }
    }

    /// Returns the shared stream, which is opened if there is none.
    pub(super) fn shared(&self) -> Arc<Stream> {
        let mut shared = lock(&self.shared);
        if let Some(open) = shared.stream.as_ref().filter(|stream| !lock(&stream.asked).has_ended) {
            return open.clone();
        }
        let left = shared.stream.take().map(|ended| ended.tries.clone());
        let tries = Attempts::new().avoiding(left.unwrap_or_else(|| shared.left.clone()).instance());
        let opened = self.open(tries);
        shared.stream = Some(opened.clone());
        opened
    }

    /// Returns a stream for one lease.
    pub(super) fn own(&self) -> Arc<Stream> {
        self.open(Attempts::new())
    }

    /// Leaves a stream that does not answer: the next one goes to another member, if one is ready.
    pub(super) fn leave(&self, stream: &Arc<dyn RenewalStream>) {
        let mut shared = lock(&self.shared);
        let is_open = |open: &mut Arc<Stream>| std::ptr::addr_eq(Arc::as_ptr(open), Arc::as_ptr(stream));
        if let Some(left) = shared.stream.take_if(is_open) {
            shared.left = left.tries.clone();
        }
    }

    fn open(&self, tries: Attempts) -> Arc<Stream> {
        let (requests, inbox) = mpsc::channel(MOST_WAITING);
        let asked = Arc::<Mutex<Asked>>::default();
        let (channel, limit, answers, noting) =
            (self.channel.clone(), self.limit, asked.clone(), tries.clone());
        let task = self.runtime.spawn(async move {
            let status = match noted(&noting, run(channel, inbox, &answers)).await {
                Ok(()) => Status::unavailable("the stream for renewals ended"),
                Err(status) => status,
            };
            let failure = classify(RENEW, limit, etcd_client::Error::GRpcStatus(status));
            tracing::debug!(error = %failure.error, "stream for renewals ended");
            lock(&answers).ended(&failure);
        });
        Arc::new(Stream { requests, asked, tries, task: task.abort_handle() })
    }
}

impl RenewalStream for Stream {
    fn renew(&self, id: LeaseId) -> BoxFuture<'static, Renewed> {
        // Held until the request is sent, so that both have the same order.
        let mut asked = lock(&self.asked);
        let answer = asked.ask(id);
        // If it can not be sent, the stream has ended, which tells, or nothing has been sent for long.
        let _ = self.requests.try_send(KeepAlive { id });
        Box::pin(async { answer.await.unwrap_or_else(|_| Err(RenewalEnded::Broken(not_sent()))) })
    }
}

/// Opens a stream and passes its answers on until it ends.
async fn run(channel: Channel, inbox: mpsc::Receiver<KeepAlive>, asked: &Mutex<Asked>) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let requests = stream::unfold(inbox, async |mut inbox| Some((inbox.recv().await?, inbox)));
    let mut request = tonic::Request::new(requests);
    // A member that lost its leader says so at once: others may have one.
    request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
    let path = PathAndQuery::from_static("/etcdserverpb.Lease/LeaseKeepAlive");
    let codec = ProstCodec::<KeepAlive, KeptAlive>::default();
    let mut answers = grpc.streaming(request, path, codec).await?.into_inner();
    while let Some(KeptAlive { id, ttl }) = answers.message().await? {
        lock(asked).answered(id, ttl);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(answer: &mut oneshot::Receiver<Renewed>) -> Option<Renewed> {
        answer.try_recv().ok()
    }

    #[test]
    fn answer_is_for_the_first_request_about_its_lease() {
        let mut asked = Asked::default();
        let (mut one, mut other, mut again) = (asked.ask(1), asked.ask(2), asked.ask(1));
        asked.answered(2, 10);
        assert!(matches!(told(&mut other), Some(Ok(Some(ttl))) if ttl == Duration::from_secs(10)));
        asked.answered(1, 10);
        assert!(matches!(told(&mut one), Some(Ok(Some(_)))) && told(&mut again).is_none());
        asked.answered(1, 0);
        assert!(matches!(told(&mut again), Some(Ok(None))), "etcd does not know it any more");
        asked.answered(3, 10);
    }

    #[test]
    fn refusal_is_told_to_the_first_without_an_answer_alone() {
        let refused = || Failure {
            error: Error::PermissionDenied { operation: RENEW, source: "no".into() },
            effect: coord_kv::store::Effect::None,
        };
        let mut asked = Asked::default();
        let (_answered, mut first, mut second) = (asked.ask(1), asked.ask(2), asked.ask(3));
        asked.answered(1, 10);
        asked.ended(&refused());
        let denied = |ended: &Option<Renewed>| match ended {
            Some(Err(RenewalEnded::Refused(failure))) => {
                matches!(failure.error, Error::PermissionDenied { .. })
            }
            _ => false,
        };
        assert!(denied(&told(&mut first)));
        assert!(matches!(told(&mut second), Some(Err(RenewalEnded::Broken(f))) if f.error.is_retryable()));
        assert!(asked.ask(4).try_recv().is_err(), "is told at once");
    }

    #[test]
    fn broken_stream_is_told_to_all_who_wait() {
        let mut asked = Asked::default();
        let (mut first, mut second) = (asked.ask(1), asked.ask(2));
        asked.ended(&not_sent());
        for answer in [&mut first, &mut second] {
            assert!(matches!(told(answer), Some(Err(RenewalEnded::Broken(_)))));
        }
    }
}
