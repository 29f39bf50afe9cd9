//! A place in the store that one holder has: a lock or an id.

use std::fmt;

use async_trait::async_trait;

use crate::{Error, Hold, LossReason, Result};

/// How a backend frees a place. Both ways delete only the holder's own entry and may be called repeatedly.
#[async_trait]
pub trait Release: Send + Sync + 'static {
    /// Frees the place and waits for the store.
    ///
    /// # Errors
    /// [`Error::Lost`] if the entry was no longer there or no longer the holder's own.
    async fn release(&self) -> Result<()>;

    /// Frees the place soon, trying again until the store has done it or the lease is over. Must not
    /// block or panic, and needs no runtime: it is called from `Drop`.
    fn release_in_background(&self);
}

/// A held place that is given back exactly once: by [`give_back`](Self::give_back) or by being dropped.
pub struct Place {
    hold: Hold,
    /// `None` once the store is known to have freed it.
    release: Option<Box<dyn Release>>,
}

impl Place {
    /// A place that `hold` tells about and `release` frees.
    pub fn new(hold: Hold, release: impl Release) -> Self {
        Self { hold, release: Some(Box::new(release)) }
    }

    /// The holder's grip.
    pub fn hold(&self) -> &Hold {
        &self.hold
    }

    /// Frees the place. If the returned future is dropped, or the store can not be reached, the place is
    /// freed in the background.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was no longer held; others as the store answers.
    pub async fn give_back(mut self) -> Result<()> {
        // The holder stops believing in its hold before the store can give the place to someone else.
        if let Some(reason) = self.hold.end(LossReason::Released) {
            return Err(Error::Lost { reason });
        }
        let release = self.release.as_ref().expect("only this method takes it, and it consumes the place");
        let outcome = release.release().await;
        if matches!(outcome, Ok(()) | Err(Error::Lost { .. })) {
            self.release = None;
        }
        outcome
    }

    /// Ends without freeing anything, for an entry that another place has taken over.
    pub fn forget(mut self) {
        self.release = None;
        self.hold.end(LossReason::Superseded);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            self.hold.end(LossReason::Released);
            release.release_in_background();
        }
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Place").field("lost", &self.hold.loss()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    use std::time::Duration;

    use tokio::time::Instant;

    use super::*;
    use crate::Lease;

    /// Counts calls; `release` answers what it is told to.
    struct Counting {
        released: Arc<AtomicUsize>,
        in_background: Arc<AtomicUsize>,
        answer: fn() -> Result<()>,
    }

    #[async_trait]
    impl Release for Counting {
        async fn release(&self) -> Result<()> {
            self.released.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            (self.answer)()
        }
        fn release_in_background(&self) {
            self.in_background.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn place(answer: fn() -> Result<()>) -> (Place, Hold, impl Fn() -> (usize, usize)) {
        let hold = Hold::on(Lease::granted(Instant::now(), Duration::from_secs(5)));
        let released = Arc::new(AtomicUsize::new(0));
        let in_background = Arc::new(AtomicUsize::new(0));
        let counting = Counting { released: released.clone(), in_background: in_background.clone(), answer };
        let counts = move || (released.load(Ordering::SeqCst), in_background.load(Ordering::SeqCst));
        (Place::new(hold.clone(), counting), hold, counts)
    }

    #[tokio::test]
    async fn given_back_once_when_the_store_answers() {
        let (place, hold, counts) = place(|| Ok(()));
        place.give_back().await.expect("the store answers");
        assert_eq!(counts(), (1, 0));
        assert_eq!(hold.loss(), Some(LossReason::Released));
    }

    #[tokio::test]
    async fn a_failed_or_cancelled_release_goes_on_in_the_background() {
        let (failing, _, counts) = place(|| Err(Error::Unavailable { what: "store".into(), source: None }));
        assert!(failing.give_back().await.is_err());
        assert_eq!(counts(), (1, 1));

        let (cancelled, hold, counts) = place(|| Ok(()));
        assert!(futures::FutureExt::now_or_never(cancelled.give_back()).is_none());
        assert_eq!(counts(), (1, 1));
        assert_eq!(hold.loss(), Some(LossReason::Released));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_lost_answers_lost_and_is_cleaned_up() {
        let (place, _, counts) = place(|| Ok(()));
        tokio::time::advance(Duration::from_secs(6)).await;
        assert!(matches!(place.give_back().await, Err(Error::Lost { reason: LossReason::Expired })));
        assert_eq!(counts(), (0, 1));
    }

    #[test]
    fn dropping_needs_no_runtime() {
        let (place, hold, counts) = place(|| Ok(()));
        drop(place);
        assert_eq!(counts(), (0, 1));
        assert_eq!(hold.loss(), Some(LossReason::Released));
    }
}
