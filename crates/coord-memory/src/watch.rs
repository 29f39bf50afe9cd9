//! Watches: a log of changes that all watchers share, and a position in it for each.
//!
//! A watcher has no task and no buffer. One that is so slow that the log has forgotten what comes next, or
//! that finds the history compacted, gets a fresh snapshot and goes on from there.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use coord_api::{ConfigKey, Covered, Entry, EntryEvent, Error, Result, Scope, ServiceName, Version, Watch};
use futures::stream;
use tokio::sync::watch;

use crate::{connection::Connection, keys, session::Link, store::State};

/// How many changes the store remembers.
const HISTORY: usize = 4096;

struct Change {
    revision: u64,
    key: String,
    /// The new value; `None` for a deletion.
    value: Option<Bytes>,
}

/// The latest changes, numbered since the store began.
#[derive(Default)]
pub(crate) struct Log {
    changes: VecDeque<Change>,
    /// The number of the next change, and what wakes the watchers.
    end: watch::Sender<u64>,
}

impl Log {
    pub(crate) fn push(&mut self, revision: u64, key: String, value: Option<Bytes>) {
        if self.changes.len() == HISTORY {
            self.changes.pop_front();
        }
        self.changes.push_back(Change { revision, key, value });
        self.end.send_modify(|end| *end += 1);
    }

    pub(crate) fn forget(&mut self) {
        self.changes.clear();
    }

    fn end(&self) -> u64 {
        *self.end.borrow()
    }

    /// The changes from number `from` on; `None` if they are forgotten.
    fn since(&self, from: u64) -> Option<impl Iterator<Item = &Change>> {
        let behind = usize::try_from(self.end() - from).ok()?;
        let skip = self.changes.len().checked_sub(behind)?;
        Some(self.changes.range(skip..))
    }
}

/// The part of the entries that a list or a watch covers, and the names that users know them by.
pub(crate) enum View {
    /// One config value, by store key.
    Key(String),
    /// The config values below a store key.
    Below(String),
    /// The instances of a service, below a store key.
    Service(String, ServiceName),
}

impl View {
    pub(crate) fn config(scope: Scope<'_>) -> Result<Self> {
        Ok(match scope.parse()? {
            Covered::One(key) => Self::Key(keys::config(&key)),
            Covered::Below(prefix) => Self::Below(keys::config_below(&prefix)),
        })
    }

    pub(crate) fn service(service: &ServiceName) -> Self {
        Self::Service(keys::service(service), service.clone())
    }

    /// The user's name of a store key; `None` for a key that is not covered.
    fn name(&self, key: &str) -> Option<String> {
        match self {
            Self::Key(only) => (key == only).then(|| keys::config_name(key).to_owned()),
            Self::Below(start) => {
                // Other programs may have keys here that no call takes.
                let is_covered = |name: &&str| key.starts_with(start) && ConfigKey::is_key(name);
                Some(keys::config_name(key)).filter(is_covered).map(Into::into)
            }
            Self::Service(start, service) => {
                // Coord writes no `/` into an id: what has one belongs to another program's longer name.
                let id = key.strip_prefix(start.as_str()).filter(|id| !id.contains('/'))?;
                Some(format!("{service}/{}", keys::unescape(id)))
            }
        }
    }
}

impl State {
    /// The entries that a view covers, ordered by key.
    pub(crate) fn list(&self, view: &View) -> Vec<Entry> {
        match view {
            View::Key(key) => {
                let found = self.entries.get(key).zip(view.name(key));
                found.map(|(stored, name)| stored.entry(name)).into_iter().collect()
            }
            View::Below(start) | View::Service(start, _) => {
                let from_start = self.entries.range(start.clone()..);
                let covered = from_start.take_while(|(key, _)| key.starts_with(start));
                covered.filter_map(|(key, stored)| Some(stored.entry(view.name(key)?))).collect()
            }
        }
    }

