//! Snapshot files: whatever comes into use is what the file says, and for whom.

use std::{path::PathBuf, sync::Arc, time::Duration};

use coord_api::{ConfigCenter, ConfigExt, Error};
use coord_config::{Audience, GrayExt, Instance, Live, LiveBuilder, LiveExt, Origin, WhenDeleted};

use crate::{
    TestClient,
    suite::tests,
    tools::{LIMIT, SHORT, eventually, within},
};

/// A folder of the test's own, gone with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(format!("coord-file-{:016x}", fastrand::u64(..)));
        std::fs::create_dir(&path).expect("can be made");
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("limits.json")
    }

    /// Files are written by a thread that no virtual clock waits for.
    async fn holds(&self, text: &str) {
        for _ in 0..10_000 {
            if std::fs::read_to_string(self.file()).is_ok_and(|found| found.contains(text)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
            tokio::task::yield_now().await;
        }
        panic!("{text} is not in the file");
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn live(config: &Arc<dyn ConfigCenter>, folder: &Folder) -> LiveBuilder<u32> {
    config.live::<u32>("limits").snapshot_file(folder.file()).start_within(SHORT)
}

/// Waits until the live value is this one.
#[track_caller]
fn becomes(live: &Live<u32>, value: u32) -> impl Future<Output = ()> {
    eventually(LIMIT * 2, move || async move { *live.current() == value })
}

fn away(client: &TestClient) -> Arc<dyn ConfigCenter> {
    client.link.cut();
    client.config()
}

tests! { "config";
    /// Contract 9: a deletion is saved: it does not come undone by a start while the store is away.
    async fn a_deletion_is_saved(world: &dyn World) {
        let (writer, other) = (world.client().await.config(), world.client().await);
        writer.set("limits", &1).await.expect("is written");
        let folder = Folder::new();
        let back = |builder: LiveBuilder<u32>| builder.default(9).when_deleted(WhenDeleted::Default);
        let first = back(live(&writer, &folder)).start().await.expect("exists");
        folder.holds("\"version\"").await;
        writer.delete("limits").await.expect("is answered");
        becomes(&first, 9).await;
        folder.holds("\"deleted\": true").await;
        drop(first);
        let config = away(&other);
        let second = within(LIMIT, back(live(&config, &folder)).start()).await.expect("has a file");
        assert_eq!((*second.current(), second.origin()), (9, Origin::Default));
        assert!(!second.state().is_good());
        drop(second);

        // What is kept is kept in the file as well.
        other.link.restore();
        let version = writer.set("limits", &2).await.expect("is written");
        let keeping = live(&writer, &folder).default(9).start().await.expect("exists");
        writer.delete("limits").await.expect("is answered");
        eventually(LIMIT, || async { keeping.origin() == Origin::Kept(version) }).await;
        folder.holds("\"deleted\": true").await;
        drop(keeping);
        let config = away(&other);
        let second = within(LIMIT, live(&config, &folder).default(9).start()).await.expect("has a file");
        assert_eq!((*second.current(), second.origin()), (2, Origin::File(version)));
        drop(second);
        let second = within(LIMIT, back(live(&config, &folder)).start()).await.expect("has a file");
        assert_eq!(*second.current(), 9, "as this one takes deletions");
    }

    /// Contract 9: a key that did not exist at a start is saved as that, over what an older file says.
    async fn a_missing_key_is_saved(world: &dyn World) {
        let (writer, other) = (world.client().await.config(), world.client().await);
        writer.set("limits", &1).await.expect("is written");
        let folder = Folder::new();
        let first = live(&writer, &folder).start().await.expect("exists");
        folder.holds("\"version\"").await;
        drop(first);
        writer.delete("limits").await.expect("is answered");
        let without = live(&writer, &folder).default(9).start().await.expect("has a default");
        folder.holds("\"entries\": []").await;
        drop(without);
        let config = away(&other);
        let second = within(LIMIT, live(&config, &folder).default(9).start()).await.expect("has a file");
        assert_eq!((*second.current(), second.origin()), (9, Origin::Default));
        let version = writer.set("limits", &3).await.expect("is written");
        other.link.restore();
        becomes(&second, 3).await;
        assert_eq!(second.origin(), Origin::Store(version));
    }

    /// Contract 9: what was deleted while a service ran on its file is told when the store is heard.
    async fn a_deletion_that_was_not_seen_is_told(world: &dyn World) {
        let (writer, other) = (world.client().await.config(), world.client().await);
        let version = writer.set("limits", &1).await.expect("is written");
        for when in [WhenDeleted::Default, WhenDeleted::Keep] {
            let version = if when == WhenDeleted::Keep {
                writer.set("limits", &1).await.expect("is written")
            } else {
                version
            };
            let folder = Folder::new();
            let first = live(&writer, &folder).start().await.expect("exists");
            folder.holds(&format!("\"version\": {version}")).await;
            drop(first);
            let config = away(&other);
            let builder = live(&config, &folder).default(9).when_deleted(when);
            let second = within(LIMIT, builder.start()).await.expect("has a file");
            assert_eq!(second.origin(), Origin::File(version));
            writer.delete("limits").await.expect("is answered");
            other.link.restore();
            let expected = match when {
                WhenDeleted::Default => (9, Origin::Default),
                WhenDeleted::Keep => (1, Origin::Kept(version)),
            };
            eventually(LIMIT * 2, || async { (*second.current(), second.origin()) == expected }).await;
            folder.holds("\"deleted\": true").await;
        }
    }

    /// Contract 9: a file is not used for another key, and a gray value not for another instance.
    async fn a_file_is_used_for_its_own_audience(world: &dyn World) {
        let (writer, other) = (world.client().await.config(), world.client().await);
        let version = writer.set("limits", &1).await.expect("is written");
        let released = writer.gray("limits").release(&2, Audience::labelled("region", "eu")).await;
        let released = released.expect("is released");
        let folder = Folder::new();
        let (eu, us) =
            (Instance::new("im-1").with("region", "eu"), Instance::new("im-2").with("region", "us"));
        let first = live(&writer, &folder).instance(eu.clone()).start().await.expect("exists");
        assert_eq!(*first.current(), 2);
        folder.holds(&format!("\"version\": {released}")).await;
        drop(first);
        let config = away(&other);
        for (instance, expected) in [
            (Some(eu), (2, Origin::File(released))),
            (Some(us), (1, Origin::File(version))),
            (None, (1, Origin::File(version))),
        ] {
            let builder = live(&config, &folder);
            let builder = if let Some(instance) = instance { builder.instance(instance) } else { builder };
            let live = within(LIMIT, builder.start()).await.expect("has a file");
            assert_eq!((*live.current(), live.origin()), expected);
        }
        let another = config.live::<u32>("other").snapshot_file(folder.file()).start_within(SHORT);
        crate::expect::expect_unreachable(within(LIMIT, another.start()).await);
    }

    /// Contract 11: a file that a live value has is refused to another one, and free when its last handle is gone.
    async fn a_file_belongs_to_one_live_value(world: &dyn World) {
        let config = world.client().await.config();
        config.set("limits", &1).await.expect("is written");
        config.set("other", &2).await.expect("is written");
        let folder = Folder::new();
        std::fs::write(folder.0.join("limits.json.0badcafe.tmp"), "{").expect("is written");
        for _ in 0..20 {
            let first = live(&config, &folder).start().await.expect("the file is free");
            let clone = first.clone();
            drop(first);
            let refused = config.live::<u32>("other").snapshot_file(folder.file()).start().await;
            assert!(
                matches!(&refused, Err(Error::InvalidArgument { field: "snapshot_file", reason }) if reason.contains("another live value")),
                "{refused:?}"
            );
            drop(clone);
        }
        let _last = live(&config, &folder).start().await.expect("the file is free");
        folder.holds("\"limits\"").await;
        let leftover = folder.0.join("limits.json.0badcafe.tmp");
        assert!(!leftover.exists(), "what a killed process left is removed");
    }
}
