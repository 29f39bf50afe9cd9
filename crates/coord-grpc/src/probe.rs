//! Probe: asks an instance that is silent although calls are in flight. On open streams silence alone means nothing.

use std::{collections::HashMap, sync::Arc, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::{
    options::Probe,
    pick::{
        outlier::{FAR, Failure},
        picker::Ready,
    },
    pool::Balancer,
    transport::Connection,
};

/// Number of looks at each connection in the time of silence.
const LOOKS: u32 = 4;

/// Probes silent instances as the options say. Never returns.
pub(crate) async fn run(balancer: &Balancer) {
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
                let seen = in_use.iter().map(|ready| (ready.generation, ready.connection.reads()));
                let due = silences.due(seen, probe.after, Instant::now());
                let due = in_use.into_iter().filter(|ready| due.contains(&ready.generation));
                asking.extend(due.map(|ready| ask(balancer, ready, probe)));
            }
            Some(()) = asking.next() => {}
        }
    }
}

/// Probes an instance once. Any answer is a good one.
async fn ask(balancer: &Balancer, ready: Arc<Ready<Connection>>, probe: &Probe) {
    let before = ready.connection.reads();
    let answer = ready.connection.http2.probe(&probe.path);
    if timeout(probe.limit, answer).await.is_err() && ready.connection.reads() == before {
        tracing::debug!(id = ready.stats.id, "nothing comes from an instance with calls in flight");
        balancer.failed(&ready, Failure::Silence);
    }
}

/// Start of the silence on each connection. Pure.
#[derive(Debug, Default)]
struct Silences(HashMap<u64, (u64, Instant)>);

impl Silences {
    /// Returns the connections that have been silent for too long, each again only after as long.
    ///
    /// `seen` has the number of reads of each connection with calls in flight; all others are forgotten.
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
    fn silent_connection_with_calls_in_flight_is_due() {
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
