//! What a watch over a service's instances tells.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{Error, ServiceEvent, ServiceInfo, Watch};

use super::{foreign_record, ids, instance};
use crate::{
    Raw,
    expect::expect_decode,
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, keys_become, spawn, within},
};

/// The next item, which must come soon.
#[track_caller]
fn next(watch: &mut Watch<ServiceEvent>) -> impl Future<Output = coord_api::Result<ServiceEvent>> {
    let item = within(LIMIT, watch.next());
    async { item.await.expect("a watch ends only when its provider is closed") }
}

/// The instances of the snapshot that must come next.
async fn snapshot(watch: &mut Watch<ServiceEvent>) -> Vec<ServiceInfo> {
    match next(watch).await {
        Ok(ServiceEvent::Snapshot { instances, .. }) => instances,
        other => panic!("expected a snapshot, got {other:?}"),
    }
}

/// What a client knows that believes every event, and checks that they fit together.
#[derive(Default)]
struct Known(BTreeMap<String, ServiceInfo>);

impl Known {
    fn apply(&mut self, event: ServiceEvent) {
        match event {
            ServiceEvent::Snapshot { instances, .. } => {
                assert!(instances.is_sorted_by(|a, b| a.id < b.id), "{instances:?}");
                self.0 = instances.into_iter().map(|info| (info.id.clone(), info)).collect();
            }
            ServiceEvent::Added(info) => {
                let before = self.0.insert(info.id.clone(), info);
                assert!(before.is_none(), "added although it was there: {before:?}");
            }
            ServiceEvent::Updated { old, new } => {
                assert_eq!(old.id, new.id);
                assert_ne!(old, new, "nothing has changed");
                let before = self.0.insert(new.id.clone(), new);
                assert_eq!(before, Some(old));
            }
            ServiceEvent::Removed(info) => assert_eq!(self.0.remove(&info.id), Some(info)),
            other => panic!("unknown event {other:?}"),
        }
    }

