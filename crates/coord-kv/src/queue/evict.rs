//! Eviction: entries that somebody else has deleted so that a later one is next.

use super::{Queues, mirror::Affected, state::QueueState};

impl Queues {
    /// Takes note that entries of candidates were deleted, with the revisions at which they were created. Entries of
    /// this client never have their turn, whatever the watch tells later.
    pub(crate) fn evicted(&self, queue: &str, entries: &[(String, i64)]) {
        let Some(local) = self.lock().get(queue).cloned() else { return };
        local.evict(entries.iter().filter(|(key, _)| key.ends_with(&*self.signature)));
    }
}

impl QueueState {
    /// Takes note that entries of this client are gone, and tells the tasks that stand in them.
    fn evict<'a>(&self, entries: impl Iterator<Item = &'a (String, i64)>) {
        self.update(|mirror| {
            let evicted = entries.map(|(key, created)| {
                mirror.leave(key, *created);
                key.clone()
            });
            Affected::Places(evicted.collect())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use coord_api::{Error, Hold, LossReason, Result};
    use tokio::sync::oneshot::{self, Receiver};

    use super::*;
    use crate::{
        queue::{
            mirror::Change,
            state::{Standing, Waiter},
        },
        session::Session,
    };

    /// Lets a task stand in an entry and wait for its turn.
    fn waits(local: &QueueState, key: &str, created: i64) -> (Hold, Receiver<Result<()>>) {
        let session = Session::unrenewed(1, Duration::from_secs(1));
        let hold = Hold::on(session.lease.clone());
        let standing = Standing { created, hold: hold.clone(), session: Arc::downgrade(&session) };
        local.stand(key.into(), standing);
        let (grant, granted) = oneshot::channel();
        local.state().waiters.insert(key.into(), Waiter { created, grant });
        (hold, granted)
    }

    fn leaves(local: &QueueState, key: &str) {
        local.update(|mirror| {
            mirror.delete(key);
            Affected::Nobody
        });
    }

    #[test]
    fn evicted_entry_is_never_at_the_head_whatever_the_watch_tells_later() {
        let local = QueueState::new("queue/".into());
        local.update(|mirror| mirror.reset([("1".into(), 1), ("2".into(), 2), ("3".into(), 3)], 3));
        let ((hold, mut second), (_, mut third)) = (waits(&local, "2", 2), waits(&local, "3", 3));
        local.evict([("2".to_owned(), 2)].iter());
        assert_eq!(hold.loss(), Some(LossReason::Deleted));
        assert!(matches!(second.try_recv(), Ok(Err(Error::Lost { .. }))));
        leaves(&local, "1");
        assert!(matches!(third.try_recv(), Ok(Ok(()))), "is next, before the watch tells of it");
    }

    #[test]
    fn evicted_entry_of_which_the_watch_tells_later_is_gone_then() {
        let local = QueueState::new("queue/".into());
        local.update(|mirror| mirror.reset([("1".into(), 1)], 1));
        let (hold, mut second) = waits(&local, "2", 2);
        local.evict([("2".to_owned(), 2)].iter());
        leaves(&local, "1");
        let change = |revision, created| Change { key: "2", revision, created };
        local.update(|mirror| mirror.apply([change(2, Some(2))]));
        assert!(second.try_recv().is_err(), "leads by an entry that is gone");
        local.update(|mirror| mirror.apply([change(3, None)]));
        assert!(matches!(second.try_recv(), Ok(Err(Error::Lost { .. }))));
        assert!(hold.loss().is_some());
    }
}
