//! Views: what they show, how old it may be, and leaving without failed calls.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{Error, RegistrationStatus, ServiceInfo, ServiceView};
use tokio::time::Instant;

use super::{foreign_record, instance};
use crate::{
    Raw,
    expect::{expect_closed, expect_lost},
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, eventually, spawn, within},
};

/// The ids that a view shows.
fn ids(view: &ServiceView) -> Vec<String> {
    view.look(|instances| instances.iter().map(|instance| instance.id.clone()).collect())
}

/// Waits until a view shows these instances, ordered by id.
async fn shows(view: &mut ServiceView, expected: &[ServiceInfo]) {
    let is_so = |view: &ServiceView| {
        let instances = view.instances();
        instances.len() == expected.len()
            && instances.iter().zip(expected).all(|(shown, info)| **shown == *info)
    };
    while !is_so(view) {
        within(LIMIT, view.changed()).await.expect("is open");
    }
}

tests! { "registry";
    /// Contract 9: a view shows the instances as they come, change and go, to each who asked for it.
    async fn a_view_follows_the_registry(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let mut view = client.view("svc").await.expect("is answered");
        let mut other = client.view("svc").await.expect("is answered");
        assert_eq!((view.service(), ids(&view)), ("svc", vec![]));
        let waiting = spawn({
            let view = view.clone();
            async move { view.ready().await.expect("is open").iter().map(|info| info.id.clone()).collect::<Vec<_>>() }
        });
        let second = within(LIMIT, server.register(instance("2"), LONG)).await.expect("is free");
        assert_eq!(waiting.join_within(LIMIT).await, ["2"]);
        let first = within(LIMIT, server.register(instance("1").with("v", "1"), LONG)).await.expect("is free");
        let metadata = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
        within(LIMIT, first.update(metadata)).await.expect("is registered");
        for view in [&mut view, &mut other] {
            shows(view, &[instance("1").with("v", "2"), instance("2")]).await;
        }
        within(LIMIT, second.deregister()).await.expect("is registered");
        drop(first);
        shows(&mut other, &[]).await;
        assert!(view.freshness().is_fresh());
    }

    /// Contract 8: a view begins with what is there, as `discover` tells it, also when another ended just before.
    async fn a_view_begins_with_what_is_there(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let mut registrations = Vec::new();
        for number in 1..=5 {
            let id = format!("{number}");
            registrations.push(within(LIMIT, server.register(instance(&id), LONG)).await.expect("is free"));
            let view = client.view("svc").await.expect("is answered");
            assert_eq!(view.instances().len(), number);
            assert!(view.instances().get(&id).is_some());
        }
    }

    /// Contract 9: while the store is away the last instances stay, and the view says that it is stale and for how
    /// long; then it catches up.
    async fn a_view_keeps_the_last_instances_while_the_store_is_away(world: &dyn World) {
        let (server, watching) = (world.client().await.registry(), world.client().await);
        let first = within(LIMIT, server.register(instance("1"), LONG)).await.expect("is free");
        let mut view = watching.registry().view("svc").await.expect("is answered");
        let mut contact = view.connectivity();
        let cut = Instant::now();
        watching.link.cut();
        within(LIMIT, first.deregister()).await.expect("is registered");
        let _second = within(LIMIT, server.register(instance("2"), LONG)).await.expect("is free");
        let stale = within(LONG_LIMIT, contact.changed()).await;
        assert!(stale.stale_for().is_some_and(|time| time <= cut.elapsed()), "{stale:?}");
        assert_eq!(ids(&view), ["1"]);
        watching.link.restore();
        let fresh = within(LONG_LIMIT, contact.changed()).await;
        assert!(fresh.is_fresh(), "{fresh:?}");
        shows(&mut view, &[instance("2")]).await;
    }

    /// Contract 10: a view of a closed provider stays as it was, says that it is stale, and lets nobody wait.
    async fn a_view_of_a_closed_provider_stays_as_it_was(world: &dyn World) {
        let (server, watching) = (world.client().await.registry(), world.client().await);
        let _registration = within(LIMIT, server.register(instance("1"), LONG)).await.expect("is free");
        let registry = watching.registry();
        let mut view = registry.view("svc").await.expect("is answered");
        let empty = registry.view("other").await.expect("is answered");
        watching.close().await;
        expect_closed(within(LIMIT, view.changed()).await);
        expect_closed(within(LIMIT, empty.ready()).await);
        assert_eq!(ids(&view), ["1"]);
        assert!(within(LIMIT, view.ready()).await.is_ok(), "there is one");
        assert!(!view.freshness().is_fresh());
        expect_closed(registry.view("svc").await);
    }

    /// Contract 8: a record that can not be read changes nothing in a view.
    async fn a_bad_record_stays_as_it_was(world: &dyn World) {
        let registry = world.client().await.registry();
        let at = Raw::Service { name: "svc", id: "go" };
        world.put_raw(at, foreign_record("svc", "go").as_bytes()).await;
        let mut view = registry.view("svc").await.expect("is answered");
        let good = ServiceInfo::new("svc", "go", "10.9.9.9", 9000);
        shows(&mut view, std::slice::from_ref(&good)).await;
        world.put_raw(at, b"{").await;
        let _other = within(LIMIT, registry.register(instance("1"), LONG)).await.expect("is free");
        shows(&mut view, &[instance("1"), good]).await;
        world.delete_raw(at).await;
        shows(&mut view, &[instance("1")]).await;
    }

    /// Contract 12: a name that is no name is refused.
    async fn a_view_of_a_bad_name_is_refused(world: &dyn World) {
        let refused = world.client().await.registry().view("a//b").await;
        assert!(matches!(refused, Err(Error::InvalidArgument { field: "service name", .. })), "{refused:?}");
    }

    /// Contract 8: fields that another program added survive an update of the metadata.
    async fn foreign_fields_survive_an_update(world: &dyn World) {
        let registry = world.client().await.registry();
        let json = r#"{"id":"1","name":"svc","address":"::1","port":80,"metadata":{"v":"1"},"rack":{"row":7}}"#;
        let info: ServiceInfo = serde_json::from_str(json).expect("is a record");
        let registration = within(LIMIT, registry.register(info.clone(), LONG)).await.expect("is free");
        let metadata = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
        within(LIMIT, registration.update(metadata)).await.expect("is registered");
        let found = registry.discover("svc").await.expect("is answered");
        assert_eq!(found, [info.with("v", "2")]);
        let json = serde_json::to_value(&found[0]).expect("serializes");
        assert_eq!(json["rack"]["row"], 7);
    }

    /// Contract 3: a record that someone overwrites is written again as it was.
    async fn an_overwritten_record_is_written_again(world: &dyn World) {
        let registry = world.client().await.registry();
        let registration = within(LIMIT, registry.register(instance("1"), LONG)).await.expect("is free");
        let at = Raw::Service { name: "svc", id: "1" };
        world.put_raw(at, foreign_record("svc", "1").as_bytes()).await;
        // It belongs to another program now; when that goes, it is ours again.
        eventually(LIMIT, || async { registration.status() != RegistrationStatus::Registered }).await;
        world.delete_raw(at).await;
        eventually(LIMIT, || async {
            registration.status() == RegistrationStatus::Registered
                && registry.discover("svc").await.expect("is answered") == [instance("1")]
        })
        .await;
    }

    /// Contract 6: who drains is gone from the registry at once, and returns when clients have had time to see it.
    async fn draining_gives_clients_time_to_see_it(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let registration = within(LIMIT, server.register(instance("1"), LONG)).await.expect("is free");
        let view = client.view("svc").await.expect("is answered");
        assert_eq!(ids(&view), ["1"]);
        let grace = Duration::from_secs(1);
        let start = Instant::now();
        within(LIMIT, registration.drain_for(grace)).await.expect("is registered");
        assert_eq!(ids(&view), [""; 0], "the server may stop now");
        assert!(start.elapsed() >= grace);
    }

    /// Contract 6: draining may be given up; the instance is gone all the same, and draining what is not registered
    /// answers `Lost`.
    async fn draining_may_be_given_up(world: &dyn World) {
        let client = world.client().await;
        let registry = client.registry();
        let mut registration = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        let given_up = tokio::time::timeout(Duration::from_millis(1), registration.drain_for(LONG)).await;
        assert!(given_up.is_err());
        eventually(LIMIT, || async { registry.discover("svc").await.expect("is answered").is_empty() }).await;

        registration = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        client.link.cut();
        while registration.status() == RegistrationStatus::Registered {
            within(LIMIT, registration.status_changed()).await;
        }
        expect_lost(within(LIMIT, registration.drain_for(Duration::from_millis(10))).await);
        client.link.restore();
    }
}
