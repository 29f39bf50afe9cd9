//! Who gets which id, and what happens when there is none.

use std::{collections::BTreeSet, time::Duration};

use coord_api::{Error, InstanceIdAllocator, Result};
use futures::future::join_all;

use super::acquire;
use crate::{
    suite::tests,
    tools::{LIMIT, eventually, keys_become, poll_at_most, spawn, within},
};

#[track_caller]
fn expect_exhausted<T: std::fmt::Debug>(max_id: u32, result: Result<T>) {
    match result {
        Err(error @ Error::Exhausted { max }) => {
            assert_eq!(max, max_id);
            assert!(error.is_retryable());
        }
        other => panic!("expected Exhausted, got {other:?}"),
    }
}

/// Whether an id is free for `allocator` now; gives it back at once.
async fn is_free(allocator: &dyn InstanceIdAllocator) -> bool {
    let free = allocator.try_acquire_id().await.is_ok();
    allocator.release_id().await.expect("is held or nothing");
    free
}

tests! { "ids";
    /// Contract 5: no two allocators hold one id, neither of several clients nor of one, and all are in the
    /// range.
    async fn ids_are_distinct(world: &dyn World) {
        let clients = [world.client().await, world.client().await];
        let allocators: Vec<_> = (0..6).map(|number| clients[number % 2].ids("svc", 1023)).collect();
        let mut ids = BTreeSet::new();
        for allocator in &allocators {
            let id = acquire(&**allocator).await;
            assert!((1..1023).contains(&id), "{id}");
            assert!(ids.insert(id), "{id} is held twice");
            assert_eq!(allocator.id().map(std::num::NonZeroU32::get), Some(id));
        }
    }

    /// Contract 5: as many clients as there are ids, all at one moment, get one each.
    async fn a_whole_range_is_given_out_at_once(world: &dyn World) {
        let mut allocators = Vec::new();
        for _ in 0..4 {
            let client = world.client().await;
            allocators.extend((0..4).map(|_| client.ids("svc", 17)));
        }
        let acquiring = join_all(allocators.iter().map(|allocator| allocator.acquire_id()));
        let ids: Vec<_> = within(LIMIT * 2, acquiring).await;
        let ids: BTreeSet<_> = ids.into_iter().map(|id| id.expect("one is left").get()).collect();
        assert_eq!(ids, (1..17).collect());
        expect_exhausted(17, world.client().await.ids("svc", 17).try_acquire_id().await);
    }

    /// Contract 5: whoever tries at one moment for the last id: exactly one gets it.
    async fn one_of_several_concurrent_tries_wins(world: &dyn World) {
        let clients = [world.client().await, world.client().await, world.client().await];
        let allocators: Vec<_> = (0..6).map(|number| clients[number % 3].ids("svc", 2)).collect();
        let tries = join_all(allocators.iter().map(|allocator| allocator.try_acquire_id()));
        let outcomes = within(LIMIT, tries).await;
        assert_eq!(outcomes.iter().filter(|outcome| outcome.is_ok()).count(), 1, "{outcomes:?}");
        for outcome in outcomes.into_iter().filter(Result::is_err) {
            expect_exhausted(2, outcome);
        }
    }

    /// Contract 5: an allocator holds at most one id, also when two tasks ask at one moment.
    async fn acquiring_again_returns_the_same_id(world: &dyn World) {
        let allocator = world.client().await.ids("svc", 1023);
        let (one, other) = tokio::join!(allocator.acquire_id(), allocator.acquire_id());
        let id = one.expect("is free");
        assert_eq!(other.expect("is held"), id);
        assert_eq!(allocator.acquire_id().await.expect("is held"), id);
        assert_eq!(allocator.try_acquire_id().await.expect("is held"), id);
        assert_eq!(world.keys().await.len(), 1);
    }

    /// Contract 12: there is no id before it is acquired and none after it is released, and releasing nothing
    /// is no error.
    async fn there_is_an_id_from_acquire_to_release(world: &dyn World) {
        let allocator = world.client().await.ids("svc", 1023);
        assert_eq!(allocator.id(), None);
        assert!(allocator.lost().is_none());
        allocator.release_id().await.expect("there is nothing to release");
        let id = within(LIMIT, allocator.acquire_id()).await.expect("is free");
        assert_eq!(allocator.id(), Some(id));
        assert_eq!(allocator.lost().expect("one is held").reason(), None);
        allocator.release_id().await.expect("is held");
        assert_eq!(allocator.id(), None);
        allocator.release_id().await.expect("there is nothing left to release");
        keys_become(world, 0).await;
    }

    /// Contract 12: a range without a free id is told with its bound, and one that is released is free again.
    async fn a_full_range_is_told(world: &dyn World) {
        let (one, other) = (world.client().await.ids("svc", 3), world.client().await);
        let second = other.ids("svc", 3);
        assert_eq!(BTreeSet::from([acquire(&*one).await, acquire(&*second).await]), BTreeSet::from([1, 2]));
        let third = other.ids("svc", 3);
        expect_exhausted(3, third.try_acquire_id().await);
        assert_eq!(third.id(), None);
        let released = one.id().expect("is held").get();
        one.release_id().await.expect("is held");
        assert_eq!(acquire(&*third).await, released);
    }

    /// Contract 1: the smallest range has one id, and it is 1.
    async fn the_smallest_range_has_one_id(world: &dyn World) {
        let client = world.client().await;
        let (one, other) = (client.ids("svc", 2), client.ids("svc", 2));
        assert_eq!(acquire(&*one).await, 1);
        expect_exhausted(2, other.try_acquire_id().await);
    }

    /// Contract 11: services never meet: each has its own id 1, also if their names are similar.
    async fn each_service_has_its_own_ids(world: &dyn World) {
        let client = world.client().await;
        let mut held = Vec::new();
        for service in ["im-logic", "im-logic-2", "a", "a/b", "a/ids", "a/ids/1"] {
            let allocator = client.ids(service, 2);
            assert_eq!(allocator.try_acquire_id().await.expect(service).get(), 1);
            held.push(allocator);
        }
        for allocator in held {
            allocator.release_id().await.expect("no other service's release touched it");
        }
    }

    /// Contract 6: whoever waits on a full range gets the id that is released.
    async fn a_waiter_gets_the_released_id(world: &dyn World) {
        let (one, other) = (world.client().await.ids("svc", 2), world.client().await.ids("svc", 2));
        acquire(&*one).await;
        let waiter = spawn(async move { (other.acquire_id().await.expect("becomes free"), other) });
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiter.is_finished(), "the only id is held");
        one.release_id().await.expect("is held");
        let (id, other) = waiter.join().await;
        assert_eq!((id.get(), other.id()), (1, Some(id)));
        expect_exhausted(2, one.try_acquire_id().await);
    }

    /// Contract 6: a try does not wait while another task waits with the same allocator, and takes part in what that one
    /// gets.
    async fn a_try_does_not_wait_for_a_task_that_waits(world: &dyn World) {
        let (one, other) = (world.client().await.ids_at_once("svc", 2), world.client().await.ids_at_once("svc", 2));
        acquire(&*one).await;
        let waiter = spawn({
            let other = other.clone();
            async move { other.acquire_id().await.expect("becomes free").get() }
        });
        tokio::time::sleep(Duration::from_millis(300)).await;
        for _ in 0..3 {
            expect_exhausted(2, within(LIMIT, other.try_acquire_id()).await);
        }
        assert!(!waiter.is_finished(), "the only id is held");
        one.release_id().await.expect("is held");
        assert_eq!(waiter.join().await, 1);
        assert_eq!(other.try_acquire_id().await.expect("is held").get(), 1);
        // The place in the queue goes when its turn is over.
        keys_become(world, 1).await;
    }

    /// Contract 5: those who wait for an id get one in the order in which they came.
    async fn waiters_are_served_in_order(world: &dyn World) {
        let holder = world.client().await.ids_at_once("svc", 2);
        acquire(&*holder).await;
        let mut waiters = Vec::new();
        for _ in 0..3 {
            let allocator = world.client().await.ids_at_once("svc", 2);
            waiters.push(spawn({
                let allocator = allocator.clone();
                async move {
                    allocator.acquire_id().await.expect("becomes free");
                    allocator
                }
            }));
            // Not every store shows who waits for an id.
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let mut last = holder;
        for waiter in waiters {
            assert!(!waiter.is_finished(), "it was served too early");
            last.release_id().await.expect("is held");
            last = waiter.join().await;
        }
    }

    /// Contract 10: dropping an allocator gives its id back.
    async fn dropping_the_allocator_frees_the_id(world: &dyn World) {
        let (one, other) = (world.client().await.ids("svc", 2), world.client().await.ids("svc", 2));
        acquire(&*one).await;
        drop(one);
        eventually(LIMIT, || is_free(&*other)).await;
        keys_become(world, 0).await;
    }

    /// Contract 6: whoever gives up waiting on a full range leaves nothing behind and holds up nobody.
    async fn giving_up_a_wait_leaves_nothing(world: &dyn World) {
        let (one, other, third) = (
            world.client().await.ids_at_once("svc", 2),
            world.client().await.ids_at_once("svc", 2),
            world.client().await.ids_at_once("svc", 2),
        );
        acquire(&*one).await;
        for polls in 0..8 {
            assert!(poll_at_most(polls, other.acquire_id()).await.is_none());
        }
        keys_become(world, 1).await;
        one.release_id().await.expect("is held");
        assert_eq!(acquire(&*third).await, 1);
        assert_eq!(other.id(), None);
        third.release_id().await.expect("is held");
        keys_become(world, 0).await;
    }

    /// Contract 6: an acquisition that is dropped at any await point takes no id that nobody knows of.
    async fn an_acquisition_may_be_dropped_at_any_point(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await.ids_at_once("svc", 2));
        for polls in 0..10 {
            let allocator = one.ids_at_once("svc", 2);
            drop(poll_at_most(polls, allocator.acquire_id()).await);
            if allocator.id().is_none() {
                eventually(LIMIT, || is_free(&*other)).await;
            }
            allocator.release_id().await.expect("is held or nothing");
            keys_become(world, 0).await;
        }
        for micros in [50, 100, 200, 400, 800, 1_500, 3_000] {
            let allocator = one.ids_at_once("svc", 2);
            drop(tokio::time::timeout(Duration::from_micros(micros), allocator.try_acquire_id()).await);
            drop(allocator);
            eventually(LIMIT, || is_free(&*other)).await;
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: a release takes effect although its future is dropped.
    async fn a_release_may_be_dropped_at_any_point(world: &dyn World) {
        let (one, other) = (world.client().await.ids_at_once("svc", 2), world.client().await.ids_at_once("svc", 2));
        for polls in 1..6 {
            acquire(&*one).await;
            drop(poll_at_most(polls, one.release_id()).await);
            assert_eq!(one.id(), None);
            eventually(LIMIT, || is_free(&*other)).await;
        }
        keys_become(world, 0).await;
    }
}
