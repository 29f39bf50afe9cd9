//! The task behind a live value: it takes what the watches tell and brings it into use.

use std::{sync::Arc, time::Duration};

use coord_api::{
    ConfigCenter, ConfigKey, Connectivity, Entry, EntryEvent, Error, Result, Scope, Version,
    backend::Backoff, backend::ConnectivitySource,
};
use futures::{
    StreamExt,
    future::try_join_all,
    stream::{BoxStream, SelectAll},
};
use serde::de::DeserializeOwned;
use tokio::{sync::broadcast, time::Instant};

use super::{
    LiveBuilder, Shared, WhenDeleted,
    current::{Current, Origin, Rejection, RejectionCause, count},
    file::{Audience, Part, Saver, State},
    held::Held,
    layers::{Inputs, Layers, Step},
    wakeups::Notifier,
};
use crate::{Instance, gray};

/// How long a difference to the store may be explained by an event that is on its way.
const ON_ITS_WAY: Duration = Duration::from_secs(2);

/// The longest time between two looks, also if more is asked for: later moments are beyond what timers can count.
const LONGEST: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// A place that a live value is made of.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The value of a key.
    Key(ConfigKey),
    /// The gray release of the key, for one instance.
    Gray {
        /// Where it is.
        place: ConfigKey,
        /// Whose it is.
        key: ConfigKey,
        /// For whom.
        instance: Instance,
    },
}

impl Source {
    pub(super) fn scope(&self) -> Scope<'_> {
        match self {
            Self::Key(key) => Scope::Key(key.as_str()),
            Self::Gray { place, .. } => Scope::Sidecar(place),
        }
    }

    pub(super) fn is_gray(&self) -> bool {
        matches!(self, Self::Gray { .. })
    }

    /// The key whose value it has.
    pub(super) fn key(&self) -> &str {
        match self {
            Self::Key(key) | Self::Gray { key, .. } => key.as_str(),
        }
    }

    /// Translates an event into its meaning for the value.
    fn understand(&self, event: EntryEvent) -> EntryEvent {
        let Self::Gray { key, instance, .. } = self else { return event };
        let value = |entry: &Entry| gray::value_for(key.as_str(), instance, entry);
        match event {
            EntryEvent::Snapshot { version, entries } => {
                EntryEvent::Snapshot { version, entries: entries.iter().filter_map(value).collect() }
            }
            EntryEvent::Put(entry) => match value(&entry) {
                Some(value) => EntryEvent::Put(value),
                None => EntryEvent::Deleted { key: key.to_string(), version: entry.version() },
            },
            deleted @ EntryEvent::Deleted { .. } => deleted,
        }
    }
}

/// The watches over all sources.
pub(super) struct Feed {
    events: SelectAll<BoxStream<'static, (usize, Result<EntryEvent>)>>,
    connectivity: Connectivity,
}

impl Feed {
    /// Opens the watches; what is in each place now comes along.
    pub(super) async fn open(
        center: &dyn ConfigCenter,
        sources: &[Source],
    ) -> Result<(Self, Vec<Option<Entry>>)> {
        let opening = sources.iter().map(|source| async move {
            let mut watch = center.watch_entries(source.scope()).await?;
            match watch.next().await.unwrap_or(Err(Error::Closed))? {
                EntryEvent::Snapshot { version, entries } => {
                    let snapshot = EntryEvent::Snapshot { version, entries };
                    let EntryEvent::Snapshot { mut entries, .. } = source.understand(snapshot) else {
                        return Err(Error::Closed);
                    };
                    Ok((watch, entries.pop()))
                }
                EntryEvent::Put(_) | EntryEvent::Deleted { .. } => Err(Error::Backend {
                    operation: "watch",
                    source: "a watch did not begin with a snapshot".into(),
                }),
            }
        });
        let (mut events, mut entries, mut connectivity) = (SelectAll::new(), Vec::new(), None);
        for (layer, (watch, entry)) in try_join_all(opening).await?.into_iter().enumerate() {
            connectivity.get_or_insert_with(|| watch.connectivity());
            let source = sources[layer].clone();
            let tagged = watch.map(move |item| (layer, item.map(|event| source.understand(event))));
            events.push(tagged.boxed());
            entries.push(entry);
        }
        Ok((Self { events, connectivity: connectivity.expect("the key itself is a source") }, entries))
    }
}

/// Why the watches are left.
enum Left {
    /// They are to be opened anew.
    Distrusted,
    /// The provider is closed.
    Closed,
}

