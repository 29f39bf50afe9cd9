//! Ids that are kept, and ids that are lost.

use std::time::Duration;

use coord_api::{Error, LossReason};
use tokio::time::Instant;

use super::acquire;
use crate::{
    Raw,
    expect::{expect_lost, expect_unreachable},
    suite::tests,
    tools::{LIMIT, SHORT, eventually, keys_become, spawn, within},
};

tests! { "ids";
    /// Contract 1: an id is held far longer than its TTL, because its lease is renewed.
    async fn renewals_keep_the_id(world: &dyn World) {
        let (one, other) = (world.client().await.ids("svc", 2), world.client().await.ids("svc", 2));
        acquire(&*one).await;
        let until = Instant::now() + SHORT * 2 + Duration::from_secs(1);
        while Instant::now() < until {
            assert_eq!(one.id().map(std::num::NonZeroU32::get), Some(1));
            assert!(matches!(other.try_acquire_id().await, Err(Error::Exhausted { max: 2 })));
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        one.release_id().await.expect("is held");
    }

    /// Contract 2: a holder whose lease was revoked is told; its id is `None` from then on, and releasing it
    /// answers `Lost` once. The next acquisition works.
    async fn revocation_is_told(world: &dyn World) {
        let allocator = world.client().await.ids("svc", 1023);
        acquire(&*allocator).await;
        let lost = allocator.lost().expect("one is held");
        world.revoke_leases().await;
        assert_eq!(within(LIMIT, lost.clone()).await, LossReason::Revoked);
        assert_eq!(allocator.id(), None);
        assert_eq!(allocator.lost().expect("one was held").reason(), Some(LossReason::Revoked));
        assert_eq!(expect_lost(allocator.release_id().await), LossReason::Revoked);
        allocator.release_id().await.expect("nothing is left to release");
        let again = acquire(&*allocator).await;
        assert_eq!(allocator.id().map(std::num::NonZeroU32::get), Some(again));
        assert_eq!(lost.reason(), Some(LossReason::Revoked), "the earlier one stays lost");
        assert_eq!(allocator.lost().expect("one is held").reason(), None);
    }

    /// Contract 2: the id of a holder that is cut off goes to someone else only after the holder was told.
    async fn a_holder_that_is_cut_off_is_told_before_the_id_is_given_away(world: &dyn World) {
        let (holder, other) = (world.client().await, world.client().await.ids("svc", 2));
        let allocator = holder.ids("svc", 2);
        acquire(&*allocator).await;
        let lost = allocator.lost().expect("one is held");
        let told = spawn(async move { (lost.await, Instant::now()) });
        holder.link.cut();
        let cut = Instant::now();
        within(LIMIT * 2, other.acquire_id()).await.expect("becomes free");
        let given = Instant::now();
        assert_eq!(allocator.id(), None, "two holders by their own belief");
        let (reason, told) = told.join().await;
        assert_eq!(reason, LossReason::Expired);
        assert!(told <= given, "told {:?} after the id was given away", told - given);
        assert!(told - cut <= SHORT + Duration::from_secs(1), "told only {:?} after the cut", told - cut);
    }

    /// Contract 3: a lost id never comes back by itself, and releasing it late does not free the new
    /// holder's.
    async fn releasing_a_lost_id_frees_nobody_elses(world: &dyn World) {
        let (holder, next, third) =
            (world.client().await, world.client().await, world.client().await.ids("svc", 2));
        let (old, new) = (holder.ids("svc", 2), next.ids("svc", 2));
        acquire(&*old).await;
        holder.link.cut();
        within(LIMIT * 2, new.acquire_id()).await.expect("becomes free");
        holder.link.restore();
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(old.id(), None, "a lost id came back");
        expect_lost(within(LIMIT, old.release_id()).await);
        drop(old);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(matches!(third.try_acquire_id().await, Err(Error::Exhausted { max: 2 })));
        new.release_id().await.expect("is still held");
    }

    /// Contract 10: dropping an allocator whose id was lost does not free the next holder's.
    async fn dropping_a_lost_id_frees_nobody_elses(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await.ids("svc", 2));
        let (old, new) = (one.ids("svc", 2), one.ids("svc", 2));
        acquire(&*old).await;
        world.revoke_leases().await;
        within(LIMIT, old.lost().expect("one was held")).await;
        within(LIMIT * 2, new.acquire_id()).await.expect("becomes free");
        drop(old);
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(matches!(other.try_acquire_id().await, Err(Error::Exhausted { max: 2 })));
        new.release_id().await.expect("is still held");
    }

    /// Contract 2: the id that somebody deletes by hand goes to someone else only after its holder was told.
    async fn deletion_by_hand_is_told(world: &dyn World) {
        let (held, other) = (world.client().await.ids("svc", 2), world.client().await.ids("svc", 2));
        acquire(&*held).await;
        let lost = held.lost().expect("one is held");
        world.delete_raw(Raw::Id { service: "svc", id: 1 }).await;
        within(LIMIT * 2, other.acquire_id()).await.expect("becomes free");
        assert_eq!(held.id(), None, "two holders by their own belief");
        assert_eq!(lost.reason(), Some(LossReason::Deleted));
        expect_lost(held.release_id().await);
        assert_eq!(other.id().map(std::num::NonZeroU32::get), Some(1), "the late release did not touch it");
    }

    /// Contract 2: whoever waits for the loss also hears that the id was given back.
    async fn giving_back_is_told(world: &dyn World) {
        let allocator = world.client().await.ids("svc", 1023);
        acquire(&*allocator).await;
        let lost = allocator.lost().expect("one is held");
        allocator.release_id().await.expect("is held");
        assert_eq!(within(LIMIT, lost).await, LossReason::Released);
    }

    /// Contract 1: a crashed holder's id is free again after its TTL, and a waiter gets it.
    async fn a_waiter_gets_the_id_of_a_crashed_holder(world: &dyn World) {
        let (holder, waiting) = (world.client().await, world.client().await.ids("svc", 2));
        let held = holder.ids("svc", 2);
        acquire(&*held).await;
        let waiter = spawn(async move { waiting.acquire_id().await.expect("becomes free").get() });
        holder.link.cut();
        assert_eq!(waiter.join_within(LIMIT * 2).await, 1);
        assert_eq!(held.id(), None);
    }

    /// Contract 5: who waits for an id holds nothing that could be lost, so it waits on, also when its lease is
    /// revoked or it is cut off for longer than its TTL.
    async fn a_waiter_outlasts_its_lease(world: &dyn World) {
        for end in ["revoke", "cut"] {
            let (holder, waiting) = (world.client().await, world.client().await);
            let held = holder.ids(end, 2);
            acquire(&*held).await;
            let waiter = waiting.ids(end, 2);
            let task = spawn(async move { waiter.acquire_id().await });
            tokio::time::sleep(Duration::from_millis(500)).await;
            if end == "revoke" {
                world.revoke_leases().await;
            } else {
                waiting.link.cut();
                tokio::time::sleep(SHORT * 2).await;
                assert!(!task.is_finished(), "it gave up");
                waiting.link.restore();
                held.release_id().await.expect("is held");
            }
            assert_eq!(task.join_within(LIMIT * 2).await.expect("waits on").get(), 1, "{end}");
        }
    }

    /// Contract 7: an acquisition that gets no answer fails in bounded time, and no id stays taken.
    async fn an_unanswered_acquisition_takes_nothing(world: &dyn World) {
        let (cut_off, other) = (world.client().await, world.client().await.ids("svc", 2));
        let allocator = cut_off.ids("svc", 2);
        cut_off.link.cut();
        expect_unreachable(within(LIMIT, allocator.try_acquire_id()).await);
        expect_unreachable(within(LIMIT, allocator.acquire_id()).await);
        assert_eq!(allocator.id(), None);
        within(LIMIT, other.acquire_id()).await.expect("is free");
        other.release_id().await.expect("is held");
        cut_off.link.restore();
        eventually(LIMIT, || async { allocator.try_acquire_id().await.is_ok() }).await;
        allocator.release_id().await.expect("is held");
        keys_become(world, 0).await;
    }
}
