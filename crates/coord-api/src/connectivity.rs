//! Connectivity of a client to its store: whether the store is heard, and so whether cached state is fresh.

use std::{fmt, sync::Arc, time::Duration};

use tokio::{runtime::Handle, sync::watch, time::Instant};

use crate::pulse::{BEAT, Pulse};

/// Freshness of the state that a client knows from its store.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Freshness {
    stale_since: Option<Instant>,
}

impl Freshness {
    const FRESH: Self = Self { stale_since: None };

    /// Returns whether changes arrive as they happen.
    pub fn is_fresh(self) -> bool {
        self.stale_since.is_none()
    }

    /// Returns for how long nothing has arrived from the store; `None` while changes arrive as they happen.
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

/// Connectivity of the client behind a watch to its store. Cheap to clone and to read, without I/O.
///
/// A client that is cut off without a word notices when its connection's keep-alive goes unanswered, within
/// seconds. After the client was closed the connectivity is lost for good.
///
/// State that a task on the user's runtime maintains becomes stale as well while nobody drives that runtime, three seconds
/// after it was driven last.
#[derive(Clone)]
pub struct Connectivity {
    told: watch::Receiver<Freshness>,
    /// Pulse of the runtime without which nothing arrives.
    pulse: Option<Arc<Pulse>>,
    /// Whether it was fresh when this handle last returned a change.
    was_fresh: bool,
}

impl Connectivity {
    /// Returns the present freshness.
    pub fn freshness(&self) -> Freshness {
        let told = *self.told.borrow();
        match self.pulse.as_ref().and_then(|pulse| pulse.stopped_at()) {
            Some(stopped) if told.stale_since.is_none_or(|since| since > stopped) => {
                Freshness { stale_since: Some(stopped) }
            }
            _ => told,
        }
    }

    /// Returns a handle to which the present freshness is no change.
    #[must_use]
    pub fn from_now_on(&self) -> Self {
        let mut told = self.told.clone();
        told.mark_unchanged();
        Self { told, pulse: self.pulse.clone(), was_fresh: self.freshness().is_fresh() }
    }

    /// Waits until the freshness changes, and returns it. Once the client is gone this never returns.
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

/// Waits until the pulse is due to be read again; for ever if there is no clock.
async fn beat() {
    match Handle::try_current() {
        Ok(_) => tokio::time::sleep(BEAT).await,
        Err(_) => std::future::pending().await,
    }
}

impl fmt::Debug for Connectivity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Connectivity").field(&self.freshness()).finish()
    }
}

/// Sending end of all [`Connectivity`] handles of one client, for backends. Dropping it means that connectivity is lost.
#[derive(Debug)]
pub struct ConnectivitySource(watch::Sender<Freshness>, Option<Arc<Pulse>>);

impl Default for ConnectivitySource {
    /// Returns a source whose store is heard.
    fn default() -> Self {
        Self(watch::Sender::new(Freshness::FRESH), None)
    }
}

impl ConnectivitySource {
    /// Returns a source whose store is heard while this runtime is driven, for state that a task on it maintains.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn of_this_runtime() -> Self {
        Self(watch::Sender::new(Freshness::FRESH), Some(Pulse::here()))
    }

    /// Takes in that the store is heard.
    pub fn restored(&self) {
        self.0.send_if_modified(|now| std::mem::replace(now, Freshness::FRESH) != Freshness::FRESH);
    }

    /// Takes in that the store is not heard any more. If that was so before, the earlier time counts.
    pub fn lost(&self) {
        self.0.send_if_modified(|now| {
            let was_fresh = now.is_fresh();
            if was_fresh {
                now.stale_since = Some(Instant::now());
            }
            was_fresh
        });
    }

    /// Returns a handle for users.
    pub fn connectivity(&self) -> Connectivity {
        let told = self.0.subscribe();
        Connectivity { told, pulse: self.1.clone(), was_fresh: true }.from_now_on()
    }
}

impl Drop for ConnectivitySource {
    fn drop(&mut self) {
        self.lost();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn freshness_counts_from_the_first_loss() {
        let source = ConnectivitySource::default();
        let mut connectivity = source.connectivity();
        assert!(connectivity.freshness().is_fresh());
        source.restored();
        assert!(connectivity.changed().now_or_never().is_none(), "nothing changed");

        source.lost();
        tokio::time::advance(Duration::from_secs(2)).await;
        source.lost();
        assert_eq!(
            connectivity.changed().await.stale_for(),
            Some(Duration::from_secs(2)),
            "the first loss counts"
        );

        source.restored();
        assert!(connectivity.changed().await.is_fresh());
        drop(source);
        assert!(!connectivity.changed().await.is_fresh());
        assert!(connectivity.changed().now_or_never().is_none(), "nothing follows");
    }

    #[tokio::test(start_paused = true)]
    async fn connectivity_is_lost_while_the_runtime_is_not_driven() {
        let driven = ConnectivitySource::of_this_runtime();
        let source =
            ConnectivitySource(watch::Sender::new(Freshness::FRESH), Some(Arc::new(Pulse::unattended())));
        let (mut connectivity, mut waiting) = (source.connectivity(), driven.connectivity());
        assert!(connectivity.freshness().is_fresh() && connectivity.changed().now_or_never().is_none());
        assert!(!connectivity.changed().await.is_fresh(), "is told once it is overdue");
        assert!(connectivity.freshness().stale_for() > Some(Duration::from_secs(3)));
        source.lost();
        assert!(
            connectivity.changed().await.stale_for() > Some(Duration::from_secs(3)),
            "the earlier moment counts"
        );
        let told = tokio::time::timeout(Duration::from_secs(60), waiting.changed()).await;
        assert!(told.is_err() && waiting.freshness().is_fresh());
    }

    #[test]
    fn connectivity_outside_of_a_runtime_does_not_panic() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("can be built");
        let source = runtime.block_on(async { ConnectivitySource::of_this_runtime() });
        let mut connectivity = source.connectivity();
        assert!(connectivity.changed().now_or_never().is_none());
        source.lost();
        assert!(!connectivity.changed().now_or_never().expect("is told").is_fresh());
    }
}
