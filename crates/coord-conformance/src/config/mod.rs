//! The promises of [`ConfigCenter`](coord_api::ConfigCenter) and [`ConfigExt`](coord_api::ConfigExt).

use std::{collections::BTreeMap, fmt::Debug, time::Duration};

use coord_api::{ConfigEvent, Result, Version, Watch};
use futures::{StreamExt, stream};

use crate::{Raw, World, tools::within};

pub(crate) mod exact;
pub(crate) mod file;
pub(crate) mod gray;
pub(crate) mod held;
pub(crate) mod history;
pub(crate) mod live;
pub(crate) mod resume;
pub(crate) mod schema;
pub(crate) mod secrets;
pub(crate) mod user_code;
pub(crate) mod values;
pub(crate) mod watch;
pub(crate) mod writes;

/// The next item, which must come soon.
#[track_caller]
fn next<T>(watch: &mut Watch<ConfigEvent<T>>) -> impl Future<Output = Result<ConfigEvent<T>>> {
    let item = within(crate::tools::LIMIT, watch.next());
    async { item.await.expect("a watch ends only when its provider is closed") }
}

/// What a client knows that believes every event, and checks that nothing goes back in time.
struct Known<T> {
    values: BTreeMap<String, (T, Version)>,
    /// The last version that was seen, and whether it was a snapshot's.
    last: Version,
    snapshots: usize,
    events: usize,
}

impl<T: Debug + PartialEq> Known<T> {
    fn new() -> Self {
        Self { values: BTreeMap::new(), last: Version::ABSENT, snapshots: 0, events: 0 }
    }

    fn apply(&mut self, event: ConfigEvent<T>) {
        self.events += 1;
        match event {
            ConfigEvent::Snapshot { version, settings } => {
                assert!(version >= self.last, "a snapshot of {version} after {}", self.last);
                assert!(settings.is_sorted_by(|a, b| a.key < b.key), "{settings:?}");
                let mut values = BTreeMap::new();
                for setting in settings {
                    assert!(setting.version <= version, "{setting:?} is younger than its snapshot");
                    if let Some((_, before)) = self.values.get(&setting.key) {
                        assert!(setting.version >= *before, "{setting:?} after {before}");
                    }
                    values.insert(setting.key, (setting.value, setting.version));
                }
                self.values = values;
                self.last = version;
                self.snapshots += 1;
            }
            ConfigEvent::Set(setting) => {
                self.moves_on_to(setting.version, &setting.key);
                self.values.insert(setting.key, (setting.value, setting.version));
            }
            ConfigEvent::Deleted { key, version } => {
                self.moves_on_to(version, &key);
                assert!(self.values.remove(&key).is_some(), "{key} was deleted but not there");
            }
            other => panic!("unknown event {other:?}"),
        }
    }

    fn moves_on_to(&mut self, version: Version, key: &str) {
        assert!(self.snapshots > 0, "the first item is a snapshot");
        // Several keys of one batch have one version.
        assert!(version >= self.last, "{key} at {version} after {}", self.last);
        if let Some((_, before)) = self.values.get(key) {
            assert!(version > *before, "{key} at {version} twice");
        }
        self.last = version;
    }

    /// Takes events until `done`.
    async fn follow(
        &mut self,
        watch: &mut Watch<ConfigEvent<T>>,
        limit: Duration,
        done: impl Fn(&BTreeMap<String, (T, Version)>) -> bool,
    ) {
        let following = async {
            while !done(&self.values) {
                self.apply(watch.next().await.expect("does not end").expect("every value is good"));
            }
        };
        let in_time = tokio::time::timeout(limit, following).await.is_ok();
        let (values, events) = (&self.values, self.events);
        assert!(in_time, "the watch stopped at {values:?} after {events} events");
    }
}

/// Whether `key` has `value`.
fn is<T: PartialEq>(values: &BTreeMap<String, (T, Version)>, key: &str, value: &T) -> bool {
    values.get(key).is_some_and(|(found, _)| found == value)
}

/// Writes `count` numbers over ten keys below `prefix`, several at a time.
async fn write_many(world: &dyn World, prefix: &str, count: usize) {
    stream::iter(0..count)
        .for_each_concurrent(16, |number| async move {
            let key = format!("{prefix}/{}", number % 10);
            world.put_raw(Raw::Config { key: &key }, number.to_string().as_bytes()).await;
        })
        .await;
}
