//! View of who leads, kept up to date.

use std::{fmt, sync::Arc, time::SystemTime};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use tokio::{sync::watch, task::AbortHandle};

use super::Candidate;
use crate::{
    Connectivity, Error, FencingToken, Freshness, Owner, Result, Watch,
    backend::{ConnectivitySource, Driver, driven, time_of_day},
};

/// Leader of an election, as a [`LeaderView`] knows it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// Owner; `None` for a leader of another program, which does not say.
    pub owner: Option<Owner>,
    /// Its key in the store.
    pub key: String,
    /// The fencing token of its term.
    pub token: FencingToken,
    /// Its value, as it proclaimed it last.
    pub value: Bytes,
    /// The moment at which this view heard first that it leads, by the clock of this process.
    pub since: SystemTime,
}

impl Leader {
    /// Its value as text; `None` if it is not UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }
}

impl fmt::Debug for Leader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leader")
            .field("owner", &self.owner)
            .field("key", &self.key)
            .field("token", &self.token)
            .field("bytes", &self.value.len())
            .field("since", &self.since)
            .finish()
    }
}

/// View of who leads an election, from [`Elector::observe`](crate::Elector::observe) or
/// [`ElectionsExt::observe`](crate::ElectionsExt::observe). Clones are cheap and share one watch, which ends with the last of
/// them.
///
/// # Contract
/// - [`leader`](Self::leader) waits for nothing. `None` says that nobody leads.
/// - The view follows the store as a [`Watch`] does, and so is behind it by the time that an event takes. Another one may
///   lead already: only a token makes a decision safe.
/// - While the store is away, refuses the watch, or the provider is closed, the last leader stays.
///   [`freshness`](Self::freshness) tells for how long nothing was heard.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use coord_api::{ElectionsExt, ElectorOptions, Provider};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let elections = coord_memory::Store::new().client().elections();
/// let mut view = elections.observe("report").await?;
/// assert!(view.leader().is_none());
///
/// let options = ElectorOptions::new(Duration::from_secs(10)).value("10.0.1.10:8080");
/// let term = elections.elector("report", options)?.campaign().await?;
/// assert_eq!(view.ready().await?.text(), Some("10.0.1.10:8080"));
/// term.resign().await?;
/// while view.leader().is_some() {
///     view.changed().await?;
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LeaderView {
    shared: Arc<Shared>,
    changes: watch::Receiver<()>,
}

struct Shared {
    leader: Arc<ArcSwapOption<Leader>>,
    connectivity: Connectivity,
    keeper: AbortHandle,
    /// Kept for as long as the keeper has to run.
    _driver: Option<Driver>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.keeper.abort();
    }
}

impl LeaderView {
    /// Takes the first item of a watch, and keeps the view up to date from there.
    pub(crate) async fn open(mut watch: Watch<Option<Candidate>>) -> Result<Self> {
        let first = watch.next().await.unwrap_or(Err(Error::Closed))?;
        let (source, leader) = (ConnectivitySource::default(), Arc::new(ArcSwapOption::empty()));
        let (sender, mut changes) = watch::channel(());
        let connectivity = source.connectivity();
        let keeper = Keeper {
            link: watch.connectivity(),
            watch,
            leader: leader.clone(),
            changed: sender,
            source,
            is_refused: false,
        };
        keeper.tell(first);
        keeper.tell_freshness();
        let (runtime, driver) = driven();
        let keeper = runtime.spawn(keeper.run()).abort_handle();
        changes.mark_unchanged();
        let shared = Shared { leader, connectivity, keeper, _driver: driver };
        Ok(Self { shared: Arc::new(shared), changes })
    }

    /// The leader now; `None` if nobody leads.
    pub fn leader(&self) -> Option<Arc<Leader>> {
        self.shared.leader.load_full()
    }

    /// Returns whether the view is kept up to date, and if not, for how long it has not been.
    pub fn freshness(&self) -> Freshness {
        self.shared.connectivity.freshness()
    }

    /// A handle that tells when the [`freshness`](Self::freshness) changes. It does not keep the view.
    pub fn connectivity(&self) -> Connectivity {
        self.shared.connectivity.clone()
    }

    /// Waits until somebody leads.
    ///
    /// # Errors
    /// [`Error::Closed`] when the provider is closed first.
    ///
    /// # Cancel safety
    /// May be dropped and called again.
    pub async fn ready(&self) -> Result<Arc<Leader>> {
        let mut changes = self.changes.clone();
        loop {
            changes.mark_unchanged();
            if let Some(leader) = self.leader() {
                return Ok(leader);
            }
            changes.changed().await.map_err(|_| Error::Closed)?;
        }
    }