    /// The services that have an entry.
    pub(crate) fn services(&self) -> BTreeSet<ServiceName> {
        let from_start = self.entries.range(keys::SERVICES.to_owned()..);
        let keys = from_start.map(|(key, _)| key).take_while(|key| key.starts_with(keys::SERVICES));
        keys.filter_map(|key| keys::service_of(key)).collect()
    }

    fn snapshot(&self, view: &View) -> EntryEvent {
        EntryEvent::Snapshot { version: Version::new(self.revision), entries: self.list(view) }
    }
}

/// Watches what `view` covers.
pub(crate) async fn watch(connection: &Arc<Connection>, view: View) -> Result<Watch<EntryEvent>> {
    let state = connection.call().await?;
    let watcher = Watcher {
        changes: state.log.end.subscribe(),
        link: connection.link(),
        connection: connection.clone(),
        next: state.log.end(),
        first: Some(state.snapshot(&view)),
        view,
    };
    drop(state);
    let items = stream::unfold(watcher, |mut watcher| async { Some((watcher.next().await, watcher)) });
    Ok(Watch::new(connection.contact(), items))
}

struct Watcher {
    connection: Arc<Connection>,
    view: View,
    /// The snapshot as of the call, until it is delivered.
    first: Option<EntryEvent>,
    /// The number of the first change that has not been looked at.
    next: u64,
    changes: watch::Receiver<u64>,
    link: watch::Receiver<Link>,
}

impl Watcher {
    async fn next(&mut self) -> Result<EntryEvent> {
        loop {
            // Both are marked as seen before anything is looked at, so whatever comes later wakes us.
            self.changes.mark_unchanged();
            let link = *self.link.borrow_and_update();
            if link.closed {
                return Err(Error::Closed);
            }
            if link.is_up()
                && let Some(event) = self.look()
            {
                return Ok(event);
            }
            tokio::select! {
                _ = self.changes.changed() => {}
                _ = self.link.changed() => {}
            }
        }
    }

