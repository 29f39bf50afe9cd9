//! Whether a client hears from its store.

use std::{fmt, time::Duration};

use tokio::{sync::watch, time::Instant};

/// Whether what a client knows from its store is up to date.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    stale_since: Option<Instant>,
}

impl Freshness {
    const FRESH: Self = Self { stale_since: None };

    /// Whether changes arrive as they happen.
    pub fn is_fresh(self) -> bool {
        self.stale_since.is_none()
    }

    /// For how long nothing has arrived from the store; `None` while changes arrive as they happen.
    pub fn stale_for(self) -> Option<Duration> {
        self.stale_since.map(|since| since.elapsed())
    }
}

impl fmt::Debug for Freshness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stale_for() {
            None => f.write_str("Fresh"),
            Some(time) => write!(f, "Stale for {time:?}"),
        }
    }
}

/// Tells whether the client behind a watch hears from its store. Cheap to clone and to ask; it asks nobody.
///
/// A client that is cut off without a word notices when its connection's keep-alive goes unanswered, within
/// seconds. After the client was closed the contact is lost for good.
#[derive(Clone)]
pub struct Contact(watch::Receiver<Freshness>);

impl Contact {
    /// How it is now.
    pub fn freshness(&self) -> Freshness {
        *self.0.borrow()
    }

    /// Waits until it is not as this handle last told, and tells. Once the client is gone this never returns.
    ///
    /// # Cancel safety
    /// May be dropped and called again: no change is lost.
    pub async fn changed(&mut self) -> Freshness {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.0.borrow_and_update()
    }
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Contact").field(&self.freshness()).finish()
    }
}

/// A backend's end of all [`Contact`]s of one client. Dropping it means that the contact is lost.
#[derive(Debug)]
pub struct ContactSource(watch::Sender<Freshness>);

impl Default for ContactSource {
    /// In contact.
    fn default() -> Self {
        Self(watch::Sender::new(Freshness::FRESH))
    }
}

impl ContactSource {
    /// The store is heard.
    pub fn restored(&self) {
        self.0.send_if_modified(|now| std::mem::replace(now, Freshness::FRESH) != Freshness::FRESH);
    }

    /// The store is not heard any more; if it was not before, the earlier moment counts.
    pub fn lost(&self) {
        self.0.send_if_modified(|now| {
            let was_fresh = now.is_fresh();
            if was_fresh {
                now.stale_since = Some(Instant::now());
            }
            was_fresh
        });
    }

    /// A handle for users.
    pub fn contact(&self) -> Contact {
        Contact(self.0.subscribe())
    }
}

impl Drop for ContactSource {
    fn drop(&mut self) {
        self.lost();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn tells_since_when_the_store_is_away() {
        let source = ContactSource::default();
        let mut contact = source.contact();
        assert!(contact.freshness().is_fresh());
        source.restored();
        assert!(contact.changed().now_or_never().is_none(), "nothing changed");

        source.lost();
        tokio::time::advance(Duration::from_secs(2)).await;
        source.lost();
        assert_eq!(
            contact.changed().await.stale_for(),
            Some(Duration::from_secs(2)),
            "the first loss counts"
        );

        source.restored();
        assert!(contact.changed().await.is_fresh());
        drop(source);
        assert!(!contact.changed().await.is_fresh());
        assert!(contact.changed().now_or_never().is_none(), "nothing follows");
    }
}
