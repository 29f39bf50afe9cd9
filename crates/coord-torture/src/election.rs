//! Workload: candidates that lead for a moment, by `campaign` and by `lead`, and hand over, resign or vanish.
//!
//! A leader increments a register outside the store, which its token protects. It does not look whether it still leads.

use std::{ops::ControlFlow, sync::Arc};

use coord_api::{ElectionsExt, Elector, ElectorOptions, HandOver, Provider, Successor, Term};
use tokio::time::{sleep, timeout};

use crate::{
    history::{Name, What},
    worker::{Outcome, Worker, World},
};

/// Names of the elections: `a` and `a/b` are two. Locks of the same names are worked on as well.
const NAMES: [&str; 2] = ["torture/a", "torture/a/b"];

pub(crate) fn names() -> &'static [&'static str] {
    &NAMES
}

/// Values of the candidates, by which leaders name their successors.
const VALUES: [&str; 3] = ["1", "2", "3"];

/// Campaigns and leads, until the run is over.
pub(crate) async fn work(mut worker: Worker) {
    while let Some(client) = worker.next_round().await {
        let name = worker.pick(&NAMES);
        let place: Name = format!("election {name}").into();
        let elector = match elector(&mut worker, &client, name) {
            Ok(elector) => elector,
            Err(error) => {
                worker.fate("elector", &error);
                continue;
            }
        };
        match worker.random.u8(..8) {
            0 => look(&mut worker, &elector, name).await,
            1 | 2 => lead(&mut worker, &elector, &place).await,
            _ => campaign(&mut worker, &elector, &place).await,
        }
    }
}

fn elector(worker: &mut Worker, client: &Arc<dyn Provider>, name: &str) -> coord_api::Result<Elector> {
    let options = ElectorOptions::new(worker.ttl()).value(worker.pick(&VALUES).to_owned());
    client.elections().elector(name, options)
}

async fn look(worker: &mut Worker, elector: &Elector, name: &str) {
    let candidates = worker.call("candidates", elector.candidates()).await;
    if let Outcome::Answer(candidates) = candidates
        && !candidates.is_sorted_by(|one, next| one.token < next.token)
    {
        worker.add(What::Unexpected(format!("the candidates of {name} are out of order: {candidates:?}")));
    }
}

/// Leads once by hand.
async fn campaign(worker: &mut Worker, elector: &Elector, place: &Name) {
    let hold = worker.fresh();
    worker.add(What::Asks { place: place.clone(), hold });
    let Outcome::Answer(term) = worker.call("campaign", elector.campaign()).await else { return };
    let world = worker.world.clone();
    let (process, token) = (worker.process.number, term.token().get());
    world.history.acquires(process, place, hold, Some(token), term.lost());
    for _ in 0..worker.random.usize(..3) {
        let time = if worker.one_in(8) { worker.ttl() } else { worker.some_time() };
        count(&world, process, place, (hold, token), time).await;
        if worker.random.bool() {
            let value = worker.pick(&VALUES);
            let _ = worker.call("proclaim", term.proclaim(value)).await;
        }
    }
    end(worker, place, hold, term).await;
}

/// Increments a register outside the store, which the token protects.
async fn count(
    world: &World,
    process: usize,
    place: &Name,
    (hold, token): (u64, u64),
    time: std::time::Duration,
) {
    let read = world.registers.read(&world.history, process, place, token);
    // Tokens decide whether a register refuses; whether the leader believes must not matter.
    let _ = world.history.believes(place, hold);
    if let Some(value) = read {
        sleep(time).await;
        world.registers.write(&world.history, process, place, token, value + 1);
    }
}

/// Leads a few times, and now and then gives up.
async fn lead(worker: &mut Worker, elector: &Elector, place: &Name) {
    let (world, process) = (worker.world.clone(), worker.process.number);
    let (terms, time) = (worker.random.usize(1..4), worker.some_time());
    let limit = worker.some_time() * 40;
    let mut led = 0;
    let leading = elector.lead(|term| {
        led += 1;
        let (world, place, is_last) = (world.clone(), place.clone(), led >= terms);
        async move {
            // Asked for by now: the token is compared with those that were known then.
            let (hold, token) = (world.history.fresh(), term.token().get());
            world.history.acquires(process, &place, hold, Some(token), term.lost());
            let ends = Ends(&world, &place, hold);
            count(&world, process, &place, (hold, token), time).await;
            drop(ends);
            if is_last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    });
    if let Ok(Err(error)) = timeout(limit, leading).await {
        worker.fate("lead", &error);
    }
}

/// Takes note that a leader stops to believe, also when its work is dropped.
struct Ends<'a>(&'a World, &'a Name, u64);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.history.ends(self.1, self.2);
    }
}

async fn end(worker: &mut Worker, place: &Name, hold: u64, term: Term) {
    match worker.random.u8(..8) {
        // Kept until it is lost, or for a while.
        0 => {
            let time = worker.ttl();
            let lost = term.lost();
            let _ = timeout(time, lost).await;
            worker.world.history.ends(place, hold);
            drop(term);
        }
        1 => {
            worker.world.history.ends(place, hold);
            drop(term);
        }
        2..5 => {
            let to = Successor::Value(worker.pick(&VALUES).into());
            worker.world.history.ends(place, hold);
            let handed = worker.call("hand_over", term.hand_over(&to)).await;
            if let Outcome::Answer(HandOver::NotWaiting(term) | HandOver::Blocked(term)) = handed {
                let _ = worker.call("resign", term.resign()).await;
            }
        }
        _ => {
            worker.world.history.ends(place, hold);
            let _ = worker.call("resign", term.resign()).await;
        }
    }
}
