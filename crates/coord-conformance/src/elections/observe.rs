//! Observers: the leaders that they are told, and when.

use std::{sync::Arc, time::Duration};

use coord_api::{ElectionsExt, Leader, LeaderView};

use super::candidate;
use crate::{
    Raw,
    suite::tests,
    tools::{LIMIT, LONG, SHORT, within},
};

/// Waits until the view tells a leader with this value, or none.
async fn tells(view: &mut LeaderView, value: Option<&str>) -> Option<Arc<Leader>> {
    within(LIMIT, async {
        loop {
            let leader = view.leader();
            if leader.as_ref().map(|leader| leader.text().expect("is text")) == value {
                return leader;
            }
            view.changed().await.expect("is open");
        }
    })
    .await
}

tests! { "elections";
    /// Contract 8: an observer is told who leads, each change of leader and value, and that nobody leads.
    async fn observer_follows_the_leader(world: &dyn World) {
        let (watching, one, other) = (world.client().await, world.client().await, world.client().await);
        let mut view = within(LIMIT, watching.elections().observe("job")).await.expect("is answered");
        assert!(view.leader().is_none() && view.freshness().is_fresh());
        let term = within(LIMIT, one.elector("job", LONG, "one").campaign()).await.expect("nobody leads");
        let leader = tells(&mut view, Some("one")).await.expect("leads");
        assert_eq!((leader.token, leader.key.as_str()), (term.token(), term.key()));
        assert!(leader.owner.is_some());
        let since = leader.since;

        let waiter = candidate(world, &other.elector("job", LONG, "two"), 1).await;
        term.proclaim("one again").await.expect("leads");
        let leader = tells(&mut view, Some("one again")).await.expect("leads");
        assert_eq!((leader.token, leader.since), (term.token(), since), "the same term");
        let late = within(LIMIT, other.elections().observe("job")).await.expect("is answered");
        assert_eq!(late.leader().expect("is known at once").text(), Some("one again"));

        term.resign().await.expect("leads");
        let next = waiter.join().await;
        let leader = tells(&mut view, Some("two")).await.expect("leads");
        assert_eq!(leader.token, next.token());
        next.resign().await.expect("leads");
        tells(&mut view, None).await;
    }

    /// Contract 8: an observer hears of leaders whose places vanish, and of other programs.
    async fn observer_hears_of_losses_and_of_other_programs(world: &dyn World) {
        let (watching, client) = (world.client().await, world.client().await);
        let mut view = within(LIMIT, watching.elections().observe("job")).await.expect("is answered");
        let term = within(LIMIT, client.elector("job", SHORT, "mine").campaign()).await.expect("nobody leads");
        tells(&mut view, Some("mine")).await;
        world.revoke_leases().await;
        tells(&mut view, None).await;
        within(LIMIT, term.lost()).await;
        let foreign = Raw::Candidate { election: "job", name: "694d" };
        world.put_raw(foreign, b"theirs").await;
        let leader = tells(&mut view, Some("theirs")).await.expect("leads");
        assert_eq!(leader.owner, None);
        let waiter = candidate(world, &client.elector("job", LONG, "mine"), 1).await;
        assert_eq!(view.leader().expect("leads").text(), Some("theirs"));
        world.delete_raw(foreign).await;
        tells(&mut view, Some("mine")).await;
        waiter.join().await.resign().await.expect("leads");
        tells(&mut view, None).await;
    }

    /// Contract 9: an observer that is cut off keeps the last leader and says that it is stale; then it hears the present one.
    async fn observer_keeps_the_last_leader(world: &dyn World) {
        let (watching, one) = (world.client().await, world.client().await);
        let term = within(LIMIT, one.elector("job", LONG, "one").campaign()).await.expect("nobody leads");
        let mut view = within(LIMIT, watching.elections().observe("job")).await.expect("is answered");
        watching.link.cut();
        let mut connectivity = view.connectivity();
        within(LIMIT * 3, async { while view.freshness().is_fresh() { connectivity.changed().await; } }).await;
        term.resign().await.expect("leads");
        let term = within(LIMIT, one.elector("job", LONG, "two").campaign()).await.expect("nobody leads");
        assert_eq!(view.leader().expect("stays").text(), Some("one"));
        assert!(view.freshness().stale_for().is_some());
        watching.link.restore();
        let told = tells(&mut view, Some("two"));
        assert_eq!(within(LIMIT * 2, told).await.expect("leads").token, term.token());
        within(LIMIT, async { while !view.freshness().is_fresh() { connectivity.changed().await; } }).await;
    }

    /// Contract 8: an observer goes on after a compaction and many changes that it did not read.
    async fn observer_outlasts_compaction_and_many_changes(world: &dyn World) {
        let (watching, one) = (world.client().await, world.client().await);
        let mut watch = within(LIMIT, watching.elections().watch_leader("job")).await.expect("is answered");
        assert!(within(LIMIT, watch.next()).await.expect("is told").expect("is answered").is_none());
        for n in 0..300 {
            let term = within(LIMIT, one.elector("job", LONG, &n.to_string()).campaign()).await.expect("leads");
            term.resign().await.expect("leads");
        }
        world.compact().await;
        let term = within(LIMIT, one.elector("job", LONG, "last").campaign()).await.expect("leads");
        let mut before = None;
        within(LIMIT, async {
            loop {
                let leader = watch.next().await.expect("does not end").expect("is answered");
                if let Some(leader) = leader {
                    assert!(Some(leader.token) >= before, "goes back");
                    before = Some(leader.token);
                    if leader.text() == Some("last") {
                        return;
                    }
                }
            }
        })
        .await;
        assert_eq!(before, Some(term.token()));
        tokio::time::sleep(Duration::from_millis(50)).await;
        term.resign().await.expect("leads");
    }
}
