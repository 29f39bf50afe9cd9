//! Watch that tells several tasks of a process when they are at the head of one queue.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use coord_api::Result;
use tokio::time::Instant;

use super::{mirror::Change, state::QueueState};
use crate::{
    queue::Queues,
    queue::send::LOCK,
    request::{Read, timer},
    store::{GetOptions, Range, is_transient},
    watch::{Delivery, Subscription},
};

/// Time that the shared watch stays when nobody waits: tasks that take turns come back soon.
const LINGER: Duration = Duration::from_secs(1);

/// Keeps the mirror of a queue until nobody waits in it for a while.
pub(super) async fn keep(local: Arc<QueueState>, queues: Weak<Queues>) {
    loop {
        let Some(strong) = queues.upgrade() else { return };
        if local.give_up_if_idle(&strong) {
            return;
        }
        let begun = begin(&local, &strong).await;
        drop(strong);
        match begun {
            Ok((changes, read_at)) => follow(&local, changes, read_at).await,
            Err(error) if is_transient(&error) => {
                timer::sleep(Duration::from_millis(fastrand::u64(50..250))).await;
            }
            Err(error) => local.refuse(&error),
        }
    }
}

/// Subscribes from now on, then reads the queue. Returns the subscription and the revision of the read.
async fn begin(local: &QueueState, queues: &Queues) -> Result<(Subscription, i64)> {
    let mut changes = queues.hub.subscribe(Range::Prefix(local.queue.clone()));
    match timer::timeout(queues.request_timeout, changes.next()).await {
        Ok(Some(Delivery::Refused(error))) => return Err(*error),
        Ok(Some(_)) => {}
        _ => return Err(queues.store.unavailable(None)),
    }
    let options = GetOptions::new().with_prefix().with_keys_only();
    let found = queues.get(LOCK, &*local.queue, Some(options)).await?;
    let places = found.kvs.iter().filter_map(|kv| Some((kv.key_str().ok()?.to_owned(), kv.create_revision)));
    let read_at = found.header.revision;
    local.update(|mirror| mirror.reset(places, read_at));
    changes.has_read(Read::of(read_at, &found.kvs));
    Ok((changes, read_at))
}

/// Applies changes after `read_at` until some may have been missed, or nobody has waited for a while.
async fn follow(local: &QueueState, mut changes: Subscription, read_at: i64) {
    let mut waited_at = Instant::now();
    while waited_at.elapsed() < LINGER {
        match timer::timeout(LINGER, changes.next()).await {
            Ok(Some(Delivery::Changes(changes))) => {
                // In one step: a delivery has whole revisions, since etcd splits none in two answers unless
                // that is asked for. A lease that ends takes the holder's entry along with those of the
                // waiters.
                let later = changes.iter().filter(|change| change.revision > read_at);
                local.update(|mirror| mirror.apply(later.map(change)));
            }
            Ok(Some(Delivery::Started { .. })) | Err(_) => {}
            Ok(Some(Delivery::Refused(_)) | None) => return,
        }
        if !local.state().waiters.is_empty() {
            waited_at = Instant::now();
        }
    }
}

fn change(change: &crate::store::Change) -> Change<'_> {
    let created = change.value.as_ref().map(|_| change.created);
    Change { key: &change.key, revision: change.revision, created }
}
