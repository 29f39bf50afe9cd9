//! What is registered, and what others see of it.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{MAX_METADATA_BYTES, ServiceInfo};

use super::{foreign_record, ids, instance};
use crate::{
    Raw,
    expect::{expect_too_large, expect_unreachable},
    suite::tests,
    tools::{LIMIT, LONG, SHORT, eventually, keys_become, poll_at_most, within},
};

tests! { "registry";
    /// Contract 1: a registered instance is discovered by every client, with all its fields, until it is
    /// deregistered.
    async fn a_registered_instance_is_discovered(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        assert_eq!(client.discover("svc").await.expect("is answered"), []);
        let info = instance("svc-1").with("region", "us-east-1").with("说明", "日报 \"quoted\" \u{1f600}");
        let registration = within(LIMIT, server.register(info.clone(), LONG)).await.expect("is free");
        assert_eq!(registration.service(), &info);
        assert!(registration.ttl() >= LONG);
        for registry in [&client, &server] {
            assert_eq!(registry.discover("svc").await.expect("is answered"), std::slice::from_ref(&info));
        }
        within(LIMIT, registration.deregister()).await.expect("is registered");
        assert_eq!(client.discover("svc").await.expect("is answered"), []);
        assert_eq!(world.keys().await, [""; 0]);
    }

    /// Contract 12: IPv6 addresses and host names are kept as they are.
    async fn addresses_are_kept_as_they_are(world: &dyn World) {
        let registry = world.client().await.registry();
        let addresses = ["10.0.0.1", "2001:db8::1", "::1", "db-1.local", "localhost"];
        let mut registrations = Vec::new();
        for (number, address) in addresses.iter().enumerate() {
            let info = ServiceInfo::new("svc", format!("{number}"), *address, 65_535);
            registrations.push(within(LIMIT, registry.register(info, LONG)).await.expect(address));
        }
        let found = registry.discover("svc").await.expect("is answered");
        assert_eq!(found.iter().map(|info| info.address.as_str()).collect::<Vec<_>>(), addresses);
        assert_eq!(found[1].authority(), "[2001:db8::1]:65535");
    }

    /// Contract 11: all services that have an instance are told, each with what it is discovered with; a record that
    /// can not be read makes no service.
    async fn every_service_is_told(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        assert!(within(LIMIT, client.services()).await.expect("is answered").is_empty());
        let mut registrations = Vec::new();
        for (service, id) in [("a", "2"), ("a", "1"), ("a-2", "1"), ("a/b", "host/1"), ("日报", "1")] {
            let info = ServiceInfo::new(service, id, "10.0.1.10", 8080);
            registrations.push(within(LIMIT, server.register(info, LONG)).await.expect("is free"));
        }
        world.put_raw(Raw::Service { name: "bad", id: "1" }, b"no record").await;
        let services = within(LIMIT, client.services()).await.expect("is answered");
        assert_eq!(services.keys().collect::<Vec<_>>(), ["a", "a-2", "a/b", "日报"]);
        for (service, instances) in services {
            assert_eq!(client.discover(&service).await.expect("is answered"), instances);
        }
        for registration in registrations {
            within(LIMIT, registration.deregister()).await.expect("is registered");
        }
        assert!(within(LIMIT, client.services()).await.expect("is answered").is_empty());
    }

    /// Contract 8: instances are discovered ordered by id.
    async fn instances_are_ordered_by_id(world: &dyn World) {
        let registry = world.client().await.registry();
        let mut registrations = Vec::new();
        for id in ["3", "b", "1", "10", "a/z", "2", "a"] {
            registrations.push(within(LIMIT, registry.register(instance(id), LONG)).await.expect(id));
        }
        assert_eq!(ids(&*registry, "svc").await, ["1", "10", "2", "3", "a", "a/z", "b"]);
    }

    /// Contract 1: a fraction of the asked TTL is rounded up, and what was granted is told.
    async fn the_granted_ttl_is_told(world: &dyn World) {
        let registry = world.client().await.registry();
        let registration =
            within(LIMIT, registry.register(instance("1"), Duration::from_millis(1_900))).await;
        let ttl = registration.expect("is free").ttl();
        assert!(ttl >= Duration::from_secs(2) && ttl.subsec_nanos() == 0, "{ttl:?}");
    }

    /// Contract 10: dropping the registration deregisters the instance.
    async fn dropping_the_registration_deregisters(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let registration = within(LIMIT, server.register(instance("1"), LONG)).await.expect("is free");
        assert_eq!(ids(&*client, "svc").await, ["1"]);
        drop(registration);
        eventually(LIMIT, || async { ids(&*client, "svc").await.is_empty() }).await;
        keys_become(world, 0).await;
    }

    /// Contract 11: services of similar names, and instances whose ids contain paths, never see each other.
    async fn similar_services_never_meet(world: &dyn World) {
        let registry = world.client().await.registry();
        let pairs = [
            ("im-logic", "1"),
            ("im-logic-2", "1"),
            ("im", "logic"),
            ("a", "b/c"),
            ("a/b", "c"),
            ("a/b/c", "d"),
            ("a", "1"),
        ];
        let mut registrations = Vec::new();
        for (name, id) in pairs {
            let info = ServiceInfo::new(name, id, "10.0.0.1", 80);
            registrations.push(within(LIMIT, registry.register(info, LONG)).await.expect(name));
        }
        for (name, expected) in [
            ("im-logic", &["1"][..]),
            ("im-logic-2", &["1"]),
            ("im", &["logic"]),
            ("a", &["1", "b/c"]),
            ("a/b", &["c"]),
            ("a/b/c", &["d"]),
            ("b", &[]),
        ] {
            assert_eq!(ids(&*registry, name).await, expected, "{name}");
        }
        for (registration, (name, _)) in registrations.into_iter().zip(pairs) {
            within(LIMIT, registration.deregister()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        assert_eq!(world.keys().await, [""; 0]);
    }

    /// Contract 8: a change of metadata is seen by the next discovery.
    async fn updated_metadata_is_discovered(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let info = instance("1").with("v", "1");
        let registration = within(LIMIT, server.register(info, LONG)).await.expect("is free");
        for version in ["2", "3"] {
            let metadata = BTreeMap::from([("v".to_owned(), version.to_owned())]);
            within(LIMIT, registration.update(metadata)).await.expect("is registered");
            let expected = instance("1").with("v", version);
            assert_eq!(client.discover("svc").await.expect("is answered"), [expected]);
        }
        within(LIMIT, registration.deregister()).await.expect("is registered");
        keys_become(world, 0).await;
    }

    /// Contract 12: metadata that is too large is refused before anything is sent, and the old stays.
    async fn too_large_metadata_is_refused(world: &dyn World) {
        let registry = world.client().await.registry();
        let largest = instance("1").with("k", "v".repeat(MAX_METADATA_BYTES - 1));
        let registration =
            within(LIMIT, registry.register(largest.clone(), LONG)).await.expect("is within the limit");
        let larger = BTreeMap::from([("k".to_owned(), "v".repeat(MAX_METADATA_BYTES))]);
        expect_too_large("metadata", registration.update(larger.clone()).await);
        assert_eq!(registry.discover("svc").await.expect("is answered"), [largest]);

        let mut refused = instance("2");
        refused.metadata = larger;
        expect_too_large("metadata", registry.register(refused, LONG).await);
        assert_eq!(ids(&*registry, "svc").await, ["1"]);
    }

    /// Contract 8: a record that another program wrote, as the Go original does, is an instance like any
    /// other.
    async fn records_of_other_programs_are_read(world: &dyn World) {
        let registry = world.client().await.registry();
        let at = Raw::Service { name: "svc", id: "go-1" };
        world.put_raw(at, foreign_record("svc", "go-1").as_bytes()).await;
        let expected = ServiceInfo::new("svc", "go-1", "10.9.9.9", 9000);
        assert_eq!(registry.discover("svc").await.expect("is answered"), [expected]);
        world.delete_raw(at).await;
        assert_eq!(ids(&*registry, "svc").await, [""; 0]);
    }

    /// Contract 8: a record that can not be decoded hides no other instance.
    async fn bad_records_are_left_out(world: &dyn World) {
        let registry = world.client().await.registry();
        let _good = within(LIMIT, registry.register(instance("good"), LONG)).await.expect("is free");
        let elsewhere = foreign_record("other", "moved");
        let table: [(&str, &[u8]); 6] = [
            ("syntax", b"{"),
            ("empty", b""),
            ("bytes", &[0xff, 0xfe]),
            ("shape", br#"{"id":"shape","name":"svc","address":"h","port":99999,"metadata":{}}"#),
            ("list", b"[]"),
            ("moved", elsewhere.as_bytes()),
        ];
        for (id, value) in table {
            world.put_raw(Raw::Service { name: "svc", id }, value).await;
        }
        assert_eq!(ids(&*registry, "svc").await, ["good"]);
    }

    /// Contract 6: a registration that is dropped half-way leaves nothing behind.
    async fn a_registration_may_be_dropped_at_any_point(world: &dyn World) {
        let registry = world.client().await.registry();
        for polls in 0..12 {
            drop(poll_at_most(polls, registry.register(instance("1"), LONG)).await);
            keys_become(world, 0).await;
        }
        for micros in [50, 100, 200, 400, 800, 1_500, 3_000] {
            drop(
                tokio::time::timeout(Duration::from_micros(micros), registry.register(instance("1"), LONG))
                    .await,
            );
            keys_become(world, 0).await;
        }
    }

    /// Contract 7: a registration that gets no answer fails in bounded time and leaves nothing behind.
    async fn an_unanswered_registration_leaves_nothing(world: &dyn World) {
        let (cut_off, other) = (world.client().await, world.client().await.registry());
        cut_off.link.cut();
        expect_unreachable(within(LIMIT, cut_off.registry().register(instance("1"), SHORT)).await);
        expect_unreachable(within(LIMIT, cut_off.registry().discover("svc")).await);
        cut_off.link.restore();
        keys_become(world, 0).await;
        let _registered = within(LIMIT, other.register(instance("1"), LONG)).await.expect("is free");
    }
}
