//! Finding out that an instance is silent although streams are open to it, on which nothing needs to come.

use std::{collections::HashMap, sync::Arc, time::Duration};

use coord_api::BoxError;
use futures::{StreamExt, stream::FuturesUnordered};
use http::{Method, Request, Uri, Version, header::CONTENT_TYPE};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tonic::body::Body;

use crate::{
    balancer::Balancer,
    carrier::Carrier,
    kept::Kept,
    options::Probe,
    outlier::{FAR, Failure},
    picker::Slot,
    wire::Link,
};

/// How often in the time of silence it is looked for.
const LOOKS: u32 = 4;

/// Probes as the options say; never returns.
pub(crate) async fn keep(balancer: &Balancer) {
    let Some(probe) = &balancer.options.probe else { return std::future::pending().await };
    let mut silences = Silences::default();
    let mut asking = FuturesUnordered::new();
    // A tick that is late counts the next one from now, which has to be a moment that a clock reaches.
    let mut ticks = interval((probe.after / LOOKS).clamp(Duration::from_millis(1), FAR));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let in_use = balancer.in_use();
                let seen = in_use.iter().map(|slot| (slot.turn, slot.link.reads()));
                let due = silences.due(seen, probe.after, Instant::now());
                let due = in_use.into_iter().filter(|slot| due.contains(&slot.turn));
                asking.extend(due.map(|slot| ask(balancer, slot, probe)));
            }
            Some(()) = asking.next() => {}
        }
    }
}

/// Asks once; what it answers does not matter.
async fn ask(balancer: &Balancer, slot: Arc<Slot<Link>>, probe: &Probe) {
    let reads = slot.link.reads();
    let answer = knock(&slot.link.carrier, &probe.path);
    if timeout(probe.limit, answer).await.is_err() && slot.link.reads() == reads {
        tracing::debug!(id = slot.node.id, "nothing comes from an instance with calls in flight");
        balancer.failed(&slot, Failure::Silence);
    }
}

/// One message without fields: not compressed, and no bytes long. Without any message some servers would wait for one,
/// such as those in Go that have the method and read HTTP/2 themselves.
const MESSAGE: &str = "\0\0\0\0\0";

/// Sends an empty message, to which any answer is good.
pub(crate) async fn knock(carrier: &Carrier, path: &str) -> Result<(), BoxError> {
    let mut request = Request::new(Body::new(MESSAGE.to_owned()));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = Uri::try_from(path).expect("the options were checked");
    request.headers_mut().insert(CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    let (head, body) = request.into_parts();
    carrier.send(head, &Kept::new(body, 0)).await.map(drop).map_err(|failed| failed.error)
}

/// Since when nothing has come over each connection. Pure.
#[derive(Debug, Default)]
struct Silences(HashMap<u64, (u64, Instant)>);

impl Silences {
    /// The connections that are silent for too long, each told again only after as long. `seen` is how often something
    /// came over each; others are forgotten.
    fn due(&mut self, seen: impl Iterator<Item = (u64, u64)>, after: Duration, now: Instant) -> Vec<u64> {
        let mut due = Vec::new();
        let known = std::mem::take(&mut self.0);
        for (connection, reads) in seen {
            let since = match known.get(&connection) {
                Some((before, since))
                    if *before == reads && now.saturating_duration_since(*since) < after =>
                {
                    *since
                }
                Some((before, _)) if *before == reads => {
                    due.push(connection);
                    now
                }
                _ => now,
            };
            self.0.insert(connection, (reads, since));
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_due_when_nothing_came_while_calls_were_in_flight() {
        let (mut silences, begun) = (Silences::default(), Instant::now());
        let second = Duration::from_secs(1);
        let mut at = |millis, seen: &[(u64, u64)]| {
            silences.due(seen.iter().copied(), second, begun + Duration::from_millis(millis))
        };
        assert!(at(0, &[(1, 7), (2, 3)]).is_empty());
        assert!(at(900, &[(1, 7), (2, 3)]).is_empty());
        assert_eq!(at(1000, &[(1, 7), (2, 4)]), [1], "something came over 2");
        assert!(at(1900, &[(1, 7), (2, 4)]).is_empty(), "each once");
        assert_eq!(at(2000, &[(1, 7), (2, 4)]), [1, 2]);
        assert!(at(2100, &[(1, 7)]).is_empty());
        assert!(at(3200, &[(1, 8), (2, 4)]).is_empty(), "nothing was in flight on 2");
    }
}
