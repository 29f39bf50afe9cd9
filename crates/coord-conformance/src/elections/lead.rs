//! `lead`: work that runs while its candidate leads, again and again.

use std::{
    future::pending,
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use coord_api::{ElectionsExt, ElectorOptions, LossReason};
use tokio::sync::{mpsc, oneshot};

use super::{Believers, candidate};
use crate::{
    expect::expect_closed,
    suite::tests,
    tools::{LIMIT, LONG, LONG_LIMIT, SHORT, keys_become, spawn, within},
};

/// Sets its flag when it is dropped.
struct Flag(Arc<AtomicBool>);

impl Drop for Flag {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Counts how often it is dropped.
struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

tests! { "elections";
    /// Contract 5: the work's output is told once it says so, and the place is given back by then.
    async fn lead_ends_with_the_work_that_says_so(world: &dyn World) {
        let client = world.client().await;
        let elector = client.elector("job", LONG, "");
        let led = elector.lead(|term| async move {
            assert!(!term.is_lost());
            ControlFlow::Break((term.token(), term))
        });
        let (token, term) = within(LIMIT, led).await.expect("leads");
        assert_eq!(world.keys().await, [""; 0], "is given back when it is told");
        assert_eq!(within(LIMIT, term.lost()).await, LossReason::Released, "also for whoever kept it");
        let later = within(LIMIT, elector.lead(|term| async move { ControlFlow::Break(term.token()) })).await;
        assert!(later.expect("leads") > token);
    }

    /// Contract 5: work that goes on lets all who wait lead before it leads again.
    async fn lead_takes_turns_with_others(world: &dyn World) {
        let (told, mut order) = mpsc::unbounded_channel();
        let mut tasks = Vec::new();
        let holder = world.client().await;
        let term = within(LIMIT, holder.elector("job", LONG, "").campaign()).await.expect("nobody leads");
        for number in 0..3 {
            let (client, told) = (world.client().await, told.clone());
            let elector = client.elector("job", LONG, "");
            tasks.push(spawn(async move {
                let mut terms = 0;
                elector.lead(|_term| {
                    told.send(number).expect("the test still listens");
                    terms += 1;
                    let flow = if terms == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
                    async move { flow }
                }).await.expect("leads");
            }));
            keys_become(world, number + 2).await;
        }
        term.resign().await.expect("leads");
        for task in tasks {
            task.join_within(LONG_LIMIT).await;
        }
        let mut led = Vec::new();
        while let Ok(number) = order.try_recv() {
            led.push(number);
        }
        assert_eq!(led.len(), 9);
        assert_eq!(led[..3], [0, 1, 2], "in the order in which they came");
        keys_become(world, 0).await;
    }

    /// Contract 2: at a loss the work is dropped, and the candidate campaigns again by itself.
    async fn lead_campaigns_again_after_a_loss(world: &dyn World) {
        let client = world.client().await;
        let elector = client.elector("job", SHORT, "");
        let (begins, mut begun) = mpsc::unbounded_channel();
        let believers = Believers::default();
        let dropped = Arc::new(AtomicUsize::new(0));
        let leading = spawn({
            let (dropped, believers) = (dropped.clone(), believers.clone());
            async move {
                elector.lead(move |term| {
                    let (begins, count) = (begins.clone(), Count(dropped.clone()));
                    let believers = believers.clone();
                    async move {
                        believers.add("it", &term);
                        let _count = count;
                        begins.send(()).expect("the test still listens");
                        pending::<()>().await;
                        ControlFlow::<()>::Continue(())
                    }
                }).await
            }
        });
        for round in 0..4 {
            within(LIMIT, begun.recv()).await.expect("leads");
            assert_eq!(dropped.load(Ordering::SeqCst), round, "the work of the term before is gone");
            if round % 2 == 0 {
                world.revoke_leases().await;
            } else {
                client.link.cut();
                keys_become(world, 0).await;
                client.link.restore();
            }
        }
        within(LIMIT, begun.recv()).await.expect("leads");
        assert_eq!(believers.count(), 5);
        leading.cancel().await;
        keys_become(world, 0).await;
    }

    /// Contract 2: the work is dropped before the next candidate leads, though the leader is cut off.
    async fn work_is_dropped_before_the_next_one_leads(world: &dyn World) {
        let (cut_off, other) = (world.client().await, world.client().await);
        let dropped = Arc::new(AtomicBool::new(false));
        let (begins, begun) = oneshot::channel();
        let leading = spawn({
            let (elector, flag) = (cut_off.elector("job", SHORT, ""), Flag(dropped.clone()));
            let mut once = Some((begins, flag));
            async move {
                elector.lead(move |_term| {
                    let once = once.take();
                    async move {
                        if let Some((begins, _flag)) = once {
                            begins.send(()).expect("the test waits");
                            pending::<()>().await;
                        }
                        ControlFlow::Break(())
                    }
                }).await
            }
        });
        within(LIMIT, begun).await.expect("leads");
        let waiter = spawn({
            let (elector, dropped) = (other.elector("job", LONG, ""), dropped.clone());
            async move {
                let term = elector.campaign().await.expect("leads at last");
                (term, dropped.load(Ordering::SeqCst))
            }
        });
        keys_become(world, 2).await;
        cut_off.link.cut();
        let (term, was_dropped) = waiter.join_within(LIMIT * 2).await;
        assert!(was_dropped, "the work goes on while another one leads");
        cut_off.link.restore();
        term.resign().await.expect("leads");
        within(LIMIT, leading.join()).await.expect("leads again");
        keys_become(world, 0).await;
    }

    /// Contract 6: work that does not end is never succeeded while it runs; its place is given back after its end only.
    async fn work_that_does_not_end_is_not_succeeded(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let (begins, begun) = oneshot::channel();
        let (ends, end) = oneshot::channel::<()>();
        let leading = spawn({
            let elector = one.elector("job", SHORT, "");
            let mut parts = Some((begins, end));
            async move {
                elector.lead(move |term| {
                    let (begins, end) = parts.take().expect("leads once");
                    async move {
                        begins.send(()).expect("the test waits");
                        end.await.expect("the test ends it");
                        ControlFlow::Break(term.is_lost())
                    }
                }).await
            }
        });
        within(LIMIT, begun).await.expect("leads");
        let waiter = candidate(world, &other.elector("job", LONG, ""), 1).await;
        tokio::time::sleep(SHORT * 3).await;
        assert!(!waiter.is_finished(), "two lead");
        ends.send(()).expect("is at work");
        assert!(!leading.join().await.expect("leads"), "was lost");
        waiter.join().await.resign().await.expect("leads");
    }

    /// Contract 6: dropping `lead` drops the work, then gives the place back, whoever keeps the term.
    async fn lead_may_be_dropped(world: &dyn World) {
        let client = world.client().await;
        let dropped = Arc::new(AtomicBool::new(false));
        let (keeps, kept) = oneshot::channel();
        let leading = spawn({
            let (elector, flag) = (client.elector("job", LONG, ""), Flag(dropped.clone()));
            let mut once = Some((keeps, flag));
            async move {
                elector.lead(move |term| {
                    let (keeps, flag) = once.take().expect("leads once");
                    async move {
                        let _flag = flag;
                        keeps.send(term).expect("the test waits");
                        pending::<ControlFlow<()>>().await
                    }
                }).await
            }
        });
        let term = within(LIMIT, kept).await.expect("leads");
        leading.cancel().await;
        assert!(dropped.load(Ordering::SeqCst));
        assert_eq!(within(LIMIT, term.lost()).await, LossReason::Released);
        keys_become(world, 0).await;
    }

    /// Contract 10: closing the provider drops the work and ends `lead`, also that of a candidate that waits.
    async fn closing_ends_lead(world: &dyn World) {
        let (one, other) = (world.client().await, world.client().await);
        let dropped = Arc::new(AtomicBool::new(false));
        let work = |client: &crate::TestClient| {
            let (elector, flag) = (client.elector("job", LONG, ""), Arc::new(Flag(dropped.clone())));
            spawn(async move {
                elector.lead(move |_term| {
                    let flag = flag.clone();
                    async move {
                        let _flag = flag;
                        pending::<ControlFlow<()>>().await
                    }
                }).await
            })
        };
        let leading = work(&one);
        keys_become(world, 1).await;
        let waiting = work(&other);
        keys_become(world, 2).await;
        within(LIMIT, other.close()).await;
        expect_closed(waiting.join().await);
        within(LIMIT, one.close()).await;
        expect_closed(leading.join().await);
        assert!(dropped.load(Ordering::SeqCst));
        keys_become(world, 0).await;
    }

    /// Contract 5: a store that is away when `lead` begins is waited for.
    async fn lead_waits_for_the_store(world: &dyn World) {
        let client = world.client().await;
        client.link.cut();
        let elector = client.elector("job", SHORT, "");
        let leading = spawn(async move { elector.lead(|_term| async { ControlFlow::Break(7) }).await });
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(!leading.is_finished());
        client.link.restore();
        assert_eq!(leading.join_within(LIMIT * 2).await.expect("leads"), 7);
        keys_become(world, 0).await;
    }

    /// Contract 5: a successor that does not wait is no hindrance to the end of `lead`.
    async fn lead_ends_without_its_successor(world: &dyn World) {
        let client = world.client().await;
        let options = ElectorOptions::new(LONG).successor("blue");
        let elector = client.elections().elector("job", options).expect("is valid");
        let waiter_client = world.client().await;
        let elector_of_other = waiter_client.elector("job", LONG, "");
        let led = elector.lead(|_term| async { ControlFlow::Break(()) });
        within(LIMIT, led).await.expect("leads");
        within(LIMIT, elector_of_other.campaign()).await.expect("leads").resign().await.expect("leads");
        keys_become(world, 0).await;
    }
}