/// All that the task has.
pub(super) struct Follower<T> {
    rules: LiveBuilder<T>,
    sources: Vec<Source>,
    layers: Layers,
    /// Inputs that were considered last, whether the value was taken or refused; `None` before the store was
    /// heard.
    considered: Option<Inputs>,
    /// Entries that the value in use was made of.
    in_use: State,
    shared: Arc<Shared<T>>,
    connectivity: ConnectivitySource,
    notifier: Notifier,
    /// Each change, for those who want them all.
    each: broadcast::Sender<Arc<Current<T>>>,
    saver: Option<Saver>,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Follower<T> {
    pub(super) fn new(
        rules: LiveBuilder<T>,
        sources: Vec<Source>,
        layers: Layers,
        shared: Arc<Shared<T>>,
        connectivity: ConnectivitySource,
        (notifier, each): (Notifier, broadcast::Sender<Arc<Current<T>>>),
        saver: Option<Saver>,
    ) -> Self {
        let (considered, in_use) = (None, State::default());
        Self { rules, sources, layers, considered, in_use, shared, connectivity, notifier, each, saver }
    }

    /// Follows until the provider is closed, or the last handle is gone and aborts this. The entries of the
    /// value in use are in the layers, or are `saved` in the snapshot file.
    pub(super) async fn run(mut self, mut feed: Option<Feed>, saved: Option<State>) {
        if feed.is_some() {
            self.considered = Some(self.layers.inputs());
        }
        match (saved, self.shared.now.load().origin) {
            (Some(saved), _) => self.in_use = saved,
            (None, Origin::Store(_)) => self.took(State { deleted: false, entries: self.parts() }),
            // The store said that nothing is there, or nothing that can be used.
            (None, _) if feed.is_some() => self.took(State::default()),
            (None, _) => {}
        }
        loop {
            let open = match feed.take() {
                Some(open) => open,
                None => match self.open_again().await {
                    Some(open) => open,
                    None => break,
                },
            };
            match self.follow(open).await {
                Left::Distrusted => {}
                Left::Closed => break,
            }
        }
        self.connectivity.lost();
    }

    /// Opens the watches, for as long as it takes; `None` when the provider is closed.
    async fn open_again(&mut self) -> Option<Feed> {
        let mut backoff = Backoff::new(Duration::from_millis(20), Duration::from_secs(2));
        loop {
            match Feed::open(&*self.rules.center, &self.sources).await {
                Ok((feed, entries)) => {
                    let mut step = Step::Same;
                    for (layer, entry) in entries.into_iter().enumerate() {
                        let (version, entries) = (Version::ABSENT, entry.into_iter().collect());
                        let read = self.layers.apply(layer, EntryEvent::Snapshot { version, entries });
                        step = step.max(read);
                    }
                    count(&self.shared.counters.snapshots);
                    self.consider(step);
                    self.connectivity.restored();
                    return Some(feed);
                }
                Err(Error::Closed) => return None,
                Err(error) => {
                    self.connectivity.lost();
                    tracing::debug!(%error, key = self.shared.key, "a live config value waits for the store");
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }

    async fn follow(&mut self, mut feed: Feed) -> Left {
        let mut next_look = self.next_look();
        let mut suspicious = false;
        if !feed.connectivity.freshness().is_fresh() {
            self.connectivity.lost();
        }
        loop {
            tokio::select! {
                item = feed.events.next() => match item {
                    Some((layer, Ok(event))) => {
                        if self.take(layer, event) {
                            return Left::Distrusted;
                        }
                    }
                    Some((_, Err(Error::Closed))) | None => return Left::Closed,
                    Some((_, Err(error))) => {
                        tracing::warn!(%error, key = self.shared.key, "the watch of a live config value failed");
                    }
                },
                freshness = feed.connectivity.changed() => {
                    if freshness.is_fresh() { self.connectivity.restored() } else { self.connectivity.lost() }
                }
                () = tokio::time::sleep_until(next_look) => {
                    let differs = self.differs().await;
                    if differs && suspicious {
                        tracing::warn!(key = self.shared.key, "a change was never told, reading the state anew");
                        count(&self.shared.counters.reconciliations);
                        return Left::Distrusted;
                    }
                    suspicious = differs;
                    next_look = if differs { Instant::now() + ON_ITS_WAY } else { self.next_look() };
                }
            }
        }
    }

    fn next_look(&self) -> Instant {
        let every = self.rules.reconcile_every.unwrap_or(Duration::from_secs(300));
        Instant::now() + every.min(LONGEST).mul_f64(0.9 + 0.2 * fastrand::f64())
    }

    /// Returns whether the store has something else than we know. A store that does not answer has not.
    async fn differs(&mut self) -> bool {
        let center = self.rules.center.clone();
        let reading = self.sources.iter().map(|source| center.read(source.scope()));
        let Ok(found) = try_join_all(reading).await else { return false };
        let found = self.sources.iter().zip(found).map(|(source, entries)| {
            let snapshot = EntryEvent::Snapshot { version: Version::ABSENT, entries };
            match source.understand(snapshot) {
                EntryEvent::Snapshot { mut entries, .. } => entries.pop(),
                _ => None,
            }
        });
        found.zip(self.layers.entries()).any(|(found, known)| found != *known)
    }

    /// Takes an event. Returns `true` if everything has to be read anew before it means anything: a gray
    /// release was ended. The value of the key may have ended it, of which we may not have heard yet.
    fn take(&mut self, layer: usize, event: EntryEvent) -> bool {
        if matches!(event, EntryEvent::Snapshot { .. }) {
            count(&self.shared.counters.snapshots);
        }
        let step = self.layers.apply(layer, event);
        let gray_ended = step == Step::Deleted && matches!(self.sources[layer], Source::Gray { .. });
        if !gray_ended {
            self.consider(step);
        }
        gray_ended
    }

    /// Brings what the layers make now into use, or says why not.
    fn consider(&mut self, step: Step) {
        if step == Step::Deleted {
            count(&self.shared.counters.deletions);
        }
        let inputs = self.layers.inputs();
        if self.considered.as_ref() == Some(&inputs) {
            // Written anew, but the same.
            let origin = Origin::Store(self.layers.version());
            let now = self.shared.now.load_full();
            let is_used = now.rejection.is_none() && self.layers.entries().iter().any(Option::is_some);
            if is_used && now.origin != origin {
                self.same_value(origin, None);
                self.took(State { deleted: false, entries: self.parts() });
            }
            return;
        }
        self.considered = Some(inputs);
        let made = match self.layers.compose::<T>() {
            Ok(Some(made)) => made,
            Ok(None) => return self.gone(),
            Err(rejection) => return self.reject(rejection),
        };
        let refused =
            |cause, reason| Rejection { key: self.shared.key.clone(), version: made.version, cause, reason };
        if let Err(reason) = self.rules.check(made.value.get()) {
            return self.reject(refused(RejectionCause::Validator, reason));
        }
        let old = self.shared.now.load_full();
        if let Err(reason) = self.rules.ask_hook(old.value.get(), made.value.get()) {
            return self.reject(refused(RejectionCause::Hook, reason));
        }
        self.publish(made.value, Origin::Store(made.version));
        self.took(State { deleted: false, entries: self.parts() });
    }

    /// Nothing is stored any more.
    fn gone(&mut self) {
        let old = self.shared.now.load_full();
        if old.origin == Origin::Default {
            self.same_value(Origin::Default, None);
            return self.took(State { deleted: self.in_use.deleted, entries: Vec::new() });
        }
        let default = self.rules.default.clone().filter(|_| self.rules.when_deleted == WhenDeleted::Default);
        let Some(default) = default.map(Held::new) else {
            self.publish(old.value.clone(), Origin::Kept(old.origin.version()));
            let entries = std::mem::take(&mut self.in_use.entries);
            return self.took(State { deleted: true, entries });
        };
        if let Err(reason) = self.rules.ask_hook(old.value.get(), default.get()) {
            let (key, version) = (self.shared.key.clone(), Version::ABSENT);
            return self.reject(Rejection { key, version, cause: RejectionCause::Hook, reason });
        }
        self.publish(default, Origin::Default);
        self.took(State { deleted: true, entries: Vec::new() });
    }

    fn reject(&self, rejection: Rejection) {
        tracing::warn!(reason = %rejection, "the last good value stays in use");
        self.same_value(self.shared.now.load().origin, Some(Arc::new(rejection)));
        count(&self.shared.counters.rejections);
    }

    fn publish(&self, value: Held<T>, origin: Origin) {
        let number = self.shared.now.load().number + 1;
        let value = value.counting(&self.shared.counters.rejections);
        let current = Arc::new(Current { number, value, origin, rejection: None });
        self.shared.now.store(current.clone());
        count(&self.shared.counters.changes);
        // Nobody has to listen.
        let _ = self.each.send(current);
        self.notifier.notify(number);
    }

    /// The state of the value changes, not the value: nobody is woken for that.
    fn same_value(&self, origin: Origin, rejection: Option<Arc<Rejection>>) {
        let now = self.shared.now.load_full();
        let (number, value) = (now.number, now.value.clone());
        self.shared.now.store(Arc::new(Current { number, value, origin, rejection }));
    }

    /// Returns the entries of the layers.
    fn parts(&self) -> Vec<Part> {
        let sources = self.sources.iter().zip(self.layers.entries());
        let part = |(source, entry): (&Source, &Option<Entry>)| {
            Some(Part { gray: source.is_gray(), entry: entry.clone()? })
        };
        sources.filter_map(part).collect()
    }

    /// Something came into use: the snapshot file is to say so.
    fn took(&mut self, state: State) {
        self.in_use = state;
        if let Some(saver) = &self.saver {
            let (home, key) = (self.rules.center.home(), self.rules.key.clone());
            let audience = Audience { home, key, instance: self.rules.instance.clone() };
            saver.save(audience, self.in_use.clone());
        }
    }
}