    /// The next event, if it has happened already.
    fn look(&mut self) -> Option<EntryEvent> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        let state = self.connection.store().lock();
        let Some(changes) = state.log.since(self.next) else {
            self.next = state.log.end();
            return Some(state.snapshot(&self.view));
        };
        for change in changes {
            self.next += 1;
            if let Some(name) = self.view.name(&change.key) {
                let version = Version::new(change.revision);
                return Some(match &change.value {
                    Some(value) => EntryEvent::Put(Entry::new(name, version, value.clone())),
                    None => EntryEvent::Deleted { key: name, version },
                });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::{Batch, ConfigExt, Provider};
    use futures::FutureExt;

    use super::*;
    use crate::Store;

    type Events = Watch<EntryEvent>;

    async fn watched(client: &impl Provider, prefix: &str) -> Events {
        client.config().watch_entries(Scope::Prefix(prefix)).await.unwrap()
    }

    /// The next item, if it is there already.
    fn seen(events: &mut Events) -> Option<String> {
        let item = events.next().now_or_never()?.expect("is not closed");
        Some(match item.unwrap() {
            EntryEvent::Snapshot { entries, .. } => {
                let keys: Vec<_> = entries.iter().map(Entry::key).collect();
                format!("snapshot {}", keys.join(" "))
            }
            EntryEvent::Put(entry) => format!("put {}", entry.key()),
            EntryEvent::Deleted { key, .. } => format!("deleted {key}"),
        })
    }

    #[tokio::test]
    async fn events_of_one_batch_come_in_its_order_and_once() -> Result<()> {
        let client = Store::new().client();
        let config = client.config();
        config.set("b", &1).await?;
        let mut events = watched(&client, "").await;
        let batch = Batch::new().set("c", &1)?.delete("b")?.delete("missing")?.set("a", &1)?;
        config.commit(batch).await?;
        for expected in ["snapshot b", "put c", "deleted b", "put a"] {
            assert_eq!(seen(&mut events).unwrap(), expected);
        }
        assert_eq!(seen(&mut events), None);
        Ok(())
    }

    #[tokio::test]
    async fn whoever_is_behind_what_is_remembered_gets_a_snapshot() -> Result<()> {
        let store = Store::new();
        let client = store.client();
        let config = client.config();
        let (mut slow, mut slower) = (watched(&client, "").await, watched(&client, "").await);
        config.set("first", &0).await?;
        assert_eq!(seen(&mut slow).unwrap(), "snapshot ");
        assert_eq!(seen(&mut slow).unwrap(), "put first");
        for n in 0..HISTORY {
            config.set("last", &n).await?;
        }
        assert_eq!(seen(&mut slow).unwrap(), "put last", "all of it is remembered");
        assert_eq!(seen(&mut slower).unwrap(), "snapshot ");
        assert_eq!(seen(&mut slower).unwrap(), "snapshot first last");
        assert_eq!(store.lock().log.changes.len(), HISTORY);

        store.compact();
        assert_eq!(seen(&mut slower), None, "it has seen everything");
        assert_eq!(seen(&mut slow).unwrap(), "snapshot first last");
        config.delete("first").await?;
        assert_eq!(seen(&mut slow).unwrap(), "deleted first");
        assert_eq!(seen(&mut slower).unwrap(), "deleted first");
        Ok(())
    }

    #[tokio::test]
    async fn a_cut_link_stops_a_watch_and_closing_ends_it() -> Result<()> {
        let store = Store::new();
        let (client, writer) = (store.client(), store.client());
        let mut events = watched(&client, "").await;
        client.disconnect();
        writer.config().set("a", &1).await?;
        assert_eq!(seen(&mut events), None);
        client.reconnect();
        assert_eq!(seen(&mut events).unwrap(), "snapshot ");
        assert_eq!(seen(&mut events).unwrap(), "put a");
        client.close().await?;
        assert!(matches!(events.next().await, Some(Err(Error::Closed))));
        assert!(events.next().await.is_none());
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiting_watch_is_woken_by_changes_expiries_and_the_link() -> Result<()> {
        let store = Store::new();
        let (client, registrar) = (store.client(), store.client());
        let mut watch = client.registry().watch("svc").await?;
        watch.next().await.expect("is not closed")?;
        let info = coord_api::ServiceInfo::new("svc", "1", "10.0.0.1", 80);
        let _registration = registrar.registry().register(info, Duration::from_secs(1)).await?;
        let added = watch.next().await.expect("is not closed")?;
        assert!(matches!(added, coord_api::ServiceEvent::Added(_)));
        registrar.disconnect();
        let removed = watch.next().await.expect("is not closed")?;
        assert!(matches!(removed, coord_api::ServiceEvent::Removed(_)));
        registrar.reconnect();
        let again = watch.next().await.expect("is not closed")?;
        assert!(matches!(again, coord_api::ServiceEvent::Added(_)));
        Ok(())
    }

    #[test]
    fn views_do_not_meet() {
        let service = |name: &str| View::service(&ServiceName::parse(name).unwrap());
        let prefix = |name: &str| View::config(Scope::Prefix(name)).unwrap();
        let key = |name: &str| View::config(Scope::Key(name)).unwrap();
        let table = [
            (service("a"), "services/a/1", Some("a/1")),
            (service("a"), "services/a/x%2F1", Some("a/x/1")),
            (service("a"), "services/a/b/1", None),
            (service("a"), "services/a%2Fb/1", None),
            (service("a"), "services/a-2/1", None),
            (service("a/b"), "services/a%2Fb/1", Some("a/b/1")),
            (prefix(""), "config/a", Some("a")),
            (prefix(""), "services/a/1", None),
            (prefix("a"), "config/a/b", Some("a/b")),
            (prefix("a"), "config/a", None),
            (prefix("a"), "config/ab", None),
            (prefix(""), "config/a//b", None),
            (prefix("a"), "config/a/%2F", None),
            (key("a"), "config/a", Some("a")),
            (key("a"), "config/a/b", None),
        ];
        for (view, key, name) in table {
            assert_eq!(view.name(key).as_deref(), name, "{key}");
        }
    }
}
