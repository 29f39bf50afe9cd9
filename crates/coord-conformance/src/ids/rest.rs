//! What happens to an id between two holders, and who has which.

use std::{collections::BTreeSet, time::Duration};

use coord_api::{Error, IdOptions};
use futures::future::join_all;
use tokio::time::Instant;

use super::acquire;
use crate::{
    World,
    expect::{expect_closed, expect_invalid},
    suite::tests,
    tools::{LIMIT, SHORT, eventually, spawn, within},
};

/// Longer than a TTL, so that the two are not mixed up.
const REST: Duration = Duration::from_secs(4);

/// Waits for an id of a range of one, and tells for how long.
async fn time_to_get(allocator: &dyn coord_api::InstanceIdAllocator) -> Duration {
    let start = Instant::now();
    within(LIMIT * 2, allocator.acquire_id()).await.expect("becomes free");
    start.elapsed()
}

/// Looks for an id of a range of one as a process does that ends when there is none.
async fn look_once(world: &dyn World) -> Option<std::num::NonZeroU32> {
    let client = world.client().await;
    let looked = within(LIMIT, client.ids("svc", 2).try_acquire_id()).await;
    client.close().await;
    match looked {
        Ok(id) => Some(id),
        Err(Error::Exhausted { max: 2 }) => None,
        Err(error) => panic!("{error:?}"),
    }
}

