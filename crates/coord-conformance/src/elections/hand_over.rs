//! Leaders that name the next one.

use std::ops::ControlFlow;

use coord_api::{HandOver, Successor};

use super::{Believers, candidate};
use crate::{
    Raw,
    expect::expect_lost,
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, Task, keys_become, spawn, within},
};

fn of(value: &'static str) -> Successor {
    Successor::Value(value.into())
}

tests! { "elections";
    /// Contract 5: the candidate that the leader names leads next; those before it stand behind it, and lead then.
    async fn named_candidate_leads_next(world: &dyn World) {
        let clients = [world.client().await, world.client().await, world.client().await];
        let elector = |client: usize, value| clients[client].elector("job", LONG, value);
        let term = within(LIMIT, elector(0, "leads").campaign()).await.expect("nobody leads");
        let mut before = Vec::new();
        // Of other clients, and of the leader's own and the successor's.
        for (number, client) in [1, 0, 2, 1].into_iter().enumerate() {
            before.push(candidate(world, &elector(client, "before"), number + 1).await);
        }
        let named = candidate(world, &elector(2, "named"), 5).await;
        let (lost, token) = (term.lost(), term.token());
        match within(LIMIT, term.hand_over(&of("named"))).await.expect("leads") {
            HandOver::To(next) => assert_eq!(next.text(), Some("named")),
            other => panic!("{other:?}"),
        }
        assert!(lost.reason().is_some());
        let next = named.join().await;
        assert!(next.token() > token);
        keys_become(world, 5).await;
        assert!(before.iter().all(|waiter| !waiter.is_finished()), "two lead");
        next.resign().await.expect("leads");
        let mut waiters = before;
        let mut highest = token;
        while !waiters.is_empty() {
            let finished = within(LIMIT, async {
                loop {
                    if let Some(at) = waiters.iter().position(Task::is_finished) {
                        return at;
                    }
                    tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                }
            })
            .await;
            let term = waiters.remove(finished).join().await;
            assert!(term.token() > highest);
            highest = term.token();
            term.resign().await.expect("leads");
        }
        keys_become(world, 0).await;
    }

    /// Contract 5: the next candidate is named as well, and nobody else has to move.
    async fn next_candidate_is_handed_over_to(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, one.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        let waiter = candidate(world, &other.elector("job", LONG, "next"), 1).await;
        let owner = other.elections().candidates("job").await.expect("is answered")[1].owner.clone();
        let owner = Successor::Owner(owner.expect("is told"));
        assert!(matches!(within(LIMIT, term.hand_over(&owner)).await, Ok(HandOver::To(_))));
        waiter.join().await.resign().await.expect("leads");
        keys_become(world, 0).await;
    }

    /// Contract 12: a successor that does not wait is an answer, and the term goes on.
    async fn successor_that_does_not_wait_is_told(world: &dyn World) {
        let client = world.client().await;
        let term = within(LIMIT, client.elector("job", LONG, "me").campaign()).await.expect("nobody leads");
        let mut term = Some(term);
        for successor in [of("nobody"), of("me"), Successor::Label("nobody".into())] {
            let handed = within(LIMIT, term.take().expect("is there").hand_over(&successor)).await;
            match handed.expect("leads") {
                HandOver::NotWaiting(goes_on) => term = Some(goes_on),
                other => panic!("{other:?}"),
            }
        }
        let term = term.expect("is there");
        assert!(!term.is_lost());
        term.resign().await.expect("leads");
        keys_become(world, 0).await;
    }

    /// Contract 6: candidates of other programs are never deleted; if one waits before the successor, that is the answer.
    async fn candidates_of_other_programs_are_left_alone(world: &dyn World) {
        let client = world.client().await;
        let term = within(LIMIT, client.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        let foreign = Raw::Candidate { election: "job", name: "694d" };
        world.put_raw(foreign, b"theirs").await;
        let waiter = candidate(world, &world.client().await.elector("job", LONG, "named"), 2).await;
        let candidates = client.elections().candidates("job").await.expect("is answered");
        assert_eq!((candidates[1].owner.as_ref(), candidates[1].text()), (None, Some("theirs")));
        let term = match within(LIMIT, term.hand_over(&of("named"))).await.expect("leads") {
            HandOver::Blocked(goes_on) => goes_on,
            other => panic!("{other:?}"),
        };
        assert_eq!(world.keys().await.len(), 3);
        assert!(!term.is_lost());
        match within(LIMIT, term.hand_over(&of("theirs"))).await.expect("leads") {
            HandOver::To(next) => assert_eq!(next.owner, None),
            other => panic!("{other:?}"),
        }
        keys_become(world, 2).await;
        assert!(!waiter.is_finished(), "another program leads");
        world.delete_raw(foreign).await;
        waiter.join().await.resign().await.expect("leads");
    }

    /// Contract 6: a leader whose term is over hands nothing over, and ends no later term.
    async fn term_that_is_over_is_not_handed_over(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, one.elector("job", SHORT, "").campaign()).await.expect("nobody leads");
        world.revoke_leases().await;
        let next = within(LIMIT, other.elector("job", LONG, "").campaign()).await.expect("leads at last");
        let waiter = candidate(world, &other.elector("job", LONG, "named"), 1).await;
        expect_lost(within(LIMIT, term.hand_over(&of("named"))).await);
        assert!(!next.is_lost() && !waiter.is_finished());
        next.resign().await.expect("leads");
        waiter.join().await.resign().await.expect("leads");
    }

    /// Contract 2: at most one believes to lead while leaders hand over to candidates anywhere in the queue.
    async fn at_most_one_leads_through_hand_overs(world: &dyn World) {
        let clients = [world.client().await, world.client().await, world.client().await];
        let believers = Believers::default();
        let values = ["0", "1", "2", "3", "4", "5"];
        let mut tasks = Vec::new();
        for (number, value) in values.into_iter().enumerate() {
            let (elector, believers) = (clients[number % 3].elector("job", LONG, value), believers.clone());
            tasks.push(spawn(async move {
                for round in 0..8 {
                    let term = elector.campaign().await.expect("leads at last");
                    believers.add(value, &term);
                    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
                    let to = of(values[(number + round * 2 + 1) % values.len()]);
                    match term.hand_over(&to).await.expect("leads") {
                        HandOver::NotWaiting(term) | HandOver::Blocked(term) => {
                            term.resign().await.expect("leads");
                        }
                        _ => {}
                    }
                }
            }));
        }
        for task in tasks {
            task.join_within(LONG_LIMIT).await;
        }
        assert_eq!(believers.count(), 48);
        keys_become(world, 0).await;
    }

    /// Contract 5: work of `lead` that has ended leaves the place to the candidate that comes next.
    async fn lead_gives_the_place_to_the_next(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let term = within(LIMIT, one.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        let elector = other.elector("job", LONG, "leads");
        let leading = spawn(async move { elector.lead(|_term| async { ControlFlow::Break(()) }).await });
        keys_become(world, 2).await;
        let last = candidate(world, &one.elector("job", LONG, "last"), 2).await;
        term.resign().await.expect("leads");
        leading.join().await.expect("leads");
        last.join().await.resign().await.expect("leads");
        keys_become(world, 0).await;
    }
}
