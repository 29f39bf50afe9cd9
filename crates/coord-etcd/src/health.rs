//! Whether etcd answers, for probes: told within their time, whatever etcd does.

use std::time::Duration;

use coord_api::{Error, HEALTH_LIMIT, Health, Result};
use coord_grpc::Attempts;
use tokio::time::{Instant, sleep};

use crate::{core::Core, error::Failure, request::Repeat, watch::pauses};

/// Into how many tries the time is divided where there are several members: one that hangs must not use it up.
const TRIES: u32 = 3;

const OPERATION: &str = "health";

impl Core {
    pub(crate) async fn health(&self) -> Result<Health> {
        self.check_open()?;
        tokio::select! {
            () = self.closed() => Err(Error::Closed),
            answer = self.answers_within(HEALTH_LIMIT.min(self.request_timeout)) => {
                Ok(Health::new(answer?, self.sessions.health()))
            }
        }
    }

    /// How long a linearizable read takes.
    async fn answers_within(&self, limit: Duration) -> Result<Duration, Failure> {
        let deadline = Instant::now() + limit;
        let each = if self.members > 1 { limit / TRIES } else { limit };
        let key = self.keys.probe();
        let (tries, mut pauses) = (Attempts::new(), pauses());
        loop {
            let (begun, sent) = (Instant::now(), self.history.now());
            let ask = async { self.kv().get(key.as_str(), None).await };
            let answer = self.try_until(deadline.min(begun + each), OPERATION, &tries, ask).await;
            let failure = match answer {
                Ok(answer) => {
                    self.heard(sent, &answer, Repeat::Freely, &tries).await?;
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
