//! Call: chooses an instance, sends the request, and retries if the server has certainly not processed it.

mod response_body;

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use coord_api::backend::innermost;
use http::{Extensions, Request, Response, request::Parts as Head};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, TimeoutExpired, body::Body};

use self::response_body::counted;
use crate::{
    attempts::{Attempts, unsent},
    deadline::{Deadline, WaitLimit},
    outcome::{Ending, Outcome},
    pick::{HashKey, outlier::Failure, picker::Ready},
    pool::{Balancer, PickHint},
    transport::{Connection, RecoverableBody, SendError, SendErrorKind, error_chain},
};

/// First backoff of a call that was refused twice. It doubles with each refusal that follows.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Longest backoff of a refused call.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Makes a call through the balancer.
pub(crate) async fn call(balancer: &Arc<Balancer>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let begun = Instant::now();
    let deadline = Deadline::of(request.headers(), begun);
    let wait_limit = WaitLimit::new(begun, balancer.options.wait(), deadline);
    let key = HashKey::of(&request, balancer.options.hash_header.as_deref());
    let mut hint = PickHint { key, attempts: request.extensions().get::<Attempts>().cloned() };
    let (mut head, body) = request.into_parts();
    head.extensions = Extensions::new();
    let body = RecoverableBody::new(body, balancer.options.retry_buffer);
    let mut pause = Duration::ZERO;
    let mut now = begun;
    loop {
        let (ready, chosen) = balancer.choose(&hint, now, &wait_limit).await?;
        let error = match Attempt::begin(balancer, ready, chosen, deadline).send(&head, &body).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        now = Instant::now();
        let is_worth_it =
            error.kind.had_no_effect() && body.is_recoverable() && !wait_limit.is_over(now + pause);
        if !is_worth_it {
            return Err(error.status);
        }
        tracing::debug!(
            service = &*balancer.service,
            instance = error.instance,
            kind = ?error.kind,
            "a call that was not processed is made again"
        );
        metrics::counter!("coord_grpc_retries_total", "service" => balancer.service.to_string()).increment(1);
        if error.kind == SendErrorKind::Refused {
            // The connection stays, so the instance would be chosen again.
            hint.attempts.get_or_insert_with(|| Attempts::new().avoiding(Some(error.instance)));
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            now = Instant::now();
        }
    }
}

/// Error of one attempt.
struct AttemptError {
    status: Status,
    kind: SendErrorKind,
    instance: String,
}

/// Attempt to have a call answered by one instance, counted there until it is dropped.
pub(crate) struct Attempt {
    balancer: Arc<Balancer>,
    ready: Arc<Ready<Connection>>,
    begun: Instant,
    /// Number of reads before the request was sent.
    reads_before: u64,
    pub(crate) deadline: Option<Deadline>,
    answered: bool,
}

impl Attempt {
    fn begin(
        balancer: &Arc<Balancer>,
        ready: Arc<Ready<Connection>>,
        begun: Instant,
        deadline: Option<Deadline>,
    ) -> Self {
        ready.stats.load.begin();
        ready.stats.calls.fetch_add(1, Relaxed);
        let reads_before = ready.connection.reads();
        Self { balancer: balancer.clone(), ready, begun, reads_before, deadline, answered: false }
    }

    async fn send(mut self, head: &Head, body: &RecoverableBody) -> Result<Response<Body>, AttemptError> {
        let ready = self.ready.clone();
        let mut head = head.clone();
        if let Some(deadline) = self.deadline {
            if deadline.is_over(self.begun) {
                return Err(self.late(deadline));
            }
            deadline.tell(&mut head.headers, self.begun);
        }
        let answer = ready.connection.http2.send(head, body);
        let limit = WaitLimit::new(
            self.begun,
            self.balancer.options.try_timeout.unwrap_or(Duration::MAX),
            self.deadline,
        );
        let in_time = match limit.end() {
            None => Some(answer.await),
            Some(end) => tokio::time::timeout_at(end, answer).await.ok(),
        };
        let Some(answer) = in_time else {
            return Err(match limit.callers_deadline() {
                Some(deadline) => self.late(deadline),
                None => self.hung(),
            });
        };
        match answer {
            Ok(mut response) => {
                body.release();
                ready.connection.has_served();
                if let Some(deadline) = self.deadline {
                    deadline.correct(response.headers_mut(), Instant::now());
                }
                self.answered(Ending::of_head(&response));
                Ok(response.map(|body| counted(body, self)))
            }
            Err(failed) => Err(self.broken(failed)),
        }
    }

    /// Takes in the head of the answer, and its ending if the head has it.
    fn answered(&mut self, ending: Option<Ending>) {
        let (now, load) = (Instant::now(), &self.ready.stats.load);
        let took = now - self.begun;
        load.opened();
        match ending.map(|ending| self.balancer.options.failures.judge(ending, took, self.limit())) {
            None | Some(Outcome::Success) => load.answered(took, &self.balancer.pool_latency, now),
            Some(_) => load.refused(took, &self.balancer.pool_latency, now),
        }
        self.answered = true;
        if let Some(ending) = ending {
            self.judge(ending);
        }
    }

