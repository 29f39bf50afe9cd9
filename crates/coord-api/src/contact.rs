//! Whether a client hears from its store.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{runtime::Handle, sync::watch, time::Instant};

use crate::pulse::{BEAT, Pulse};

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
///
/// Of what a task on the user's runtime keeps up to date, it is lost as well while nobody drives that runtime: three
/// seconds after it was driven last.
#[derive(Clone)]
pub struct Contact {
    told: watch::Receiver<Freshness>,
    /// Of the runtime without which nothing arrives.
    pulse: Option<Arc<Pulse>>,
    /// Whether it was fresh when this handle was last told.
    was_fresh: bool,
}

impl Contact {
    /// How it is now.
    pub fn freshness(&self) -> Freshness {
        let told = *self.told.borrow();
        match self.pulse.as_ref().and_then(|pulse| pulse.stopped_at()) {
            Some(stopped) if told.stale_since.is_none_or(|since| since > stopped) => {
                Freshness { stale_since: Some(stopped) }
            }
            _ => told,
        }
    }

    /// The same contact, of which the new handle has been told how it is now.
    #[must_use]
    pub fn from_now_on(&self) -> Self {
        let mut told = self.told.clone();
        told.mark_unchanged();
        Self { told, pulse: self.pulse.clone(), was_fresh: self.freshness().is_fresh() }
    }

    /// Waits until it is not as this handle last told, and tells. Once the client is gone this never returns.
    ///
    /// # Cancel safety
    /// May be dropped and called again: no change is lost.
    pub async fn changed(&mut self) -> Freshness {
        loop {
            let is_told = self.told.has_changed().unwrap_or(false);
            self.told.mark_unchanged();
            let now = self.freshness();
            if is_told || now.is_fresh() != self.was_fresh {
                self.was_fresh = now.is_fresh();
                return now;
            }
            tokio::select! {
                told = self.told.changed() => match told {
                    Ok(()) => self.told.mark_changed(),
                    Err(_) => std::future::pending().await,
                },
                () = beat(), if self.pulse.is_some() => {}
            }
        }
    }
}

/// Until a pulse is to be looked at again; for ever where there is no clock.
async fn beat() {
    match Handle::try_current() {
        Ok(_) => tokio::time::sleep(BEAT).await,
        Err(_) => std::future::pending().await,
    }
}

impl fmt::Debug for Contact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Contact").field(&self.freshness()).finish()
    }
}

/// A backend's end of all [`Contact`]s of one client. Dropping it means that the contact is lost.
#[derive(Debug)]
pub struct ContactSource(watch::Sender<Freshness>, Option<Arc<Pulse>>);

impl Default for ContactSource {
    /// In contact.
    fn default() -> Self {
        Self(watch::Sender::new(Freshness::FRESH), None)
    }
}

impl ContactSource {
    /// In contact as long as this runtime is driven, for what a task on it keeps up to date.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn of_this_runtime() -> Self {
        Self(watch::Sender::new(Freshness::FRESH), Some(Pulse::here()))
    }

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
        let told = self.0.subscribe();
        Contact { told, pulse: self.1.clone(), was_fresh: true }.from_now_on()
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

    #[tokio::test(start_paused = true)]
    async fn contact_of_a_runtime_that_nobody_drives_is_lost() {
        let driven = ContactSource::of_this_runtime();
        let source = ContactSource(watch::Sender::new(Freshness::FRESH), Some(Arc::new(Pulse::unattended())));
        let (mut contact, mut waiting) = (source.contact(), driven.contact());
        assert!(contact.freshness().is_fresh() && contact.changed().now_or_never().is_none());
        assert!(!contact.changed().await.is_fresh(), "is told once it is overdue");
        assert!(contact.freshness().stale_for() > Some(Duration::from_secs(3)));
        source.lost();
        assert!(
            contact.changed().await.stale_for() > Some(Duration::from_secs(3)),
            "the earlier moment counts"
        );
        let told = tokio::time::timeout(Duration::from_secs(60), waiting.changed()).await;
        assert!(told.is_err() && waiting.freshness().is_fresh());
    }

    #[test]
    fn contact_outside_of_a_runtime_tells_and_does_not_panic() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("can be built");
        let source = runtime.block_on(async { ContactSource::of_this_runtime() });
        let mut contact = source.contact();
        assert!(contact.changed().now_or_never().is_none());
        source.lost();
        assert!(!contact.changed().now_or_never().expect("is told").is_fresh());
    }
}
