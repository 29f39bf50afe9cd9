//! One call: choose an instance, try it, and try again if the server has certainly not processed the request.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use coord_api::backend::innermost;
use http::{Extensions, Request, Response, request::Parts as Head};
use tokio::time::{Instant, sleep};
use tonic::{Code, Status, TimeoutExpired, body::Body};

use crate::{
    HashKey, Tries,
    balancer::{Balancer, Wish},
    body::counted,
    carrier::{Failed, Fate, chain},
    deadline::{Deadline, Patience},
    kept::Kept,
    outcome::{Ending, Outcome},
    outlier::Failure,
    picker::Slot,
    tries,
    wire::Link,
};

/// The first pause of a call that was refused twice, doubled with each that follows,
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Makes a call through the balancer.
pub(crate) async fn call(balancer: &Arc<Balancer>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let begun = Instant::now();
    let deadline = Deadline::of(request.headers(), begun);
    let patience = Patience::new(begun, balancer.options.wait(), deadline);
    let key = HashKey::of(&request, balancer.options.hash_header.as_deref());
    let mut wish = Wish { key, tries: request.extensions().get::<Tries>().cloned() };
    let (mut head, body) = request.into_parts();
    head.extensions = Extensions::new();
    let body = Kept::new(body, balancer.options.retry_buffer);
    let mut pause = Duration::ZERO;
    let mut now = begun;
    loop {
        let (slot, chosen) = balancer.choose(&wish, now, &patience).await?;
        let trouble = match Attempt::begin(balancer, slot, chosen, deadline).send(&head, &body).await {
            Ok(response) => return Ok(response),
            Err(trouble) => trouble,
        };
        now = Instant::now();
        let is_worth_it = trouble.fate.had_no_effect() && body.is_whole() && !patience.is_over(now + pause);
        if !is_worth_it {
            return Err(trouble.status);
        }
        tracing::debug!(
            service = &*balancer.service,
            instance = trouble.node,
            fate = ?trouble.fate,
            "a call that was not processed is made again"
        );
        metrics::counter!("coord_grpc_retries_total", "service" => balancer.service.to_string()).increment(1);
        if trouble.fate == Fate::Refused {
            // Its connection stays, so that it would be chosen again.
            wish.tries.get_or_insert_with(|| Tries::new().avoiding(Some(trouble.node)));
            sleep(pause.mul_f64(fastrand::f64())).await;
            pause = (pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
            now = Instant::now();
        }
    }
}

/// Why one attempt failed.
struct Trouble {
    status: Status,
    fate: Fate,
    node: String,
}

/// A call on its way to one instance, counted there until it is dropped.
pub(crate) struct Attempt {
    balancer: Arc<Balancer>,
    slot: Arc<Slot<Link>>,
    begun: Instant,
    /// What had come from the instance before.
    reads: u64,
    pub(crate) deadline: Option<Deadline>,
    answered: bool,
}

impl Attempt {
    fn begin(
        balancer: &Arc<Balancer>,
        slot: Arc<Slot<Link>>,
        begun: Instant,
        deadline: Option<Deadline>,
    ) -> Self {
        slot.node.load.begin();
        slot.node.calls.fetch_add(1, Relaxed);
        let reads = slot.link.reads();
        Self { balancer: balancer.clone(), slot, begun, reads, deadline, answered: false }
    }

    async fn send(mut self, head: &Head, body: &Kept) -> Result<Response<Body>, Trouble> {
        let slot = self.slot.clone();
        let mut head = head.clone();
        if let Some(deadline) = self.deadline {
            if deadline.is_over(self.begun) {
                return Err(self.late(deadline));
            }
            deadline.tell(&mut head.headers, self.begun);
        }
        let answer = slot.link.carrier.send(head, body);
        let limit = Patience::new(
            self.begun,
            self.balancer.options.try_timeout.unwrap_or(Duration::MAX),
            self.deadline,
        );
        let in_time = match limit.end() {
            None => Some(answer.await),
            Some(end) => tokio::time::timeout_at(end, answer).await.ok(),
        };
        let Some(answer) = in_time else {
            return Err(match limit.callers() {
                Some(deadline) => self.late(deadline),
                None => self.hung(),
            });
        };
        match answer {
            Ok(mut response) => {
                body.release();
                slot.link.has_served();
                if let Some(deadline) = self.deadline {
                    deadline.correct(response.headers_mut(), Instant::now());
                }
                self.answered(Ending::of_head(&response));
                Ok(response.map(|body| counted(body, self)))
            }
            Err(failed) => Err(self.broken(failed)),
        }
    }

    /// The answer has begun, and perhaps ended with that.
    fn answered(&mut self, ending: Option<Ending>) {
        let (now, load) = (Instant::now(), &self.slot.node.load);
        let took = now - self.begun;
        load.opened();
        match ending.map(|ending| self.balancer.options.failures.judge(ending, took, self.limit())) {
            None | Some(Outcome::Success) => load.answered(took, &self.balancer.pool, now),
            Some(_) => load.refused(took, &self.balancer.pool, now),
        }
        self.answered = true;
        if let Some(ending) = ending {
            self.judge(ending);
        }
    }

    /// The call has ended with an answer, which tells something of the instance.
    pub(crate) fn judge(&self, ending: Ending) {
        let (now, options) = (Instant::now(), &self.balancer.options);
        match options.failures.judge(ending, now - self.begun, self.limit()) {
            Outcome::Success => self.slot.node.succeeded(options.interval(), now),
            Outcome::CallersFault => self.slot.node.on_trial.store(false, Relaxed),
            Outcome::ServersFailure => self.failed(Failure::Answer),
        }
    }

    /// How long the caller waited for this attempt.
    fn limit(&self) -> Option<Duration> {
        self.deadline.map(|deadline| deadline.at.saturating_duration_since(self.begun))
    }

    fn failed(&self, failure: Failure) {
        self.slot.node.failed(self.balancer.options.interval(), Instant::now());
        self.balancer.failed(&self.slot, failure);
    }

    fn silence_or(&self, other: Failure) -> Failure {
        if self.slot.link.reads() == self.reads { Failure::Silence } else { other }
    }

    /// The instance, as an error names it.
    fn place(&self) -> String {
        format!("{} at {}", self.balancer.service, self.slot.node.authority)
    }

    fn hung(self) -> Trouble {
        let limit = self.balancer.options.try_timeout.unwrap_or_default();
        self.failed(self.silence_or(Failure::Answer));
        let node = self.slot.node.id.clone();
        let status = Status::deadline_exceeded(format!("{} did not answer within {limit:?}", self.place()));
        Trouble { status, fate: Fate::Unknown, node }
    }

    /// The caller's time is over.
    fn late(self, deadline: Deadline) -> Trouble {
        self.exceeded();
        let node = self.slot.node.id.clone();
        Trouble { status: deadline.exceeded(&self.place()), fate: Fate::Unknown, node }
    }

    /// The caller's own deadline: only silence speaks against the instance.
    fn exceeded(&self) {
        if self.silence_or(Failure::Answer) == Failure::Silence {
            self.failed(Failure::Silence);
        }
    }

    /// The end of an answer that had begun when the caller's time was over.
    pub(crate) fn cut_off(&self, deadline: Deadline) -> Status {
        self.exceeded();
        deadline.exceeded(&self.place())
    }

    fn broken(self, Failed { error, fate }: Failed) -> Trouble {
        let node = self.slot.node.id.clone();
        match fate {
            Fate::Unsent | Fate::GoneAway => self.balancer.lost(&self.slot),
            Fate::OfCaller => {}
            Fate::Unknown if chain(error.as_ref()).any(<dyn std::error::Error>::is::<TimeoutExpired>) => {
                self.exceeded();
            }
            Fate::Refused | Fate::Unknown => self.failed(Failure::Answer),
        }
        let status = match fate {
            Fate::OfCaller => Status::from_error(error),
            _ if fate.had_no_effect() => {
                tries::unsent(format!("{}: {}", self.place(), innermost(error.as_ref())))
            }
            _ => self.coded(Status::from_error(error)),
        };
        Trouble { status, fate, node }
    }

    /// The code of what broke off. It goes by the cause: which codes tonic has for it depends on its features.
    pub(crate) fn coded(&self, status: Status) -> Status {
        let now = Instant::now();
        let source = std::error::Error::source(&status);
        let cause =
            source.and_then(|source| chain(source).find_map(|error| error.downcast_ref::<h2::Error>()));
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

/// As gRPC has it: a connection that broke off is unavailable; a stream that did, for a reason, has the code of that.
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
        let load = &self.slot.node.load;
        if self.answered {
            load.closed();
        } else {
            let now = Instant::now();
            load.given_up(now - self.begun, now);
        }
    }
}