    /// Waits until the leader or its value is not as this handle last told by this method (or when it was made), and
    /// returns it. Quick changes are seen as one.
    ///
    /// # Errors
    /// [`Error::Closed`] when the provider is closed; nothing changes any more.
    ///
    /// # Cancel safety
    /// May be dropped and called again: no change is lost.
    pub async fn changed(&mut self) -> Result<Option<Arc<Leader>>> {
        self.changes.changed().await.map_err(|_| Error::Closed)?;
        Ok(self.leader())
    }
}

impl fmt::Debug for LeaderView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LeaderView")
            .field("leader", &self.leader())
            .field("freshness", &self.freshness())
            .finish()
    }
}

/// The task behind the clones of one view; ends with the last of them, or with the provider.
struct Keeper {
    watch: Watch<Option<Candidate>>,
    /// Whether the store is heard.
    link: Connectivity,
    leader: Arc<ArcSwapOption<Leader>>,
    changed: watch::Sender<()>,
    /// Whether the view is kept up to date. Dropping it says that the view is not any more.
    source: ConnectivitySource,
    is_refused: bool,
}

impl Keeper {
    async fn run(mut self) {
        loop {
            tokio::select! {
                _ = self.link.changed() => {}
                item = self.watch.next() => match item {
                    Some(Ok(candidate)) => {
                        self.is_refused = false;
                        self.tell(candidate);
                    }
                    // Dropping this tells callers that wait for changes; they find the view stale then.
                    None | Some(Err(Error::Closed)) => return self.source.lost(),
                    Some(Err(error)) => {
                        tracing::warn!(%error, "the leader is not known, trying again");
                        self.is_refused = true;
                    }
                }
            }
            self.tell_freshness();
        }
    }

    fn tell(&self, candidate: Option<Candidate>) {
        let before = self.leader.load_full();
        let leader = candidate.map(|Candidate { owner, key, token, value }| {
            let same = before.as_ref().filter(|before| before.token == token);
            let since = same.map_or_else(time_of_day, |before| before.since);
            Leader { owner, key, token, value, since }
        });
        if before.as_deref() != leader.as_ref() {
            self.leader.store(leader.map(Arc::new));
            self.changed.send_replace(());
        }
    }

    fn tell_freshness(&self) {
        if self.link.freshness().is_fresh() && !self.is_refused {
            self.source.restored();
        } else {
            self.source.lost();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tokio::sync::mpsc;

    use super::*;

    fn candidate(token: u64, value: &'static str) -> Candidate {
        Candidate::new(None, format!("k{token}"), FencingToken::new(token), value.into())
    }

    #[tokio::test(start_paused = true)]
    async fn view_follows_the_watch_and_keeps_the_last_leader() {
        let link = ConnectivitySource::default();
        let (items, mut inbox) = mpsc::unbounded_channel();
        items.send(Ok(None)).expect("is listened to");
        let watch = Watch::new(link.connectivity(), stream::poll_fn(move |cx| inbox.poll_recv(cx)));
        let mut view = LeaderView::open(watch).await.expect("has a first item");
        assert!(view.leader().is_none() && view.freshness().is_fresh());

        let first = time_of_day();
        items.send(Ok(Some(candidate(7, "a")))).expect("is listened to");
        assert_eq!(view.ready().await.expect("leads").text(), Some("a"));
        assert_eq!(view.changed().await.expect("is open").expect("leads").since, first);
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        items.send(Ok(Some(candidate(7, "b")))).expect("is listened to");
        let proclaimed = view.changed().await.expect("is open").expect("leads");
        assert_eq!((proclaimed.text(), proclaimed.since), (Some("b"), first), "leads since then");
        items.send(Ok(Some(candidate(9, "b")))).expect("is listened to");
        assert!(view.changed().await.expect("is open").expect("leads").since > first, "another term");

        link.lost();
        let mut connectivity = view.connectivity();
        assert!(!connectivity.changed().await.is_fresh());
        items.send(Err(Error::Closed)).expect("is listened to");
        assert!(matches!(view.changed().await, Err(Error::Closed)));
        assert_eq!(view.leader().expect("stays").token, FencingToken::new(9));
        assert!(!view.freshness().is_fresh());
    }
}
