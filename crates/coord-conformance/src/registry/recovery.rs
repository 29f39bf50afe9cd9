//! Registrations that stay, and that come back by themselves.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{Registration, RegistrationStatus};
use tokio::time::Instant;

use super::{foreign_record, ids, instance};
use crate::{
    Raw,
    expect::expect_lost,
    suite::tests,
    tools::{LIMIT, LONG, SHORT, eventually, keys_become, within},
};

/// Waits until the registration has the status that `check` wants.
async fn status_becomes(registration: &mut Registration, check: fn(RegistrationStatus) -> bool) {
    while !check(registration.status()) {
        within(LIMIT, registration.status_changed()).await;
    }
}

fn is_recovering(status: RegistrationStatus) -> bool {
    matches!(status, RegistrationStatus::Recovering { .. })
}

fn is_registered(status: RegistrationStatus) -> bool {
    status == RegistrationStatus::Registered
}

fn metadata(version: &str) -> BTreeMap<String, String> {
    BTreeMap::from([("v".to_owned(), version.to_owned())])
}

tests! { "registry";
    /// Contract 1: a registration outlives its TTL by far, because it is renewed.
    async fn renewals_keep_the_registration(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let mut registration = within(LIMIT, server.register(instance("1"), SHORT)).await.expect("is free");
        let until = Instant::now() + registration.ttl() * 2 + Duration::from_secs(1);
        while Instant::now() < until {
            assert_eq!(ids(&*client, "svc").await, ["1"]);
            // A quick recovery would hide a lease that is not renewed.
            let change = tokio::time::timeout(Duration::from_millis(250), registration.status_changed()).await;
            assert!(change.is_err(), "{change:?}");
        }
        assert_eq!(registration.status(), RegistrationStatus::Registered);
    }

    /// Contract 1: the registration of a crashed process disappears after its TTL.
    async fn a_crashed_instance_disappears(world: &dyn World) {
        let (server, client) = (world.client().await, world.client().await.registry());
        let _registration =
            within(LIMIT, server.registry().register(instance("1"), SHORT)).await.expect("is free");
        server.link.cut();
        eventually(LIMIT, || async { ids(&*client, "svc").await.is_empty() }).await;
    }

    /// Contract 3: a registration whose lease was revoked comes back by itself, every time.
    async fn comes_back_after_every_revocation(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let mut registration = within(LIMIT, server.register(instance("1"), SHORT)).await.expect("is free");
        for _ in 0..3 {
            world.revoke_leases().await;
            // A quick recovery may show as one change.
            within(LIMIT, registration.status_changed()).await;
            status_becomes(&mut registration, is_registered).await;
            assert_eq!(ids(&*client, "svc").await, ["1"]);
        }
        assert!(!registration.is_lost());
        tokio::time::sleep(SHORT * 2).await;
        assert_eq!(ids(&*client, "svc").await, ["1"], "the new lease is not renewed");
        within(LIMIT, registration.deregister()).await.expect("is registered");
        keys_become(world, 0).await;
    }

    /// Contract 3: a registration that was deleted from outside comes back with its latest metadata.
    async fn comes_back_after_a_deletion_from_outside(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let registration =
            within(LIMIT, server.register(instance("1").with("v", "1"), SHORT)).await.expect("is free");
        within(LIMIT, registration.update(metadata("2"))).await.expect("is registered");
        for _ in 0..2 {
            world.delete_raw(Raw::Service { name: "svc", id: "1" }).await;
            eventually(LIMIT, || async {
                client.discover("svc").await.expect("is answered") == [instance("1").with("v", "2")]
            })
            .await;
        }
        assert!(!registration.is_lost());
    }

    /// Contract 3: a registration that was overwritten from outside with what is no record comes back; one that was
    /// overwritten with the record of another program does not, until that is gone.
    async fn comes_back_after_it_was_overwritten(world: &dyn World) {
        let (server, client) = (world.client().await.registry(), world.client().await.registry());
        let mut registration = within(LIMIT, server.register(instance("1"), SHORT)).await.expect("is free");
        let at = Raw::Service { name: "svc", id: "1" };
        let elsewhere = foreign_record("other", "1");
        for no_record in ["{", "", elsewhere.as_str()] {
            world.put_raw(at, no_record.as_bytes()).await;
            eventually(LIMIT, || async { ids(&*client, "svc").await == ["1"] }).await;
        }

        world.put_raw(at, foreign_record("svc", "1").as_bytes()).await;
        status_becomes(&mut registration, is_recovering).await;
        tokio::time::sleep(SHORT).await;
        assert_eq!(client.discover("svc").await.expect("is answered")[0].port, 9000);
        world.delete_raw(at).await;
        status_becomes(&mut registration, is_registered).await;
        assert_eq!(client.discover("svc").await.expect("is answered"), [instance("1")]);
    }

    /// Contract 3: a registration that was cut off past its TTL says that it is recovering, and is back soon
    /// after the network is.
    async fn comes_back_after_a_partition(world: &dyn World) {
        let (server, client) = (world.client().await, world.client().await.registry());
        let registry = server.registry();
        let mut registration = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        let cut = Instant::now();
        server.link.cut();
        status_becomes(&mut registration, is_recovering).await;
        let RegistrationStatus::Recovering { since, .. } = registration.status() else {
            panic!("it can not be back while the network is away: {:?}", registration.status());
        };
        assert!(since >= cut, "recovering since before it was cut off");
        assert!(!registration.is_lost(), "it is being recovered");
        eventually(LIMIT, || async { ids(&*client, "svc").await.is_empty() }).await;
        server.link.restore();
        status_becomes(&mut registration, is_registered).await;
        assert_eq!(ids(&*client, "svc").await, ["1"]);
    }

    /// Contract 3: metadata that is changed while the registration recovers goes out with it.
    async fn an_update_during_recovery_goes_out_with_it(world: &dyn World) {
        let (server, client) = (world.client().await, world.client().await.registry());
        let registry = server.registry();
        let mut registration = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        server.link.cut();
        status_becomes(&mut registration, is_recovering).await;
        within(LIMIT, registration.update(metadata("2"))).await.expect("is kept for later");
        server.link.restore();
        status_becomes(&mut registration, is_registered).await;
        eventually(LIMIT, || async {
            client.discover("svc").await.expect("is answered") == [instance("1").with("v", "2")]
        })
        .await;
    }

    /// Contract 6: deregistering what is not registered at the moment answers `Lost`, and it stays away.
    async fn deregistering_during_recovery_answers_lost(world: &dyn World) {
        let server = world.client().await;
        let registry = server.registry();
        let mut registration = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        server.link.cut();
        status_becomes(&mut registration, is_recovering).await;
        let lost = registration.lost();
        expect_lost(within(LIMIT, registration.deregister()).await);
        within(LIMIT, lost).await;
        server.link.restore();
        keys_become(world, 0).await;
        tokio::time::sleep(SHORT * 2).await;
        assert_eq!(world.keys().await, [""; 0], "it came back after it was deregistered");
    }

    /// Contract 10: a registration that is dropped while it recovers stays away.
    async fn dropping_during_recovery_ends_it(world: &dyn World) {
        let server = world.client().await;
        let registry = server.registry();
        let mut registration = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        server.link.cut();
        status_becomes(&mut registration, is_recovering).await;
        let lost = registration.lost();
        drop(registration);
        within(LIMIT, lost).await;
        server.link.restore();
        keys_become(world, 0).await;
        tokio::time::sleep(SHORT * 2).await;
        assert_eq!(world.keys().await, [""; 0], "it came back after it was dropped");
    }

    /// Contract 3: a recovering registration does not take over an id that another client has registered
    /// meanwhile, and goes on trying.
    async fn recovery_respects_a_new_owner(world: &dyn World) {
        let (server, other) = (world.client().await, world.client().await.registry());
        let registry = server.registry();
        let mut registration = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        server.link.cut();
        eventually(LIMIT, || async { ids(&*other, "svc").await.is_empty() }).await;
        let taken =
            within(LIMIT, other.register(instance("1").with("v", "new"), LONG)).await.expect("is free");
        server.link.restore();
        tokio::time::sleep(SHORT).await;
        assert!(is_recovering(registration.status()), "{:?}", registration.status());
        assert_eq!(other.discover("svc").await.expect("is answered"), [instance("1").with("v", "new")]);
        within(LIMIT, taken.deregister()).await.expect("is registered");
        status_becomes(&mut registration, is_registered).await;
        assert_eq!(other.discover("svc").await.expect("is answered"), [instance("1")]);
    }
}
