//! Eviction: entries that somebody else has deleted so that a later one is next.

use super::{Queues, mirror::Affected};

impl Queues {
    /// Takes note that entries of candidates were deleted, with the revisions at which they were created. Entries of
    /// this client never have their turn, whatever the watch tells later.
    pub(crate) fn evicted(&self, queue: &str, entries: &[(String, i64)]) {
        let Some(local) = self.lock().get(queue).cloned() else { return };
        let own: Vec<_> = entries.iter().filter(|(key, _)| key.ends_with(&*self.signature)).collect();
        local.update(|mirror| {
            for (key, created) in &own {
                mirror.leave(key, *created);
            }
            Affected::Places(own.iter().map(|(key, _)| key.clone()).collect())
        });
    }
}