    fn ids(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// Takes events until `done`.
    async fn follow(
        &mut self,
        watch: &mut Watch<ServiceEvent>,
        limit: Duration,
        done: impl Fn(&Self) -> bool,
    ) {
        let following = async {
            while !done(self) {
                self.apply(watch.next().await.expect("does not end").expect("every record is good"));
            }
        };
        let in_time = tokio::time::timeout(limit, following).await.is_ok();
        assert!(in_time, "the watch stopped at {:?}", self.0);
    }
}

tests! { "registry";
    /// Contract 8: a watch begins with what is there, then tells each change once with the full records.
    async fn a_watch_tells_every_change(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let first = instance("1").with("v", "1");
        let registration = within(LIMIT, server.register(first.clone(), LONG)).await.expect("is free");
        let mut watch = client.watch("svc").await.expect("is answered");
        assert_eq!(snapshot(&mut watch).await, std::slice::from_ref(&first));

        let second =
            within(LIMIT, server.register(instance("2").with("zone", "b"), LONG)).await.expect("is free");
        let added = next(&mut watch).await.expect("is good");
        assert_eq!(added, ServiceEvent::Added(instance("2").with("zone", "b")));

        let metadata = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
        within(LIMIT, registration.update(metadata)).await.expect("is registered");
        let new = instance("1").with("v", "2");
        let updated = next(&mut watch).await.expect("is good");
        assert_eq!(updated, ServiceEvent::Updated { old: first, new: new.clone() });

        within(LIMIT, registration.deregister()).await.expect("is registered");
        assert_eq!(next(&mut watch).await.expect("is good"), ServiceEvent::Removed(new));
        drop(second);
        let removed = next(&mut watch).await.expect("is good");
        assert_eq!(removed, ServiceEvent::Removed(instance("2").with("zone", "b")));
    }

    /// Contract 8: a watch over a service without instances begins with an empty snapshot.
    async fn a_watch_may_begin_before_the_first_instance(world: &dyn World) {
        let registry = world.client().await.registry();
        let mut watch = registry.watch("svc").await.expect("is answered");
        assert_eq!(snapshot(&mut watch).await, []);
        let _registration = within(LIMIT, registry.register(instance("1"), LONG)).await.expect("is free");
        assert_eq!(next(&mut watch).await.expect("is good"), ServiceEvent::Added(instance("1")));
    }

    /// Contract 8: there is no gap between the snapshot and the first change, however the watch and the
    /// registrations meet.
    async fn no_registration_is_missed_while_a_watch_opens(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let registering = spawn(async move {
            let mut registrations = Vec::new();
            for number in 10..40 {
                registrations
                    .push(server.register(instance(&format!("{number}")), LONG).await.expect("is free"));
            }
            registrations
        });
        let mut watches = Vec::new();
        for _ in 0..5 {
            watches.push(client.watch("svc").await.expect("is answered"));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let registrations = registering.join_within(LONG_LIMIT).await;
        for mut watch in watches {
            let mut known = Known::default();
            known.follow(&mut watch, LIMIT, |known| known.0.len() == registrations.len()).await;
        }
    }

    /// Contract 11: a watch tells nothing of services of similar names.
    async fn a_watch_sees_its_own_service_only(world: &dyn World) {
        let registry = world.client().await.registry();
        let mut watch = registry.watch("svc").await.expect("is answered");
        assert_eq!(snapshot(&mut watch).await, []);
        let mut others = Vec::new();
        for name in ["svc-2", "svc/sub", "sv", "svc2"] {
            let info = ServiceInfo::new(name, "1", "10.0.0.1", 80);
            others.push(within(LIMIT, registry.register(info, LONG)).await.expect(name));
        }
        drop(others);
        keys_become(world, 0).await;
        let _mine = within(LIMIT, registry.register(instance("mine"), LONG)).await.expect("is free");
        assert_eq!(next(&mut watch).await.expect("is good"), ServiceEvent::Added(instance("mine")));
    }

    /// Contract 8: a record that can not be decoded is an item with its key, and the watch goes on.
    async fn a_bad_record_is_an_item(world: &dyn World) {
        let registry = world.client().await.registry();
        let at = Raw::Service { name: "svc", id: "bad" };
        world.put_raw(at, b"{").await;
        let mut watch = registry.watch("svc").await.expect("is answered");
        assert_eq!(snapshot(&mut watch).await, []);
        assert_eq!(expect_decode(next(&mut watch).await).0, "svc/bad");

        world.put_raw(at, br#"{"id":"bad","name":"svc","address":"h","port":"none","metadata":{}}"#).await;
        let Err(Error::Decode { key, .. }) = next(&mut watch).await else {
            panic!("the port is no number");
        };
        assert_eq!(key, "svc/bad");
        world.put_raw(at, foreign_record("svc", "bad").as_bytes()).await;
        let mended = ServiceInfo::new("svc", "bad", "10.9.9.9", 9000);
        assert_eq!(next(&mut watch).await.expect("is good"), ServiceEvent::Added(mended.clone()));
        // The same record again is nothing that a client could act on.
        world.put_raw(at, foreign_record("svc", "bad").as_bytes()).await;
        world.delete_raw(at).await;
        assert_eq!(next(&mut watch).await.expect("is good"), ServiceEvent::Removed(mended));
    }

    /// Contract 8: no item is lost when the wait for the next one is given up.
    async fn waiting_for_an_item_may_be_given_up(world: &dyn World) {
        let registry = world.client().await.registry();
        let mut watch = registry.watch("svc").await.expect("is answered");
        let mut known = Known::default();
        let mut registrations = Vec::new();
        for number in 10..30 {
            registrations
                .push(registry.register(instance(&format!("{number}")), LONG).await.expect("is free"));
            if let Ok(item) = tokio::time::timeout(Duration::from_micros(200), watch.next()).await {
                known.apply(item.expect("does not end").expect("is good"));
            }
        }
        known.follow(&mut watch, LIMIT, |known| known.0.len() == 20).await;
    }

    /// Contract 8: a store that forgets its history during a watch changes nothing for the watcher.
    async fn a_watch_survives_compaction(world: &dyn World) {
        let (server, watching) = (world.client().await.registry(), world.client().await);
        let mut watch = watching.registry().watch("svc").await.expect("is answered");
        let mut known = Known::default();
        let first = within(LIMIT, server.register(instance("1"), LONG)).await.expect("is free");
        known.follow(&mut watch, LIMIT, |known| known.ids() == ["1"]).await;
        world.compact().await;
        let _second = within(LIMIT, server.register(instance("2"), LONG)).await.expect("is free");
        known.follow(&mut watch, LIMIT, |known| known.ids() == ["1", "2"]).await;

        // The changes and their history pass by while the watcher is away: it must not resume where it was.
        watching.link.cut();
        within(LIMIT, first.deregister()).await.expect("is registered");
        let _third = within(LIMIT, server.register(instance("3"), LONG)).await.expect("is free");
        world.compact().await;
        tokio::time::sleep(SHORT).await;
        watching.link.restore();
        known.follow(&mut watch, LIMIT * 2, |known| known.ids() == ["2", "3"]).await;
    }

    /// Contract 8: a watch goes on after a partition, with all that happened meanwhile.
    async fn a_watch_survives_a_partition(world: &dyn World) {
        let (server, watching) = (world.client().await.registry(), world.client().await);
        let mut watch = watching.registry().watch("svc").await.expect("is answered");
        let mut known = Known::default();
        let first = within(LIMIT, server.register(instance("1"), LONG)).await.expect("is free");
        known.follow(&mut watch, LIMIT, |known| known.ids() == ["1"]).await;
        let partition = async {
            watching.link.cut();
            within(LIMIT, first.deregister()).await.expect("is registered");
            let second = within(LIMIT, server.register(instance("2"), LONG)).await.expect("is free");
            tokio::time::sleep(SHORT).await;
            watching.link.restore();
            second
        };
        let following = known.follow(&mut watch, LIMIT * 2, |known| known.ids() == ["2"]);
        let ((), second) = tokio::join!(following, partition);
        within(LIMIT, second.deregister()).await.expect("is registered");
        known.follow(&mut watch, LIMIT, |known| known.0.is_empty()).await;
    }

    /// Contract 8: the registration of a crashed process is told as removed, and its return as added.
    async fn a_crash_and_a_return_are_told(world: &dyn World) {
        let (server, client) = (world.client().await, world.client().await.registry());
        let mut watch = client.watch("svc").await.expect("is answered");
        let _registration =
            within(LIMIT, server.registry().register(instance("1"), SHORT)).await.expect("is free");
        let mut known = Known::default();
        known.follow(&mut watch, LIMIT, |known| known.ids() == ["1"]).await;
        server.link.cut();
        known.follow(&mut watch, LIMIT, |known| known.0.is_empty()).await;
        server.link.restore();
        known.follow(&mut watch, LIMIT * 2, |known| known.ids() == ["1"]).await;
    }

    /// Contract 8: a consumer that does not look for a long time finds the right instances in the end.
    async fn a_slow_consumer_ends_up_right(world: &dyn World) {
        let client = world.client().await.registry();
        let mut watch = client.watch("svc").await.expect("is answered");
        for number in 0..1_000 {
            let id = format!("{}", number % 10);
            let record = format!(r#"{{"id":"{id}","name":"svc","address":"h","port":{}}}"#, number + 1);
            world.put_raw(Raw::Service { name: "svc", id: &id }, record.as_bytes()).await;
        }
        world.delete_raw(Raw::Service { name: "svc", id: "0" }).await;
        let mut known = Known::default();
        known
            .follow(&mut watch, LONG_LIMIT, |known| {
                known.0.len() == 9 && known.0.values().all(|info| info.port > 990)
            })
            .await;
        assert_eq!(ids(&*client, "svc").await, known.ids());
    }
}
