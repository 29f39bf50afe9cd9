//! One call: choose an instance, try it, and try another one if the first has certainly not got the request.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use coord_api::backend::innermost;
use http::{Request, Response};
use tokio::time::Instant;
use tonic::{Code, Status, TimeoutExpired, body::Body};

use crate::{
    HashKey, Tries,
    balancer::{Balancer, Wish},
    body::{counted, ending_early},
    carrier::{Failed, chain, limit},
    outcome::{Ending, Outcome},
    outlier::Failure,
    picker::Slot,
    tries,
    wire::Link,
};

/// Makes a call through the balancer.
pub(crate) async fn call(balancer: &Arc<Balancer>, request: Request<Body>) -> Result<Response<Body>, Status> {
    let key = HashKey::of(&request, balancer.options.hash_header.as_deref());
    let wish = Wish { key, tries: request.extensions().get::<Tries>().cloned() };
    let begun = Instant::now();
    let deadline = begun + balancer.options.wait();
    let (slot, now) = balancer.choose(&wish, begun, deadline).await?;
    let request = request.map(ending_early);
    let (again, node) = match Attempt::begin(balancer, slot, now).send(request).await {
        Ok(response) => return Ok(response),
        Err(Trouble { unsent: Some(request), node, .. }) => (request, node),
        Err(Trouble { status, .. }) => return Err(status),
    };
    tracing::debug!(
        service = &*balancer.service,
        instance = node,
        "a call that was not sent goes to another instance"
    );
    metrics::counter!("coord_grpc_retries_total", "service" => balancer.service.to_string()).increment(1);
    let (slot, now) = balancer.choose(&wish, Instant::now(), deadline).await?;
    Attempt::begin(balancer, slot, now).send(*again).await.map_err(|trouble| trouble.status)
}

/// Why one attempt failed.
struct Trouble {
    status: Status,
    /// The request, if it has certainly not left this process.
    unsent: Option<Box<Request<Body>>>,
    node: String,
}

/// A call on its way to one instance, counted there until it is dropped.
pub(crate) struct Attempt {
    balancer: Arc<Balancer>,
    slot: Arc<Slot<Link>>,
    begun: Instant,
    /// What had come from the instance before.
    reads: u64,
    /// How long the caller waits, if it said so.
    limit: Option<Duration>,
    answered: bool,
}

impl Attempt {
    fn begin(balancer: &Arc<Balancer>, slot: Arc<Slot<Link>>, begun: Instant) -> Self {
        slot.node.load.begin();
        slot.node.calls.fetch_add(1, Relaxed);
        let reads = slot.link.reads();
        Self { balancer: balancer.clone(), slot, begun, reads, limit: None, answered: false }
    }

    async fn send(mut self, request: Request<Body>) -> Result<Response<Body>, Trouble> {
        let slot = self.slot.clone();
        self.limit = limit(request.headers());
        let answer = slot.link.carrier.send(request);
        let answer = match self.balancer.options.try_timeout {
            None => answer.await,
            Some(limit) => match tokio::time::timeout(limit, answer).await {
                Ok(answer) => answer,
                Err(_) => return Err(self.hung(limit)),
            },
        };
        match answer {
            Ok(response) => {
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
        match ending.map(|ending| self.balancer.options.failures.judge(ending, took, self.limit)) {
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
        match options.failures.judge(ending, now - self.begun, self.limit) {
            Outcome::Success => self.slot.node.succeeded(options.interval(), now),
            Outcome::CallersFault => self.slot.node.on_trial.store(false, Relaxed),
            Outcome::ServersFailure => self.failed(Failure::Answer),
        }
    }

    fn failed(&self, failure: Failure) {
        self.slot.node.failed(self.balancer.options.interval(), Instant::now());
        self.balancer.failed(&self.slot, failure);
    }

    fn silence_or(&self, other: Failure) -> Failure {
        if self.slot.link.reads() == self.reads { Failure::Silence } else { other }
    }

    fn hung(self, limit: Duration) -> Trouble {
        self.failed(self.silence_or(Failure::Answer));
        let node = self.slot.node.id.clone();
        let status = Status::deadline_exceeded(format!(
            "{} at {} did not answer within {limit:?}",
            self.balancer.service, self.slot.node.authority
        ));
        Trouble { status, unsent: None, node }
    }

    fn broken(self, Failed { error, unsent }: Failed) -> Trouble {
        let node = self.slot.node.id.clone();
        if unsent.is_some() {
            self.balancer.lost(&node, self.slot.turn);
        } else if chain(error.as_ref()).any(<dyn std::error::Error>::is::<TimeoutExpired>) {
            // The caller's own deadline: only silence speaks against the instance.
            if self.silence_or(Failure::Answer) == Failure::Silence {
                self.failed(Failure::Silence);
            }
        } else {
            self.failed(Failure::Answer);
        }
        if unsent.is_some() {
            let cause = innermost(error.as_ref());
            let address = &self.slot.node.authority;
            let status = tries::unsent(format!("{} at {address}: {cause}", self.balancer.service));
            return Trouble { status, unsent, node };
        }
        Trouble { status: self.coded(Status::from_error(error)), unsent, node }
    }

    /// What tonic has no code for is a connection that broke off, which gRPC calls unavailable.
    pub(crate) fn coded(&self, status: Status) -> Status {
        if status.code() != Code::Unknown {
            return status;
        }
        let address = &self.slot.node.authority;
        Status::unavailable(format!("{} at {address}: {}", self.balancer.service, innermost(&status)))
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
