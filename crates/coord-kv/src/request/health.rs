//! Whether the store answers, for probes: told within their time, whatever the store does.

use std::time::Duration;

use coord_api::{Error, HEALTH_LIMIT, Health, LeaseHealth, Result};
use tokio::time::Instant;

use crate::{
    request::{Repeat, Rpc, pauses, timer::sleep},
    store::{Failure, GetOptions, Route},
};

/// Number of attempts into which the time is divided where there are several members: a member that hangs
/// must not use it up.
const TRIES: u32 = 3;

const OPERATION: &str = "health";

impl Rpc {
    pub(crate) async fn health(&self, leases: impl FnOnce() -> LeaseHealth) -> Result<Health> {
        self.check_open()?;
        tokio::select! {
            () = self.closed() => Err(Error::Closed),
            answer = self.answers_within(HEALTH_LIMIT.min(self.request_timeout)) => {
                Ok(Health::new(answer?, leases()))
            }
        }
    }

    /// Measures how long a linearizable read takes.
    async fn answers_within(&self, limit: Duration) -> Result<Duration, Failure> {
        let deadline = Instant::now() + limit;
        let each = if self.members() > 1 { limit / TRIES } else { limit };
        let key = self.keys.probe();
        let (attempts, mut pauses) = (self.store.attempts(None), pauses());
        loop {
            let (begun, sent) = (Instant::now(), self.history.now());
            let deadline_of_one = deadline.min(begun + each);
            let attempt =
                self.attempt(deadline_of_one, OPERATION, (&*attempts, Route::Main), |store, call| {
                    store.range(call, key.clone().into_bytes(), GetOptions::new())
                });
            let failure = match attempt.await {
                Ok(answer) => {
                    self.heard(sent, &answer, Repeat::Freely, &*attempts).await?;
                    return Ok(begun.elapsed());
                }
                Err(failure) => failure,
            };
            let pause = pauses.next().unwrap_or_default();
            if !failure.error.is_retryable() || Instant::now() + pause >= deadline {
                return Err(match failure.error {
                    Error::Timeout { .. } => Failure::timeout(OPERATION, limit),
                    _ => failure,
                });
            }
            sleep(pause).await;
        }
    }
}