    /// Takes in how an answered call has ended, for outlier detection.
    pub(crate) fn judge(&self, ending: Ending) {
        let (now, options) = (Instant::now(), &self.balancer.options);
        match options.failures.judge(ending, now - self.begun, self.limit()) {
            Outcome::Success => self.ready.stats.succeeded(options.interval(), now),
            Outcome::CallersFault => self.ready.stats.on_trial.store(false, Relaxed),
            Outcome::ServersFailure => self.failed(Failure::Answer),
        }
    }

    /// Returns the time that the caller's deadline left for this attempt.
    fn limit(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.at.saturating_duration_since(self.begun))
    }

    fn failed(&self, failure: Failure) {
        self.ready.stats.failed(self.balancer.options.interval(), Instant::now());
        self.balancer.failed(&self.ready, failure);
    }

    fn silence_or(&self, other: Failure) -> Failure {
        if self.ready.connection.reads() == self.reads_before { Failure::Silence } else { other }
    }

    /// Returns the name of the instance in errors.
    fn place(&self) -> String {
        format!("{} at {}", self.balancer.service, self.ready.stats.authority)
    }

    fn hung(self) -> AttemptError {
        let limit = self.balancer.options.try_timeout.unwrap_or_default();
        self.failed(self.silence_or(Failure::Answer));
        let instance = self.ready.stats.id.clone();
        let status = Status::deadline_exceeded(format!("{} did not answer within {limit:?}", self.place()));
        AttemptError { status, kind: SendErrorKind::Unknown, instance }
    }

    /// Returns the error of an attempt that the caller's deadline ended.
    fn late(self, deadline: Deadline) -> AttemptError {
        self.exceeded();
        let instance = self.ready.stats.id.clone();
        AttemptError { status: deadline.exceeded(&self.place()), kind: SendErrorKind::Unknown, instance }
    }

    /// Takes in that the caller's deadline has passed. Only silence speaks against the instance then.
    fn exceeded(&self) {
        if self.silence_or(Failure::Answer) == Failure::Silence {
            self.failed(Failure::Silence);
        }
    }

    /// Returns the status of an answer that had begun when the caller's deadline passed.
    pub(crate) fn cut_off(&self, deadline: Deadline) -> Status {
        self.exceeded();
        deadline.exceeded(&self.place())
    }

    fn broken(self, SendError { error, kind }: SendError) -> AttemptError {
        let instance = self.ready.stats.id.clone();
        match kind {
            SendErrorKind::Unsent | SendErrorKind::GoneAway => self.balancer.connection_lost(&self.ready),
            SendErrorKind::CallerBody => {}
            SendErrorKind::Unknown
                if error_chain(error.as_ref()).any(<dyn std::error::Error>::is::<TimeoutExpired>) =>
            {
                self.exceeded();
            }
            SendErrorKind::Refused | SendErrorKind::Unknown => self.failed(Failure::Answer),
        }
        let status = match kind {
            SendErrorKind::CallerBody => Status::from_error(error),
            _ if kind.had_no_effect() => unsent(format!("{}: {}", self.place(), innermost(error.as_ref()))),
            _ => self.coded(Status::from_error(error)),
        };
        AttemptError { status, kind, instance }
    }

    /// Sets the code of an answer that broke off, by its cause. The codes of tonic depend on its features.
    pub(crate) fn coded(&self, status: Status) -> Status {
        let now = Instant::now();
        let source = std::error::Error::source(&status);
        let cause =
            source.and_then(|source| error_chain(source).find_map(|error| error.downcast_ref::<h2::Error>()));
        let code = match cause {
            Some(cause) => code_of(cause),
            None if status.code() == Code::Unknown => Code::Unavailable,
            None => return status,
        };
        if let (Code::Cancelled, Some(deadline)) =
            (code, self.deadline.filter(|deadline| deadline.is_over(now)))
        {
            return deadline.exceeded(&self.place());
        }
        let mut coded = Status::new(code, format!("{}: {}", self.place(), innermost(&status)));
        coded.set_source(Arc::new(status));
        coded
    }
}

/// Maps an HTTP/2 error to a code, as gRPC does. A broken connection is `Unavailable`; a reset stream has the code of its
/// reason.
fn code_of(error: &h2::Error) -> Code {
    match error.reason() {
        Some(_) if error.is_go_away() => Code::Unavailable,
        Some(h2::Reason::REFUSED_STREAM) => Code::Unavailable,
        Some(h2::Reason::CANCEL) => Code::Cancelled,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
        Some(h2::Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
        None if error.is_io() => Code::Unavailable,
        _ => Code::Internal,
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let load = &self.ready.stats.load;
        if self.answered {
            load.closed();
        } else {
            let now = Instant::now();
            load.given_up(now - self.begun, now);
        }
    }
}
