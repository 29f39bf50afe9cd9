//! Values of leaders that change.

use std::time::Duration;

use coord_api::MAX_CANDIDATE_BYTES;

use crate::{
    Raw,
    expect::{expect_lost, expect_too_large, expect_unreachable},
    suite::tests,
    tools::{LIMIT, LONG, SHORT, keys_become, poll_at_most, within},
};

tests! { "elections";
    /// Contract 5: a leader's new value is seen by everybody, and changes neither its token nor its place.
    async fn proclaimed_value_is_seen(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, one.elector("job", LONG, "first").campaign()).await.expect("nobody leads");
        let value = || async {
            let candidates = other.elections().candidates("job").await.expect("is answered");
            assert_eq!((candidates.len(), candidates[0].token), (1, term.token()));
            candidates[0].text().expect("is text").to_owned()
        };
        assert_eq!(value().await, "first");
        for next in ["second", "", "third", "third"] {
            within(LIMIT, term.proclaim(next)).await.expect("leads");
            assert_eq!(value().await, next);
        }
        expect_too_large("value", term.proclaim(vec![0; MAX_CANDIDATE_BYTES + 1]).await);
        assert!(!term.is_lost());
        term.resign().await.expect("leads");
        keys_become(world, 0).await;
    }

    /// Contract 4: a leader whose place is gone changes no value, whether it knows of that or not.
    async fn value_of_a_term_that_is_over_is_refused(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, one.elector("job", LONG, "mine").campaign()).await.expect("nobody leads");
        let name = term.key().rsplit('/').next().expect("a split has a part").to_owned();
        world.delete_raw(Raw::Candidate { election: "job", name: &name }).await;
        expect_lost(within(LIMIT, term.proclaim("zombie")).await);
        assert!(term.is_lost(), "the store has said so");
        let next = within(LIMIT, other.elector("job", LONG, "theirs").campaign()).await.expect("nobody leads");
        expect_lost(within(LIMIT, term.proclaim("zombie")).await);
        let candidates = other.elections().candidates("job").await.expect("is answered");
        assert_eq!(candidates.iter().map(|candidate| candidate.text()).collect::<Vec<_>>(), [Some("theirs")]);
        expect_lost(within(LIMIT, term.resign()).await);
        next.resign().await.expect("leads");
    }

    /// Contract 6: of a proclamation that is dropped and a later one the later one counts.
    async fn later_value_counts_though_the_first_was_given_up(world: &dyn World) {
        let client = world.client().await;
        let term = within(LIMIT, client.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        for polls in 0..6 {
            drop(poll_at_most(polls, term.proclaim("given up")).await);
            within(LIMIT, term.proclaim(format!("kept {polls}"))).await.expect("leads");
            tokio::time::sleep(Duration::from_millis(30)).await;
            let candidates = client.elections().candidates("job").await.expect("is answered");
            assert_eq!(candidates[0].text(), Some(format!("kept {polls}").as_str()));
        }
        term.resign().await.expect("leads");
        keys_become(world, 0).await;
    }

    /// Contract 7: a proclamation that gets no answer ends in bounded time, and a later one counts.
    async fn unanswered_proclamation_is_told(world: &dyn World) {
        let client = world.client().await;
        let term = within(LIMIT, client.elector("job", Duration::from_secs(30), "").campaign()).await.expect("nobody leads");
        client.link.cut();
        expect_unreachable(within(LIMIT, term.proclaim("lost")).await);
        client.link.restore();
        within(LIMIT, async {
            while term.proclaim("kept").await.is_err() {
                assert!(!term.is_lost());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        tokio::time::sleep(SHORT).await;
        let candidates = client.elections().candidates("job").await.expect("is answered");
        assert_eq!(candidates[0].text(), Some("kept"));
        term.resign().await.expect("leads");
    }
}
