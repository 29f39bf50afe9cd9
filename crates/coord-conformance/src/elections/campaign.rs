//! The order in which candidates lead, and the facts that a term tells about itself.

use std::{collections::BTreeSet, time::Duration};

use coord_api::{ConfigExt, ElectorOptions, LossReason};
use tokio::sync::mpsc;

use super::{Believers, candidate};
use crate::{
    expect::{expect_lost, expect_unreachable},
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, keys_become, poll_at_most, spawn, within},
};

tests! { "elections";
    /// Contract 5: while one candidate leads, no other one does; once it resigns, the next one does.
    async fn one_leads_at_a_time(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, one.elector("job", LONG, "a").campaign()).await.expect("nobody leads");
        assert_eq!(term.election(), "job");
        assert!(!term.is_lost() && term.check().is_ok());
        assert!(term.ttl() >= LONG && term.remaining() > Duration::ZERO && term.remaining() <= term.ttl());
        let waiter = candidate(world, &other.elector("job", LONG, "b"), 1).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(!waiter.is_finished(), "two lead");
        let token = term.token();
        term.resign().await.expect("leads");
        let next = waiter.join().await;
        assert!(next.token() > token);
        next.resign().await.expect("leads");
        keys_become(world, 0).await;
    }

    /// Contract 5: candidates lead in the order in which they came, across clients and tasks.
    async fn first_come_first_to_lead(world: &dyn World) {
        let clients = [world.client().await, world.client().await, world.client().await];
        let term = within(LIMIT, clients[0].elector("job", LONG, "").campaign()).await.expect("nobody leads");
        let (led, mut order) = mpsc::unbounded_channel();
        let mut waiters = Vec::new();
        for (number, client) in [1, 1, 0, 2, 1, 0].into_iter().enumerate() {
            let (elector, led) = (clients[client].elector("job", LONG, &number.to_string()), led.clone());
            waiters.push(spawn(async move {
                let term = elector.campaign().await.expect("leads at last");
                led.send(number).expect("the test still listens");
                term.resign().await.expect("leads");
            }));
            keys_become(world, number + 2).await;
        }
        term.resign().await.expect("leads");
        for expected in 0..waiters.len() {
            assert_eq!(within(LIMIT, order.recv()).await, Some(expected));
        }
        for waiter in waiters {
            waiter.join().await;
        }
        keys_become(world, 0).await;
    }

    /// Contract 5: candidates of one process that come at one moment each lead with their own value.
    async fn candidates_of_one_moment_keep_their_values(world: &dyn World) {
        let (client, watching) = (world.client().await, world.client().await);
        let believers = Believers::default();
        let mut waiters = Vec::new();
        for number in 0..12 {
            let value = format!("value-{number}");
            let (elector, believers) = (client.elector("job", LONG, &value), believers.clone());
            let elections = watching.elections();
            waiters.push(spawn(async move {
                let term = elector.campaign().await.expect("leads at last");
                believers.add(&value, &term);
                let candidates = elections.candidates("job").await.expect("is answered");
                let own = candidates.iter().find(|candidate| candidate.token == term.token());
                assert_eq!(own.expect("is there").text(), Some(value.as_str()));
                term.resign().await.expect("leads");
            }));
        }
        for waiter in waiters {
            waiter.join_within(LONG_LIMIT).await;
        }
        assert_eq!(believers.count(), 12);
        keys_become(world, 0).await;
    }

    /// Contract 4: every term's token is larger than all before it, however the term ended.
    async fn tokens_grow_from_term_to_term(world: &dyn World) {
        let clients = [world.client().await, world.client().await];
        let mut last = None;
        for round in 0..12 {
            let elector = clients[round % 2].elector("job", SHORT, "");
            let term = within(LIMIT, elector.campaign()).await.expect("leads at last");
            assert!(Some(term.token()) > last, "{} after {last:?}", term.token());
            last = Some(term.token());
            match round % 3 {
                0 => term.resign().await.expect("leads"),
                1 => drop(term),
                _ => {
                    world.revoke_leases().await;
                    within(LIMIT, term.lost()).await;
                }
            }
        }
    }

    /// Contract 4: a write that depends on a term is refused by the store once the term is over.
    async fn term_fences_writes(world: &dyn World) {
        let (client, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, client.elector("job", SHORT, "").campaign()).await.expect("nobody leads");
        let config = client.config();
        config.set_if_held(&term, "report", &1).await.expect("leads");
        world.revoke_leases().await;
        expect_lost(config.set_if_held(&term, "report", &2).await);
        let later = within(LIMIT, other.elector("job", LONG, "").campaign()).await.expect("leads at last");
        expect_lost(config.set_if_held(&term, "report", &3).await);
        other.config().set_if_held(&later, "report", &4).await.expect("leads");
        assert_eq!(config.get::<u32>("report").await.expect("is answered").expect("was written").value, 4);
    }

    /// Contract 11: an election, those below its path and a lock of its name know nothing of each other.
    async fn similar_names_are_different_elections(world: &dyn World) {
        let client = world.client().await;
        let lock = within(LIMIT, client.lock().acquire("a", LONG)).await.expect("is free");
        let mut terms = Vec::new();
        for name in ["a/b", "a", "a/b/c", "ab", "a-2", "A", "日报"] {
            let elector = client.elector(name, LONG, name);
            let term = within(LIMIT, elector.campaign()).await;
            terms.push(term.unwrap_or_else(|error| panic!("{name}: {error}")));
        }
        let all = within(LIMIT, client.elections().elections()).await.expect("is answered");
        assert_eq!(all.len(), terms.len());
        for term in &terms {
            let [candidate] = &all[term.election()][..] else { panic!("{all:?}") };
            assert_eq!((candidate.key.as_str(), candidate.token), (term.key(), term.token()));
        }
        for term in terms {
            term.resign().await.expect("leads");
        }
        assert!(within(LIMIT, client.elections().elections()).await.expect("is answered").is_empty());
        lock.unlock().await.expect("is held");
    }

    /// Contract 5: the leader comes first, then those who wait in their order; each tells its owner and its value.
    async fn candidates_tell_who_they_are(world: &dyn World) {
        let (watching, client) = (world.client().await, world.client().await);
        assert_eq!(within(LIMIT, watching.elections().candidates("job")).await.expect("is answered"), []);
        let elector = client.elector("job", LONG, "10.0.0.1:80");
        let term = within(LIMIT, elector.campaign()).await.expect("nobody leads");
        let waiter = candidate(world, &world.client().await.elector("job", LONG, "\u{0}\n"), 1).await;
        let candidates = within(LIMIT, elector.candidates()).await.expect("is answered");
        let keys: BTreeSet<_> = candidates.iter().map(|candidate| candidate.key.clone()).collect();
        assert_eq!(keys, world.keys().await.into_iter().collect());
        assert_eq!(candidates.iter().map(|candidate| candidate.text()).collect::<Vec<_>>(),
            [Some("10.0.0.1:80"), Some("\u{0}\n")]);
        assert_eq!((candidates[0].key.as_str(), candidates[0].token), (term.key(), term.token()));
        let owners: Vec<_> = candidates.iter().map(|candidate| candidate.owner.clone().expect("is told")).collect();
        assert!(owners[0].client != owners[1].client && !owners[0].host.is_empty());
        assert_eq!(owners[0].pid, std::process::id());
        assert_eq!(within(LIMIT, watching.elections().candidates("job")).await.expect("is answered"), candidates);
        waiter.cancel().await;
        drop(term);
        keys_become(world, 0).await;
    }

    /// Contract 6: a campaign that is dropped at any await point leaves no candidate, whether it would have led or waited.
    async fn campaign_may_be_dropped_at_any_point(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        for polls in 0..12 {
            drop(poll_at_most(polls, one.elector("job", LONG, "").campaign()).await);
            let term = within(LIMIT, other.elector("job", LONG, "").campaign()).await.expect("leads at last");
            assert!(poll_at_most(polls, one.elector("job", LONG, "").campaign()).await.is_none());
            keys_become(world, 1).await;
            term.resign().await.expect("leads");
        }
        keys_become(world, 0).await;
    }

    /// Contract 6: a resignation takes effect although its future is dropped, and says `Lost` of a term that was over.
    async fn resignation_may_be_dropped_at_any_point(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        for polls in 0..8 {
            let term = within(LIMIT, one.elector("job", LONG, "").campaign()).await.expect("leads at last");
            let lost = term.lost();
            drop(poll_at_most(polls, term.resign()).await);
            assert_eq!(within(LIMIT, lost).await, LossReason::Released);
            let next = within(LIMIT, other.elector("job", LONG, "").campaign()).await.expect("leads at last");
            next.resign().await.expect("leads");
        }
        let term = within(LIMIT, one.elector("job", SHORT, "").campaign()).await.expect("leads at last");
        world.revoke_leases().await;
        within(LIMIT, term.lost()).await;
        expect_lost(within(LIMIT, term.resign()).await);
        keys_become(world, 0).await;
    }

    /// Contract 7: a campaign that gets no answer fails in bounded time and leaves no candidate.
    async fn unanswered_campaign_leaves_no_candidate(world: &dyn World) {
        let (cut_off, other) = (world.client().await, world.client().await);
        let warm = within(LIMIT, cut_off.elector("warm", SHORT, "").campaign()).await.expect("nobody leads");
        warm.resign().await.expect("leads");
        cut_off.link.cut();
        expect_unreachable(within(LIMIT, cut_off.elector("job", SHORT, "").campaign()).await);
        let term = within(LIMIT, other.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        term.resign().await.expect("leads");
        cut_off.link.restore();
        keys_become(world, 0).await;
    }

    /// Contract 11, 12: a bad name, TTL, value or successor is refused before anything is sent.
    async fn bad_candidates_are_refused(world: &dyn World) {
        use coord_api::{ElectionsExt, MAX_CANDIDATE_BYTES};
        let client = world.client().await;
        let elections = client.elections();
        client.link.cut();
        let options = || ElectorOptions::new(LONG);
        for bad in ["", "/a", "a//b", "a/../b", "a%b", "a\n"] {
            crate::expect::expect_invalid("election name", bad, elections.elector(bad, options()));
            crate::expect::expect_invalid("election name", bad, elections.candidates(bad).await);
            crate::expect::expect_invalid("election name", bad, elections.watch_leader(bad).await);
            crate::expect::expect_invalid("election name", bad, elections.campaign(bad, LONG, "".into()).await);
        }
        let ttl = elections.elector("job", ElectorOptions::new(Duration::from_millis(999)));
        crate::expect::expect_invalid("ttl", "999 ms", ttl);
        crate::expect::expect_invalid("label", "", elections.elector("job", options().successor("")));
        let large = vec![b'x'; MAX_CANDIDATE_BYTES + 1];
        crate::expect::expect_too_large("value", elections.elector("job", options().value(large.clone())));
        crate::expect::expect_too_large("value", elections.campaign("job", LONG, large.into()).await);
        assert!(elections.elector("job", options().value(vec![0; MAX_CANDIDATE_BYTES])).is_ok());
        client.link.restore();
    }
}
