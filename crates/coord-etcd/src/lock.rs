//! Locks: the head of a queue holds.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{DistributedLock, FencingToken, LockGuard, LockName, Result, Ttl};

use crate::{
    background::owned,
    core::Shared,
    queue::{Entered, IfOccupied},
};

/// The locks of one client.
#[derive(Debug)]
pub(crate) struct EtcdLock {
    pub(crate) shared: Arc<Shared>,
}

#[async_trait]
impl DistributedLock for EtcdLock {
    async fn acquire(&self, name: &str, ttl: Duration) -> Result<LockGuard> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        let shared = self.shared.clone();
        owned(&self.shared.core.runtime, move |mut gone| async move {
            let core = &shared.core;
            let session = core.session(ttl).await?;
            let queue = core.keys.lock_queue(&name);
            let entered = core
                .enter(queue, session, core.holder(), IfOccupied::Wait)
                .await?;
            let entered = entered.expect("only `LeaveAlone` leaves the queue alone");
            core.wait_for_turn(&entered, &mut gone).await?;
            Ok(guard(&shared, name, entered))
        })
        .await
    }

    async fn try_acquire(&self, name: &str, ttl: Duration) -> Result<Option<LockGuard>> {
        let (name, ttl) = (LockName::parse(name)?, Ttl::parse(ttl)?);
        let shared = self.shared.clone();
        owned(&self.shared.core.runtime, move |mut gone| async move {
            let core = &shared.core;
            let session = core.session(ttl).await?;
            let queue = core.keys.lock_queue(&name);
            let Some(entered) = core
                .enter(queue, session, core.holder(), IfOccupied::LeaveAlone)
                .await?
            else {
                return Ok(None);
            };
            // At the head already, unless the answer had to be read back.
            core.wait_for_turn(&entered, &mut gone).await?;
            Ok(Some(guard(&shared, name, entered)))
        })
        .await
    }
}

fn guard(shared: &Arc<Shared>, name: LockName, entered: Entered) -> LockGuard {
    let key = entered.own.key.clone();
    // The revision at which the place was created: whoever comes later has a larger one.
    let token = FencingToken::new(u64::try_from(entered.created).expect("revisions are not negative"));
    tracing::debug!(lock = %name, %token, "lock acquired");
    LockGuard::new(name, key, token, entered.own.into_place(shared))
}
