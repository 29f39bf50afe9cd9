//! Whose an instance id is.

use coord_api::{Error, LossReason, Registration, RegistrationStatus, Result};
use futures::future::join_all;

use super::{foreign_record, ids, instance};
use crate::{
    Raw,
    expect::expect_lost,
    suite::tests,
    tools::{LIMIT, LONG, SHORT, within},
};

/// The owner that a refusal names.
#[track_caller]
fn expect_taken(result: Result<Registration>) -> String {
    match result {
        Err(Error::AlreadyRegistered { service, id, owner }) => {
            assert_eq!((service.as_str(), id.as_str()), ("svc", "1"));
            owner
        }
        other => panic!("expected AlreadyRegistered, got {other:?}"),
    }
}

tests! { "registry";
    /// Contract 12: an instance id that another client has is refused, and the refusal names its owner.
    async fn an_id_of_another_client_is_refused(world: &dyn World) {
        let (first, second) = (world.client().await.registry(), world.client().await.registry());
        let registration = within(LIMIT, first.register(instance("1"), LONG)).await.expect("is free");
        let refused = within(LIMIT, second.register(instance("1").with("mine", "no"), LONG)).await;
        assert!(!expect_taken(refused).is_empty());
        assert_eq!(second.discover("svc").await.expect("is answered"), [instance("1")]);
        assert_eq!(registration.status(), RegistrationStatus::Registered);

        within(LIMIT, registration.deregister()).await.expect("is registered");
        let _now_mine = within(LIMIT, second.register(instance("1"), LONG)).await.expect("is free");
        expect_taken(within(LIMIT, first.register(instance("1"), LONG)).await);
    }

    /// Contract 12: of several clients that register one id at one moment exactly one gets it.
    async fn one_of_several_concurrent_registrations_wins(world: &dyn World) {
        let mut clients = Vec::new();
        for _ in 0..4 {
            clients.push(world.client().await.registry());
        }
        let attempts = clients.iter().map(|registry| registry.register(instance("1"), LONG));
        let (won, refused): (Vec<_>, Vec<_>) =
            within(LIMIT, join_all(attempts)).await.into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1, "{won:?}");
        for refusal in refused {
            expect_taken(refusal);
        }
    }

    /// Contract 12: a record that another program wrote is not taken over.
    async fn an_id_of_another_program_is_refused(world: &dyn World) {
        let registry = world.client().await.registry();
        let at = Raw::Service { name: "svc", id: "1" };
        world.put_raw(at, foreign_record("svc", "1").as_bytes()).await;
        assert!(!expect_taken(within(LIMIT, registry.register(instance("1"), LONG)).await).is_empty());
        assert_eq!(registry.discover("svc").await.expect("is answered")[0].port, 9000);
    }

    /// Contract 6: the same client takes its own id over: the record is replaced, the earlier registration
    /// ends, and giving that one back does not remove the new entry.
    async fn the_same_client_takes_its_own_id_over(world: &dyn World) {
        let (registry, other) = (world.client().await.registry(), world.client().await.registry());
        let first =
            within(LIMIT, registry.register(instance("1").with("v", "1"), LONG)).await.expect("is free");
        let second =
            within(LIMIT, registry.register(instance("1").with("v", "2"), LONG)).await.expect("is its own");
        assert_eq!(within(LIMIT, first.lost()).await, LossReason::Superseded);
        assert_eq!(first.status(), RegistrationStatus::Ended(LossReason::Superseded));
        assert!(first.is_lost());
        assert_eq!(expect_lost(first.deregister().await), LossReason::Superseded);

        let third =
            within(LIMIT, registry.register(instance("1").with("v", "3"), LONG)).await.expect("is its own");
        within(LIMIT, second.lost()).await;
        drop(second);
        tokio::time::sleep(SHORT).await;
        assert_eq!(other.discover("svc").await.expect("is answered"), [instance("1").with("v", "3")]);
        assert_eq!(third.status(), RegistrationStatus::Registered);
        within(LIMIT, third.deregister()).await.expect("is registered");
        assert_eq!(world.keys().await, [""; 0]);
    }

    /// Contract 6: an earlier registration of the same id never deletes the entry of a later one.
    async fn registering_again_after_deregistering_stays(world: &dyn World) {
        let (registry, other) = (world.client().await.registry(), world.client().await.registry());
        let first = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        within(LIMIT, first.deregister()).await.expect("is registered");
        let second = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is free");
        drop(second);
        let third = within(LIMIT, registry.register(instance("1"), SHORT)).await.expect("is its own or free");
        let until = tokio::time::Instant::now() + SHORT * 2;
        while tokio::time::Instant::now() < until {
            assert_eq!(ids(&*other, "svc").await, ["1"]);
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
        assert_eq!(third.status(), RegistrationStatus::Registered);
        within(LIMIT, third.deregister()).await.expect("is registered");
    }

    /// Contract 11: one client holds the same instance id once in each service.
    async fn one_id_in_two_services(world: &dyn World) {
        let registry = world.client().await.registry();
        let mut elsewhere = instance("1");
        elsewhere.name = "svc-2".into();
        let here = within(LIMIT, registry.register(instance("1"), LONG)).await.expect("is free");
        let there =
            within(LIMIT, registry.register(elsewhere, LONG)).await.expect("is free in the other service");
        within(LIMIT, here.deregister()).await.expect("is registered");
        assert_eq!(ids(&*registry, "svc-2").await, ["1"]);
        assert!(!there.is_lost());
    }
}
