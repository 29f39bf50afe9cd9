//! Dialling: which instances to connect and when, with a backoff after failures.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::Instant;

use super::{Instance, Phase, Pool, find_mut};

/// Number of connections that are opened at a time.
pub(super) const DIALS: usize = 32;
/// Age before which the end of a connection counts as a failed attempt to connect.
pub(super) const YOUNG: Duration = Duration::from_secs(1);

/// Order to connect to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dial {
    pub(super) id: String,
    pub(super) generation: u64,
    pub(super) authority: String,
}

impl<C: Clone> Pool<C> {
    /// Ends the ejections when calls could go to no other instance: whatever an ejected one answers, it is better than none.
    fn recall(&mut self, now: Instant) {
        if self.instances.values().any(Instance::may_have_calls) {
            return;
        }
        for instance in self.instances.values_mut() {
            // An instance that was tried again since and could not be reached has a backoff of its own.
            if let Phase::Due(at) = instance.phase
                && instance.ejected == Some(at)
                && now < at
            {
                instance.phase = Phase::Due(now);
                tracing::info!(
                    id = instance.stats.id,
                    "an ejected instance is tried, since no other is left"
                );
            }
        }
    }

    /// Returns the instances to connect to now, up to the limit of concurrent dials.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Dial> {
        self.recall(now);
        let free = DIALS.saturating_sub(self.dials);
        let due = self
            .instances
            .iter_mut()
            .filter(|(_, instance)| matches!(instance.phase, Phase::Due(at) if at <= now));
        let dials: Vec<_> = due
            .take(free)
            .map(|(id, instance)| {
                instance.phase = Phase::Connecting;
                Dial {
                    id: id.clone(),
                    generation: instance.generation,
                    authority: instance.stats.authority.clone(),
                }
            })
            .collect();
        self.dials += dials.len();
        dials
    }

    /// Returns when [`due`](Self::due) has something again, if nothing happens before.
    pub(super) fn next_due(&self) -> Option<Instant> {
        if self.dials >= DIALS {
            return None;
        }
        let due = self.instances.values().filter_map(|instance| match instance.phase {
            Phase::Due(at) => Some(at),
            _ => None,
        });
        due.min()
    }

    /// Takes in the outcome of a [`Dial`]. The connection is dropped if its instance is gone.
    pub(super) fn dialled(&mut self, dial: &Dial, outcome: Result<C, String>, now: Instant) {
        self.dials -= 1;
        let (longest, health) = (self.options.longest_pause, self.options.health());
        let Some(instance) = find_mut(&mut self.instances, &dial.id, dial.generation) else { return };
        match outcome {
            Ok(connection) => {
                if instance.ejected.take().is_some() {
                    instance.stats.put_on_trial();
                    tracing::info!(
                        id = dial.id,
                        address = dial.authority,
                        "an instance is back after an ejection"
                    );
                }
                instance.since = now;
                // An earlier error says nothing about this connection.
                self.last_error = None;
                instance.health = health;
                // After an absence it is most likely a new process.
                if instance.failed_dials > 0 {
                    instance.started = None;
                }
                // Failures of the previous connection tell nothing of this one.
                instance.stats.in_a_row.store(0, Relaxed);
                instance.phase = Phase::Ready(connection);
                instance.start(now);
            }
            Err(error) => {
                let is_first = instance.failed_dials == 0;
                instance.failed_dials = instance.failed_dials.saturating_add(1);
                instance.phase = Phase::Due(now + instance.backoff(longest).unwrap_or_default());
                if is_first {
                    tracing::debug!(
                        id = dial.id,
                        address = dial.authority,
                        error,
                        "an instance can not be reached"
                    );
                }
                self.last_error = Some(error);
            }
        }
    }

    /// Takes in the end of a connection. Calls no longer go there, and it is connected again at once.
    ///
    /// If one connection after the other ends as soon as it is made, there is a growing backoff. `early_close` is the reason
    /// of a connection that ended before it was of use.
    pub(super) fn connection_lost(
        &mut self,
        id: &str,
        generation: u64,
        early_close: Option<&str>,
        now: Instant,
    ) -> bool {
        self.generations += 1;
        let next = self.generations;
        let longest = self.options.longest_pause;
        let Some(instance) = find_mut(&mut self.instances, id, generation) else { return false };
        let Phase::Ready(_) = instance.phase else { return false };
        instance.generation = next;
        if let Some(early_close) = early_close.filter(|_| now < instance.since + YOUNG) {
            instance.phase = Phase::Due(now + instance.backoff(longest).unwrap_or_default());
            instance.failed_dials = instance.failed_dials.saturating_add(1);
            self.last_error = Some(early_close.to_owned());
        } else {
            instance.phase = Phase::Due(now);
            instance.failed_dials = 0;
        }
        true
    }
}