tests! { "ids";
    /// Contract 3: a released id rests before someone else gets it, for one TTL by default.
    async fn a_released_id_rests(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await.ids("svc", 2));
        let default = one.ids("svc", 2);
        acquire(&*default).await;
        default.release_id().await.expect("is held");
        assert!(matches!(other.try_acquire_id().await, Err(Error::Exhausted { max: 2 })));
        let waited = time_to_get(&*other).await;
        assert!(waited + Duration::from_millis(300) > SHORT, "it rested for {waited:?} only");
        other.release_id().await.expect("is held");

        let longer = one.ids_with(IdOptions::new("longer", 2).quarantine(REST));
        acquire(&*longer).await;
        drop(longer);
        let waited = time_to_get(&*world.client().await.ids("longer", 2)).await;
        assert!(waited + Duration::from_millis(300) > REST, "it rested for {waited:?} only");
    }

    /// Contract 3: an id whose holder closed its client, was told of its loss or vanished rests as well.
    async fn a_lost_id_rests(world: &dyn World) {
        for end in ["close", "revoke", "cut"] {
            let (holder, other) = (world.client().await, world.client().await.ids(end, 2));
            let held = holder.ids_with(IdOptions::new(end, 2).quarantine(REST));
            acquire(&*held).await;
            match end {
                "close" => holder.close().await,
                "revoke" => world.revoke_leases().await,
                _ => holder.link.cut(),
            }
            within(LIMIT, held.lost().expect("one was held")).await;
            let waited = time_to_get(&*other).await;
            assert!(waited + Duration::from_secs(1) > REST, "{end}: it rested for {waited:?} only");
        }
    }

    /// Contract 2: an operator who revokes the leases of a holder that can not be told does not make two holders.
    async fn a_revoked_id_is_not_given_away_before_its_holder_knows(world: &dyn World) {
        let (holder, other) = (world.client().await, world.client().await);
        let held = holder.ids_at_once("svc", 2);
        acquire(&*held).await;
        holder.link.cut();
        world.revoke_leases().await;
        let next = other.ids_at_once("svc", 2);
        within(LIMIT * 2, next.acquire_id()).await.expect("becomes free");
        assert_eq!(held.id(), None, "two holders by their own belief");
    }

    /// Contract 3: the id of a crashed holder is free after its lease and one rest, also if nobody who looks for one stays
    /// for longer than a moment.
    async fn an_id_comes_back_though_nobody_stays_to_wait(world: &dyn World) {
        let holder = world.client().await;
        let held = holder.ids("svc", 2);
        acquire(&*held).await;
        holder.link.cut();
        let cut = Instant::now();
        while look_once(world).await.is_none() {
            assert!(cut.elapsed() < LIMIT, "it is not free {:?} after the crash", cut.elapsed());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert_eq!(held.id(), None, "two holders by their own belief");
    }

    /// Contract 2: an operator who revokes leases again and again shortens no rest for those who come and go.
    async fn revocations_shorten_no_rest(world: &dyn World) {
        let holder = world.client().await;
        let held = holder.ids_at_once("svc", 2);
        acquire(&*held).await;
        holder.link.cut();
        let cut = Instant::now();
        loop {
            // Half-way only, so that there comes an end to it.
            if cut.elapsed() < SHORT * 2 {
                world.revoke_leases().await;
            }
            let found = look_once(world).await;
            assert!(found.is_none() || held.id().is_none(), "two holders by their own belief");
            if found.is_some() {
                break;
            }
            assert!(cut.elapsed() < LIMIT * 2, "it is not free {:?} after the crash", cut.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Contract 3: an id that was claimed for a caller who had given up meanwhile needs no rest: nobody knew of it.
    async fn an_id_that_nobody_was_told_of_does_not_rest(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        client.ids("warm-up", 2).acquire_id().await.expect("is free");
        // At some of these moments over the network the id is taken and the answer is on its way.
        for round in 0..40 {
            let service = format!("svc-{round}");
            let options = || IdOptions::new(&service, 2).quarantine(LIMIT * 3);
            let (ids, next) = (client.ids_with(options()), other.ids_with(options()));
            let patience = Duration::from_micros(round * 100);
            if tokio::time::timeout(patience, ids.acquire_id()).await.is_err() {
                within(LIMIT, next.acquire_id()).await.expect("becomes free");
            }
        }
    }

    /// Contract 5: the same identity gets the id that it had last at once, also while it rests; others do not.
    async fn an_identity_keeps_its_id(world: &dyn World) {
        let options = |identity: &str| IdOptions::new("svc", 1023).identity(identity);
        let mut ids = Vec::new();
        for round in 0..3 {
            let client = world.client().await;
            let (web, job) = (client.ids_with(options("web")), client.ids_with(options("job")));
            ids.push((acquire(&*web).await, acquire(&*job).await));
            assert_eq!(ids[round], ids[0]);
            if round == 0 {
                web.release_id().await.expect("is held");
                let again = acquire(&*web).await;
                assert_eq!(again, ids[0].0, "at once");
                client.close().await;
            } else {
                drop((web, job, client));
                let other = world.client().await.ids("svc", 1023);
                eventually(LIMIT, || async {
                    world.client().await.provider.instance_ids().holders("svc").await.expect("is read").is_empty()
                })
                .await;
                let id = acquire(&*other).await;
                assert!(id != ids[0].0 && id != ids[0].1, "an id that rests was given away");
            }
        }
        let client = world.client().await;
        let (web, twin) = (client.ids_with(options("web")), client.ids_with(options("web")));
        assert_eq!(acquire(&*web).await, ids[0].0);
        assert_ne!(acquire(&*twin).await, ids[0].0, "an id that is held is nobody else's");
    }

    /// Contract 5: an identity gets back the id that it lost, while others have to wait.
    async fn an_identity_gets_back_what_it_lost(world: &dyn World) {
        let options = || IdOptions::new("svc", 2).identity("web").quarantine(LIMIT * 3);
        let client = world.client().await;
        let lost = client.ids_with(options());
        acquire(&*lost).await;
        client.link.cut();
        within(LIMIT, lost.lost().expect("one was held")).await;
        let (other, again) = (world.client().await.ids("svc", 2), world.client().await.ids_with(options()));
        assert!(other.try_acquire_id().await.is_err());
        eventually(LIMIT, || async { again.try_acquire_id().await.is_ok() }).await;
        assert!(matches!(other.try_acquire_id().await, Err(Error::Exhausted { .. })));
    }

    /// Contract 5: 64 clients want 63 ids at once. They get different ones, and the one that waits gets the first
    /// that is released, when it has rested.
    async fn sixty_four_want_sixty_three(world: &dyn World) {
        let clients = join_all((0..64).map(|_| world.client())).await;
        let (given, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let tasks = clients.iter().map(|client| {
            let (allocator, given) = (client.ids("svc", 64), given.clone());
            spawn(async move {
                let id = allocator.acquire_id().await.expect("becomes free");
                given.send((id.get(), allocator)).expect("the test listens");
            })
        });
        let _tasks: Vec<_> = tasks.collect();
        let mut held = Vec::new();
        while held.len() < 63 {
            held.push(within(LIMIT * 3, arrivals.recv()).await.expect("63 are free"));
        }
        let ids: BTreeSet<_> = held.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, (1..64).collect());
        assert!(arrivals.try_recv().is_err(), "there are only 63");
        let (first, second) = (held.remove(20), held.remove(40));
        let released = Instant::now();
        first.1.release_id().await.expect("is held");
        tokio::time::sleep(Duration::from_millis(900)).await;
        second.1.release_id().await.expect("is held");
        let (id, waiter) = within(LIMIT, arrivals.recv()).await.expect("one waits");
        assert!(released.elapsed() + Duration::from_millis(300) > SHORT, "it did not rest");
        assert_eq!((id, waiter.id().map(std::num::NonZeroU32::get)), (first.0, Some(first.0)));
    }

    /// Contract 5: who waits gets ids in the order of asking, also where they are freed by the end of their rest.
    async fn waiters_are_served_in_order_when_ids_have_rested(world: &dyn World) {
        let holder = world.client().await;
        let held = [holder.ids("svc", 3), holder.ids("svc", 3)];
        for allocator in &held {
            acquire(&**allocator).await;
        }
        let (given, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
        let mut waiters = Vec::new();
        for number in 0..2 {
            let (allocator, given) = (world.client().await.ids("svc", 3), given.clone());
            waiters.push(spawn(async move {
                allocator.acquire_id().await.expect("becomes free");
                given.send((number, allocator)).expect("the test listens");
            }));
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        holder.link.cut();
        let order = [
            within(LIMIT * 2, arrivals.recv()).await.expect("waits"),
            within(LIMIT * 2, arrivals.recv()).await.expect("waits"),
        ];
        assert_eq!([order[0].0, order[1].0], [0, 1]);
        assert!(held.iter().all(|allocator| allocator.id().is_none()));
    }

    /// Contract 5: versions of a program with different bounds share one range: each keeps to its own bound, what is
    /// held above the bound of others is held as any other, and who waits for a low id holds up nobody.
    async fn the_bound_may_change_between_versions(world: &dyn World) {
        let (old, new) = (world.client().await, world.client().await);
        let first = old.ids_at_once("svc", 2);
        assert_eq!(acquire(&*first).await, 1);
        let waiting = old.ids_at_once("svc", 2);
        let waiter = spawn(async move { (acquire(&*waiting).await, waiting) });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (second, third) = (new.ids_at_once("svc", 4), new.ids_at_once("svc", 4));
        assert_eq!(BTreeSet::from([acquire(&*second).await, acquire(&*third).await]), BTreeSet::from([2, 3]));
        assert!(!waiter.is_finished());
        assert!(matches!(new.ids_at_once("svc", 4).try_acquire_id().await, Err(Error::Exhausted { max: 4 })));
        let held = new.provider.instance_ids().holders("svc").await.expect("is read");
        assert_eq!(held.iter().map(|holder| holder.id.get()).collect::<Vec<_>>(), [1, 2, 3]);
        first.release_id().await.expect("is held");
        let (id, _waiting) = waiter.join().await;
        assert_eq!(id, 1);
        // The other way round: the bound was lowered again.
        second.release_id().await.expect("is held");
        third.release_id().await.expect("is held");
        assert!(matches!(old.ids_at_once("svc", 2).try_acquire_id().await, Err(Error::Exhausted { max: 2 })));
    }

    /// Contract 12: who holds what can be seen, with owner, identity and time; what rests is held by nobody.
    async fn holders_are_listed(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let named = one.ids_with(IdOptions::new("svc", 1023).identity("10.0.0.1:80"));
        let (plain, elsewhere) = (other.ids("svc", 1023), other.ids("svc-2", 1023));
        let (named_id, plain_id) = (acquire(&*named).await, acquire(&*plain).await);
        acquire(&*elsewhere).await;
        let mut listed = other.provider.instance_ids().holders("svc").await.expect("is read");
        assert!(listed.is_sorted_by_key(|holder| holder.id));
        listed.sort_by_key(|holder| holder.id.get() == plain_id);
        let [first, second] = listed.as_slice() else { panic!("two are held, not {listed:?}") };
        assert_eq!((first.id.get(), first.identity.as_deref()), (named_id, Some("10.0.0.1:80")));
        assert_eq!((second.id.get(), second.identity.as_deref()), (plain_id, None));
        let owners: Vec<_> = listed.iter().map(|holder| holder.owner.clone().expect("coord tells")).collect();
        assert_ne!(owners[0].client, owners[1].client);
        let age = first.since.expect("coord tells").elapsed().expect("is not in the future");
        assert!(age < LIMIT * 6, "{age:?}");
        named.release_id().await.expect("is held");
        plain.release_id().await.expect("is held");
        assert_eq!(other.provider.instance_ids().holders("svc").await.expect("is read"), []);
        expect_invalid("service name", "", other.provider.instance_ids().holders("").await);
    }

    /// Contract 12: bad options are refused by the name of their field before anything is stored.
    async fn bad_options_are_refused(world: &dyn World) {
        let client = world.client().await;
        let ids = client.provider.instance_ids();
        let good = IdOptions::new("svc", 1023);
        expect_invalid("service name", "..", ids.allocator(IdOptions::new("..", 1023)));
        for max_id in [0, 1, u32::MAX] {
            expect_invalid("max_id", "a bound", ids.allocator(IdOptions::new("svc", max_id)));
        }
        for identity in [String::new(), "a\nb".into(), "x".repeat(256)] {
            expect_invalid("identity", "an identity", ids.allocator(good.clone().identity(identity)));
        }
        expect_invalid("quarantine", "for ever", ids.allocator(good.clone().quarantine(Duration::MAX)));
        assert_eq!(world.keys().await, [""; 0]);
        client.close().await;
        expect_closed(ids.allocator(good));
        expect_closed(ids.holders("svc").await);
    }
}
