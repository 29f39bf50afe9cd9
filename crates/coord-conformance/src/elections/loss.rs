//! Terms and candidates whose places are gone: nobody leads by them, and nobody waits on without one.

use std::time::Duration;

use coord_api::{ElectionsExt, LossReason};
use tokio::time::Instant;

use super::{Believers, candidate};
use crate::{
    Raw, World,
    expect::expect_lost,
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, keys_become, spawn, within},
};

/// Candidates of one client that wait, in the tests of places that vanish.
const WAITERS: usize = 16;

const ROUNDS: usize = 3;

/// How places vanish.
#[derive(Clone, Copy)]
enum How {
    Revoked,
    Deleted,
}

/// Lets the places of a leader and of all who wait vanish. Everybody leads at last, and at most one at a time.
async fn vanish(world: &dyn World, how: How) {
    for _ in 0..ROUNDS {
        let (one, other) = (world.client().await, world.client().await);
        let believers = Believers::default();
        let term = within(LIMIT, one.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        let mut waiters = Vec::new();
        for n in 0..=WAITERS {
            let client = if n == WAITERS { &other } else { &one };
            let (elector, believers) = (client.elector("job", LONG, ""), believers.clone());
            waiters.push(spawn(async move {
                let term = elector.campaign().await.expect("is a candidate anew");
                believers.add(&n.to_string(), &term);
                tokio::time::sleep(Duration::from_millis(5)).await;
                // A candidate may lead for a moment and be told then: an operator is nobody's fault.
                drop(term.resign().await);
            }));
            keys_become(world, n + 2).await;
        }
        // Clients are told of the queue a moment later.
        tokio::time::sleep(Duration::from_millis(100)).await;
        match how {
            How::Revoked => world.revoke_leases().await,
            How::Deleted => {
                let candidates = other.elections().candidates("job").await.expect("is answered");
                for candidate in candidates.iter().rev() {
                    let name = candidate.key.rsplit('/').next().expect("a split has a part");
                    world.delete_raw(Raw::Candidate { election: "job", name }).await;
                }
            }
        }
        match (how, within(LIMIT / 2, term.lost()).await) {
            (How::Revoked, LossReason::Revoked) | (_, LossReason::Deleted) => {}
            (_, reason) => panic!("{reason:?}"),
        }
        for waiter in waiters {
            waiter.join_within(LONG_LIMIT).await;
        }
        assert_eq!(believers.count(), WAITERS + 1);
        drop(term);
        keys_become(world, 0).await;
    }
}

tests! { "elections";
    /// Contract 2: a leader whose lease was revoked is told, and its term says so in every way.
    async fn revocation_ends_the_term(world: &dyn World) {
        let client = world.client().await;
        let term = within(LIMIT, client.elector("job", SHORT, "").campaign()).await.expect("nobody leads");
        let lost = term.lost();
        world.revoke_leases().await;
        assert_eq!(within(LIMIT, lost).await, LossReason::Revoked);
        assert!(term.is_lost());
        assert_eq!(term.remaining(), Duration::ZERO);
        expect_lost(term.check());
        expect_lost(term.run(async {}).await);
        expect_lost(term.proclaim("x").await);
        expect_lost(term.resign().await);
    }

    /// Contract 2: a leader that is cut off learns that its term is over before the next candidate leads.
    async fn leader_that_is_cut_off_is_told_before_the_next_one_leads(world: &dyn World) {
        let (holder, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, holder.elector("job", SHORT, "").campaign()).await.expect("nobody leads");
        let elector = other.elector("job", LONG, "");
        let waiter = spawn(async move {
            let next = elector.campaign().await.expect("leads at last");
            (Instant::now(), next)
        });
        keys_become(world, 2).await;
        holder.link.cut();
        let lost = term.lost();
        let told = spawn(async move { (lost.await, Instant::now()) });
        let (entered, next) = waiter.join_within(LIMIT * 2).await;
        assert!(term.is_lost(), "two lead");
        let (reason, told) = told.join().await;
        assert_eq!(reason, LossReason::Expired);
        assert!(told <= entered, "told {:?} after the next one leads", told - entered);
        assert!(next.token() > term.token());
        holder.link.restore();
        expect_lost(within(LIMIT, term.resign()).await);
        assert!(!next.is_lost(), "a late resignation ended a later term");
        next.resign().await.expect("leads");
    }

    /// Contract 1: a candidate whose lease ends while it waits takes another place, and leads only by that one.
    async fn candidate_whose_lease_ended_is_a_candidate_anew(world: &dyn World) {
        let (leader, waiting, later) = (world.client().await, world.client().await, world.client().await);
        let term = within(LIMIT, leader.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        let waiter = candidate(world, &waiting.elector("job", SHORT, "waits"), 1).await;
        // The candidate hears that it waits a moment after its place is there.
        tokio::time::sleep(Duration::from_millis(500)).await;
        waiting.link.cut();
        // Its lease ends in the store, and its place with it.
        keys_become(world, 1).await;
        let behind = candidate(world, &later.elector("job", LONG, "later"), 1).await;
        waiting.link.restore();
        keys_become(world, 3).await;
        let candidates = later.elections().candidates("job").await.expect("is answered");
        let values: Vec<_> = candidates.iter().map(|candidate| candidate.text()).collect();
        assert_eq!(values, [Some(""), Some("later"), Some("waits")], "its old place is gone");
        assert!(!waiter.is_finished());
        term.resign().await.expect("leads");
        let next = behind.join().await;
        assert!(!waiter.is_finished(), "leads by a place that is gone");
        next.resign().await.expect("leads");
        let last = waiter.join().await;
        assert_eq!(last.token(), candidates[2].token);
        last.resign().await.expect("leads");
    }

    /// Contract 1: of many who wait on leases that are revoked none leads by its old place, and all lead at last.
    async fn nobody_leads_by_a_place_that_was_revoked(world: &dyn World) {
        vanish(world, How::Revoked).await;
    }

    /// Contract 1: of many whose places are deleted none leads by it, and all lead at last.
    async fn nobody_leads_by_a_place_that_was_deleted(world: &dyn World) {
        vanish(world, How::Deleted).await;
    }

    /// Contract 10: closing ends the term and wakes every candidate and observer; no candidate stays behind.
    async fn closing_ends_terms_and_campaigns(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, client.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        let elector = client.elector("job", LONG, "");
        let waiter = spawn({
            let elector = elector.clone();
            async move { elector.campaign().await }
        });
        keys_become(world, 2).await;
        let mut view = within(LIMIT, elector.observe()).await.expect("is answered");
        within(LIMIT, client.close()).await;
        assert_eq!(within(LIMIT, term.lost()).await, LossReason::Closed);
        crate::expect::expect_closed(waiter.join().await);
        crate::expect::expect_closed(within(LIMIT, async { while view.changed().await.is_ok() {} view.changed().await }).await);
        assert!(!view.freshness().is_fresh());
        crate::expect::expect_closed(within(LIMIT, elector.campaign()).await);
        crate::expect::expect_closed(within(LIMIT, elector.candidates()).await);
        crate::expect::expect_closed(within(LIMIT, client.elections().elections()).await);
        crate::expect::expect_closed(within(LIMIT, client.elections().observe("job")).await);
        keys_become(world, 0).await;
        let next = within(LIMIT, other.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        expect_lost(term.resign().await);
        next.resign().await.expect("leads");
    }
}
