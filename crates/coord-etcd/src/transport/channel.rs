//! The connections to the members of etcd: one to each, and every request over a connection that works.
//!
//! coord-grpc's balancer does it. A member that is dead, frozen or cut off gets no requests. Requests that
//! were not sent to it go to another member. Its streams break, so that they can be opened elsewhere.
//! `retry.rs` of coord-kv decides which of the failed requests may be made again.

use std::{
    convert::Infallible,
    task::{Context, Poll},
    time::Duration,
};

use coord_api::{BoxError, Result, ServiceInfo};
use coord_grpc::{Attempts, ConnectOptions, Connection, OutlierDetection, ResponseFuture};
use etcd_client::Channel;
use futures::{StreamExt, TryFutureExt, future::MapErr, stream};
use http::Request;
use tonic::{Code, Status, body::Body};
use tower::{discover::Change, util::BoxCloneSyncService};
use tower_service::Service;

use super::endpoint::{Endpoints, Member};

/// Interval at which a connection with open streams is pinged. etcd punishes pings more often than every 5 s,
/// and pings without an open stream.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// Longest time that the answer to a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);

/// Silence after which a member is probed, while something is in flight to it. A member that does not answer
/// the probe in time is given up.
const SILENCE: Duration = Duration::from_secs(1);
/// Longest time that the answer to a probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(1);

/// The longest time that one member has to begin its answer, where there are others. A leader that dies takes
/// the requests on their way to it along, and followers wait for them in vain.
const LONGEST_TRY: Duration = Duration::from_millis(1500);

/// The longest pause before a member that can not be reached is tried again.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A member that answers that it has no leader so often gets no requests for a while. The time is short,
/// since a whole cluster answers so while it elects a leader.
const FAILURES: u32 = 3;
const EJECTION_TIME: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Returns how long one member has for one request, where there are others.
pub(crate) fn try_limit(endpoints: &Endpoints, request_timeout: Duration) -> Option<Duration> {
    (endpoints.all.len() > 1).then(|| a_try(request_timeout))
}

fn a_try(request_timeout: Duration) -> Duration {
    (request_timeout / 2).min(LONGEST_TRY)
}

/// Time that a request waits for the fast path, if its connection has just been lost. There is another way.
const LOCAL_WAIT: Duration = Duration::from_millis(5);

/// Time used instead of [`SILENCE`] where no streams are, so that no timer runs in an idle runtime of the
/// user's.
const SELDOM: Duration = Duration::from_secs(3600);

/// Timeouts from the configuration.
pub(crate) struct Timeouts {
    pub(crate) connect: Duration,
    pub(crate) request: Duration,
}

/// Returns the options to connect to the members, without TLS.
pub(crate) fn options(endpoints: &Endpoints, timeouts: &Timeouts) -> ConnectOptions {
    let options = ConnectOptions::new()
        .connect_timeout(timeouts.connect)
        // So that a request that was never sent is told as such before its time is over.
        .wait_timeout(timeouts.request.mul_f64(0.9))
        .longest_pause(LONGEST_PAUSE)
        .keep_alive(PING_INTERVAL, PING_TIMEOUT)
        .outlier_detection(outlier_detection())
        // All other codes are what members answer in the course of their work.
        .failure_codes([Code::Unavailable]);
    match try_limit(endpoints, timeouts.request) {
        Some(limit) => options.try_timeout(limit).probe(ConnectOptions::ANY_METHOD, SILENCE, PROBE_LIMIT),
        None => options,
    }
}

fn outlier_detection() -> OutlierDetection {
    OutlierDetection::new()
        .consecutive_failures(FAILURES)
        .without_failure_percentage()
        .without_success_rate()
        .base_ejection_time(EJECTION_TIME.0)
        .max_ejection_time(EJECTION_TIME.1)
}

/// Returns the options of the fast path, made from the [`options`] of the main connection. No stream is open
/// there for which it would have to be probed: it is given up when an attempt is not answered. There is
/// another way.
pub(crate) fn local(options: ConnectOptions, timeouts: &Timeouts) -> ConnectOptions {
    options.wait_timeout(LOCAL_WAIT).try_timeout(a_try(timeouts.request)).probe(
        ConnectOptions::ANY_METHOD,
        SELDOM,
        PROBE_LIMIT,
    )
}

/// Connects to all of `members`, driven by the runtime on which this is called; the task ends with the last
/// clone.
pub(crate) fn connection(service: &str, members: &[Member], options: ConnectOptions) -> Result<Connection> {
    let members = members.iter().map(|member| {
        let info = ServiceInfo::new("etcd", member.authority(), member.host.as_str(), member.port);
        Ok::<_, Infallible>(Change::Insert(member.authority(), info))
    });
    // They stay as they are: an end would say that nobody follows them any more.
    let members = stream::iter(members.collect::<Vec<_>>()).chain(stream::pending());
    Connection::balance(service, members, options)
}

/// Wraps the connection as the client library takes it.
pub(crate) fn channel(connection: Connection) -> Channel {
    Channel::Custom(BoxCloneSyncService::new(Members(connection)))
}

tokio::task_local! {
    /// Attempts at the request of this task. The client library makes the requests, so they find here what
    /// they should carry along.
    static TRIES: Attempts;
}

/// Runs a request so that each attempt at it is noted in `tries`.
pub(crate) async fn noted<T>(tries: &Attempts, request: impl Future<Output = T>) -> T {
    TRIES.scope(tries.clone(), request).await
}

#[derive(Clone)]
struct Members(Connection);

impl Service<Request<Body>> for Members {
    type Response = http::Response<Body>;
    type Error = BoxError;
    type Future = MapErr<ResponseFuture, fn(Status) -> BoxError>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Ok(tries) = TRIES.try_with(Clone::clone) {
            request.extensions_mut().insert(tries);
        }
        self.0.call(request).map_err(Into::into)
    }
}
